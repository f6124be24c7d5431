"""Values of compressed columns: decoded a row group at a time, and kept while rows near them are asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate

import numpy as np
import pyarrow as pa

from builder.base.arrays import number_array
from builder.base.errors import DamagedFileError, IndexMismatchError
from builder.read.handles import Handle, HandleFile, Handles, LocalHandle
from builder.read.threads import ForkLock

_KEPT_BYTES = 128 << 20
"""Of decoded columns. Annotations of a row group are a few MB; images that had to be compressed, up to all of it."""

# A single column keeps no second thread busy. One of pyarrow's that lets go of a file object of Python's while Python
# ends would be a crash ("terminate called without an active exception").
_NO_THREADS = pa.ipc.IpcReadOptions(use_threads=False)


class NoColumnError(DamagedFileError):
    """A shard lacks a column. Args as of DamagedFileError."""


class GroupColumns:
    """Reads single values of Parquet and Arrow shards by row group. Thread-safe; picklable, without what it keeps."""

    def __init__(self, files: Handles) -> None:
        self._files = files
        self._kept: OrderedDict[tuple[int, int, str], pa.ChunkedArray] = OrderedDict()
        self._starts: dict[int, list[int]] = {}
        self._lacking: set[tuple[int, str]] = set()
        self._lock = ForkLock()

    def value(self, file: int, row: int, column: str) -> bytes | None:
        """The bytes (UTF-8 for text) in ``row`` of a file, of a column or of ``struct.field``; None for null. Raises
        IndexMismatchError when the file is not the one indexed, DamagedFileError when it cannot be decoded,
        NoColumnError (at once, from the second time on) where there is no such column."""
        path = self._files.path(file)
        if row < 0:
            raise IndexMismatchError(path, f"row {row} is not in it")
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
            raise IndexMismatchError(path, f"row {row} is not in it")
        value = values[within]
        return value.as_buffer().to_pybytes() if value.is_valid else None

    def _group_starts(self, file: int, path: str) -> list[int]:
        if file not in self._starts:
            if self._files.files[file].kind == "arrow":
                self._starts[file] = [0]
            else:
                import pyarrow.parquet as pq  # when it is needed: 10 MB in each process

                from builder.store.footers import check_claims

                handle = self._files.current(file)
                try:
                    metadata = pq.read_metadata(HandleFile(handle))
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
    import pyarrow.parquet as pq

    with pq.ParquetFile(HandleFile(handle)) as parquet:
        return _column_of(parquet.read_row_group(group, columns=[column], use_threads=False), column)


def _arrow_column(handle: Handle, column: str) -> pa.ChunkedArray:
    """Of a file on this machine nothing but the column is read, and nothing of the map is kept."""
    local = isinstance(handle, LocalHandle)
    with handle.map() if isinstance(handle, LocalHandle) else pa.PythonFile(HandleFile(handle)) as source:
        table = pa.ipc.open_stream(source, options=_NO_THREADS).read_all()
        table = table.select([column_parts(column, table.column_names)[0]])
        table.validate(full=True)  # offsets that lie would read memory that is not the file's
        if local:
            table = table.take(number_array(np.arange(len(table), dtype=np.int64)))
    handle.check()
    return _column_of(table, column)


def _column_of(table: pa.Table, column: str) -> pa.ChunkedArray:
    """A column, or a field of one. Raises KeyError."""
    name, field = column_parts(column, table.column_names)
    values = table.column(name)
    if not field:
        return values
    return pa.chunked_array([chunk.field(field) for chunk in values.chunks], type=values.type.field(field).type)


def _no_column(path: str, column: str) -> NoColumnError:
    return NoColumnError(path, "schema", f"it has no column {column}")


def column_parts(column: str, names: list[str]) -> tuple[str, str]:
    """A column, and the field of it that is meant; "" for all of it. A dot may be part of a name."""
    name, _, field = (column, "", "") if column in names else column.partition(".")
    return name, field
