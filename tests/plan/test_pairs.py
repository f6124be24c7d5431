"""Joining by path, checked against dictionaries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from builder.base.arrays import string_array
from builder.base.ids import Ids, path_ids
from builder.base.records import CUT, WHOLE
from builder.plan.pairs import (
    NOT_FOUND,
    Found,
    IdLookup,
    by_place,
    join,
    places,
    repeated,
    shared,
    suspects,
)
from builder.source.listing import Listing
from builder.source.tables import ArchiveTable

# Halves from a handful of numbers: equal ids, and ids that share one half only, which hashes hardly ever do.
halves = st.sampled_from([0, 1, 2, 2**64 - 1])
id_lists = st.lists(st.tuples(halves, halves), max_size=25)


def ids_of(pairs: list[tuple[int, int]]) -> Ids:
    return np.array(pairs, dtype="<u8").reshape(-1, 2)


@given(id_lists, id_lists)
def test_the_last_of_equal_ids_is_found(there: list[tuple[int, int]], wanted: list[tuple[int, int]]) -> None:
    last = {pair: position for position, pair in enumerate(there)}
    found = IdLookup(ids_of(there)).last(ids_of(wanted))
    assert found.tolist() == [last.get(pair, NOT_FOUND) for pair in wanted]
    assert found.dtype == np.int64


@given(id_lists)
def test_effective_are_the_last_of_each_id(there: list[tuple[int, int]]) -> None:
    last = {pair: position for position, pair in enumerate(there)}
    mask = IdLookup(ids_of(there)).effective()
    assert np.flatnonzero(mask).tolist() == sorted(last.values())


@given(id_lists)
def test_repeated_are_all_but_the_first_of_each_id(pairs: list[tuple[int, int]]) -> None:
    assert repeated(ids_of(pairs)).tolist() == [pair in pairs[:position] for position, pair in enumerate(pairs)]


@given(st.lists(st.tuples(halves, halves, st.booleans()), max_size=25))
def test_shared_are_ids_that_another_of_those_asked_about_has(rows: list[tuple[int, int, bool]]) -> None:
    among = [(first, second) for first, second, asked in rows if asked]
    expected = [asked and among.count((first, second)) > 1 for first, second, asked in rows]
    asked = np.array([asked for _, _, asked in rows], dtype=np.bool_)
    assert shared(ids_of([row[:2] for row in rows]), asked).tolist() == expected


def table(names: list[str], states: list[int] | None = None) -> ArchiveTable:
    count = len(names)
    return ArchiveTable(
        ids=path_ids(names),
        offsets=np.arange(count, dtype=np.int64) * 1024 + 512,
        sizes=np.full(count, 100, dtype=np.int64),
        states=np.array(states or [WHOLE] * count, dtype=np.uint8),
        is_image=np.array([name.endswith(".jpg") for name in names], dtype=np.bool_),
        is_json=np.array([name.endswith(".json") for name in names], dtype=np.bool_),
        size=count * 1024,
        damage=(),
        compression=None,
    )


def test_found_members_have_their_archives_and_places() -> None:
    tables = [table(["a.jpg", "b.jpg"]), table([]), table(["c.jpg"], [CUT])]
    found = places(tables, np.array([2, NOT_FOUND, 0, 1]))
    assert found.archives.tolist() == [2, NOT_FOUND, 0, 0]
    assert found.offsets.tolist() == [512, 0, 512, 1536]
    assert found.sizes.tolist() == [100, 0, 100, 100]
    assert found.there.tolist() == [True, False, True, True]
    assert found.whole.tolist() == [False, False, True, True]


def test_places_of_small_and_large_tars_go_into_one_column() -> None:
    small, large = table(["a.jpg"]), table(["b.jpg"])
    small = replace(small, offsets=small.offsets.astype(np.uint32))
    large = replace(large, offsets=np.array([1 << 33], dtype=np.int64))
    assert places([small, large], np.array([0, 1])).offsets.tolist() == [512, 1 << 33]


def test_in_no_archives_nothing_is_found() -> None:
    for tables in ([], [table([])]):
        joined = join(listing(["a.jpg"]), tables, tables)
        assert joined.image_at.tolist() == joined.annotation_at.tolist() == [NOT_FOUND]
        assert joined.unlisted == 0
        assert places(tables, joined.image_at).archives.tolist() == [NOT_FOUND]


def listing(images: list[str]) -> Listing:
    return Listing(string_array(images), string_array([f"{name}.json" for name in images]))


def unlisted(tables: list[ArchiveTable], images: list[str]) -> int:
    mine = list(tables)
    return join(listing(images), mine, mine).unlisted


def test_unlisted_are_images_that_no_entry_names() -> None:
    tables = [table(["a.jpg", "a.json", "b.jpg", "b.jpg"]), table(["a.jpg", "notes.txt"])]
    assert unlisted(tables, []) == 2  # a name that occurs twice is one image
    assert unlisted(tables, ["a.jpg"]) == 1
    assert unlisted(tables, ["a.jpg", "a.jpg", "missing.jpg"]) == 1
    assert unlisted(tables, ["a.jpg", "b.jpg"]) == 0
    assert unlisted(tables, ["notes.txt"]) == 2  # a listed member that is no image by name takes nothing away


@given(st.lists(st.sampled_from("abcdef"), max_size=20), st.lists(st.sampled_from("abc"), max_size=6))
def test_an_image_that_an_entry_before_names_is_a_duplicate_found_or_not(listed: list[str], there: list[str]) -> None:
    tables = [table(there)]
    duplicate = join(listing(listed), tables, tables).duplicate
    assert duplicate.tolist() == [name in listed[:position] for position, name in enumerate(listed)]


@given(st.lists(st.tuples(halves, st.booleans()), max_size=25))
def test_suspects_are_hashes_that_another_of_those_asked_about_has(rows: list[tuple[int, bool]]) -> None:
    among = [value for value, asked in rows if asked]
    expected = [place for place, (value, asked) in enumerate(rows) if asked and among.count(value) > 1]
    hashes = np.array([value for value, _ in rows], dtype=np.uint64)
    assert suspects(hashes, np.array([asked for _, asked in rows], dtype=np.bool_)).tolist() == expected


@given(
    members=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=12),
    data=st.data(),
)
def test_entries_are_put_in_the_order_of_their_members(members: list[tuple[int, int]], data: st.DataObject) -> None:
    members.sort(key=lambda member: member[0])  # archives stand behind one another; offsets may go back, after links
    entries = data.draw(st.permutations(range(len(members))))
    chosen = np.array([data.draw(st.booleans()) for _ in entries], dtype=np.bool_)
    at = np.array(entries, dtype=np.int32)
    columns = np.array(members, dtype=np.int32).reshape(-1, 2)[at]
    found = Found(columns[:, 0], columns[:, 1], columns[:, 1], np.zeros(len(at), np.uint8))
    expected = sorted(np.flatnonzero(chosen).tolist(), key=lambda entry: members[entries[entry]])
    assert by_place(found, at, chosen, len(members)).tolist() == expected
