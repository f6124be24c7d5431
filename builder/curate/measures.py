"""Numbers of every row (sides, bytes, caption length …), and histograms of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from builder.base.arrays import bools_of, chunks_of, numbers_of, take_text
from builder.base.errors import OptionError
from builder.curate.split import PHASH
from builder.read.view import Rows

Numbers = npt.NDArray[Any]
Positions = npt.NDArray[np.int64]

SCAN_ROWS = 1 << 16
"""Captions read at once: one batch of the index, about 30 MB."""

_BARS = 24  # about this many; steps are 1, 2, 2.5 or 5 times a power of ten
_TAILS = (1.0, 99.0)  # percentiles: values beyond them go into the first and last bar


@dataclass(frozen=True, slots=True)
class Histogram:
    """``counts[i]`` values lie in ``edges[i]`` ≤ value < ``edges[i + 1]``. The first bar also counts all smaller
    values, the last all larger ones. ``missing``: rows without a value. ``median``, ``p5``, ``p95``: of the values."""

    name: str
    label: str
    unit: str
    edges: list[float]
    counts: list[int]
    missing: int
    minimum: float
    p5: float
    median: float
    mean: float
    p95: float
    maximum: float


def measures(dataset: Rows) -> dict[str, tuple[str, str]]:
    """All that ``measure`` accepts: name → label, unit. Those that every dataset has, then the added columns of
    numbers."""
    added = {name: (name, "") for name in dataset.added_columns() if _holds_numbers(dataset, name)}
    return {**{name: (label, unit) for name, (label, unit, _) in _MEASURES.items()}, **added}


def measure(dataset: Rows, name: str) -> Numbers:
    """One number for each row of ``dataset``, in its order; NaN if a row has none. Raises OptionError if ``measures``
    lacks the name."""
    if name in _MEASURES:
        return _MEASURES[name][2](dataset)
    if name not in measures(dataset):
        raise OptionError("measure", name, f"give one of {', '.join(measures(dataset))}")
    return np.concatenate([np.zeros(0, dtype=np.float64), *map(_with_gaps, dataset.column(name).chunks)])


def _with_gaps(array: pa.Array) -> Numbers:
    """Numbers as float64, null as NaN."""
    kind = np.dtype(array.type.to_pandas_dtype())
    data = np.frombuffer(array.buffers()[1], dtype=kind)[array.offset : array.offset + len(array)]
    values = data.astype(np.float64)
    if array.null_count:
        values[~bools_of(array.is_valid())] = np.nan
    return values


def _holds_numbers(dataset: Rows, name: str) -> bool:
    kind = getattr(dataset.reader.column(name), "type", None)  # columns of arrays have no type
    numeric = kind is not None and (pa.types.is_integer(kind) or pa.types.is_floating(kind))
    return bool(numeric) and name != PHASH  # a number only by its type


def captions(
    dataset: Rows, positions: Positions | range | None = None, whole: pa.ChunkedArray | None = None
) -> Iterator[tuple[Positions, pa.Array]]:
    """Yield captions with their positions, in order: of all rows, or of those at ``positions``. The first batches are
    small, so that a search shows its first hits at once; then SCAN_ROWS at a time. Consecutive rows are read in place,
    others are copied. ``whole``: the reader's captions, if already loaded."""
    if whole is None:
        whole = dataset.reader.columns("caption").column(0)
    positions = range(len(dataset)) if positions is None else positions
    rows = dataset.rows
    first, count = 0, SCAN_ROWS >> 5
    while first < len(positions):
        some = np.asarray(positions[first : first + count], dtype=np.int64)
        first, count = first + count, min(2 * count, SCAN_ROWS)
        wanted = rows.start + some * rows.step if isinstance(rows, range) else rows[some]
        done = 0
        for part in chunks_of(take_text(whole, wanted)):
            yield some[done : done + len(part)], part
            done += len(part)


def _of_captions(dataset: Rows, count: Callable[[pa.Array], Numbers]) -> Numbers:
    counted = [count(part) for _, part in captions(dataset)]
    return np.concatenate([np.zeros(0, dtype=np.int32), *counted])


def _characters(array: pa.StringArray) -> Numbers:
    import pyarrow.compute as pc  # takes 30 ms

    return numbers_of(pc.utf8_length(array))


def _words(array: pa.StringArray) -> Numbers:
    """Number of words: runs of bytes that are not white space."""
    if not len(array):
        return np.zeros(0, dtype=np.int32)
    _, ends, data = array.buffers()
    offsets = np.frombuffer(ends, dtype=np.int32)[array.offset : array.offset + len(array) + 1]
    if offsets[0] == offsets[-1]:
        return np.zeros(len(array), dtype=np.int32)
    text = np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]]
    starts = text > 32
    follows = starts[:-1].copy()
    begins = offsets[:-1] - offsets[0]
    inside = begins[(begins > 0) & (begins < len(text))]
    follows[inside - 1] = False  # a caption's first byte begins a word, whatever the caption before ended with
    starts[1:] &= ~follows
    before = np.concatenate([np.zeros(1, dtype=np.int32), np.cumsum(starts, dtype=np.int32)])
    counted: Numbers = before[offsets[1:] - offsets[0]] - before[begins]
    return counted


_MEASURES: dict[str, tuple[str, str, Callable[[Rows], Numbers]]] = {
    "width": ("Width", "px", lambda rows: rows.widths()),
    "height": ("Height", "px", lambda rows: rows.heights()),
    "megapixels": ("Megapixels", "MP", lambda rows: rows.widths() * rows.heights().astype(np.float64) / 1e6),
    "ratio": ("Width ÷ height", "", lambda rows: rows.widths() / np.maximum(rows.heights(), 1)),
    "size": ("File size", "bytes", lambda rows: numbers_of(rows.columns("size").column(0))),
    "caption_length": ("Caption length", "characters", lambda rows: _of_captions(rows, _characters)),
    "caption_words": ("Caption length", "words", lambda rows: _of_captions(rows, _words)),
}
"""Name → label, unit, how to get the numbers."""


def histogram(name: str, values: Numbers, label: str = "", unit: str = "") -> Histogram:
    """The histogram of any numbers; NaN counts as missing. Without values: no bars, all numbers 0."""
    kept = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    missing = len(values) - len(kept)
    label = label or name
    if not len(kept):
        return Histogram(name, label, unit, [], [], missing, 0, 0, 0, 0, 0, 0)
    low, p5, median, p95, high = (float(each) for each in np.percentile(kept, [_TAILS[0], 5, 50, 95, _TAILS[1]]))
    edges = bar_edges(low, high, whole=kept.dtype.kind in "iu")
    counts = bar_counts(kept, edges)
    ends = float(kept.min()), float(kept.max())
    mean = float(kept.mean(dtype=np.float64))
    return Histogram(
        name, label, unit, edges.tolist(), counts.tolist(), missing, ends[0], p5, median, mean, p95, ends[1]
    )


def bar_edges(low: float, high: float, *, whole: bool) -> npt.NDArray[np.float64]:
    """Evenly spaced round numbers around ``low`` to ``high``. ``whole``: whole numbers, at least 1 apart."""
    span = high - low
    if span <= 1e-9 * max(abs(low), abs(high)):  # all values are equal
        span = 0.0 if whole else abs(low)
    step = _round_step(max(span / _BARS, 1e-9)) if span else 1.0
    if whole:
        step = max(1.0, float(round(step)))
    first, last = (math.floor(each / step + 1e-9) for each in (low, high))  # 2.4 / 0.1 is slightly less than 24
    return np.round(np.arange(first, last + 2) * step, 12)


def bar_counts(values: Numbers, edges: npt.NDArray[np.float64] | list[float]) -> npt.NDArray[np.int64]:
    """How many values lie in each bar. Values beyond the ends count in the first or last bar."""
    inner = np.asarray(edges, dtype=np.float64)[1:-1]
    bars = len(inner) + 1
    counted = np.zeros(bars, dtype=np.int64)
    for first in range(0, len(values), 1 << 20):
        placed = np.searchsorted(inner, values[first : first + (1 << 20)], side="right")
        counted += np.bincount(placed, minlength=bars)
    return counted


def _round_step(step: float) -> float:
    scale = 10.0 ** math.floor(math.log10(step))
    return next(round(each * scale, 15) for each in (1, 2, 2.5, 5, 10) if each * scale >= step * 0.999999)
