"""Aspect-ratio buckets: sizes that images are cropped to so that a batch has one shape, and batches in some order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from builder.base.errors import OptionError
from builder.base.options import check_number
from builder.mm.order import Permutation, derive

Size = tuple[int, int]
"""(width, height) in pixels."""


class Buckets:
    """Sizes, narrowest first, and the rule which image goes into which: the nearest by the ratio of ratios.

    Borders are compared as plain quotients (no logarithm, whose last bit may differ between libraries), so that the
    sampler, which sees a column of sizes, and the dataset, which sees one image, always agree.
    """

    def __init__(self, sizes: Sequence[Sequence[int]]) -> None:
        try:
            distinct = {(int(width), int(height)) for width, height in sizes}
        except (TypeError, ValueError):
            distinct = set()
        if not distinct or min(min(pair) for pair in distinct) < 1:
            raise OptionError("buckets", sizes, "a list of (width, height), each 1 or more")
        pairs = sorted(distinct, key=lambda size: size[0] / size[1])
        ratios = [width / height for width, height in pairs]
        if len(set(ratios)) < len(ratios):
            raise OptionError("buckets", sizes, "no two may have the same ratio: an image could go to either")
        self.sizes: tuple[Size, ...] = tuple(pairs)
        self._borders = [float(np.sqrt(left * right)) for left, right in pairwise(ratios)]

    @staticmethod
    def around(side: int, step: int = 64, max_ratio: float = 2.0) -> Buckets:
        """All sizes of multiples of ``step`` that hold nearly ``side × side`` pixels (never more, at most a step less
        high or wide), up to ``max_ratio`` : 1 and 1 : ``max_ratio``."""
        if step < 1 or side < step:
            raise OptionError("step", step, f"1 to side={side}")
        by_ratio: dict[float, Size] = {}
        for longer in range(step, int(side * max_ratio) + 1, step):
            shorter = side * side // longer // step * step
            if shorter and 1 <= longer / shorter <= max_ratio:
                for size in ((longer, shorter), (shorter, longer)):
                    ratio = size[0] / size[1]
                    by_ratio[ratio] = max(size, by_ratio.get(ratio, size))
        return Buckets(list(by_ratio.values()))

    def __len__(self) -> int:
        return len(self.sizes)

    def of(self, width: int, height: int) -> int:
        """The number of the bucket for an image of this size."""
        return bisect_right(self._borders, width / height)

    def of_all(self, widths: NDArray[np.int32], heights: NDArray[np.int32]) -> NDArray[np.int16]:
        """The same for columns of sizes."""
        return np.searchsorted(self._borders, widths / heights, side="right").astype(np.int16)


class BatchOrder:
    """Batches of rows of one bucket each, numbered without end; every epoch holds the same number of them.

    Rows of a bucket are shuffled each epoch and cut into batches, and the batches of all buckets are shuffled. With
    ``drop_last``, the fewer than ``batch_size`` rows that are left of a bucket wait for another epoch, which leaves
    others. Memory: 4 bytes a row. Picklable; batch n is found in O(1) and depends on nothing but the arguments.
    """

    def __init__(
        self, buckets: NDArray[np.int16], batch_size: int, seed: int, shuffle: bool = True, drop_last: bool = True
    ) -> None:
        check_number("batch_size", batch_size, "1 or more", Integral)
        if batch_size < 1:
            raise OptionError("batch_size", batch_size, "1 or more")
        counts = np.bincount(buckets).astype(np.int64)
        self._rows = np.argsort(buckets, kind="stable").astype(np.int32 if len(buckets) < 1 << 31 else np.int64)
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        batches = counts // batch_size if drop_last else -(-counts // batch_size)
        self._ends = np.cumsum(batches)
        self._batch_size, self._shuffle = batch_size, shuffle
        self.seed = seed
        self.per_epoch = int(self._ends[-1]) if len(counts) else 0
        if not self.per_epoch:
            raise OptionError("batch_size", batch_size, f"no bucket has so many of the {len(buckets)} rows")

    def batch(self, number: int) -> list[int]:
        """The rows of batch ``number`` ≥ 0."""
        epoch, place = divmod(number, self.per_epoch)
        if self._shuffle:
            place = Permutation(self.per_epoch, derive(self.seed, epoch))[place]
        bucket = int(np.searchsorted(self._ends, place, side="right"))
        start, end = int(self._starts[bucket]), int(self._starts[bucket + 1])
        first = (place - (int(self._ends[bucket - 1]) if bucket else 0)) * self._batch_size
        picks = np.arange(first, min(first + self._batch_size, end - start), dtype=np.int64)
        if self._shuffle:
            picks = Permutation(end - start, derive(self.seed, epoch, bucket)).take(picks)
        rows: list[int] = self._rows[start + picks].tolist()
        return rows

    def walk(self, start: int, stride: int, stop: int | None = None) -> Iterator[list[int]]:
        """Batches ``start``, ``start + stride``, … below ``stop``; without one, for ever."""
        while stop is None or start < stop:
            yield self.batch(start)
            start += stride
