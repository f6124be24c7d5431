"""Rows of a dataset: what a Reader and a View of it have in common, and the View."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from builder.base import schema
from builder.base.arrays import number_array, take_text
from builder.read.rows import RowNumber, RowNumbers, chosen_rows
from builder.read.sample import Sample

if TYPE_CHECKING:
    from builder.read.reader import Reader

COLUMNS = ("key", "path", "caption", "width", "height", "size", "position", "annotation_path")
"""What :meth:`Rows.columns` gives, none of which needs an image."""

_AHEAD = 64  # rows fetched together when iterating


class Rows(Sequence[Sample]):
    """A sequence of samples: all rows of a Reader, or some of them in an order of their own (a View).

    Deterministic, thread-safe, safe after fork, picklable.
    """

    @property
    def reader(self) -> Reader:
        """The Reader that holds these rows; ``Sample.row`` counts by it."""
        raise NotImplementedError

    @property
    def rows(self) -> range | npt.NDArray[np.int64]:
        """The numbers of these rows in ``reader``."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, row: RowNumber) -> Sample: ...
    @overload
    def __getitem__(self, row: slice) -> View: ...
    @overload
    def __getitem__(self, row: RowNumbers) -> list[Sample]: ...
    def __getitem__(self, row: RowNumber | slice | RowNumbers) -> Any:
        """A row by number, negative ones from the end; a slice, as a view; rows by a list or an array of numbers, as a
        list of samples whose images have been read already, in file order. Raises IndexError, TypeError (a mask is no
        row numbers: ``np.flatnonzero(mask)``), DamagedFileError."""
        if isinstance(row, slice):
            return View(self.reader, self.rows[row])
        rows = self.rows
        chosen = chosen_rows(row, len(rows))
        if isinstance(chosen, int):
            return self.reader._sample(int(rows[chosen]))
        return self.reader._fetch([int(rows[each]) for each in chosen])

    def __getitems__(self, rows: Sequence[int]) -> list[Sample]:
        """What torch's DataLoader asks for a batch by: its images are read together."""
        return self[rows]

    def __iter__(self) -> Iterator[Sample]:
        """Reads ahead, several rows at a time."""
        for first in range(0, len(self), _AHEAD):
            yield from self.reader._fetch([int(row) for row in self.rows[first : first + _AHEAD]])

    def find(self, key: str) -> Sample:
        """The row with that key: the last, where files that others wrote have it in several. Raises KeyError."""
        row = self._row_of(key)
        if row is None:
            raise KeyError(key)
        return self.reader._sample(row)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._row_of(key) is not None

    def _row_of(self, key: str) -> int | None:
        raise NotImplementedError

    def columns(self, *names: str) -> pa.Table:
        """Columns of :data:`COLUMNS` (all unless named) as an Arrow table over the mapped index. No image is touched.
        Nothing is copied, but of rows in an order of their own. Raises KeyError."""
        for name in names:
            if name not in COLUMNS:
                raise KeyError(f"{name!r} is no column; there are {', '.join(COLUMNS)}")
        return self._table(names or COLUMNS)

    def _table(self, names: Sequence[str]) -> pa.Table:
        whole = self.reader._index.table(names)
        rows = np.asarray(self.rows, dtype=np.int64)
        columns = [
            take_text(column, rows) if pa.types.is_string(column.type) else column.take(number_array(rows))
            for column in whole.columns
        ]
        return pa.Table.from_arrays(columns, schema=whole.schema)

    def widths(self) -> npt.NDArray[np.int32]:
        """Pixels, of every row: int32, one for each."""
        return self._numbers("width")

    def heights(self) -> npt.NDArray[np.int32]:
        """Pixels, of every row: int32, one for each."""
        return self._numbers("height")

    def _numbers(self, name: str) -> npt.NDArray[Any]:
        return np.take(self.reader._index.column(name), self.rows)

    def to_datasets(self) -> Any:
        """A map-style ``datasets.Dataset`` of these rows. Its table is the mapped index; a transform reads the images
        when rows are asked for. No cache is written; ``map``, ``filter``, ``shuffle`` and ``select`` work."""
        from builder.hf.builder import reader_dataset

        return reader_dataset(self)

    @property
    def identity(self) -> str:
        """16 hex digits, others where the rows are of other files, or are other rows of them."""
        raise NotImplementedError

    @property
    def shards(self) -> tuple[schema.IndexedFile, ...]:
        """The files that hold the reader's images."""
        return self.reader._index.header.files


class View(Rows):
    """Some rows of a Reader, in an order of their own: what a slice gives. Holds numbers, no bytes."""

    def __init__(self, reader: Reader, rows: Sequence[int] | npt.NDArray[np.int64]) -> None:
        """``rows``: numbers from 0 to ``len(reader)``, exclusive."""
        self._reader = reader
        self._rows = rows if isinstance(rows, range) else np.asarray(rows, dtype=np.int64)
        self._sorted: npt.NDArray[np.int64] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return View, (self._reader, self._rows)

    @property
    def reader(self) -> Reader:
        return self._reader

    @property
    def rows(self) -> range | npt.NDArray[np.int64]:
        return self._rows

    @property
    def identity(self) -> str:
        numbers = np.ascontiguousarray(self._rows, dtype="<i8")
        return xxhash.xxh3_64_hexdigest(self._reader.identity.encode() + numbers.tobytes())

    def _row_of(self, key: str) -> int | None:
        row = self._reader._row_of(key)
        if row is None or isinstance(self._rows, range):
            return row if row in self._rows else None
        if self._sorted is None:  # once: a search through millions for each key would be slow
            self._sorted = np.sort(self._rows)
        at = int(np.searchsorted(self._sorted, row))
        return row if at < len(self._sorted) and self._sorted[at] == row else None

    def __repr__(self) -> str:
        return f"View({len(self):,} rows of {self._reader!r})"
