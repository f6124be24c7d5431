"""Find near pairs of fingerprints. They are tested on all 256 bits, and on pixels if these leave a doubt.

64 bits within the distance → 256 bits: same, different, or in doubt → in doubt: compare both pictures
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.base.records import SampleProblem
from builder.curate.fingerprint_rows import Table
from builder.curate.fingerprints import FULL, MIRROR, PLAIN, Words, popcount
from builder.curate.groups import joined_groups
from builder.curate.pairs import Numbers, Pairs, joined, pairs_by_round, plan_rounds
from builder.curate.pixels import LOOK, alike
from builder.engines.contract import Report
from builder.read.opening import open_dataset
from builder.source.images import thumbnail

MOST_DISTANCE = 16  # of 64 bits; unrelated pictures differ in 13 or more
_CHUNK = 16  # rounds per task
_MOST_DOUBTS = 1 << 20  # pairs in memory before repeated ones are dropped
_LOOKS = 64  # pairs per task
WAVES = 8  # of looks, one look per group; all pairs of a thousand similar pictures are 500,000 looks
_SURE, _DOUBT = 4.0, 6.4  # times the distance, of 256 bits
_LESS_SURE, _LESS_DOUBT = 40, 72  # limits: the nearest two photographs differ in 80 bits, crops in 30 to 57
_COLOUR = 3  # halved levels; a larger colour difference of a quarter needs a second look

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Prints:
    """The fields of FINGERPRINT, each contiguous in memory."""

    words: Words
    colour: npt.NDArray[np.int8]
    state: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Search:
    """Rounds ``first`` to ``end`` (exclusive) over the fingerprints in ``path``."""

    path: str
    distance: int
    first: int
    end: int

    @property
    def name(self) -> str:
        """The name for messages."""
        return f"rounds {self.first} to {self.end} over {self.path}"


@dataclass(frozen=True, slots=True)
class Found:
    """``sure``: pairs that connect all equal pictures. ``doubtful``: pairs between groups of these, with their
    distances in 256 bits. Numbers are rows."""

    first: int
    sure: Pairs
    doubtful: Pairs
    bits: Numbers


@dataclass(frozen=True, slots=True)
class Look:
    """Pairs of rows of ``folder`` whose pixels must be compared."""

    folder: str
    number: int
    pairs: Pairs

    @property
    def name(self) -> str:
        """The name for messages."""
        return f"{len(self.pairs)} pairs of images of {self.folder}"


@dataclass(frozen=True, slots=True)
class Doubts:
    """Pairs, and in how many of 256 bits each differs."""

    pairs: Pairs
    bits: Numbers


def compared(prints: Table, candidates: Bools) -> Numbers:
    """Rows to compare: those of ``candidates`` with enough content."""
    return np.flatnonzero(candidates & (prints["state"] > PLAIN))


def same_bits(prints: Table, rows: Numbers) -> tuple[Numbers, Pairs]:
    """Find rows with the same 256 bits and colours. Returns the first of each, and its pairs with the others. Rows that
    are not FULL stand for themselves: for these only pixels are trusted."""
    colour = prints["colour"][rows].reshape(len(rows), 8).view(np.uint64)[:, 0]
    own = np.where(prints["state"][rows] == FULL, -1, rows)
    keys = np.column_stack([prints["words"][rows], colour, own.astype(np.uint64)])
    order = np.lexsort((rows, *keys.T[::-1]))
    keys = keys[order]
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    leads = rows[order][new][np.cumsum(new) - 1]
    others = ~new
    pairs = Pairs(leads[others], rows[order][others], np.zeros(int(others.sum()), dtype=np.bool_))
    return np.sort(rows[order][new]), pairs


def searches(path: str, count: int, distance: int) -> list[Search]:
    """The rounds that find near pairs among ``count`` fingerprints, as tasks."""
    rounds = plan_rounds(count, distance, int(MIRROR[0])).count
    return [Search(path, distance, first, min(rounds, first + _CHUNK)) for first in range(0, rounds, _CHUNK)]


def search(task: Search, report: Report) -> Found:
    """Do some rounds. The file holds the rows (int64), and FINGERPRINT of each."""
    found = find_near(np.load(task.path, mmap_mode="r"), task.distance, range(task.first, task.end), report)
    return Found(task.first, *found)


def find_near(
    table: Table, distance: int, rounds: range, report: Report = lambda images, size: None
) -> tuple[Pairs, Pairs, Numbers]:
    """Pairs of rows found by these rounds: sure pairs, doubtful pairs, and the distances of the doubtful ones.
    ``table``: fields ``row`` and ``print``."""
    rows = np.ascontiguousarray(table["row"])
    prints = Prints(*(np.ascontiguousarray(table["print"][name]) for name in ("words", "colour", "state")))
    hashes, ties = (np.ascontiguousarray(prints.words[:, word]) for word in (0, 1))
    plan = plan_rounds(len(rows), distance, int(MIRROR[0]))
    groups = np.arange(len(rows), dtype=np.int64)
    sure: list[Pairs] = []
    doubtful: list[Pairs] = []
    for number in rounds:
        for pairs in pairs_by_round(hashes, plan, [number], (ties, int(MIRROR[1]))):
            verdict = judge(prints, pairs.where(groups[pairs.first] != groups[pairs.second]), distance)
            sure.append(verdict.sure)
            groups = joined_groups(groups, verdict.sure)
            doubtful.append(verdict.doubtful)
        if sum(map(len, doubtful)) > _MOST_DOUBTS:
            doubtful = [joined(doubtful)]
        report(1, 0)
    left = joined(doubtful)
    left = left.where(groups[left.first] != groups[left.second])
    bits = judge(prints, left, distance).bits

    def as_rows(pairs: Pairs) -> Pairs:
        return Pairs(rows[pairs.first], rows[pairs.second], pairs.mirrored)

    return as_rows(joined(sure)), as_rows(left), bits


@dataclass(frozen=True, slots=True)
class Verdict:
    """Pairs that are surely the same, pairs in doubt, and in how many of 256 bits the latter differ."""

    sure: Pairs
    doubtful: Pairs
    bits: Numbers


def judge(prints: Prints, pairs: Pairs, distance: int) -> Verdict:
    """The second test: all 256 bits, the colours, and whether the pictures have enough content."""
    pairs, bits = _near_in_all(prints.words, pairs, min(_DOUBT * distance, _LESS_DOUBT))
    mine = prints.colour[pairs.first].astype(np.int16)
    theirs = prints.colour[pairs.second].astype(np.int16)
    theirs = np.where(pairs.mirrored[:, None, None, None], theirs[:, :, ::-1], theirs)
    coloured_alike = np.abs(mine - theirs).max(axis=(1, 2, 3), initial=0) <= _COLOUR
    full = (prints.state[pairs.first] == FULL) & (prints.state[pairs.second] == FULL)
    sure = full & coloured_alike & (bits <= min(_SURE * distance, _LESS_SURE))
    return Verdict(pairs.where(sure), pairs.where(~sure), bits[~sure])


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


def doubts_of(found: list[Found]) -> Doubts:
    """All doubtful pairs, without repeats."""
    every = [Doubts(each.doubtful, each.bits) for each in found] or [Doubts(joined([]), np.zeros(0, np.int64))]
    pairs = Pairs(
        *(np.concatenate([getattr(each.pairs, name) for each in every]) for name in ("first", "second", "mirrored"))
    )
    bits = np.concatenate([each.bits for each in every])
    order = np.lexsort((pairs.mirrored, bits, pairs.second, pairs.first))
    order = order[_changes(pairs.first[order], pairs.second[order])]
    return Doubts(pairs.where(order), bits[order])


def next_looks(doubts: Doubts, groups: Numbers) -> tuple[Pairs, Doubts]:
    """The pairs to look at next, and the remaining ones. Takes for each group its nearest pair with an earlier group.
    If that picture is the same, the group needs no other comparison."""
    a, b = groups[doubts.pairs.first], groups[doubts.pairs.second]
    low, high = np.minimum(a, b), np.maximum(a, b)
    order = np.lexsort((doubts.pairs.second, doubts.pairs.first, low, doubts.bits, high))
    order = order[low[order] != high[order]]
    nearest = _changes(high[order])
    rest = order[~nearest]
    return doubts.pairs.where(order[nearest]), Doubts(doubts.pairs.where(rest), doubts.bits[rest])


def _changes(*columns: Numbers) -> Bools:
    """Where a row of these columns differs from the row before."""
    new = np.ones(len(columns[0]), dtype=np.bool_)
    new[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return new


def looks(folder: str, pairs: Pairs) -> Iterator[Look]:
    """The pairs as tasks."""
    for number, first in enumerate(range(0, len(pairs), _LOOKS)):
        yield Look(folder, number, pairs.where(np.arange(first, min(len(pairs), first + _LOOKS))))


def look(task: Look, report: Report) -> tuple[int, Pairs]:
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
    return task.number, task.pairs.where(same)
