"""Columns of numbers, booleans, strings and lists of strings: one value per row, beside the images."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builder.base import schema
from builder.base.errors import OptionError, OutputError
from builder.base.schema import INDEX_BATCH_ROWS, IndexedFile, ShardName
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
from builder.store.footers import footer_check
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
    type: str
    rows: int
    shards: int
    bytes: int
    seconds: float
    on: str = "path"
    matched: int | None = None
    missing: int = 0
    stray: int = 0
    repeated: int = 0
    invalid: int = 0

    def to_json(self) -> dict[str, Any]:
        facts = {**asdict(self), "seconds": round(self.seconds, 3)}
        if self.matched is None:
            for name in ("on", "matched", "missing", "stray", "repeated", "invalid"):
                del facts[name]
        return {"column" if name == "name" else name: value for name, value in facts.items()}


@dataclass(frozen=True, slots=True)
class ColumnShard:
    """One file of a column: rows ``first`` (inclusive) to ``end`` (exclusive) of the dataset in ``root``."""

    root: str
    column: str
    shard: ShardName
    first: int
    end: int

    @property
    def path(self) -> str:
        """Relative to ``root``."""
        return f"columns/{self.column}/{self.shard}"

    @property
    def final(self) -> str:
        return os.path.join(self.root, self.path)

    def work(self, ending: str) -> str:
        """The path of a file that lies beside the column until it is whole."""
        return work_path(self.root, self.column, f"{self.shard.number:05d}.{ending}")

    def made(self, check: dict[str, Any]) -> IndexedFile:
        return IndexedFile(self.path, "parquet", self.end - self.first, check)


def column_shards(root: str, name: str, index: Index) -> list[ColumnShard]:
    """The files of a column: one for each of the dataset's image files."""
    files = index.column("file")
    inner = (np.flatnonzero(np.diff(files)) + 1).tolist()
    ends = [*inner, len(files)] if len(files) else []
    return [
        ColumnShard(root, name, ShardName(number, len(ends)), first, end)
        for number, (first, end) in enumerate(pairwise([0, *ends]))
    ]


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
        raise OptionError("column", name, f"give one value for each of {len(index):,} rows, not {len(column):,}")
    digest = index_digest(folder)
    table = pa.Table.from_arrays([index.table(["key"]).column(0), column], names=["key", name])
    with Ledger(work_path(folder, name)).locked(0, 1):
        if replace:
            with suppress(FileNotFoundError):
                os.unlink(column_index(folder, name))  # first: without its index the column does not exist
        refuse_made(folder, name)
        shutil.rmtree(os.path.join(folder, "columns", name), ignore_errors=True)  # left by an unfinished run
        files, digests = [], {}
        for shard in column_shards(folder, name, index):
            temporary = shard.work("tmp")
            with whole(OutputFile(temporary)) as file:
                rows = table.slice(shard.first, shard.end - shard.first)
                pq.write_table(rows, ArrowSink(file), compression="zstd", write_page_index=True)
                digests[shard.path] = file.close()
            files.append(shard.made(footer_check(LocalFile(temporary))))
            publish(temporary, shard.final)
        header = ColumnHeader(name, len(column), digest, tuple(files))
        publish_index(folder, header, pa.schema([(name, column.type)]), [table.select([name])], digests)
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
            "column", name, f"values of type {kind} cannot be kept. Give numbers, booleans, strings or lists of strings"
        )
    try:
        return column if column.type == kind else column.cast(kind)
    except pa.ArrowException as error:
        raise OptionError("column", name, f"values of type {column.type} cannot become {kind}: {error}") from None


def publish_index(
    root: str, header: ColumnHeader, row: pa.Schema, rows: Iterable[pa.Table], digests: dict[str, str]
) -> None:
    """Write a column's index after all its other files, and the checksums of all. ``digests``: of the other files, by
    path. ``rows``: of the index, as tables with the schema ``row``."""
    name = header.name
    row = row.with_metadata({schema.INDEX_METADATA_KEY: header.to_json()})
    final, temporary = column_index(root, name), work_path(root, name, "index.tmp")
    make_folder(os.path.dirname(final))
    with whole(OutputFile(temporary)) as file:
        with pa.ipc.new_file(ArrowSink(file), row) as writer:
            for batch in _batches(row, rows):
                writer.write_batch(batch)
        digests = {**digests, f"{schema.META}/columns/{name}.arrow": file.close()}
    write_file(column_checksums(root, name), [seal(digests)], work_path(root, name, "checksums.tmp"))
    publish(temporary, final)


def _batches(row: pa.Schema, tables: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
    """The tables' rows in batches of INDEX_BATCH_ROWS; the last may be shorter."""
    rest = row.empty_table()
    for table in tables:
        rest = pa.concat_tables([rest, table.replace_schema_metadata(row.metadata)])
        while rest.num_rows >= INDEX_BATCH_ROWS:
            yield rest.slice(0, INDEX_BATCH_ROWS).combine_chunks().to_batches()[0]
            rest = rest.slice(INDEX_BATCH_ROWS)
    if rest.num_rows:
        yield rest.combine_chunks().to_batches()[0]


def begin_job(path: str, job: dict[str, Any], replace: Callable[[dict[str, Any]], None]) -> None:
    """Write down in the file ``path`` what the job is. If another job was begun there, ``replace`` gets that one first.
    It deletes what that job made, or raises an error."""
    try:
        with open(path, "rb") as file:
            before = json.loads(file.read())
    except (OSError, ValueError):
        before = {}
    if before != job:
        replace(before)
        write_file(path, [json.dumps(job).encode()])


def work_path(root: str, name: str, *rest: str) -> str:
    """Folder of a column's files until they are complete."""
    return os.path.join(root, schema.WORK, "columns", name, *rest)


def refuse_made(root: str, name: str) -> None:
    """Raise OutputError if the column exists, or one whose name differs only in case: SQL cannot tell these apart."""
    for there in columns_of(root):
        if there.lower() == name.lower():
            raise OutputError(
                f"{shlex.quote(root)} has a column {there} already. Choose another name, or remove "
                f"{shlex.quote(column_index(root, there))}"
            )
