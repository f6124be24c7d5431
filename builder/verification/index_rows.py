"""Read an index that may be damaged. Everything is validated before use: wrong offsets would crash the process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa

from builder.base import schema
from builder.base.errors import DamagedFileError, refuse_denied

_ROWS = schema.INDEX_ROW


@contextmanager
def opened_index(
    path: str, place: str, open_file: Callable[[str], pa.NativeFile] = pa.OSFile
) -> Iterator[pa.ipc.RecordBatchFileReader]:
    """A reader of all batches. ``open_file``: ``pa.OSFile``, or ``pa.memory_map`` to read a few rows: mapped pages
    count as memory of this process. Whatever is wrong inside is a DamagedFileError at ``place``. Raises AccessError."""
    try:
        with open_file(path) as handle, pa.ipc.open_file(handle) as reader:
            yield reader
    except (pa.ArrowException, OSError, KeyError, TypeError) as error:
        refuse_denied(path, error)
        raise DamagedFileError(path, place, str(error)) from None


def index_rows(out: str, first: int, count: int) -> pa.RecordBatch:
    """Rows of the index of ``out`` as one batch of INDEX_ROW. Raises DamagedFileError, AccessError."""
    path = os.path.join(out, schema.INDEX)
    place = f"rows {first} to {first + count}"
    found = [pa.RecordBatch.from_arrays([pa.nulls(0, column.type) for column in _ROWS], schema=_ROWS)]
    batches = range(first // schema.INDEX_BATCH_ROWS, -(-(first + count) // schema.INDEX_BATCH_ROWS)) if count else ()
    with opened_index(path, place, pa.memory_map) as reader:
        for number in batches:
            begin = number * schema.INDEX_BATCH_ROWS
            lo, hi = max(first, begin) - begin, min(first + count - begin, schema.INDEX_BATCH_ROWS)
            batch = reader.get_batch(number).slice(lo, hi - lo).select(_ROWS.names)
            batch.validate(full=True)
            found.append(batch.replace_schema_metadata(None))
        rows = pa.concat_batches(found)  # copies, so that the map's pages can go
    if rows.num_rows != count:
        raise DamagedFileError(path, place, f"{rows.num_rows} are there")
    return rows


def rows_not_utf8(out: str) -> list[int]:
    """Rows of the index whose text is not UTF-8: one flipped bit makes Arrow refuse the whole batch. Empty if more than
    that is wrong."""
    text = [field.name for field in _ROWS if pa.types.is_string(field.type)]
    found: list[int] = []
    try:
        with opened_index(os.path.join(out, schema.INDEX), "text") as reader:
            for number in range(reader.num_record_batches):
                columns = [_as_bytes(reader.get_batch(number).column(name)) for name in text]
                wrong = {row for column in columns for row in range(len(column)) if not _is_utf8(column[row])}
                found += sorted(number * schema.INDEX_BATCH_ROWS + row for row in wrong)
    except DamagedFileError:
        return []
    return found


def key_of(out: str, row: int) -> str:
    """The key of a row, for messages. "?" if it cannot be read."""
    number, at = divmod(row, schema.INDEX_BATCH_ROWS)
    try:
        with opened_index(os.path.join(out, schema.INDEX), f"row {row}", pa.memory_map) as reader:
            key = _as_bytes(reader.get_batch(number).column("key").slice(at, 1))[0].as_py()
    except (DamagedFileError, IndexError, ValueError):
        return "?"
    return (key or b"").decode("utf-8", "replace")


def _as_bytes(texts: pa.Array) -> pa.BinaryArray:
    """Text that need not be UTF-8. Raises ArrowInvalid if its offsets are wrong."""
    values = texts.cast(pa.binary())
    values.validate(full=True)
    return values


def _is_utf8(value: pa.BinaryScalar) -> bool:
    try:
        (value.as_py() or b"").decode()
    except UnicodeDecodeError:
        return False
    return True
