"""Groups from pairs: against a union-find of a few lines, and the same whatever the order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from builder.curate.pairs import Pairs, equal_rows, groups_of, joined_groups, leaders, mirrored_from

COUNT = 12
EDGES = st.lists(st.tuples(st.integers(0, COUNT - 1), st.integers(0, COUNT - 1), st.booleans()), max_size=30)


def pairs(edges: list[tuple[int, int, bool]]) -> Pairs:
    columns = list(zip(*edges, strict=True)) or [(), (), ()]
    return Pairs(np.array(columns[0], np.int64), np.array(columns[1], np.int64), np.array(columns[2], np.bool_))


def slowly(edges: list[tuple[int, int, bool]]) -> list[int]:
    groups = list(range(COUNT))
    for _ in range(COUNT):
        for a, b, _ in edges:
            groups[a] = groups[b] = min(groups[a], groups[b])
    return groups


@given(EDGES)
def test_groups_are_what_pairs_connect(edges: list[tuple[int, int, bool]]) -> None:
    groups = groups_of(COUNT, pairs(edges))
    assert groups.tolist() == slowly(edges) == groups_of(COUNT, pairs(edges[::-1])).tolist()
    half = len(edges) // 2
    assert joined_groups(groups_of(COUNT, pairs(edges[:half])), pairs(edges[half:])).tolist() == groups.tolist()


def test_a_long_chain_is_one_group() -> None:
    order = np.random.default_rng(0).permutation(50_000)
    chain = Pairs(order[:-1], order[1:], np.zeros(len(order) - 1, np.bool_))
    assert not groups_of(len(order), chain).any()


def test_the_largest_is_kept_then_the_first() -> None:
    groups = np.array([0, 0, 2, 2, 2, 5])
    assert leaders([groups], np.array([10, 20, 30, 30, 7, 1])).tolist() == [1, 1, 2, 2, 2, 5]
    assert leaders([np.zeros(0, np.int64)], np.zeros(0, np.int64)).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 1)), max_size=20))
def test_equal_rows_are_paired_with_the_first_of_them(rows: list[tuple[int, int]]) -> None:
    found = equal_rows(np.array([high for high, _ in rows]), np.array([low for _, low in rows]))
    expected = [(rows.index(row), at) for at, row in enumerate(rows) if rows.index(row) < at]
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == expected
    assert not found.mirrored.any()


def test_mirrored_is_told_from_the_one_that_is_kept() -> None:
    edges = [(0, 1, True), (1, 2, True), (2, 3, False), (4, 5, True), (6, 7, False)]
    kept = np.array([1, 1, 1, 1, 4, 4, 6, 6])
    assert mirrored_from(kept, pairs(edges)).tolist() == [True, False, True, True, False, True, False, False]


def test_a_picture_that_is_its_own_mirror_image_is_not_mirrored() -> None:
    assert mirrored_from(np.array([0, 0]), pairs([(0, 1, True), (0, 1, False)])).tolist() == [False, False]
