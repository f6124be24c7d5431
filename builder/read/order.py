"""Which row comes when: orders over millions of rows that are computed, not stored.

Every order here is a function from a position (0, 1, 2, … over all epochs and all ranks) to a row. Nothing is drawn
in sequence, so starting at position 5,000,000,000 costs what starting at 0 costs, and the order knows nothing of how
many processes read it: rank r of w takes the positions r, r + w, r + 2 w, … Resuming is: the same seed, another
first position.

The orders are frozen by golden tests: changing any constant here breaks every run that is resumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from builder.errors import OptionError

Rows = NDArray[np.int64]
_Words = NDArray[np.uint64]

CHUNK = 1024
"""Positions worked out at a time. The fixed cost of a numpy call (about 1 µs, some 60 calls) is spread over so many
rows; more would delay the first row."""

_ROUNDS = 8
"""Rounds of the Feistel network, twice the four that make one a strong permutation for ideal round functions
(Luby and Rackoff, 1988): ours is a 64-bit mixer, and halves of a small range are only a few bits wide."""

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def mix64(word: int) -> int:
    """One 64-bit word scrambled into another, one to one: the output function of SplitMix64 (Steele et al., 2014)."""
    word = (word + _GOLDEN) & _MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)


def derive(seed: int, *path: int) -> int:
    """A seed for a part of the work, named by numbers: ``derive(seed, epoch, bucket)``. Every argument counts, and so
    does their order."""
    word = mix64(seed & _MASK)
    for step in path:
        word = mix64(word ^ mix64(step & _MASK))
    return word


def _mix_words(words: _Words) -> _Words:
    words = words + np.uint64(_GOLDEN)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: _Words = words ^ (words >> np.uint64(31))
    return mixed


class Permutation:
    """A shuffle of ``range(size)`` in a few dozen bytes: a Feistel network over the next power of two, walked along its
    cycles until it is back below ``size`` (Black and Rogaway, 2002; under two steps on average).

    Deterministic, picklable, without state that changes. The same size and seed give the same shuffle on every machine.
    """

    __slots__ = ("_high", "_keys", "_low", "size")

    def __init__(self, size: int, seed: int) -> None:
        if not 1 <= size <= 1 << 62:
            raise OptionError("size", size, "1 to 2**62 rows can be put in order")
        bits = max(2, (size - 1).bit_length())
        self.size = size
        self._low = bits // 2
        self._high = bits - self._low
        self._keys = tuple(derive(seed, turn) for turn in range(_ROUNDS))

    def take(self, positions: Rows) -> Rows:
        """The rows at these positions, each in [0, size). Positions must lie in [0, size)."""
        words = self._encrypt(positions.astype(np.uint64))
        outside = np.flatnonzero(words >= np.uint64(self.size))
        while len(outside):
            walked = self._encrypt(words[outside])
            words[outside] = walked
            outside = outside[walked >= np.uint64(self.size)]
        return words.astype(np.int64)

    def __getitem__(self, position: int) -> int:
        if not 0 <= position < self.size:
            raise IndexError(position)
        return int(self.take(np.array([position]))[0])

    def find(self, row: int) -> int:
        """The position at which ``row`` comes: the inverse of ``self[position]``."""
        if not 0 <= row < self.size:
            raise IndexError(row)
        word = self._decrypt(row)
        while word >= self.size:
            word = self._decrypt(word)
        return word

    def _encrypt(self, words: _Words) -> _Words:
        # The halves may differ by a bit, so they take turns: an even round changes the high one, an odd round the low.
        high, low = words >> np.uint64(self._low), words & np.uint64((1 << self._low) - 1)
        for turn, key in enumerate(self._keys):
            if turn % 2 == 0:
                high = high ^ (_mix_words(low ^ np.uint64(key)) & np.uint64((1 << self._high) - 1))
            else:
                low = low ^ (_mix_words(high ^ np.uint64(key)) & np.uint64((1 << self._low) - 1))
        encrypted: _Words = (high << np.uint64(self._low)) | low
        return encrypted

    def _decrypt(self, word: int) -> int:
        high, low = word >> self._low, word & ((1 << self._low) - 1)
        for turn, key in reversed(list(enumerate(self._keys))):
            if turn % 2 == 0:
                high ^= mix64(low ^ key) & ((1 << self._high) - 1)
            else:
                low ^= mix64(high ^ key) & ((1 << self._low) - 1)
        return (high << self._low) | low


class Order(Protocol):
    """An endless order. Deterministic, picklable, O(1) in memory and start."""

    def take(self, positions: Rows) -> Rows:
        """The rows at these positions. Positions ≥ 0, ascending."""


@dataclass(frozen=True, slots=True)
class ListedOrder:
    """No shuffle: 0, 1, … size - 1, and again."""

    size: int

    def take(self, positions: Rows) -> Rows:
        return positions % self.size


@dataclass(frozen=True, slots=True)
class ShuffledOrder:
    """Each epoch (``size`` positions) a shuffle of all rows, another one each time."""

    size: int
    seed: int

    def take(self, positions: Rows) -> Rows:
        rows = np.empty_like(positions)
        for epoch, here in _runs(positions // self.size):
            rows[here] = Permutation(self.size, derive(self.seed, epoch)).take(positions[here] - epoch * self.size)
        return rows


@dataclass(frozen=True, slots=True)
class WindowOrder:
    """A shuffle whose reads stay near each other, for disks and networks that read whole stretches.

    Rows are cut into runs of ``run`` neighbours. Each epoch puts the runs in a new order, takes ``window // run`` of
    them at a time, and shuffles the rows of that window. So ``window`` consecutive positions touch ``window // run``
    stretches of the disk, and no more than that.

    ``window`` rows: as many as fit into a cache; ``run`` rows: at least as many as one request should bring.
    """

    size: int
    seed: int
    window: int
    run: int

    def __post_init__(self) -> None:
        if self.run < 1:
            raise OptionError("run", self.run, "1 row or more")
        if self.window < self.run or self.window % self.run:
            raise OptionError("window", self.window, f"a multiple of run={self.run}, the rows that lie side by side")

    def take(self, positions: Rows) -> Rows:
        rows = np.empty_like(positions)
        for epoch, here in _runs(positions // self.size):
            within = positions[here] - epoch * self.size
            shuffled = np.empty_like(within)
            for window, there in _runs(within // self.window):
                first = window * self.window
                length = min(self.window, self.size - first)
                inner = Permutation(length, derive(self.seed, epoch, 1, window))
                shuffled[there] = first + inner.take(within[there] - first)
            rows[here] = self._row_of(shuffled, epoch)
        return rows

    def _row_of(self, places: Rows, epoch: int) -> Rows:
        """From places in the epoch's sequence of runs to rows. All runs are full but the last of the dataset, which may
        come anywhere in the sequence and moves up what comes after it."""
        count = -(-self.size // self.run)
        short = count * self.run - self.size
        runs = Permutation(count, derive(self.seed, epoch, 0))
        if short:
            after = (runs.find(count - 1) + 1) * self.run - short  # the first place behind the short run
            places = np.where(places >= after, places + short, places)
        return runs.take(places // self.run) * self.run + places % self.run


SLOTS = 1 << 16
"""Positions of one turn of a mix: weights are kept to one part in 65,536."""


class MixedOrder:
    """Several datasets, laid end to end, drawn in proportion to their weights.

    A turn of 65,536 positions holds a fixed number of slots for each dataset, shuffled. The shuffle is one to one, so
    the number of a slot says both whose it is and which pick of that dataset, and nothing needs counting: any
    position is found in O(1). Each dataset goes through epochs of its own at its own pace and shows every row once in
    each.

    ``orders``: one for each dataset; ``sizes``: their rows; ``weights``: any positive numbers.
    """

    def __init__(self, orders: Sequence[Order], sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        if len(orders) != len(weights) or len(sizes) != len(weights):
            raise OptionError("weights", list(weights), f"one for each of the {len(orders)} datasets")
        self._orders = tuple(orders)
        self._seed = seed
        self._shares = np.array(shares(weights, SLOTS), dtype=np.int64)
        self._ends = np.cumsum(self._shares)
        self._starts = np.cumsum([0, *sizes])[:-1]

    def take(self, positions: Rows) -> Rows:
        rows = np.empty_like(positions)
        for turn, here in _runs(positions // SLOTS):
            slots = Permutation(SLOTS, derive(self._seed, turn)).take(positions[here] - turn * SLOTS)
            rows[here] = self._rows_of(slots, turn)
        return rows

    def _rows_of(self, slots: Rows, turn: int) -> Rows:
        rows = np.empty_like(slots)
        owners = np.searchsorted(self._ends, slots, side="right")
        for owner in np.unique(owners).tolist():
            mine = np.flatnonzero(owners == owner)
            share = int(self._shares[owner])
            picks = turn * share + slots[mine] - (int(self._ends[owner]) - share)
            ascending = np.argsort(picks)
            rows[mine[ascending]] = self._starts[owner] + self._orders[owner].take(picks[ascending])
        return rows


def shares(weights: Sequence[float], slots: int) -> list[int]:
    """``slots`` shared out by weight, whole numbers that sum up to ``slots`` (largest remainders).

    Raises OptionError where a weight is not positive, or too small for a slot.
    """
    total = float(sum(weights))
    if not weights or not all(0 < weight < float("inf") for weight in weights):
        raise OptionError("weights", list(weights), "positive numbers")
    exact = [weight / total * slots for weight in weights]
    whole = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
    for i in by_remainder[: slots - sum(whole)]:
        whole[i] += 1
    if min(whole) == 0:
        raise OptionError("weights", list(weights), f"none may be under 1/{slots} of their sum")
    return whole


def walk(order: Order, start: int, stride: int, stop: int | None = None) -> Iterator[int]:
    """Rows at ``start``, ``start + stride``, … below ``stop``; without one, for ever. The first comes after one
    chunk."""
    while stop is None or start < stop:
        end = start + CHUNK * stride if stop is None else min(stop, start + CHUNK * stride)
        positions = np.arange(start, end, stride, dtype=np.int64)
        yield from order.take(positions).tolist()
        start += len(positions) * stride


def _runs(numbers: Rows) -> Iterator[tuple[int, slice]]:
    """Where an ascending array holds which number: (7, slice(0, 3)), (8, slice(3, 10)), …"""
    if not len(numbers):
        return
    cuts = np.flatnonzero(np.diff(numbers)) + 1
    for first, last in zip([0, *cuts.tolist()], [*cuts.tolist(), len(numbers)], strict=True):
        yield int(numbers[first]), slice(first, last)
