"""Rows of a dataset: what a Reader and a View of it have in common, and the View."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from builder.base import schema
from builder.base.arrays import number_array, take_text
from builder.base.records import Step
from builder.read.columns import ArraysOf, Column
from builder.read.rows import RowNumber, RowNumbers, chosen_rows
from builder.read.sample import Sample
from builder.read.threads import fetched_ahead

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
    def folder(self) -> str:
        """The dataset's folder, or its URL."""
        return self.reader.folder

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
        """Reads several rows at a time; over a network the next ones while these are looked at."""
        reader, rows = self.reader, self.rows
        chunks = ([int(row) for row in rows[first : first + _AHEAD]] for first in range(0, len(rows), _AHEAD))
        fetched = fetched_ahead(reader._fetch, chunks) if reader._files.is_remote else map(reader._fetch, chunks)
        for samples in fetched:
            yield from samples

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
        return pa.Table.from_arrays([_taken(column, rows) for column in whole.columns], schema=whole.schema)

    def column(self, name: str) -> Any:
        """One column, a value for each row: of :data:`COLUMNS`, ``digest``, or added by ``laion6m add-column``.

        A pyarrow ChunkedArray over the mapped file (nothing is copied, but of rows in an order of their own); a
        column of arrays as a sequence that reads them one by one. Raises KeyError, DamagedFileError,
        IndexMismatchError (the column was made before the dataset was converted or indexed again).
        """
        if name in (*COLUMNS, "digest"):
            return self._table([name]).column(0)
        reader = self.reader
        if name not in reader.added_columns():
            there = ", ".join((*COLUMNS, "digest", *reader.added_columns()))
            raise KeyError(f"{name!r} is no column; there are {there}")
        column = reader._column(name)
        if isinstance(column, Column):
            return column if self is reader else ArraysOf(column, self.rows)
        return column.column if self is reader else _taken(column.column, np.asarray(self.rows, dtype=np.int64))

    def added_columns(self) -> list[str]:
        """Names of the columns that were added, as they were when this was first asked."""
        return self.reader.added_columns()

    def where(self, condition: str) -> View:
        """The rows for which a SQL condition is true (DuckDB's SQL, extra ``[sql]``), in their order: over ``key``,
        ``path``, ``caption``, ``width``, ``height``, ``size``, ``position``, ``digest``, ``annotation`` and added
        columns. The query can reach nothing else. Raises SqlError, MissingExtraError."""
        from builder.curate.sql import find_rows

        found = find_rows(self, condition)
        return View(self.reader, found.rows, (*self.steps, *found.steps))

    def sample(self, count: int, *, seed: int = 0) -> View:
        """``count`` rows at random, in their order. Chosen by a hash of seed and key: the same in every conversion of
        the source. Raises OptionError where there are fewer."""
        from builder.curate.split import sample

        return sample(self, count, seed)

    def split(self, shares: Mapping[str, float], *, seed: int = 0) -> dict[str, View]:
        """The rows divided by name → share of them, by a hash of seed and key; duplicates (where ``laion6m
        duplicates`` has run) stay together. The same in every conversion of the source. Raises OptionError."""
        from builder.curate.split import split

        return split(self, shares, seed)

    def unique(self) -> View:
        """One row of each group of duplicates: the one to keep, or where that is not among these rows, the first.
        Raises SourceError before ``laion6m duplicates`` has run."""
        from builder.curate.split import unique

        return unique(self)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a selection: a folder of row numbers that names the dataset, which ``open_dataset`` opens as these
        rows. No image is copied. Raises OutputError where there is something in the folder already."""
        from builder.curate.selection import save

        save(self, folder)

    @property
    def steps(self) -> tuple[Step, ...]:
        """How these rows were chosen, and how many each step left. Empty of a whole dataset."""
        return ()

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

    def _repr_html_(self) -> str:
        """For notebooks: counts and a small gallery."""
        from builder.read.shown import rows_html

        return rows_html(self)

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

    def __init__(
        self, reader: Reader, rows: Sequence[int] | npt.NDArray[np.int64], steps: tuple[Step, ...] = ()
    ) -> None:
        """``rows``: numbers from 0 to ``len(reader)``, exclusive. ``steps``: how they were chosen."""
        self._reader, self._steps = reader, steps
        numbers = rows if isinstance(rows, range) else np.ascontiguousarray(rows, dtype=np.int64)
        self._rows: range | npt.NDArray[np.int64] = numbers
        self._each = (
            numbers if isinstance(numbers, range) else memoryview(cast(Any, numbers))
        )  # whose items are Python's ints
        self._sorted: npt.NDArray[np.int64] | None = None

    @overload
    def __getitem__(self, row: RowNumber) -> Sample: ...
    @overload
    def __getitem__(self, row: slice) -> View: ...
    @overload
    def __getitem__(self, row: RowNumbers) -> list[Sample]: ...
    def __getitem__(self, row: RowNumber | slice | RowNumbers) -> Any:
        if type(row) is int and 0 <= row < len(self._each):  # what most rows are asked for with
            return self._reader._sample(self._each[row])
        return super().__getitem__(row)

    def __reduce__(self) -> tuple[Any, ...]:
        return View, (self._reader, self._rows, self._steps)

    @property
    def reader(self) -> Reader:
        return self._reader

    @property
    def rows(self) -> range | npt.NDArray[np.int64]:
        return self._rows

    @property
    def steps(self) -> tuple[Step, ...]:
        return self._steps

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


def _taken(column: pa.ChunkedArray, rows: npt.NDArray[np.int64]) -> pa.ChunkedArray:
    return take_text(column, rows) if pa.types.is_string(column.type) else column.take(number_array(rows))
