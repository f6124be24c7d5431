"""Rows of a dataset: ``Rows``, the interface that Reader and View share, and ``View``."""

from __future__ import annotations

import operator
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
from builder.base.words import counted
from builder.read.columns import ArraysOf, Column
from builder.read.sample import Sample
from builder.read.threads import fetched_ahead

if TYPE_CHECKING:
    from builder.read.reader import Reader

RowNumber = int | np.integer[Any]
RowNumbers = Sequence[int] | npt.NDArray[np.integer[Any]]

COLUMNS = ("key", "path", "caption", "width", "height", "size", "position", "annotation_path")
"""The columns of :meth:`Rows.columns`. None of them needs an image."""

_AHEAD = 64  # rows fetched together when iterating
_ANNOUNCED = 8 * _AHEAD  # rows announced together when iterating


class Rows(Sequence[Sample]):
    """A sequence of samples: all rows of a Reader, or some of them in any order (a View).

    Deterministic, thread-safe, safe after fork, picklable.
    """

    @property
    def reader(self) -> Reader:
        """The Reader that holds these rows. ``Sample.row`` is a row number in it."""
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
        """Rows by number.

        * A whole number gives one sample. Negative numbers count from the end.
        * A slice gives a View.
        * A list or an array of numbers gives a list of samples. Their images have been read already, in file order.

        Raises IndexError, DamagedFileError, and TypeError for a mask (use ``np.flatnonzero(mask)``).
        """
        if isinstance(row, slice):
            return View(self.reader, self.rows[row])
        rows = self.rows
        chosen = chosen_rows(row, len(rows))
        if isinstance(chosen, int):
            return self.reader._sample(int(rows[chosen]))
        return self.reader._fetch([int(rows[each]) for each in chosen])

    def __getitems__(self, rows: Sequence[int]) -> list[Sample]:
        """One batch for torch's DataLoader. The images are read together."""
        return self[rows]

    def __iter__(self) -> Iterator[Sample]:
        """Reads several rows at a time, and the next rows while you use these: from a network into memory, from a disk
        into the page cache."""
        reader = self.reader
        fetched = fetched_ahead if reader._files.is_remote else map
        for samples in fetched(reader._fetch, self._chunks()):
            yield from samples

    def _chunks(self) -> Iterator[list[int]]:
        reader, rows = self.reader, self.rows
        for first in range(0, len(rows), _AHEAD):
            end = first + _AHEAD
            if first % _ANNOUNCED == 0:
                reader._announce(_integers(rows[end : end + _ANNOUNCED]))
            yield _integers(rows[first:end])

    def announce(self, rows: RowNumbers) -> None:
        """Say which rows you will read soon. If they are on a disk of this machine and not in the page cache, threads
        read them into it, in file order. Returns at once.

        For loops that choose rows themselves, such as one more batch ahead. Iteration and the samplers of
        ``builder.mm`` announce their rows. Raises IndexError, TypeError.
        """
        own, chosen = self.rows, chosen_rows(rows, len(self))
        if isinstance(chosen, int):
            chosen = [chosen]
        self.reader._announce([int(own[row]) for row in chosen])

    def find(self, key: str) -> Sample:
        """The row with that key. Files that other tools wrote may have a key twice: the last row wins. Raises
        KeyError."""
        row = self._row_of(key)
        if row is None:
            raise KeyError(key)
        return self.reader._sample(row)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._row_of(key) is not None

    def _row_of(self, key: str) -> int | None:
        raise NotImplementedError

    def columns(self, *names: str) -> pa.Table:
        """Columns of :data:`COLUMNS` (all, unless named) as an Arrow table over the mapped index. No image is read.
        Only rows in another order than the dataset's are copied. Raises KeyError."""
        for name in names:
            if name not in COLUMNS:
                raise KeyError(f"there is no column {name}, but {', '.join(COLUMNS)}")
        return self._table(names or COLUMNS)

    def _table(self, names: Sequence[str]) -> pa.Table:
        whole = self.reader._index.table(names)
        if self is self.reader:
            return whole
        rows = np.asarray(self.rows, dtype=np.int64)
        return pa.Table.from_arrays([_taken(column, rows) for column in whole.columns], schema=whole.schema)

    def column(self, name: str) -> Any:
        """One column, one value for each row. ``name``: one of :data:`COLUMNS`, ``digest``, or a column that ``laion6m
        add-column`` added.

        Returns a pyarrow ChunkedArray over the mapped file. Only rows in another order than the dataset's are copied.
        A column of arrays is a sequence that reads them one by one. Raises KeyError, DamagedFileError, and
        IndexMismatchError if the dataset was converted or indexed again after the column was made.
        """
        if name in (*COLUMNS, "digest"):
            return self._table([name]).column(0)
        reader = self.reader
        if name not in reader.added_columns():
            there = ", ".join((*COLUMNS, "digest", *reader.added_columns()))
            raise KeyError(f"there is no column {name}, but {there}")
        column = reader._column(name)
        if isinstance(column, Column):
            return column if self is reader else ArraysOf(column, self.rows)
        return column.column if self is reader else _taken(column.column, np.asarray(self.rows, dtype=np.int64))

    def added_columns(self) -> list[str]:
        """Names of the added columns. Looked up at the first call, then kept."""
        return self.reader.added_columns()

    def where(self, condition: str) -> View:
        """The rows for which a SQL condition is true, in their order. The SQL is DuckDB's (extra ``[sql]``).

        The condition may use ``key``, ``path``, ``caption``, ``width``, ``height``, ``size``, ``position``, ``digest``,
        ``annotation`` and added columns. It can reach nothing else. Raises SqlError, MissingExtraError.
        """
        from builder.curate.sql import find_rows

        return find_rows(self, condition)

    def sample(self, count: int, *, seed: int = 0) -> View:
        """``count`` rows at random, in their order. A hash of seed and key chooses them, so every conversion of the
        source gives the same rows. Raises OptionError if there are fewer."""
        from builder.curate.split import sample

        return sample(self, count, seed)

    def split(self, shares: Mapping[str, float], *, seed: int = 0) -> dict[str, View]:
        """Divide the rows into splits, given as name → share. A hash of seed and key decides, so every conversion of
        the source gives the same splits. Duplicates stay together if ``laion6m duplicates`` has run. Raises
        OptionError."""
        from builder.curate.split import split

        return split(self, shares, seed)

    def unique(self) -> View:
        """One row of each group of duplicates: the one to keep. If that one is not among these rows, the first. Raises
        SourceError if ``laion6m duplicates`` has not run."""
        from builder.curate.split import unique

        return unique(self)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a selection: a folder that names the dataset and holds row numbers. ``open_dataset`` opens it as these
        rows. No image is copied. Raises OutputError if the folder is not empty."""
        from builder.curate.selection import save

        save(self, folder)

    @property
    def steps(self) -> tuple[Step, ...]:
        """How these rows were chosen, and how many each step left. Empty for a whole dataset."""
        return ()

    def widths(self) -> npt.NDArray[np.int32]:
        """Widths in pixels, one int32 for each row."""
        return self._numbers("width")

    def heights(self) -> npt.NDArray[np.int32]:
        """Heights in pixels, one int32 for each row."""
        return self._numbers("height")

    def _numbers(self, name: str) -> npt.NDArray[Any]:
        column = self.reader._index.column(name)
        return column if self is self.reader else np.take(column, self.rows)

    def to_datasets(self) -> Any:
        """A map-style ``datasets.Dataset`` of these rows. Its table is the mapped index. A transform reads the images
        of the rows you ask for. No cache is written. ``map``, ``filter``, ``shuffle`` and ``select`` work."""
        from builder.hf.builder import reader_dataset

        return reader_dataset(self)

    def _repr_html_(self) -> str:
        """HTML for notebooks: counts and a small gallery."""
        from builder.read.shown import rows_html

        return rows_html(self)

    @property
    def identity(self) -> str:
        """16 hex digits. They differ if the files or the row numbers differ."""
        raise NotImplementedError

    @property
    def shards(self) -> tuple[schema.IndexedFile, ...]:
        """The files that hold the reader's images."""
        return self.reader._index.header.files


class View(Rows):
    """Some rows of a Reader, in any order. A slice gives one. Holds row numbers, no bytes."""

    def __init__(
        self, reader: Reader, rows: Sequence[int] | npt.NDArray[np.int64], steps: tuple[Step, ...] = ()
    ) -> None:
        """``rows``: numbers, 0 ≤ number < ``len(reader)``. ``steps``: how they were chosen."""
        self._reader, self._steps = reader, steps
        numbers = rows if isinstance(rows, range) else np.ascontiguousarray(rows, dtype=np.int64)
        self._rows: range | npt.NDArray[np.int64] = numbers
        self._each = (
            numbers if isinstance(numbers, range) else memoryview(cast(Any, numbers))
        )  # a memory view: its items are Python's ints
        self._sorted: npt.NDArray[np.int64] | None = None

    if not TYPE_CHECKING:  # its types are those of Rows.__getitem__

        def __getitem__(self, row):
            if type(row) is int and 0 <= row < len(self._each):  # the usual case
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
        if self._sorted is None:  # sorted once: scanning millions of rows for each key is slow
            self._sorted = np.sort(self._rows)
        at = int(np.searchsorted(self._sorted, row))
        return row if at < len(self._sorted) and self._sorted[at] == row else None

    def __repr__(self) -> str:
        return f"View({counted(len(self), 'row')} of {self._reader!r})"


def _integers(rows: range | npt.NDArray[np.int64]) -> list[int]:
    return rows.tolist() if isinstance(rows, np.ndarray) else list(rows)


def _taken(column: pa.ChunkedArray, rows: npt.NDArray[np.int64]) -> pa.ChunkedArray:
    return take_text(column, rows) if pa.types.is_string(column.type) else column.take(number_array(rows))


def chosen_rows(wanted: Any, rows: int) -> int | list[int]:
    """The row numbers that ``wanted`` names, each 0 ≤ number < ``rows``.

    ``wanted``: a whole number, or a sequence or an array of them (numpy's, torch's, Arrow's, pandas'). Negative numbers
    count from the end. Raises IndexError. Raises TypeError for anything else, including masks.
    """
    for convert in ("tolist", "to_pylist"):
        if hasattr(wanted, convert):
            wanted = getattr(wanted, convert)()
            break
    if isinstance(wanted, Sequence) and not isinstance(wanted, str | bytes | bytearray):
        return [row_number(each, rows) for each in wanted]
    return row_number(wanted, rows)


def row_number(wanted: Any, rows: int) -> int:
    """One row number. Errors as for :func:`chosen_rows`."""
    if isinstance(wanted, bool | np.bool_):  # bool is an int: a mask would give rows 0 and 1 many times
        raise TypeError("a bool is not a row number. For the rows of a mask: ds[np.flatnonzero(mask)]")
    number = operator.index(wanted)
    if number < 0:
        number += rows
    if not 0 <= number < rows:
        raise IndexError(f"there is no row {wanted}, only {counted(rows, 'row')}")
    return number
