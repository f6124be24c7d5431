"""Values of compressed columns. A whole row group is decoded at a time, and kept for later reads of rows near it."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate

import numpy as np
import pyarrow as pa

from builder.base.arrays import number_array
from builder.base.errors import DamagedFileError, IndexMismatchError
from builder.read.handles import Handle, Handles, LocalHandle
from builder.read.threads import ForkLock
from builder.source.files import PositionedFile

_KEPT_BYTES = 128 << 20
"""The most bytes of decoded columns that are kept. A row group's annotations take a few MB. Its images, if they were
compressed, can take all of it."""

# A single column has no work for a second thread. And if one of pyarrow's threads releases a Python file object while
# Python exits, the process crashes ("terminate called without an active exception").
_NO_THREADS = pa.ipc.IpcReadOptions(use_threads=False)


class NoColumnError(DamagedFileError):
    """A shard lacks a column. Args: as for DamagedFileError."""


class GroupColumns:
    """Reads single values of Parquet and Arrow shards by row group. Thread-safe. Picklable; kept values are left
    out."""

    def __init__(self, files: Handles) -> None:
        self._files = files
        self._kept: OrderedDict[tuple[int, int, str], pa.ChunkedArray] = OrderedDict()
        self._starts: dict[int, list[int]] = {}
        self._lacking: set[tuple[int, str]] = set()
        self._lock = ForkLock()

    def value(self, file: int, row: int, column: str) -> bytes | None:
        """The bytes (UTF-8 for text) in ``row`` of a file. ``column``: a column or ``struct.field``. None for null.

        Raises IndexMismatchError if the file is not the one that was indexed, DamagedFileError if it cannot be decoded,
        NoColumnError if it has no such column. A missing column is remembered: the next call fails without reading.
        """
        path = self._files.path(file)
        if row < 0:
            raise IndexMismatchError(path, f"it has no row {row}")
        if (file, column) in self._lacking:
            raise _no_column(path, column)
        with self._lock:
            starts = self._group_starts(file, path)
            group = bisect_right(starts, row) - 1
            key = (file, group, column)
            values = self._kept.get(key)
            if values is None:
                values = self._kept[key] = self._decode(self._files.current(file), file, group, column)
                while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > _KEPT_BYTES:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(key)
        within = row - starts[group]
        if not 0 <= within < len(values):
            raise IndexMismatchError(path, f"it has no row {row}")
        value = values[within]
        return value.as_buffer().to_pybytes() if value.is_valid else None

    def _group_starts(self, file: int, path: str) -> list[int]:
        if file not in self._starts:
            if self._files.files[file].kind == "arrow":
                self._starts[file] = [0]
            else:
                import pyarrow.parquet as pq  # imported only when needed: 10 MB in each process

                from builder.store.footers import check_claims

                handle = self._files.current(file)
                try:
                    metadata = pq.read_metadata(PositionedFile(handle))
                except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
                    raise DamagedFileError(path, "footer", str(error)) from None
                check_claims(path, metadata, handle.size)
                counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
                self._starts[file] = [0, *accumulate(counts)][:-1] or [0]
        return self._starts[file]

    def _decode(self, handle: Handle, file: int, group: int, column: str) -> pa.ChunkedArray:
        path = handle.name
        arrow = self._files.files[file].kind == "arrow"
        try:
            return _arrow_column(handle, column) if arrow else _parquet_column(handle, group, column)
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            raise DamagedFileError(path, f"row group {group}, column {column}", str(error)) from None
        except KeyError:
            self._lacking.add((file, column))
            raise _no_column(path, column) from None


def _parquet_column(handle: Handle, group: int, column: str) -> pa.ChunkedArray:
    from builder.store.parquet_file import open_parquet  # imports pyarrow.parquet

    with open_parquet(PositionedFile(handle)) as parquet:
        return _column_of(parquet.read_row_group(group, columns=[column], use_threads=False), column)


def _arrow_column(handle: Handle, column: str) -> pa.ChunkedArray:
    """A column of an Arrow stream. Of a local file only the column is read, and it is copied out of the map."""
    local = isinstance(handle, LocalHandle)
    with handle.map() if isinstance(handle, LocalHandle) else pa.PythonFile(PositionedFile(handle)) as source:
        table = pa.ipc.open_stream(source, options=_NO_THREADS).read_all()
        table = table.select([column_parts(column, table.column_names)[0]])
        table.validate(full=True)  # wrong offsets would read memory outside the file
        if local:
            table = table.take(number_array(np.arange(len(table), dtype=np.int64)))
    handle.check()
    return _column_of(table, column)


def _column_of(table: pa.Table, column: str) -> pa.ChunkedArray:
    """A column, or a field of a struct column. Raises KeyError."""
    name, field = column_parts(column, table.column_names)
    values = table.column(name)
    if not field:
        return values
    return pa.chunked_array([chunk.field(field) for chunk in values.chunks], type=values.type.field(field).type)


def _no_column(path: str, column: str) -> NoColumnError:
    return NoColumnError(path, "schema", f"it has no column {column}")


def column_parts(column: str, names: list[str]) -> tuple[str, str]:
    """Split ``column.field`` into column and field. The field is "" for a whole column. A column's name may contain a
    dot."""
    name, _, field = (column, "", "") if column in names else column.partition(".")
    return name, field
