"""The second test, and what of its doubts is looked at."""

from __future__ import annotations

from typing import Any

import numpy as np

from builder.curate.fingerprints import FINGERPRINT, FULL, MIRROR, PLAIN, SPARSE
from builder.curate.near import Doubts, Prints, find_near, joined_doubts, judge, next_looks, same_bits
from builder.curate.pairs import Pairs, groups_of, plan_rounds


def pairs(*edges: tuple[int, int, bool]) -> Pairs:
    first, second, mirrored = zip(*edges, strict=True)
    return Pairs(np.array(first, np.int64), np.array(second, np.int64), np.array(mirrored, np.bool_))


def prints(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[Any]]:
    """The same fingerprint ``count`` times."""
    made = np.zeros(count, FINGERPRINT)
    made["words"] = np.random.default_rng(seed).integers(0, 1 << 64, 4, dtype=np.uint64)
    made["colour"] = 20
    made["state"] = FULL
    return made


def flipped(words: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """With that many of the last bits turned."""
    masks = [((1 << max(0, min(64, bits - 64 * (3 - word)))) - 1) for word in range(4)]
    return words ^ np.array(masks, dtype=np.uint64)


def verdicts(made: np.ndarray[Any, Any], *edges: tuple[int, int, bool], distance: int = 10) -> list[str]:
    """Of each pair."""
    words = {}
    sure, doubts = judge(Prints(made["words"], made["colour"], made["state"]), pairs(*edges), distance)
    for word, some in (("sure", sure), ("doubtful", doubts.pairs)):
        words |= dict.fromkeys(
            zip(some.first.tolist(), some.second.tolist(), some.mirrored.tolist(), strict=True), word
        )
    assert len(doubts.bits) == len(doubts.pairs)
    return [words.get(edge, "no") for edge in edges]


def test_256_bits_decide_where_they_are_near_or_far() -> None:
    made = prints(5)
    for row, bits in enumerate((0, 40, 41, 64, 65)):
        made["words"][row] = flipped(made["words"][0], bits)
    others = [(0, row, False) for row in range(1, 5)]
    assert verdicts(made, *others) == ["sure", "doubtful", "doubtful", "no"]
    assert verdicts(made, *others, distance=2) == ["no", "no", "no", "no"]
    assert verdicts(made, (0, 0, False), distance=0) == ["sure"]


def test_a_mirrored_pair_is_compared_as_its_mirror_image() -> None:
    made = prints(2)
    made["words"][1] ^= MIRROR
    made["colour"][:, :, 0] = [[[40, 0]], [[20, 20]]]
    made["colour"][1] = made["colour"][0][:, ::-1]
    assert verdicts(made, (0, 1, True), (0, 1, False)) == ["sure", "no"]


def test_another_colour_or_a_mark_on_a_page_leaves_a_doubt() -> None:
    made = prints(5)
    made["colour"][1] = 40
    made["colour"][2] = 0  # black and white
    made["state"][3] = SPARSE
    assert verdicts(made, (0, 1, False), (0, 2, False), (0, 3, False), (0, 4, False)) == [
        "doubtful",
        "doubtful",
        "doubtful",
        "sure",
    ]
    made["state"][1] = PLAIN
    rows, equal = same_bits(made, np.array([True, True, True, True, False]))
    assert (rows.tolist(), edges(equal)) == ([0, 2, 3], []), "the plain one is compared with nothing"


def test_equal_bits_are_paired_with_the_first() -> None:
    made = prints(6)
    made["words"][[1, 4]] = prints(1, seed=1)["words"][0]
    rows, equal = same_bits(made, np.arange(6) != 2)
    assert rows.tolist() == [0, 1]
    found = sorted(zip(equal.first.tolist(), equal.second.tolist(), strict=True))
    assert found == [(0, 3), (0, 5), (1, 4)]


def test_a_group_is_looked_at_with_its_nearest_in_waves() -> None:
    groups = np.array([0, 0, 2, 2, 4, 5])
    doubtful = pairs((0, 2, False), (0, 3, False), (1, 2, False), (1, 3, True), (0, 1, False), (4, 5, False))
    found = [Doubts(doubtful, np.array([50, 44, 48, 42, 41, 60]))] * 2
    doubts = joined_doubts(found)
    waves = []
    for _ in range(4):
        chosen, doubts = next_looks(doubts, groups)
        waves.append(edges(chosen))
    assert waves == [[(1, 3, True), (4, 5, False)], [(0, 3, False)], [(1, 2, False)], [(0, 2, False)]]
    assert edges(next_looks(joined_doubts(found), np.array([0, 0, 0, 0, 4, 4]))[0]) == []
    assert edges(next_looks(joined_doubts([]), groups)[0]) == []


def edges(some: Pairs) -> list[tuple[int, int, bool]]:
    return list(zip(some.first.tolist(), some.second.tolist(), some.mirrored.tolist(), strict=True))


def test_equal_bits_in_another_colour_or_of_a_mark_are_not_taken_for_the_same() -> None:
    made = prints(6)
    made["colour"][2] = made["colour"][3] = 40
    made["state"][4:] = SPARSE
    rows, equal = same_bits(made, np.ones(6, np.bool_))
    assert rows.tolist() == [0, 2, 4, 5]
    assert edges(equal) == [(0, 1, False), (2, 3, False)]


def test_a_crowd_with_one_hash_falls_into_its_pictures() -> None:
    """300 pictures of one 64-bit hash, three copies of each: the other bits tell them apart."""
    count, rng = 900, np.random.default_rng(0)
    made = np.zeros(count, FINGERPRINT)
    made["words"] = np.repeat(rng.integers(0, 1 << 64, (count // 3, 4), dtype=np.uint64), 3, axis=0)
    made["words"][:, 0] = 12345
    made["words"][:, 1] ^= np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64)
    made["state"] = FULL
    table = np.zeros(count, [("row", "<i8"), ("print", FINGERPRINT)])
    table["row"] = rng.permutation(count) + 7
    table["print"] = made
    order = np.argsort(table["row"])
    sure, doubts = find_near(table[order], 10, range(plan_rounds(count, 10, int(MIRROR[0])).count))
    groups = groups_of(count + 7, sure)
    for picture in table["row"].reshape(-1, 3):
        assert len(set(groups[picture])) == 1
    assert len(set(groups[table["row"]])) == count // 3
    assert len(doubts.pairs) == len(doubts.bits) < 5, "as far as chance goes"
