"""Rows of an index for the checks. Each batch is validated before use."""

from __future__ import annotations

import pyarrow as pa

from builder.base import schema
from builder.base.errors import DamagedFileError

_ROWS = schema.INDEX_ROW


def index_rows(path: str, first: int, count: int) -> pa.RecordBatch:
    """Rows of an index as one batch of INDEX_ROW. Raises DamagedFileError."""
    place = f"rows {first} to {first + count}"
    found = [pa.RecordBatch.from_arrays([pa.nulls(0, column.type) for column in _ROWS], schema=_ROWS)]
    batches = range(first // schema.INDEX_BATCH_ROWS, -(-(first + count) // schema.INDEX_BATCH_ROWS)) if count else ()
    try:
        with pa.memory_map(path) as handle, pa.ipc.open_file(handle) as reader:
            for number in batches:
                begin = number * schema.INDEX_BATCH_ROWS
                lo, hi = max(first, begin) - begin, min(first + count - begin, schema.INDEX_BATCH_ROWS)
                batch = reader.get_batch(number).slice(lo, hi - lo).select(_ROWS.names)
                batch.validate(full=True)
                found.append(batch.replace_schema_metadata(None))
            rows = pa.concat_batches(found)  # copies, so that the map's pages can go
    except (pa.ArrowException, OSError, KeyError, TypeError) as error:
        raise DamagedFileError(path, place, str(error)) from None
    if rows.num_rows != count:
        raise DamagedFileError(path, place, f"{rows.num_rows} are there")
    return rows


def rows_not_utf8(path: str) -> list[tuple[int, str]]:
    """(row, key) of index rows whose text is not UTF-8: one flipped bit makes Arrow refuse the whole batch. Empty if
    more than that is wrong. Raises nothing."""
    found: list[tuple[int, str]] = []
    try:
        with pa.OSFile(path) as handle, pa.ipc.open_file(handle) as reader:
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                text = [name for name in _ROWS.names if pa.types.is_string(_ROWS.field(name).type)]
                columns = {name: batch.column(name).cast(pa.binary()) for name in text}
                for column in columns.values():
                    column.validate(full=True)  # offsets that lie are more than text
                wrong = {row for column in columns.values() for row in range(len(column)) if not _is_utf8(column[row])}
                for row in sorted(wrong):
                    key = (columns["key"][row].as_py() or b"").decode("utf-8", "replace")
                    found.append((number * schema.INDEX_BATCH_ROWS + row, key))
    except (pa.ArrowException, OSError, KeyError, TypeError):
        return []
    return found


def _is_utf8(value: pa.BinaryScalar) -> bool:
    try:
        (value.as_py() or b"").decode()
    except UnicodeDecodeError:
        return False
    return True
