"""Aspect-ratio buckets: sizes that images are cropped to, so that a batch has one shape. Also the order of batches."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from builder.base.errors import OptionError
from builder.base.options import check_number
from builder.mm.order import ListedOrder, Order, Permutation, ShuffledOrder, derive

Size = tuple[int, int]
"""(width, height) in pixels."""

_STEP, _MAX_RATIO = 64, 2
"""Of ``buckets=True``: sides are multiples of so many pixels. The longer side is at most twice the shorter one."""


class Buckets:
    """Bucket sizes, narrowest first. An image's bucket is the one with the nearest aspect ratio. The border between two
    buckets is the geometric mean of their ratios.

    The sampler finds the buckets of a whole column with numpy. The dataset finds the bucket of one image with Python.
    They must always agree, so both only divide and compare. A logarithm may differ in its last bit between libraries.
    """

    def __init__(self, sizes: Sequence[Sequence[int]]) -> None:
        try:
            distinct = {(int(width), int(height)) for width, height in sizes}
        except (TypeError, ValueError):
            distinct = set()
        if not distinct or min(min(pair) for pair in distinct) < 1:
            raise OptionError("buckets", sizes, "give a list of (width, height), each 1 or more")
        pairs = sorted(distinct, key=lambda size: size[0] / size[1])
        ratios = [width / height for width, height in pairs]
        if len(set(ratios)) < len(ratios):
            raise OptionError("buckets", sizes, "two of them have the same ratio. Leave one out")
        self.sizes: tuple[Size, ...] = tuple(pairs)
        self._borders = [float(np.sqrt(left * right)) for left, right in pairwise(ratios)]

    @staticmethod
    def around(side: int) -> Buckets:
        """Buckets for ``side × side`` pixels or slightly fewer. Sides are multiples of 64 pixels. For each longer side,
        the shorter side is the largest that fits into ``side × side`` pixels. Ratios go from 1 : 2 to 2 : 1. Raises
        OptionError for a side under 64."""
        if side < _STEP:
            allowed = f"buckets=True needs {_STEP} pixels or more. Give a list of buckets instead"
            raise OptionError("image_size", side, allowed)
        by_ratio: dict[float, Size] = {}
        for longer in range(_STEP, int(side * _MAX_RATIO) + 1, _STEP):
            shorter = side * side // longer // _STEP * _STEP
            if shorter and 1 <= longer / shorter <= _MAX_RATIO:
                for size in ((longer, shorter), (shorter, longer)):
                    ratio = size[0] / size[1]
                    by_ratio[ratio] = max(size, by_ratio.get(ratio, size))
        return Buckets(list(by_ratio.values()))

    def __len__(self) -> int:
        return len(self.sizes)

    def of(self, width: int, height: int) -> int:
        """The bucket number of an image of this size (pixels)."""
        return bisect_right(self._borders, width / height)

    def of_all(self, widths: NDArray[np.int32], heights: NDArray[np.int32]) -> NDArray[np.int16]:
        """The bucket numbers of columns of sizes."""
        return np.searchsorted(self._borders, widths / heights, side="right").astype(np.int16)


class BatchOrder:
    """An endless, numbered sequence of batches. Each batch has rows of one bucket.

    Each epoch shuffles the rows of a bucket, cuts them into batches, and shuffles the batches of all buckets.

    With ``drop_last`` a bucket's rows are one endless sequence. Rows that do not fill a batch at the end of an epoch
    begin the bucket's first batch of the next epoch. So all batches are full, and every row of a bucket is shown once
    before any is shown twice. The number of batches differs from epoch to epoch. Without ``drop_last`` the rest of a
    bucket is a smaller batch.

    Memory: 4 bytes a row. Picklable. Finding batch n costs the same for any n.
    """

    def __init__(
        self, buckets: NDArray[np.int16], batch_size: int, seed: int, shuffle: bool = True, drop_last: bool = True
    ) -> None:
        check_number("batch_size", batch_size, "give 1 or more", Integral, least=1)
        counts = np.bincount(buckets).astype(np.int64)
        self._rows = np.argsort(buckets, kind="stable").astype(np.int32 if len(buckets) < 1 << 31 else np.int64)
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]).tolist()
        self._counts: list[int] = counts.tolist()
        self._batch_size, self._shuffle, self._drop_last = int(batch_size), shuffle, drop_last
        self.seed = seed
        self.fewest = sum(count // self._batch_size if drop_last else self._small(count) for count in self._counts)
        """The least number of batches in any epoch."""
        if not self.fewest:
            few = f"no bucket has so many of the {len(buckets)} rows"
            raise OptionError("batch_size", batch_size, f"{few}. Give a smaller one")

    def _small(self, count: int) -> int:
        """Batches of ``count`` rows, the smaller last one included."""
        return -(-count // self._batch_size)

    def _before(self, epoch: int) -> list[int]:
        """For each bucket, the number of batches in all epochs before this one."""
        if self._drop_last:
            return [epoch * count // self._batch_size for count in self._counts]
        return [epoch * self._small(count) for count in self._counts]

    def first(self, epoch: int) -> int:
        """The number of the epoch's first batch."""
        return sum(self._before(epoch))

    def epoch_of(self, number: int) -> int:
        """The epoch of batch ``number`` ≥ 0."""
        epoch = number * self._batch_size // len(self._rows) if self._drop_last else number // self.fewest
        # Each bucket carries less than one batch over, so an epoch begins up to len(buckets) batches late.
        while self.first(epoch + 1) <= number:
            epoch += 1
        while self.first(epoch) > number:
            epoch -= 1
        return epoch

    def batch(self, number: int) -> list[int]:
        """The rows of batch ``number`` ≥ 0."""
        epoch = self.epoch_of(number)
        before, after = self._before(epoch), self._before(epoch + 1)
        place, here = number - sum(before), sum(after) - sum(before)
        if self._shuffle:
            place = Permutation(here, derive(self.seed, epoch))[place]
        for bucket, (first, end) in enumerate(zip(before, after, strict=True)):
            if place < end - first:
                return self._batch(bucket, first + place, epoch)
            place -= end - first
        raise AssertionError("an epoch's batches are those of its buckets")

    def _batch(self, bucket: int, number: int, epoch: int) -> list[int]:
        """Batch ``number`` of a bucket's own sequence."""
        count = self._counts[bucket]
        if self._drop_last:
            picks = np.arange(number * self._batch_size, (number + 1) * self._batch_size, dtype=np.int64)
        else:
            first = (number - epoch * self._small(count)) * self._batch_size
            picks = epoch * count + np.arange(first, min(first + self._batch_size, count), dtype=np.int64)
        order: Order = ShuffledOrder(count, self.seed, (bucket,)) if self._shuffle else ListedOrder(count)
        rows: list[int] = self._rows[self._starts[bucket] + order.take(picks)].tolist()
        return rows

    def walk(self, start: int, stride: int, stop: int | None = None) -> Iterator[list[int]]:
        """Batches ``start``, ``start + stride``, … below ``stop``. Endless without ``stop``."""
        while stop is None or start < stop:
            yield self.batch(start)
            start += stride
