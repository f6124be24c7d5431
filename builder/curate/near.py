"""Find near pairs of fingerprints. They are tested on all 256 bits, and on pixels if these leave a doubt.

64 bits within the distance → 256 bits: same, different, or in doubt → in doubt: compare both pictures
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.base.records import SampleProblem
from builder.base.words import counted
from builder.curate.fingerprints import FINGERPRINT, FULL, MIRROR, PLAIN, Table, Words
from builder.curate.pairs import (
    Bools,
    Numbers,
    Pairs,
    changes,
    equal_rows,
    gathered,
    groups_of,
    joined,
    joined_groups,
    pairs_by_round,
    plan_rounds,
    popcount,
)
from builder.curate.pixels import LOOK, alike
from builder.engines.contract import Report, Work
from builder.read.opening import open_dataset
from builder.source.images import thumbnail

MOST_DISTANCE = 16  # of 64 bits; unrelated pictures differ in 13 or more
_CHUNK = 16  # rounds per task
_MOST_DOUBTS = 1 << 20  # pairs in memory before repeated ones are dropped
_LOOKS = 64  # pairs per task
_WAVES = 8  # of looks, one look per group; all pairs of a thousand similar pictures are 500,000 looks
_SURE, _DOUBT = 4.0, 6.4  # times the distance, of 256 bits
_LESS_SURE, _LESS_DOUBT = 40, 72  # limits: the nearest two photographs differ in 80 bits, crops in 30 to 57
_COLOUR = 3  # halved levels; a larger colour difference of a quarter needs a second look


@dataclass(frozen=True, slots=True)
class Prints:
    """The fields of FINGERPRINT, each contiguous in memory."""

    words: Words
    colour: npt.NDArray[np.int8]
    state: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Search:
    """Rounds ``first`` to ``end`` (exclusive) over the fingerprints in ``path``."""

    path: str
    distance: int
    first: int
    end: int

    @property
    def name(self) -> str:
        return f"rounds {self.first} to {self.end} over {self.path}"


@dataclass(frozen=True, slots=True)
class _Look:
    """Pairs of rows of ``folder`` whose pixels must be compared."""

    folder: str
    pairs: Pairs

    @property
    def name(self) -> str:
        return f"{counted(len(self.pairs), 'pair')} of images of {self.folder}"


@dataclass(frozen=True, slots=True)
class Doubts:
    """Pairs, and in how many of 256 bits each differs."""

    pairs: Pairs
    bits: Numbers


def same_pictures(
    folder: str,
    prints: Table,
    exact: Pairs,
    distance: int,
    path: str,
    run: Callable[[str, str, Work[Any, Any], Sequence[Any], int], list[Any]],
) -> list[Pairs]:
    """Pairs of rows of ``folder`` that show the same picture, besides those with the same bytes (``exact``). ``path``:
    of a file for the searches to read. ``run``: does work on tasks, given its name, what it counts, and how many."""
    first = np.ones(len(prints), dtype=np.bool_)
    first[exact.second] = False
    rows, equal = same_bits(prints, first)
    table = np.zeros(len(rows), dtype=[("row", "<i8"), ("print", FINGERPRINT)])
    table["row"], table["print"] = rows, prints[rows]
    np.save(path, table)
    del table
    rounds = plan_rounds(len(rows), distance, int(MIRROR[0])).count
    tasks = [_Search(path, distance, start, min(rounds, start + _CHUNK)) for start in range(0, rounds, _CHUNK)]
    found = run("comparing", "rounds", _search, tasks, rounds)
    os.unlink(path)
    near = [equal, *(sure for sure, _ in found)]
    groups = groups_of(len(prints), joined([exact, *near]))
    doubts = joined_doubts([some for _, some in found])
    for _ in range(_WAVES):
        pairs, doubts = next_looks(doubts, groups)
        if not len(pairs):
            break
        numbers = np.arange(len(pairs))
        looks = [_Look(folder, pairs.where(numbers[start : start + _LOOKS])) for start in numbers[::_LOOKS]]
        same = joined(run("looking twice", "pairs", _look, looks, len(pairs)))
        groups = joined_groups(groups, same)
        near.append(same)
    return near


def same_bits(prints: Table, candidates: Bools) -> tuple[Numbers, Pairs]:
    """Find rows with the same 256 bits and colours, among the candidates with enough content. Returns the first row of
    each kind, and its pairs with the others. Rows that are not FULL stand for themselves: for these only pixels are
    trusted."""
    rows = np.flatnonzero(candidates & (prints["state"] > PLAIN))
    colour = prints["colour"][rows].reshape(len(rows), 8).view(np.uint64)[:, 0]
    own = np.where(prints["state"][rows] == FULL, -1, rows)
    equal = equal_rows(*prints["words"][rows].T, colour, own)
    return np.delete(rows, equal.second), equal.of(rows)


def _search(task: _Search, report: Report) -> tuple[Pairs, Doubts]:
    """Do some rounds. The file holds the rows (int64), and FINGERPRINT of each."""
    return find_near(np.load(task.path, mmap_mode="r"), task.distance, range(task.first, task.end), report)


def find_near(
    table: Table, distance: int, rounds: range, report: Report = lambda images, size: None
) -> tuple[Pairs, Doubts]:
    """The pairs of rows that these rounds find: pairs that connect all equal pictures, and doubtful pairs between
    groups of these. ``table``: fields ``row`` and ``print``."""
    rows = np.ascontiguousarray(table["row"])
    prints = Prints(*(np.ascontiguousarray(table["print"][name]) for name in ("words", "colour", "state")))
    hashes, ties = (np.ascontiguousarray(prints.words[:, word]) for word in (0, 1))
    plan = plan_rounds(len(rows), distance, int(MIRROR[0]))
    groups = np.arange(len(rows), dtype=np.int64)
    sure: list[Pairs] = []
    doubtful: list[Pairs] = []
    for number in rounds:
        for pairs in pairs_by_round(hashes, plan, number, (ties, int(MIRROR[1]))):
            same, doubts = judge(prints, pairs.where(groups[pairs.first] != groups[pairs.second]), distance)
            sure.append(same)
            groups = joined_groups(groups, same)
            doubtful.append(doubts.pairs)
        if sum(map(len, doubtful)) > _MOST_DOUBTS:
            doubtful = [joined(doubtful)]
        report(1, 0)
    left = joined(doubtful)
    left = left.where(groups[left.first] != groups[left.second])
    return joined(sure).of(rows), Doubts(left.of(rows), judge(prints, left, distance)[1].bits)


def judge(prints: Prints, pairs: Pairs, distance: int) -> tuple[Pairs, Doubts]:
    """The second test: all 256 bits, the colours, and whether the pictures have enough content. Returns pairs that are
    surely the same, and pairs in doubt."""
    pairs, bits = _near_in_all(prints.words, pairs, min(_DOUBT * distance, _LESS_DOUBT))
    mine = prints.colour[pairs.first].astype(np.int16)
    theirs = prints.colour[pairs.second].astype(np.int16)
    theirs = np.where(pairs.mirrored[:, None, None, None], theirs[:, :, ::-1], theirs)
    coloured_alike = np.abs(mine - theirs).max(axis=(1, 2, 3), initial=0) <= _COLOUR
    full = (prints.state[pairs.first] == FULL) & (prints.state[pairs.second] == FULL)
    sure = full & coloured_alike & (bits <= min(_SURE * distance, _LESS_SURE))
    return pairs.where(sure), Doubts(pairs.where(~sure), bits[~sure])


def _near_in_all(words: Words, pairs: Pairs, most: float) -> tuple[Pairs, Numbers]:
    """Pairs that differ in at most ``most`` of 256 bits, and in how many. Tests 64 bits at a time: most pairs drop out
    early."""
    bits = np.zeros(len(pairs), dtype=np.int64)
    for word in range(words.shape[1]):
        turned = pairs.mirrored * MIRROR[word]
        bits = bits + popcount(words[pairs.first, word] ^ words[pairs.second, word] ^ turned)
        near = bits <= most
        if not near.all():
            pairs, bits = pairs.where(near), bits[near]
    return pairs, bits


def joined_doubts(parts: Sequence[Doubts]) -> Doubts:
    """All doubtful pairs without repeats."""
    pairs = gathered(part.pairs for part in parts)
    bits = np.concatenate([np.zeros(0, np.int64), *(part.bits for part in parts)])
    order = np.lexsort((pairs.mirrored, bits, pairs.second, pairs.first))
    order = order[changes(pairs.first[order], pairs.second[order])]
    return Doubts(pairs.where(order), bits[order])


def next_looks(doubts: Doubts, groups: Numbers) -> tuple[Pairs, Doubts]:
    """The pairs to look at next, and the remaining ones. Takes for each group its nearest pair with an earlier group.
    If that picture is the same, the group needs no other comparison."""
    a, b = groups[doubts.pairs.first], groups[doubts.pairs.second]
    low, high = np.minimum(a, b), np.maximum(a, b)
    order = np.lexsort((doubts.pairs.second, doubts.pairs.first, low, doubts.bits, high))
    order = order[low[order] != high[order]]
    nearest = changes(high[order])
    rest = order[~nearest]
    return doubts.pairs.where(order[nearest]), Doubts(doubts.pairs.where(rest), doubts.bits[rest])


def _look(task: _Look, report: Report) -> Pairs:
    """The third test: decode both images of each pair and compare their pixels. Returns the pairs that are equal."""
    rows = open_dataset(task.folder)
    pictures: dict[int, Any] = {}

    def picture(row: int) -> Any:
        if row not in pictures:
            try:
                data = thumbnail(rows[row].image, LOOK)
                pictures[row] = np.frombuffer(data, dtype=np.uint8).reshape(LOOK, LOOK, 3)
            except SampleProblem:
                pictures[row] = None
        return pictures[row]

    same = np.zeros(len(task.pairs), dtype=np.bool_)
    pairs = zip(task.pairs.first.tolist(), task.pairs.second.tolist(), task.pairs.mirrored.tolist(), strict=True)
    for at, (first, second, mirrored) in enumerate(pairs):
        a, b = picture(first), picture(second)
        same[at] = a is not None and b is not None and alike(a, b, mirrored)
        report(1, 0)
    return task.pairs.where(same)
