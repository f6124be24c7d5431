"""Columns of numbers, booleans, strings and lists of strings: one value per row, beside the images."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from builder.base import schema
from builder.base.errors import OptionError, OutputError
from builder.base.schema import INDEX_BATCH_ROWS, IndexedFile, ShardName
from builder.base.words import counted
from builder.read.columns import (
    ColumnHeader,
    check_name,
    column_checksums,
    column_index,
    columns_of,
    index_digest,
    is_column_type,
)
from builder.read.index import Index
from builder.source.files import LocalFile
from builder.store.footers import footer_digest
from builder.store.ledger import Ledger
from builder.store.output import ArrowSink, OutputFile, make_folder, publish, whole, write_file
from builder.store.seals import seal


@dataclass(frozen=True, slots=True)
class ColumnSummary:
    """What was made. ``bytes``: size of the values. For values joined from files: ``matched`` rows have a value,
    ``missing`` rows have none (null), ``stray`` values belong to no row. ``invalid``: values that do not have the
    column's type (null)."""

    out: str
    name: str
    rows: int
    shards: int
    bytes: int
    seconds: float
    type: str = "array"
    on: str = "path"
    matched: int | None = None
    missing: int = 0
    stray: int = 0
    repeated: int = 0
    invalid: int = 0

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "out": self.out,
            "column": self.name,
            "type": self.type,
            "rows": self.rows,
            "shards": self.shards,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
        }
        if self.matched is not None:
            document |= {"on": self.on, "matched": self.matched, "missing": self.missing, "stray": self.stray}
            document |= {"repeated": self.repeated, "invalid": self.invalid}
        return document


def write_column(folder: str, name: str, values: pa.Array | pa.ChunkedArray, *, replace: bool = False) -> int:
    """Write ``values`` as column ``name`` of a converted folder or index: one value per row, in row order. Writes
    columns/NAME/*.parquet with keys, and a memory-mapped copy in meta/. Returns the number of files in columns/NAME.

    Types: booleans, integers, floats, strings, lists of strings. Equivalent types (large_string, dictionaries, half
    floats) are cast. Nulls are kept. ``replace``: replace an existing column. Raises OptionError (name, type, number of
    values), OutputError (the column exists), LockedError, DamagedFileError, WriteError.
    """
    check_name(name)
    column = pa.chunked_array(values.chunks if isinstance(values, pa.ChunkedArray) else [values], type=values.type)
    column = plain_column(name, column)
    index = Index(os.path.join(folder, schema.INDEX), folder)
    if len(column) != len(index):
        raise OptionError(
            "column", name, f"one value for each of {counted(len(index), 'row')}; these are {len(column):,}"
        )
    digest = index_digest(folder)
    cuts = shard_cuts(index.column("file"))
    with Ledger(work_path(folder, name)).locked(0, 1):
        if replace:
            with suppress(FileNotFoundError):
                os.unlink(column_index(folder, name))  # first: without its index the column does not exist
        refuse_made(folder, name)
        shutil.rmtree(os.path.join(folder, "columns", name), ignore_errors=True)  # left by an unfinished run
        keys = index.table(["key"]).column(0)
        files, digests = [], {}
        for number, (first, end) in enumerate(pairwise(cuts)):
            path = shard_path(name, ShardName(number, len(cuts) - 1))
            some = [keys.slice(first, end - first), column.slice(first, end - first)]
            table = pa.Table.from_arrays(some, names=["key", name])
            check, digests[path] = _write_shard(table, work_path(folder, name, "shard.tmp"), os.path.join(folder, path))
            files.append(IndexedFile(path, "parquet", end - first, check))
        header = ColumnHeader(name, len(column), digest, tuple(files))
        publish_index(folder, header, pa.schema([(name, column.type)]), _batches(name, column), digests)
        shutil.rmtree(work_path(folder, name))
    return len(files)


def plain_column(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column as one of the types that a column can have. Raises OptionError."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_float16(kind):
        kind = pa.float32()
    elif pa.types.is_large_string(kind) or kind == pa.string_view():
        kind = pa.string()
    elif pa.types.is_large_list(kind) or pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        value = kind.value_type
        is_text = pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_null(value)
        kind = pa.list_(pa.string()) if is_text else kind
    if not is_column_type(kind):
        raise OptionError(
            "column", name, f"values are {kind}; a column holds numbers, booleans, strings or their lists"
        )
    try:
        return column if column.type == kind else column.cast(kind)
    except pa.ArrowException as error:
        raise OptionError("column", name, f"{column.type} values do not become {kind}: {error}") from None


def _write_shard(table: pa.Table, temporary: str, final: str) -> tuple[dict[str, Any], str]:
    """Write one file. Returns its identity and its xxh3-128."""
    make_folder(os.path.dirname(temporary))
    file = OutputFile(temporary)
    with whole(file):
        pq.write_table(table, ArrowSink(file), compression="zstd", write_page_index=True)
        digest = file.close()
    size, footer = footer_digest(LocalFile(temporary))
    publish(temporary, final)
    return {"size": size, "footer": footer}, digest


def _batches(name: str, column: pa.ChunkedArray) -> Iterator[pa.RecordBatch]:
    """Batches of INDEX_BATCH_ROWS rows; the last may be shorter."""
    for first in range(0, len(column), INDEX_BATCH_ROWS):
        chunks = column.slice(first, INDEX_BATCH_ROWS).chunks
        values = pa.concat_arrays(chunks)
        yield pa.RecordBatch.from_arrays([values], names=[name])


def publish_index(
    root: str, header: ColumnHeader, row: pa.Schema, batches: Iterable[pa.RecordBatch], digests: dict[str, str]
) -> None:
    """Write a column's index after all its other files, and the checksums of all. ``digests``: of the other files."""
    name = header.name
    table = row.with_metadata({schema.INDEX_METADATA_KEY: header.to_json()})
    final, temporary = column_index(root, name), work_path(root, name, "index.tmp")
    make_folder(os.path.dirname(final))
    file = OutputFile(temporary)
    with whole(file):
        with pa.ipc.new_file(ArrowSink(file), table) as writer:
            for batch in batches:
                writer.write_batch(batch.replace_schema_metadata(table.metadata))
        digests = {**digests, f"{schema.META}/columns/{name}.arrow": file.close()}
    write_file(column_checksums(root, name), [seal(digests)], work_path(root, name, "checksums.tmp"))
    publish(temporary, final)


def shard_cuts(files: npt.NDArray[Any]) -> list[int]:
    """Row numbers where a new image file begins: [0, …, rows]."""
    inner = (np.flatnonzero(np.diff(files)) + 1).tolist()
    return [0, *inner, len(files)] if len(files) else [0]


def shard_path(name: str, shard: ShardName) -> str:
    """Path of a column's file, relative to the dataset's folder."""
    return f"columns/{name}/{shard}"


def work_path(root: str, name: str, *rest: str) -> str:
    """Folder of a column's files until they are complete."""
    return os.path.join(root, schema.WORK, "columns", name, *rest)


def refuse_made(root: str, name: str) -> None:
    """Raise OutputError if the column exists, or one whose name differs only in case: SQL cannot tell these apart."""
    for there in columns_of(root):
        if there.lower() == name.lower():
            raise OutputError(
                f"{shlex.quote(root)} has a column {there} already: choose another name, or remove "
                f"{shlex.quote(column_index(root, there))}"
            )
