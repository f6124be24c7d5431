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

from builder.base.errors import OptionError
from builder.base.options import check_number

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
    """Each epoch (``size`` positions) a shuffle of all rows, another one each time. ``part``: numbers that name one of
    several orders with the same seed."""

    size: int
    seed: int
    part: tuple[int, ...] = ()

    def take(self, positions: Rows) -> Rows:
        rows = np.empty_like(positions)
        for epoch, here in _runs(positions // self.size):
            shuffle = Permutation(self.size, derive(self.seed, epoch, *self.part))
            rows[here] = shuffle.take(positions[here] - epoch * self.size)
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

BLOCK = 1 << 8
"""Positions of a turn that are shuffled among themselves."""


class MixedOrder:
    """Several datasets, laid end to end, drawn in proportion to their weights.

    A turn of 65,536 positions has a fixed number of slots for each dataset, numbered through and dealt out to 256
    blocks one by one, so that a block has its share of each dataset, to less than one. Whose each slot is and how many
    of the same dataset come before it in the turn are two tables (256 KiB), the same for every turn; the slots of a
    block are shuffled by numbers that depend on the block alone. So any position is found by looking at one block, and
    the k-th pick of a dataset is the k-th of its own order: each goes through epochs of its own at its own pace and
    shows every row once before it shows one twice.

    ``orders``: one for each dataset; ``sizes``: their rows; ``weights``: any positive numbers.
    """

    def __init__(self, orders: Sequence[Order], sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        if len(orders) != len(weights) or len(sizes) != len(weights):
            raise OptionError("weights", list(weights), f"one for each of the {len(orders)} datasets")
        self._orders = tuple(orders)
        self._seed = seed
        self._shares = np.array(shares(weights, SLOTS), dtype=np.int64)
        self._starts = np.cumsum([0, *sizes])[:-1]
        # One line for each block, in the order of the turn. Bits are reversed so that neighbours in number, which a
        # small share is, come far apart.
        bits = np.unpackbits(np.arange(SLOTS // BLOCK, dtype=np.uint8)[:, None], axis=1)
        reversed_bits = np.packbits(bits, axis=1, bitorder="little").astype(np.int64)
        slots = reversed_bits + np.arange(BLOCK) * (SLOTS // BLOCK)
        owners = np.searchsorted(np.cumsum(self._shares), slots, side="right")
        by_owner = np.argsort(owners, axis=None, kind="stable")
        ranks = np.empty(SLOTS, np.int64)
        ranks[by_owner] = np.arange(SLOTS) - np.repeat(np.cumsum(self._shares) - self._shares, self._shares)
        self._owners = owners.astype(np.uint16)
        self._ranks = ranks.reshape(owners.shape).astype(np.uint16)

    def take(self, positions: Rows) -> Rows:
        numbers, which = np.unique(positions // BLOCK, return_inverse=True)
        turns, blocks = np.divmod(numbers, SLOTS // BLOCK)
        entries = self._entries(numbers, blocks)[which, positions % BLOCK]
        owners = self._owners[blocks[which], entries].astype(np.int64)
        picks = turns[which] * self._shares[owners] + self._ranks[blocks[which], entries]
        rows = np.empty_like(positions)
        for owner in np.unique(owners).tolist():
            mine = np.flatnonzero(owners == owner)
            rows[mine] = self._starts[owner] + self._orders[owner].take(picks[mine])
        return rows

    def _entries(self, numbers: Rows, blocks: Rows) -> Rows:
        """Which entry of its line of the tables each position of these blocks takes. Entries of one dataset stand side
        by side in a line, and come in that order at the places that the shuffle gives to the dataset."""
        places = np.arange(BLOCK, dtype=np.uint64)
        keys = _mix_words(np.uint64(mix64(self._seed & _MASK)) ^ _mix_words(numbers.astype(np.uint64)))
        shuffled = np.argsort(_mix_words(keys[:, None] ^ places), axis=1)  # no two words of a line are the same
        owners = np.take_along_axis(self._owners[blocks], shuffled, axis=1)
        entries = np.empty(owners.shape, np.int64)
        np.put_along_axis(entries, np.argsort(owners, axis=1, kind="stable"), np.arange(BLOCK)[None, :], axis=1)
        return entries


def shares(weights: Sequence[float], slots: int) -> list[int]:
    """``slots`` shared out by weight, whole numbers that sum up to ``slots`` (largest remainders).

    Raises OptionError where a weight is not positive, or too small for a slot.
    """
    for weight in weights:
        check_number("weights", weight, "a list of positive numbers")
    if not weights or not all(0 < weight < float("inf") for weight in weights):
        raise OptionError("weights", list(weights), "positive numbers")
    total = float(sum(weights))
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
