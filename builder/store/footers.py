"""The footer of a Parquet file, read without pyarrow: its checksum, its claims, and the rows that some readers miss.

Source: parquet-format, README.md and parquet.thrift (FileMetaData, RowGroup, ColumnChunk, ColumnMetaData).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xxhash

from builder.base.errors import DamagedFileError
from builder.store.thrift import I64, LIST, STRUCT, Struct, ThriftError, get, need, read_struct

if TYPE_CHECKING:
    import pyarrow.parquet as pq

    from builder.source.files import ByteFile

MAGIC, ENCRYPTED_MAGIC = b"PAR1", b"PARE"

FREE_NULLS = 1 << 22
"""A footer may claim this many rows more than the file has bytes. A value takes 4 bytes or more, but a run of nulls
takes almost none."""


def check_claims(path: str, metadata: pq.FileMetaData, size: int) -> None:
    """Raises DamagedFileError if the file, of ``size`` bytes, is too small for the rows that its footer claims.

    pyarrow allocates memory for all rows of a row group before it reads one. For a trillion rows, the system would kill
    this process, or another.
    """
    counts = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) != metadata.num_rows or metadata.num_rows > size + FREE_NULLS:
        claim = f"it claims {metadata.num_rows:,} rows, its row groups {sum(counts):,}; the file has {size:,} bytes"
        raise DamagedFileError(path, "footer", claim)


def footer_check(file: ByteFile) -> dict[str, Any]:
    """What tells a Parquet file from another one: ``size`` in bytes, and ``footer``, the xxh3-128 in hex of its footer
    with length and magic.

    Reads only the end of the file. Raises DamagedFileError if it is not the end of a Parquet file.
    """
    size, start, _ = _place(file)
    digest = xxhash.xxh3_128()
    for offset in range(start, size, 1 << 20):
        digest.update(file.read_at(offset, min(1 << 20, size - offset)))
    return {"size": size, "footer": digest.hexdigest()}


def _place(file: ByteFile) -> tuple[int, int, int]:
    """(file size, start of the footer (inclusive), its end (exclusive)), all in bytes. Raises DamagedFileError."""
    size = file.size
    if size is None:
        raise DamagedFileError(file.name, "end", "its place cannot be known. Parquet is read from its end")
    if size < 12:
        raise DamagedFileError(file.name, "end", f"{size} bytes are too few for a Parquet file")
    tail = file.read_at(size - 8, 8)
    if tail[4:] == ENCRYPTED_MAGIC:
        raise DamagedFileError(file.name, "end", "the footer is encrypted (PARE)")
    if tail[4:] != MAGIC:
        raise DamagedFileError(file.name, "end", "no PAR1 there: the file is cut short, or is not Parquet")
    length = int.from_bytes(tail[:4], "little")
    if length > size - 12:
        raise DamagedFileError(file.name, "end", f"a footer of {length} bytes does not fit in a file of {size}")
    return size, size - 8 - length, size - 8


def read_footer(file: ByteFile) -> tuple[int, Struct]:
    """(file size in bytes, FileMetaData). pyarrow is not used: it crashes the process on some damaged column chunks.

    Raises DamagedFileError.
    """
    size, start, end = _place(file)
    try:
        return size, read_struct(file.read_at(start, end - start))[0]
    except ThriftError as error:
        raise DamagedFileError(file.name, "footer", str(error)) from error


def structs(fields: Struct, number: int) -> list[Struct]:
    """The structs in a field. Raises ThriftError if the field is not a list of structs."""
    items = need(fields, number, LIST)
    if items.kind != STRUCT and items.values:
        raise ThriftError(-1, f"field {number} is a list of type {items.kind}")
    values: list[Struct] = items.values
    return values


def missed_by_splits(file: ByteFile) -> tuple[int, int]:
    """(rows that readers built on parquet-java would miss, rows in all).

    These readers cut a file into splits. They read a row group in the split that holds the byte *offset of its first
    column + half of its size*. If that byte is beyond the end of the file, no split holds it. Raises DamagedFileError.
    """
    size, footer = read_footer(file)
    missed = total = 0
    try:
        for group in structs(footer, 4):
            rows = need(group, 3, I64)
            columns = [need(chunk, 3, STRUCT) for chunk in structs(group, 1)]
            starts = [get(columns[0], number) for number in (9, 11)]  # data; dictionary, which may be missing
            length = get(group, 6) or sum(need(column, 7, I64) for column in columns)
            middle = min(start for start in starts if start is not None) + length // 2
            total += rows
            missed += 0 if 0 <= middle < size else rows
    except (ThriftError, TypeError, ValueError, IndexError) as error:
        raise DamagedFileError(file.name, "footer", str(error)) from error
    return missed, total
