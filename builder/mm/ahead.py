"""Announce the rows that a sampler will give, so that the page cache has them before the loader's workers read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import numpy as np

from builder.mm.order import CHUNK, Order, walk

Announce = Callable[[list[int]], None]


def announcer(dataset: Any) -> Announce | None:
    """The function that announces rows of ``dataset``: its own ``announce``, or for a ConcatDataset one that calls
    those of its parts. None if the dataset has neither."""
    if callable(own := getattr(dataset, "announce", None)):
        return own  # type: ignore[no-any-return]
    parts, ends = getattr(dataset, "datasets", None), getattr(dataset, "cumulative_sizes", None)
    if parts is None or ends is None:
        return None
    announcers = [(announcer(part), end - len(part), end) for part, end in zip(parts, ends, strict=True)]

    def announce(rows: list[int]) -> None:
        for say, first, end in announcers:
            if say is not None:
                say([row - first for row in rows if first <= row < end])

    return announce


def walk_announced(
    order: Order, start: int, stride: int, announce: Announce | None, stop: int | None = None
) -> Iterator[int]:
    """The same rows as :func:`walk`. Each row is announced before it is yielded: one window ahead, or one chunk ahead
    if the order has no window.

    The rows of a window are announced in ascending order. So the disk reads each run of neighbours from start to end,
    while the loader uses the window before.
    """
    rows = walk(order, start, stride, stop)
    if announce is None:
        yield from rows
        return
    for part in _announcements(order, start, stride, stop):
        announce(part)
        chunk = list(islice(rows, CHUNK))
        if not chunk:
            return
        yield from chunk


def _announcements(order: Order, start: int, stride: int, stop: int | None) -> Iterator[list[int]]:
    """The rows to announce before each chunk. Endless. Before each chunk comes an equal part of the next window. Before
    the first chunk comes the whole first window, too."""
    chunks = max(1, getattr(order, "window", 0) // stride // CHUNK)
    step = chunks * CHUNK * stride

    def sorted_rows(first: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        end = first + step if stop is None else max(first, min(stop, first + step))
        return np.sort(order.take(np.arange(first, end, stride, dtype=np.int64)))

    current = sorted_rows(start).tolist()
    for first in count(start + step, step):
        for part in np.array_split(sorted_rows(first), chunks):
            yield current + part.tolist()
            current = []
