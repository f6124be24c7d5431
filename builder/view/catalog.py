"""One dataset for the page: rows by position, and numbers to sort and filter by."""

from __future__ import annotations

import math
import threading
from contextlib import suppress
from typing import Any

import pyarrow as pa

from builder.base.errors import Laion6mError, OptionError
from builder.curate.measures import Histogram, Numbers, histogram, measure, measures
from builder.read.columns import Array
from builder.read.sample import Sample
from builder.read.view import Rows


class Catalog:
    """A dataset, and the values computed from it. A *position* is a row's number in the dataset, 0 ≤ position < len.
    Thread-safe."""

    def __init__(self, dataset: Rows, path: str) -> None:
        self.dataset, self.path = dataset, path
        self.measures = measures(dataset)
        """The numbers to sort and filter by: name → label, unit."""
        self._numbers: dict[str, Numbers] = {}
        self._histograms: dict[str, Histogram] = {}
        self._captions: pa.ChunkedArray | None = None
        self._lock = threading.Lock()

    def warm(self) -> None:
        """Load what the first search needs. Raises nothing: the search itself raises the error."""
        import pyarrow.compute  # noqa: F401

        with suppress(Laion6mError):
            self.captions()

    def captions(self) -> pa.ChunkedArray:
        """Captions of all rows of the reader, memory-mapped. The first call checks them and reads 4 bytes a row."""
        with self._lock:
            if self._captions is None:
                self._captions = self.dataset.reader.column("caption")
            return self._captions

    def __len__(self) -> int:
        return len(self.dataset)

    def sample(self, position: int) -> Sample:
        """The sample at a position. Raises IndexError."""
        if not 0 <= position < len(self):
            raise IndexError(position)
        return self.dataset[position]

    def numbers(self, name: str) -> Numbers:
        """One number for each position. NaN if a row has none. Computed once, then kept: 4 or 8 bytes a row.

        Raises OptionError if ``name`` is not in ``measures``."""
        with self._lock:
            if name not in self._numbers:
                if name not in self.measures:
                    raise OptionError("sort or filter", name, f"one of {', '.join(self.measures)}")
                self._numbers[name] = measure(self.dataset, name)
            return self._numbers[name]

    def histogram(self, name: str) -> Histogram:
        """The histogram of all rows. Computed once."""
        if name not in self._histograms:
            self._histograms[name] = histogram(name, self.numbers(name), *self.measures[name])
        return self._histograms[name]

    def added(self, position: int) -> dict[str, Any]:
        """One row's values in the added columns. For an array, a description of it."""
        row = self.sample(position).row
        found: dict[str, Any] = {}
        for name in self.dataset.added_columns():
            column = self.dataset.reader.column(name)
            value = column[row]
            if isinstance(value, Array):
                found[name] = f"{value.dtype} array of shape {', '.join(map(str, value.shape))}"
            else:
                plain = value.as_py()
                found[name] = plain if not isinstance(plain, float) or math.isfinite(plain) else str(plain)
        return found
