"""Orders over millions of rows. They are computed, not stored.

Every order here is a function from a position (0, 1, 2, … over all epochs and all ranks) to a row. Nothing is drawn in
sequence, so position 5,000,000,000 costs the same as position 0. The order does not know how many processes read it:
rank r of w takes the positions r, r + w, r + 2 w, … To resume, use the same seed and another first position.

Golden tests freeze the orders: changing any constant here breaks every resumed run.
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
"""Positions computed at a time. Some 60 numpy calls cost about 1 µs each. A chunk spreads that cost over its rows. A
larger chunk would delay the first row."""

_ROUNDS = 8
"""Rounds of the Feistel network. Four make a strong permutation if the round functions are ideal (Luby and Rackoff,
1988). We take twice as many: our round function is a 64-bit mixer, and the halves of a small range have only a few
bits."""

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def mix64(word: int) -> int:
    """Scramble a 64-bit word, one to one: the output function of SplitMix64 (Steele et al., 2014)."""
    word = (word + _GOLDEN) & _MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)


def derive(seed: int, *path: int) -> int:
    """A seed for one part of the work, such as ``derive(seed, epoch, bucket)``. It depends on every argument and on
    their order."""
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
    """A shuffle of ``range(size)`` in a few dozen bytes.

    It is a Feistel network over the next power of two. A result ≥ ``size`` goes through the network again until it is
    below ``size`` (cycle walking: Black and Rogaway, 2002; under two steps on average).

    Deterministic, picklable, immutable. The same size and seed give the same shuffle on every machine.
    """

    __slots__ = ("_high", "_keys", "_low", "size")

    def __init__(self, size: int, seed: int) -> None:
        if not 1 <= size <= 1 << 62:
            raise OptionError("size", size, "give 1 to 2**62 rows")
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
        """The position of ``row``: the inverse of ``self[position]``."""
        if not 0 <= row < self.size:
            raise IndexError(row)
        word = self._decrypt(row)
        while word >= self.size:
            word = self._decrypt(word)
        return word

    def _encrypt(self, words: _Words) -> _Words:
        # The halves may differ by one bit, so they alternate: even rounds change the high half, odd rounds the low one.
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
    """Each epoch (``size`` positions) is a new shuffle of all rows. ``part``: other numbers give another order from the
    same seed."""

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
    """A shuffle whose reads stay near each other, for disks and networks that are fast at long reads.

    Rows are cut into runs of ``run`` neighbours. Each epoch puts the runs in a new order. It takes ``window // run``
    runs at a time and shuffles the rows of that window. So ``window`` consecutive positions read only
    ``window // run`` stretches of the disk.

    ``window``: as many rows as fit into a cache. ``run``: at least as many rows as one request should fetch.
    """

    size: int
    seed: int
    window: int
    run: int

    def __post_init__(self) -> None:
        if self.run < 1:
            raise OptionError("run", self.run, "give 1 row or more")
        if self.window < self.run or self.window % self.run:
            raise OptionError("window", self.window, f"give a multiple of run, which is {self.run}")

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
        """Rows for places in the epoch's sequence of runs. Only the dataset's last run may be short. It can come
        anywhere in the sequence. All places after it move forward."""
        count = -(-self.size // self.run)
        short = count * self.run - self.size
        runs = Permutation(count, derive(self.seed, epoch, 0))
        if short:
            after = (runs.find(count - 1) + 1) * self.run - short  # the first place after the short run
            places = np.where(places >= after, places + short, places)
        return runs.take(places // self.run) * self.run + places % self.run


SLOTS = 1 << 16
"""Positions of one turn of a mix. Weights are exact to one part in 65,536."""

BLOCK = 1 << 8
"""Positions of one block of a turn. Each block is shuffled by itself."""


class MixedOrder:
    """Several datasets, concatenated, drawn in proportion to their weights.

    A turn has 65,536 positions. Each dataset owns a fixed number of slots in it. The slots are numbered and dealt to
    256 blocks one by one. So a block has its share of each dataset, to less than one slot.

    Two tables (256 KiB) are the same for every turn: the owner of each slot, and how many slots of the same owner come
    before it in the turn. The shuffle of a block depends only on the seed and the block's number. So any position can
    be found from its block alone.

    The k-th pick of a dataset is the k-th row of its own order. So each dataset has its own epochs at its own pace, and
    shows every row once before it shows one twice.

    ``orders``: one for each dataset. ``sizes``: their rows. ``weights``: any positive numbers. ``window``: positions in
    which the dataset with the largest share gives one window; 0 if the orders have none.
    """

    def __init__(self, orders: Sequence[Order], sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        if len(orders) != len(weights) or len(sizes) != len(weights):
            raise OptionError("weights", list(weights), f"give one for each of the {len(orders)} datasets")
        self._orders = tuple(orders)
        self._seed = seed
        self._shares = np.array(shares(weights, SLOTS), dtype=np.int64)
        mixed = zip(orders, self._shares.tolist(), strict=True)
        self.window: int = min(getattr(order, "window", 0) * SLOTS // share for order, share in mixed)
        self._starts = np.cumsum([0, *sizes])[:-1]
        # The tables have one line for each block, in the order of the turn. A small share is a few consecutive slot
        # numbers. Reversing the bits puts these into blocks that are far apart.
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
        """For each position of these blocks, the index of its slot in the block's line of the tables. Shape (blocks,
        BLOCK).

        The shuffle only decides which positions a dataset gets. The dataset's slots fill them in ascending order,
        because ``Order.take`` needs ascending picks."""
        places = np.arange(BLOCK, dtype=np.uint64)
        keys = _mix_words(np.uint64(mix64(self._seed & _MASK)) ^ _mix_words(numbers.astype(np.uint64)))
        shuffled = np.argsort(_mix_words(keys[:, None] ^ places), axis=1)  # no two words of a line are the same
        owners = np.take_along_axis(self._owners[blocks], shuffled, axis=1)
        entries = np.empty(owners.shape, np.int64)
        np.put_along_axis(entries, np.argsort(owners, axis=1, kind="stable"), np.arange(BLOCK)[None, :], axis=1)
        return entries


def check_weights(name: str, weights: Sequence[float], value: object) -> None:
    """Raises OptionError if there is no weight, or if one is not a positive number. The message shows option ``name``
    and its ``value``."""
    for weight in weights:
        check_number(name, weight, "give positive numbers")
    if not weights or not all(0 < weight < float("inf") for weight in weights):
        raise OptionError(name, value, "give one or more positive numbers. Leave out what shall never be drawn")


def shares(weights: Sequence[float], slots: int) -> list[int]:
    """Divide ``slots`` by weight into whole numbers that sum to ``slots`` (largest remainders).

    Raises OptionError if a weight is not positive, or too small for one slot.
    """
    check_weights("weights", weights, list(weights))
    total = float(sum(weights))
    exact = [weight / total * slots for weight in weights]
    whole = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
    for i in by_remainder[: slots - sum(whole)]:
        whole[i] += 1
    if min(whole) == 0:
        raise OptionError("weights", list(weights), f"each must be at least 1/{slots} of their sum")
    return whole


def walk(order: Order, start: int, stride: int, stop: int | None = None) -> Iterator[int]:
    """Rows at positions ``start``, ``start + stride``, … below ``stop``. Endless without ``stop``. Rows are computed a
    chunk at a time."""
    while stop is None or start < stop:
        end = start + CHUNK * stride if stop is None else min(stop, start + CHUNK * stride)
        positions = np.arange(start, end, stride, dtype=np.int64)
        yield from order.take(positions).tolist()
        start += len(positions) * stride


def _runs(numbers: Rows) -> Iterator[tuple[int, slice]]:
    """Each number of an ascending array, and the slice that holds it: (7, slice(0, 3)), (8, slice(3, 10)), …"""
    if not len(numbers):
        return
    cuts = np.flatnonzero(np.diff(numbers)) + 1
    for first, last in zip([0, *cuts.tolist()], [*cuts.tolist(), len(numbers)], strict=True):
        yield int(numbers[first]), slice(first, last)
