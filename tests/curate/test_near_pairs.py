"""All pairs of hashes within a distance: against a comparison of each with each."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.curate import pairs
from builder.curate.fingerprints import MIRROR
from builder.curate.pairs import Pairs, Rounds, joined, pairs_by_round, plan_rounds, popcount

TURN = int(MIRROR[0])
Array = np.ndarray[Any, np.dtype[Any]]


def each_with_each(hashes: Array, distance: int, mirror: int) -> dict[tuple[int, int], bool]:
    """(first, second) → whether near only once one is mirrored."""
    first, second = np.triu_indices(len(hashes), 1)
    plain = popcount(hashes[first] ^ hashes[second]) <= distance
    turned = popcount(hashes[first] ^ hashes[second] ^ np.uint64(mirror)) <= distance
    near = plain | (turned if mirror else False)
    where = np.flatnonzero(near)
    return {(int(first[at]), int(second[at])): not plain[at] for at in where}


def planted(count: int, distance: int, mirror: int, seed: int = 0) -> Array:
    """Random hashes, each followed by one that is up to ``distance`` bits away; every other one is mirrored too."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 1 << 64, count, dtype=np.uint64)
    for at in range(1, count, 2):
        flips = sum(1 << int(bit) for bit in rng.choice(64, rng.integers(0, distance + 1), replace=False))
        hashes[at] = int(hashes[at - 1]) ^ flips ^ (mirror if at % 4 == 1 else 0)
    return hashes


def in_rounds(hashes: Array, rounds: Rounds, numbers: range) -> Pairs:
    return joined(some for number in numbers for some in pairs_by_round(hashes, rounds, number))


def near_pairs(hashes: Array, distance: int, mirror: int) -> Pairs:
    rounds = plan_rounds(len(hashes), distance, mirror)
    return in_rounds(hashes, rounds, range(rounds.count))


def as_dict(found: Pairs) -> dict[tuple[int, int], bool]:
    return dict(
        zip(zip(found.first.tolist(), found.second.tolist(), strict=True), found.mirrored.tolist(), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("mirror", [0, TURN], ids=["as they are", "mirrored too"])
@pytest.mark.parametrize("distance", [0, 4, 10])
def test_nearly_all_pairs_are_found_and_no_others(distance: int, mirror: int) -> None:
    hashes = planted(3000, distance, mirror)
    found, true = as_dict(near_pairs(hashes, distance, mirror)), each_with_each(hashes, distance, mirror)
    assert found.items() <= true.items()
    assert len(found) >= 0.998 * len(true) >= 1490


@given(
    st.lists(st.sampled_from([0, 1, 3, TURN, TURN ^ 1, 2**64 - 1, 0xFF00FF00]), max_size=40), st.sampled_from([0, TURN])
)
def test_hashes_may_be_equal_or_mirror_images(values: list[int], mirror: int) -> None:
    hashes = np.array(values, dtype=np.uint64)
    assert as_dict(near_pairs(hashes, 2, mirror)) == each_with_each(hashes, 2, mirror)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_hashes_have_few_pairs(count: int) -> None:
    assert len(near_pairs(np.full(count, 7, dtype=np.uint64), 10, TURN)) == max(0, count - 1)


def test_rounds_can_be_shared_out() -> None:
    hashes = planted(500, 10, TURN)
    rounds = plan_rounds(len(hashes), 10, TURN)
    parts = [in_rounds(hashes, rounds, range(start, rounds.count, 3)) for start in (2, 0, 1)]
    assert as_dict(joined(parts)) == as_dict(near_pairs(hashes, 10, TURN))


def test_more_hashes_agree_in_more_bits_and_a_larger_distance_takes_more_rounds() -> None:
    assert plan_rounds(10_000, 10).bits < plan_rounds(1_000_000, 10).bits < plan_rounds(100_000_000, 10).bits
    assert plan_rounds(1_000_000, 4).count < plan_rounds(1_000_000, 10).count < plan_rounds(1_000_000, 12).count
    assert plan_rounds(1_000_000, 0).count <= 8


def test_a_crowd_of_like_hashes_costs_a_window_each() -> None:
    """20,000 hashes that differ from one in a bit or two: 200 million pairs, of which each round looks at few."""
    rng = np.random.default_rng(1)
    bits = np.uint64(1) << rng.integers(0, 64, (2, 20_000), dtype=np.uint64)
    hashes = np.uint64(12345) ^ bits[0] ^ bits[1]
    found = list(pairs_by_round(hashes, Rounds(1, 14, 10), 0))
    assert 100_000 < sum(map(len, found)) <= 20_000 * pairs._WINDOW
    assert all(len(some) <= pairs._MOST_PAIRS + len(hashes) for some in found)


def test_a_round_is_the_same_in_every_process() -> None:
    code = "from builder.curate.pairs import _choose, Rounds; print(_choose(Rounds(9, 18, 10, 5), 7))"
    words = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert words == {f"{pairs._choose(Rounds(9, 18, 10, 5), 7)}\n"}
