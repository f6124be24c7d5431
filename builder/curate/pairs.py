"""All pairs of 64-bit hashes within a distance, also mirrored, by bit sampling and sorting, and the groups that pairs
make. No index is built.

    round: choose k bits → sort by them → compare neighbours that agree in all k → pairs within the distance

A pair that differs in d of 64 bits agrees in k chosen ones with probability C(64-d, k) / C(64, k). ``plan_rounds``
chooses the number of rounds so that the pair meets at least once with a probability of 0.999, and the k that costs
least. For a million hashes and d = 10 these are about 200 rounds of 17 bits. Each sorts a million numbers.

Mirrored pairs cost one more bit. In each round one of the bits that mirroring flips is the anchor: hashes with that bit
set are mirrored first. Then a picture and its mirror image lie side by side, and the sort finds both kinds at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

RECALL = 0.999  # of the pairs exactly at the distance; nearer pairs meet in more rounds
_WINDOW = 128  # most neighbours compared with a hash; longer runs are split by 16 more bits
_SORT, _COMPARE = 66.0, 6.0  # nanoseconds to sort a hash, to compare a pair: their ratio chooses k
_MOST_PAIRS = 1 << 20  # in memory, about
_ODD = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))  # multipliers that spread masked bits


@dataclass(frozen=True, slots=True)
class Rounds:
    """``count`` rounds that each compare ``bits`` bits. ``mirror``: the bits that mirroring flips, 0 for none."""

    count: int
    bits: int
    distance: int
    mirror: int = 0


@dataclass(frozen=True, slots=True)
class Pairs:
    """``first`` < ``second``: positions of hashes. ``mirrored``: the pair is near if one of them is mirrored."""

    first: Numbers
    second: Numbers
    mirrored: Bools

    def __len__(self) -> int:
        return len(self.first)

    def where(self, chosen: Bools | Numbers) -> Pairs:
        return Pairs(self.first[chosen], self.second[chosen], self.mirrored[chosen])

    def of(self, rows: Numbers) -> Pairs:
        """The same pairs of ``rows``, where these are pairs of positions in ``rows``."""
        return Pairs(rows[self.first], rows[self.second], self.mirrored)


def gathered(parts: Iterable[Pairs]) -> Pairs:
    """All pairs, one part after another."""
    every = [Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_)), *parts]
    return Pairs(*(np.concatenate([getattr(part, name) for part in every]) for name in Pairs.__slots__))


def joined(parts: Iterable[Pairs]) -> Pairs:
    """All pairs without repeats, sorted by first and second. A pair that is near both ways counts as not mirrored."""
    every = gathered(parts)
    order = np.lexsort((every.mirrored, every.second, every.first))
    return every.where(order[changes(every.first[order], every.second[order])])


def changes(*columns: npt.NDArray[Any]) -> Bools:
    """Where a row of these columns differs from the row before. The first row does."""
    new = np.ones(len(columns[0]), dtype=np.bool_)
    new[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return new


def leaders(columns: Sequence[npt.NDArray[Any]], worth: npt.NDArray[Any] | None = None) -> Numbers:
    """For each row of these columns, the leader of all rows that are equal to it: the row with the most ``worth``; of
    equal ones, the first. ``worth``: numbers that can be negated."""
    order = np.lexsort([*([] if worth is None else [-worth]), *columns[::-1]])  # stable: equal rows keep their order
    new = changes(*(column[order] for column in columns))
    leads = np.empty(len(order), dtype=np.int64)
    leads[order] = order[new][np.cumsum(new) - 1]
    return leads


def equal_rows(*columns: npt.NDArray[Any]) -> Pairs:
    """Pairs of equal rows of these columns: the first such row with each later one."""
    leads = leaders(columns)
    others = np.flatnonzero(leads != np.arange(len(leads)))
    return Pairs(leads[others], others, np.zeros(len(others), dtype=np.bool_))


def plan_rounds(hashes: int, distance: int, mirror: int = 0) -> Rounds:
    """The cheapest rounds that find a pair ``distance`` bits apart (0 to 32) with a probability of RECALL."""
    best, least = Rounds(1, 1, distance, mirror), math.inf
    anchors = 1 if mirror else 0
    for bits in range(8, 33):
        met = math.comb(64 - distance, bits + anchors) / math.comb(64, bits + anchors)
        count = math.ceil(math.log(1 - RECALL) / math.log1p(-met)) if met < 1 else 1
        cost = count * hashes * (_SORT + _COMPARE * hashes / 2 ** (bits + 1))
        if cost < least:
            best, least = Rounds(count, bits, distance, mirror), cost
    return best


def pairs_by_round(
    hashes: Hashes, rounds: Rounds, number: int, ties: tuple[Hashes, int] | None = None
) -> Iterator[Pairs]:
    """The pairs that one of these rounds finds. Later rounds mostly find them again. A round's number decides its bits,
    so rounds can run anywhere, in any order.

    ``ties``: 64 more bits of each hash, and which of them mirroring flips. They split a run that is too long to compare
    each with each. Without them the hashes' other bits split it, and these may be equal.
    """
    if len(hashes) < 2:
        return
    anchor, bits, more = _choose(rounds, number)
    turned = (hashes >> np.uint64(anchor)) & np.uint64(1)
    canonical = hashes ^ (turned * np.uint64(rounds.mirror))
    row_bits = max(1, (len(hashes) - 1).bit_length())
    more_bits = min(16, (64 - row_bits) // 3)
    key_bits = 64 - row_bits - more_bits
    # One number holds the fields of the sort key: a hash of the chosen bits, a hash of 16 more bits, the row.
    order = canonical & np.uint64(bits)
    order *= _ODD[0]
    order >>= np.uint64(64 - key_bits)
    order <<= np.uint64(more_bits)
    rest = canonical & np.uint64(more) if ties is None else ties[0] ^ (turned * np.uint64(ties[1]))
    if ties is not None:
        rest &= np.uint64(more)
    del turned
    rest *= _ODD[1]
    rest >>= np.uint64(64 - more_bits)
    order |= rest
    del rest
    order <<= np.uint64(row_bits)
    order |= np.arange(len(hashes), dtype=np.uint64)
    order.sort()
    rows = (order & np.uint64((1 << row_bits) - 1)).astype(np.int64)
    order >>= np.uint64(row_bits + more_bits)
    canonical = canonical[rows]
    for left, right in _within(canonical, order, rounds.distance):
        a, b = rows[left], rows[right]
        mirrored = (((hashes[a] ^ hashes[b]) >> np.uint64(anchor)) & np.uint64(1)).astype(np.bool_)
        yield Pairs(np.minimum(a, b), np.maximum(a, b), mirrored & bool(rounds.mirror))


def _choose(rounds: Rounds, number: int) -> tuple[int, int, int]:
    """The anchor bit, the mask of the bits to agree in, and the mask of the bits that split long runs."""
    random = Random(f"{number} of {rounds.bits} bits")  # the same on every machine and Python
    bits = list(range(64))
    random.shuffle(bits)
    anchor = next((bit for bit in bits if rounds.mirror >> bit & 1), bits[-1])
    if rounds.mirror:
        bits.remove(anchor)
    masks = (sum(1 << bit for bit in some) for some in (bits[: rounds.bits], bits[rounds.bits : rounds.bits + 16]))
    return anchor, *masks  # type: ignore[return-value]


def _within(values: Hashes, keys: Hashes, distance: int) -> Iterator[tuple[Numbers, Numbers]]:
    """Positions of pairs of values at most ``distance`` bits apart, with equal keys (keys ascend). Yields them in
    parts, by growing offset."""
    found: list[tuple[Numbers, int]] = []
    left: Numbers | None = None  # positions that have an equal key this far to the right; None while most have
    for offset in range(1, min(_WINDOW + 1, len(keys))):
        if left is None:
            equal = keys[offset:] == keys[:-offset]
            near = popcount(values[offset:] ^ values[:-offset]) <= distance
            found.append((np.flatnonzero(near & equal), offset))
            if np.count_nonzero(equal) < len(keys) // 6:
                left = np.flatnonzero(equal)
        else:
            left = left[: np.searchsorted(left, len(keys) - offset)]
            left = left[keys[left] == keys[left + offset]]
            near = popcount(values[left] ^ values[left + offset]) <= distance
            found.append((left[near], offset))
        if sum(len(some) for some, _ in found) > _MOST_PAIRS:
            yield _positions(found)
            found = []
        if left is not None and not len(left):
            break
    yield _positions(found)


def _positions(found: list[tuple[Numbers, int]]) -> tuple[Numbers, Numbers]:
    lefts = np.concatenate([np.zeros(0, dtype=np.int64), *(some for some, _ in found)])
    rights = np.concatenate([np.zeros(0, dtype=np.int64), *(some + offset for some, offset in found)])
    return lefts, rights


def groups_of(count: int, pairs: Pairs) -> Numbers:
    """For each of ``count`` things the smallest number in its group. The order of the pairs does not matter."""
    return joined_groups(np.arange(count, dtype=np.int64), pairs)


def joined_groups(groups: Numbers, pairs: Pairs) -> Numbers:
    """Merge those ``groups`` (from ``groups_of``) that pairs connect."""
    groups = groups.copy()
    first, second = pairs.first, pairs.second
    while True:
        a, b = groups[first], groups[second]
        apart = a != b
        if not apart.any():
            return groups
        first, second, a, b = first[apart], second[apart], a[apart], b[apart]
        np.minimum.at(groups, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(groups, shorter := groups[groups]):
            groups = shorter


def mirrored_from(kept: Numbers, pairs: Pairs) -> Bools:
    """Which things are mirror images of the kept one of their group, judged by the pairs that made the groups.

    Every thing has two nodes: as it is, and mirrored. A plain pair joins equal nodes, a mirrored pair joins opposite
    nodes. If a group's picture is its own mirror image, both nodes lie in one group and nothing counts as mirrored.
    """
    count = len(kept)
    other = np.where(pairs.mirrored, count, 0)
    doubled = Pairs(
        np.concatenate([pairs.first, pairs.first + count]),
        np.concatenate([pairs.second + other, pairs.second + count - other]),
        np.concatenate([pairs.mirrored, pairs.mirrored]),
    )
    sides = groups_of(2 * count, doubled)
    return np.asarray(sides[:count] != sides[kept])


def _popcount_by_table(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    quarters = np.ascontiguousarray(values).view(np.uint16).reshape(*values.shape, 4)
    return np.asarray(_COUNTS[quarters].sum(axis=-1, dtype=np.uint8))


_COUNTS = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(1, np.uint8)
popcount = getattr(np, "bitwise_count", _popcount_by_table)  # numpy 1 lacks it
