"""Tell text from images if the types of a file do not. Some writers mark both as bytes, some mark both as text.

ClickHouse marks every String column as text, even images, or none at all. Hive and old Spark write text without the
UTF8 mark. So if a column's type can mean either, its first value is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice

import pyarrow as pa

from builder.base.records import SampleProblem
from builder.read.groups import column_parts
from builder.source.images import probe
from builder.store.footers import check_claims
from builder.store.parquet_file import open_parquet

_BATCHES = 16  # of 64 rows, looked at for a value


def settled(table: pa.Schema, path: str, image_column: str | None = None) -> pa.Schema:
    """The schema of a file with text as string and images as binary, however the file marks them.

    If only one leaf has bytes, that is the images, and nothing is read. Bytes in ``image_column`` count as images
    without being read.
    """
    known = leaves(table)
    marked = [name for name, kind in known.items() if is_bytes(kind)]

    def settle(field: pa.Field, name: str) -> pa.Field:
        kind = field.type
        wanted = image_column is not None and name in (image_column, f"{image_column}.bytes")
        if name not in known:  # two columns have this name
            return field
        if pa.types.is_struct(kind) and "." not in name:
            parts = [kind.field(at) for at in range(kind.num_fields)]
            return field.with_type(pa.struct([settle(part, f"{name}.{part.name}") for part in parts]))
        if len(marked) > 1 and is_bytes(kind) and not wanted and _is_utf8(first_value(path, name)):
            return field.with_type(pa.string())
        if (wanted or not marked) and is_text(kind) and _is_picture(first_value(path, name)):
            return field.with_type(pa.binary())
        return field

    return pa.schema([settle(field, field.name) for field in table], table.metadata)


def first_value(path: str, leaf: str) -> bytes | None:
    """The first value of a leaf (``column`` or ``column.field``) that is neither null nor empty. None if there is none.
    Raises DamagedFileError, and pyarrow's errors."""
    if path.endswith(".arrow"):
        with pa.memory_map(path) as source, pa.ipc.open_stream(source) as stream:
            return _first(map(checked, stream), leaf)
    with open_parquet(path, buffer_size=1 << 16) as parquet:  # pages one by one, not a whole column chunk
        check_claims(path, parquet.metadata, os.path.getsize(path))
        return _first(parquet.iter_batches(64, columns=[leaf]), leaf)


def checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, after a check of its offsets. Arrow trusts offsets, so a wrong one would crash the process.

    Text is not checked for UTF-8, because it may be images. Decoding it will tell. Raises pa.ArrowInvalid.
    """
    kinds = [_bytes_type(column.type) for column in batch.columns]
    columns = [
        column if kind == column.type else column.view(kind) for column, kind in zip(batch.columns, kinds, strict=True)
    ]
    pa.RecordBatch.from_arrays(columns, batch.schema.names).validate(full=True)
    return batch


def _bytes_type(kind: pa.DataType) -> pa.DataType:
    """The type with text as bytes."""
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        parts = [kind.field(at) for at in range(kind.num_fields)]
        return pa.struct([each.with_type(_bytes_type(each.type)) for each in parts])
    return kind


def leaves(table: pa.Schema) -> dict[str, pa.DataType]:
    """Columns, and the fields of struct columns as ``column.field``, with their types. Duplicate names are left out."""
    found = {field.name: field.type for field in table if len(table.get_all_field_indices(field.name)) == 1}
    for name, kind in list(found.items()):
        if pa.types.is_struct(kind):
            fields = [kind.field(at) for at in range(kind.num_fields)]
            names = [each.name for each in fields]
            found |= {f"{name}.{each.name}": each.type for each in fields if names.count(each.name) == 1}
    return found


def is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def text_of(value: object) -> str:
    """The text of a value, which is a string or bytes in UTF-8. Raises UnicodeDecodeError."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _first(batches: Iterator[pa.RecordBatch], leaf: str) -> bytes | None:
    for batch in islice(batches, _BATCHES):
        name, field = column_parts(leaf, batch.schema.names)
        column = batch.column(name)
        for value in column.field(field) if field else column:
            data = value.as_buffer() if value.is_valid and hasattr(value, "as_buffer") else None
            if data:
                return bytes(data)
    return None


def _is_utf8(value: bytes | None) -> bool:
    try:
        return value is not None and bool(value.decode())
    except UnicodeDecodeError:
        return False


def _is_picture(value: bytes | None) -> bool:
    if value is None:
        return False
    try:
        probe(value)
    except SampleProblem:
        return False
    return True
