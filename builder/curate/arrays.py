"""Columns of arrays: pack one file per image into a column beside the images. No image is read or written."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq

from builder.base import schema
from builder.base.arrays import from_ipc, to_ipc
from builder.base.errors import (
    DamagedFileError,
    InterruptedRunError,
    JobMismatchError,
    SourceError,
)
from builder.base.options import GROUP_BYTES, PAGE_BYTES
from builder.base.schema import INDEX_BATCH_ROWS, IndexedFile, ShardName
from builder.base.urls import refuse_url
from builder.base.words import counted
from builder.curate.array_files import Finder
from builder.curate.columns import ColumnSummary, publish_index, refuse_made, shard_cuts, shard_path, work_path
from builder.engines.choose import make_engine
from builder.engines.contract import EngineChoice, Report
from builder.engines.progress import Progress
from builder.read.columns import (
    COLUMN_ROW,
    Array,
    ColumnHeader,
    check_name,
    index_digest,
)
from builder.read.index import Index
from builder.source.files import LocalFile
from builder.store.footers import footer_digest
from builder.store.ledger import Ledger
from builder.store.output import ArrowSink, OutputFile, make_folder, publish, whole, write_file
from builder.store.pages import value_ranges


@dataclass(frozen=True, slots=True)
class _Unit:
    """One shard: rows ``first`` (inclusive) to ``end`` (exclusive) of the dataset; its arrays lie below ``folder``."""

    root: str
    name: str
    folder: str
    shard: ShardName
    first: int
    end: int
    missing_ok: bool


def add_arrays(
    path: str,
    name: str,
    folder: str,
    *,
    missing_ok: bool = False,
    num_proc: int | None = None,
    engine: str = "local",
    quiet: bool = False,
) -> ColumnSummary:
    """Pack ``<folder>/<image path>.pt``, ``.npy`` or ``.safetensors`` of every row of a converted or indexed folder
    into a column. Continues an earlier run that stopped. ``missing_ok``: rows may have no array.

    Raises SourceError (a file is missing or does not hold exactly one array), OutputError (the column exists),
    JobMismatchError, LockedError, OptionError, MissingExtraError (.pt files need torch), InterruptedRunError.
    """
    started = time.monotonic()
    for place in (path, folder):
        refuse_url(place, "add-column")
    check_name(name)
    refuse_made(path, name)
    index = Index(os.path.join(path, schema.INDEX), path)
    cuts = shard_cuts(index.column("file"))
    names = [ShardName(number, len(cuts) - 1) for number in range(len(cuts) - 1)]
    units = [
        _Unit(path, name, os.path.abspath(folder), shard, *rows, missing_ok)
        for shard, rows in zip(names, pairwise(cuts), strict=True)
    ]
    digest = index_digest(path)
    job = {"index": digest, "folder": os.path.abspath(folder), **({"missing": "ok"} if missing_ok else {})}
    with Ledger(work_path(path, name)).locked(0, 1):
        refuse_made(path, name)  # the run we waited for may have made it
        _begin(path, name, job)
        pending = [unit for unit in units if not _is_done(unit)]
        progress = Progress(f"column {name}", sum(unit.end - unit.first for unit in pending), 0, quiet=quiet)
        try:
            with make_engine(EngineChoice(engine, num_proc)) as crew:
                for _ in crew.run(_write_shard, pending, progress.update):
                    pass
        except KeyboardInterrupt:
            raise InterruptedRunError(sum(map(_is_done, units)), len(units)) from None
        finally:
            progress.finish()
        missing = sum(_read_part(unit).column("dtype").null_count for unit in units)
        if cuts[-1] and missing == cuts[-1]:
            raise SourceError(f"{folder} has no .pt, .npy or .safetensors file for any of {counted(missing, 'image')}")
        size = _write_index(path, name, digest, units)
        shutil.rmtree(work_path(path, name))
    matched = cuts[-1] - missing if missing_ok else None
    seconds = time.monotonic() - started
    return ColumnSummary(path, name, cuts[-1], len(units), size, seconds, matched=matched, missing=missing)


def _part(unit: _Unit) -> str:
    return work_path(unit.root, unit.name, f"{unit.shard.number:05d}.arrow")


def _begin(root: str, name: str, job: dict[str, str]) -> None:
    """Note the job, or raise JobMismatchError if another job was begun. A job that made nothing (its folder was
    mistyped) does not count. Call only under the lock: a job elsewhere may have made nothing yet."""
    path = work_path(root, name, "job.json")
    try:
        with open(path, "rb") as file:
            before = json.loads(file.read())
    except FileNotFoundError:
        write_file(path, [json.dumps(job).encode()])
        return
    different = [f"{key} was {before.get(key)}, now {job[key]}" for key in job if before.get(key) != job[key]]
    if not different:
        return
    made = any(each.endswith(".arrow") for each in os.listdir(work_path(root, name)))
    if made or os.path.exists(os.path.join(root, "columns", name)):
        raise JobMismatchError(os.path.dirname(path), different)
    write_file(path, [json.dumps(job).encode()])


def _is_done(unit: _Unit) -> bool:
    """Whether the shard exists, and its receipt, which is written last."""
    return os.path.exists(_part(unit)) and os.path.exists(os.path.join(unit.root, shard_path(unit.name, unit.shard)))


def _write_shard(unit: _Unit, report: Report) -> int:
    """Write one shard, then its receipt: the rows of the column's index, and the file's identity."""
    index = Index(os.path.join(unit.root, schema.INDEX), unit.root)
    final = os.path.join(unit.root, shard_path(unit.name, unit.shard))
    temporary = work_path(unit.root, unit.name, f"{unit.shard.number:05d}.tmp")
    kinds: list[tuple[str, list[int]] | tuple[None, None]] = []
    file = OutputFile(temporary)
    with whole(file):
        with _parquet(file, unit.name) as writer:
            for keys, arrays in _groups(index, unit, report):
                kinds += [(array.dtype, list(array.shape)) if array else (None, None) for array in arrays]
                writer.write_table(_table(unit.name, keys, arrays))
        digest = file.close()
    made = LocalFile(temporary)
    ranges = value_ranges(made, pq.read_metadata(temporary), f"{unit.name}.data")
    if ranges is None:
        raise DamagedFileError(temporary, "pages", "the arrays do not lie in the file as they are")
    size, footer = footer_digest(made)
    make_folder(os.path.dirname(final))
    publish(temporary, final)
    columns = [ranges.offsets, ranges.lengths, [dtype for dtype, _ in kinds], [shape for _, shape in kinds]]
    check = json.dumps({"size": size, "footer": footer}).encode()
    part = pa.table(columns, schema=COLUMN_ROW.with_metadata({b"check": check, b"digest": digest.encode()}))
    write_file(_part(unit), [memoryview(to_ipc(part))])
    return unit.shard.number


def _groups(index: Index, unit: _Unit, report: Report) -> Iterator[tuple[list[str], list[Array | None]]]:
    """The shard's keys and arrays, one row group at a time, each within GROUP_BYTES."""
    keys: list[str] = []
    arrays: list[Array | None] = []
    size = 0
    find = Finder(unit.folder, missing_ok=unit.missing_ok)
    for row in range(unit.first, unit.end):
        batch, at = index.place(row)
        array = find(batch.text("path", at))
        length = len(array.data) if array else 0
        report(1, length)
        if arrays and size + length > GROUP_BYTES:
            yield keys, arrays
            keys, arrays, size = [], [], 0
        keys.append(batch.text("key", at))
        arrays.append(array)
        size += length
    yield keys, arrays


def _parquet(file: OutputFile, name: str) -> pq.ParquetWriter:
    """Arrays are uncompressed, PLAIN and without statistics, so that they lie contiguous. Small columns are
    compressed."""
    small = ["key", f"{name}.dtype", f"{name}.shape.list.element"]
    return pq.ParquetWriter(
        ArrowSink(file),
        _table(name, [], []).schema,
        compression={f"{name}.data": "NONE", **dict.fromkeys(small, "ZSTD")},
        use_dictionary=[f"{name}.dtype", f"{name}.shape.list.element"],
        write_statistics=["key"],
        write_page_index=True,
        data_page_size=PAGE_BYTES,
        write_batch_size=16,
    )


def _table(name: str, keys: Sequence[str], arrays: Sequence[Array | None]) -> pa.Table:
    """A table of keys and arrays. A row without an array has no bytes, and null for dtype and shape."""
    fields = [
        pa.array([array.data if array else b"" for array in arrays], pa.binary()),
        pa.array([array.dtype if array else None for array in arrays], pa.string()),
        pa.array([array.shape if array else None for array in arrays], pa.list_(pa.int32())),
    ]
    column = pa.StructArray.from_arrays(fields, names=["data", "dtype", "shape"])
    return pa.table({"key": pa.array(keys, pa.string()), name: column})


def _write_index(root: str, name: str, digest: str, units: Sequence[_Unit]) -> int:
    """Merge all receipts into one index, with the checksums of all files. Returns the bytes of all arrays."""
    files, digests, size = [], {}, 0
    for unit in units:
        part = _read_part(unit)
        size += int(part.column("size").to_numpy().sum())
        notes = part.schema.metadata or {}
        path = shard_path(unit.name, unit.shard)
        digests[path] = notes[b"digest"].decode()
        files.append(IndexedFile(path, "parquet", part.num_rows, json.loads(notes[b"check"])))
    header = ColumnHeader(name, sum(file.rows for file in files), digest, tuple(files))
    publish_index(root, header, COLUMN_ROW, _rebatched(units), digests)
    return size


def _rebatched(units: Sequence[_Unit]) -> Iterator[pa.RecordBatch]:
    """The receipts' rows in batches of INDEX_BATCH_ROWS; the last may be shorter."""
    rest = COLUMN_ROW.empty_table()
    for unit in units:
        rest = pa.concat_tables([rest, _read_part(unit).replace_schema_metadata(None)])
        while rest.num_rows >= INDEX_BATCH_ROWS:
            yield rest.slice(0, INDEX_BATCH_ROWS).combine_chunks().to_batches()[0]
            rest = rest.slice(INDEX_BATCH_ROWS)
    if rest.num_rows:
        yield rest.combine_chunks().to_batches()[0]


def _read_part(unit: _Unit) -> pa.Table:
    with open(_part(unit), "rb") as file:
        return from_ipc(file.read())
