"""meta/index.arrow, memory-mapped: from a row number to the place of its bytes. Only the batches you use are read."""

from __future__ import annotations

import os
import shlex
from bisect import bisect_right
from collections.abc import Sequence
from os import SEEK_END, lseek
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from builder.base import schema
from builder.base.arrays import numbers_of, text_fits
from builder.base.errors import DamagedFileError, SourceError, too_many_open
from builder.base.words import problem_of
from builder.read.handles import LocalHandle
from builder.source.files import refuse_pointer

_SHIFT = schema.INDEX_BATCH_ROWS.bit_length() - 1
_MASK = schema.INDEX_BATCH_ROWS - 1
_KINDS = ("parquet", "arrow", "tar", "folder", "rowgroups")
_CHECKS = {"size": int, "mtime_ns": int, "footer": str, "column": str, "offset": str}


class IndexBatch:
    """Columns of one record batch as memory views. One item is a Python number and costs about 40 ns."""

    def __init__(self, batch: pa.RecordBatch, path: str) -> None:
        self.rows = batch.num_rows
        self.path = path

        def numbers(name: str, code: Literal["i", "q", "Q"]) -> memoryview[int]:
            array = batch.column(name)
            data = array.buffers()[1]
            width = 4 if code == "i" else 8
            if array.null_count or data is None or data.size < self.rows * width:
                raise DamagedFileError(path, f"column {name}", "it is shorter than the index")
            return memoryview(data)[: self.rows * width].cast(code)

        self.file = numbers("file", "i")
        self.offset = numbers("offset", "q")
        self.size = numbers("size", "q")
        self.width = numbers("width", "i")
        self.height = numbers("height", "i")
        self.position = numbers("position", "q")
        self.annotation_file = numbers("annotation_file", "i")
        self.annotation_offset = numbers("annotation_offset", "q")
        self.annotation_size = numbers("annotation_size", "q")
        self.find_hash = np.frombuffer(numbers("find_hash", "Q"), dtype=np.uint64)
        self.find_row = np.frombuffer(numbers("find_row", "q"), dtype=np.int64)
        self.bom = batch.column("bom")
        self.digest = batch.column("digest")
        self.texts: dict[str, tuple[memoryview, memoryview]] = {}
        for name in ("key", "path", "annotation_path", "caption", "annotation"):
            _, ends, data = batch.column(name).buffers()
            if ends is None or ends.size < (self.rows + 1) * 4:
                raise DamagedFileError(path, f"column {name}", "it is shorter than the index")
            self.texts[name] = (memoryview(ends)[: (self.rows + 1) * 4].cast("i"), memoryview(data or b""))

    def text(self, name: str, at: int) -> str:
        """The string of column ``name`` in row ``at`` of this batch."""
        ends, data = self.texts[name]
        start, end = ends[at], ends[at + 1]
        if not 0 <= start <= end <= len(data):
            raise DamagedFileError(self.path, f"column {name}, row {at}", "its offsets lie outside its text")
        try:
            return str(data[start:end], "utf-8")
        except UnicodeDecodeError as error:
            raise DamagedFileError(self.path, f"column {name}, row {at}", str(error)) from None


class Index:
    """An index over files. Opening it reads only the footer. A batch is read at the first access to one of its rows.

    Thread-safe. Picklable (as a path).
    """

    def __init__(self, path: str, root: str, source: str | None = None) -> None:
        """``path``: the index file. ``root``: the folder that the index's own ``root`` is relative to. ``source``: the
        folder of the indexed files; it overrides the index's. Raises DamagedFileError, SourceError."""
        self.path = path
        try:
            self.file = LocalHandle(path)
            self._reader = pa.ipc.open_file(self.file.map())
            table = self._reader.schema
            self.header = schema.IndexHeader.from_json((table.metadata or {})[schema.INDEX_METADATA_KEY])
        except SourceError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise SourceError(f"{shlex.quote(path)} is not there") from None
            raise
        except (pa.ArrowException, OSError) as error:
            if too_many_open(error):
                raise SourceError(f"{shlex.quote(path)}: {os.strerror(error.errno or 0)}") from error
            refuse_pointer(path, self.file.read_at(0, 64))
            raise DamagedFileError(path, "footer", f"not an Arrow IPC file: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DamagedFileError(path, "metadata", f"not an index of this tool: {problem_of(error)}") from None
        self._check(table)
        self._fd, self._size = self.file.fileno(), self.file.size
        self.root = source or _join(root, self.header.root)
        self._batches: list[IndexBatch | None] = [None] * self._reader.num_record_batches

    def __len__(self) -> int:
        return self.header.rows

    @property
    def identity(self) -> str:
        """16 hex digits: a hash of the files' names, row counts and checks. They differ if the files differ."""
        return xxhash.xxh3_64_hexdigest(self.header.to_json())

    def place(self, row: int) -> tuple[IndexBatch, int]:
        """The batch that holds ``row`` (0 ≤ row < len), and the row's number in it. Raises ChangedFileError if the
        mapped file's size has changed: reading a part that was cut off would kill the process (SIGBUS)."""
        if lseek(self._fd, 0, SEEK_END) != self._size:  # a quarter of what fstat costs
            self.file.check()
        number = row >> _SHIFT
        batch = self._batches[number]
        return (batch if batch is not None else self.load(number)), row & _MASK

    def load(self, number: int) -> IndexBatch:
        """Read and check one batch. Raises DamagedFileError, ChangedFileError."""
        made = IndexBatch(self._batch(number), self.path)
        for name, least in (("file", 0), ("annotation_file", schema.IN_INDEX)):
            numbers = np.frombuffer(getattr(made, name), dtype=np.int32)
            if numbers.min() < least or numbers.max() >= len(self.header.files):
                problem = f"it names files {numbers.min()} to {numbers.max()} of {len(self.header.files)}"
                raise DamagedFileError(self.path, f"batch {number}, column {name}", problem)
        self._batches[number] = made
        return made

    def _batch(self, number: int) -> pa.RecordBatch:
        self.file.check()
        try:
            batch = self._reader.get_batch(number)
            batch.validate()
        except (pa.ArrowException, OSError) as error:
            raise DamagedFileError(self.path, f"batch {number}", str(error)) from None
        expected = min(schema.INDEX_BATCH_ROWS, len(self) - number * schema.INDEX_BATCH_ROWS)
        if batch.num_rows != expected:
            raise DamagedFileError(self.path, f"batch {number}", f"it has {batch.num_rows} rows, not {expected}")
        return batch

    def find(self, key: str) -> int | None:
        """The row with that key, or None. Bisects the sorted hashes, then compares the keys themselves."""
        wanted = np.uint64(xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogatepass")))
        numbers = range(len(self._batches))
        low = bisect_right(numbers, wanted, key=lambda number: self.place(number << _SHIFT)[0].find_hash[0]) - 1
        while low >= 0:  # equal hashes may begin in an earlier batch
            batch = self.place(low << _SHIFT)[0]
            at = int(np.searchsorted(batch.find_hash, wanted, side="right")) - 1
            while at >= 0 and batch.find_hash[at] == wanted:
                row = int(batch.find_row[at])
                if not 0 <= row < len(self):
                    raise DamagedFileError(self.path, "column find_row", f"it names row {row} of {len(self)}")
                there, place = self.place(row)
                if there.text("key", place) == key:
                    return row
                at -= 1
            if at >= 0:
                break
            low -= 1
        return None

    def column(self, name: str) -> npt.NDArray[Any]:
        """A whole column of numbers, as a copy of 4 or 8 bytes for each row. Raises DamagedFileError."""
        table = self.table([name])
        if table.column(0).null_count:
            raise DamagedFileError(self.path, f"column {name}", "it has nulls")
        return numbers_of(table.column(0))

    def table(self, names: Sequence[str]) -> pa.Table:
        """Columns as an Arrow table over the mapped file. Nothing is copied. Raises DamagedFileError."""
        batches = [self._batch(number).select(list(names)) for number in range(len(self._batches))]
        for number, batch in enumerate(batches):
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                if pa.types.is_string(column.type) and not text_fits(column):
                    problem = "its offsets lie outside its text"
                    raise DamagedFileError(self.path, f"batch {number}, column {name}", problem)
        return pa.Table.from_batches(batches, schema=pa.schema([schema.INDEX_TABLE.field(name) for name in names]))

    def _check(self, table: pa.Schema) -> None:
        if self.header.version != schema.INDEX_VERSION:
            raise DamagedFileError(
                self.path, "version", f"it is {self.header.version}, this tool reads {schema.INDEX_VERSION}"
            )
        if not table.remove_metadata().equals(schema.INDEX_TABLE):
            raise DamagedFileError(self.path, "schema", "its columns are not those of an index")
        for file in self.header.files:
            known = all(type(value) is _CHECKS.get(name, type(value)) for name, value in file.check.items())
            if file.kind not in _KINDS or not known or (file.kind == "rowgroups" and "column" not in file.check):
                raise DamagedFileError(self.path, "metadata", f"impossible facts about {file.path:.80}")
        batches = -(-self.header.rows // schema.INDEX_BATCH_ROWS)
        if self.header.rows < 0 or batches != self._reader.num_record_batches:
            raise DamagedFileError(
                self.path, "batches", f"it has {self._reader.num_record_batches} for {self.header.rows} rows"
            )


def _join(folder: str, root: str) -> str:
    """The place of the indexed files, for an index in ``folder``. A URL is not a path: ``normpath`` would merge its
    slashes."""
    if "://" in folder:
        return folder if root in ("", ".") else root
    return os.path.normpath(os.path.join(folder, root))
