"""add-column: pack one array for each image into a column beside the images. No image is read or written."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builder.base import schema
from builder.base.arrays import from_ipc, to_ipc
from builder.base.errors import (
    DamagedFileError,
    InterruptedRunError,
    JobMismatchError,
    Laion6mError,
    MissingExtraError,
    OutputError,
    SourceError,
)
from builder.base.options import GROUP_BYTES, PAGE_BYTES
from builder.base.schema import INDEX_BATCH_ROWS, IndexedFile, ShardName
from builder.base.urls import refuse_url
from builder.engines.choose import make_engine
from builder.engines.contract import EngineChoice, Report
from builder.engines.progress import Progress
from builder.read.columns import (
    COLUMN_ROW,
    Array,
    ColumnHeader,
    check_name,
    column_checksums,
    column_index,
    index_digest,
)
from builder.read.index import Index
from builder.source.files import LocalFile
from builder.store.footers import footer_digest
from builder.store.ledger import Ledger
from builder.store.output import ArrowSink, OutputFile, make_folder, publish, write_file
from builder.store.pages import value_ranges
from builder.store.seals import seal

_SAFETENSORS = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "U16": "uint16", "I16": "int16", "F16": "float16", "BF16": "bfloat16",
    "U32": "uint32", "I32": "int32", "F32": "float32", "U64": "uint64", "I64": "int64", "F64": "float64",
}  # fmt: skip

_LONGEST = (1 << 31) - 1
"""Of each length in a shape, which the files keep as int32, and of an array's bytes, as Arrow's binary has them."""


@dataclass(frozen=True, slots=True)
class ColumnSummary:
    """What was made. ``bytes``: of the arrays themselves."""

    out: str
    name: str
    rows: int
    shards: int
    bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "out": self.out,
            "column": self.name,
            "rows": self.rows,
            "shards": self.shards,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class _Unit:
    """One shard: rows ``first`` (inclusive) to ``end`` (exclusive) of the dataset, arrays from below ``folder``."""

    root: str
    name: str
    folder: str
    shard: ShardName
    first: int
    end: int


def add_column(
    path: str, name: str, folder: str, *, num_proc: int | None = None, engine: str = "local", quiet: bool = False
) -> ColumnSummary:
    """Pack ``<folder>/<image path>.pt``, ``.npy`` or ``.safetensors`` of every row of a converted folder (or of one
    that ``laion6m index`` made) into a column; go on where an earlier run stopped.

    Raises SourceError (a file is missing or holds no single array), OutputError (there is such a column already),
    JobMismatchError, LockedError, OptionError, MissingExtraError (.pt files need torch), InterruptedRunError.
    """
    started = time.monotonic()
    for place in (path, folder):
        refuse_url(place, "add-column")
    check_name(name)
    _refuse_made(path, name)
    index = Index(os.path.join(path, schema.INDEX), path)
    cuts = _cuts(index.column("file"))
    names = [ShardName(number, len(cuts) - 1) for number in range(len(cuts) - 1)]
    units = [
        _Unit(path, name, os.path.abspath(folder), shard, *rows)
        for shard, rows in zip(names, pairwise(cuts), strict=True)
    ]
    digest = index_digest(path)
    with Ledger(_work(path, name)).locked(0, 1):
        _refuse_made(path, name)  # by the run that was waited for
        _begin(path, name, {"index": digest, "folder": os.path.abspath(folder)})
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
        size = _write_index(path, name, digest, units)
        shutil.rmtree(_work(path, name))
    return ColumnSummary(path, name, cuts[-1], len(units), size, time.monotonic() - started)


def _cuts(files: np.ndarray[Any, np.dtype[Any]]) -> list[int]:
    """Where a row's images lie in another file than the row's before: [0, …, rows]."""
    inner = (np.flatnonzero(np.diff(files)) + 1).tolist()
    return [0, *inner, len(files)] if len(files) else [0]


def _work(root: str, name: str, *rest: str) -> str:
    return os.path.join(root, schema.WORK, "columns", name, *rest)


def _part(unit: _Unit) -> str:
    return _work(unit.root, unit.name, f"{unit.shard.number:05d}.arrow")


def _shard_path(unit: _Unit) -> str:
    return f"columns/{unit.name}/{unit.shard}"


def _refuse_made(root: str, name: str) -> None:
    final = column_index(root, name)
    if os.path.exists(final):
        raise OutputError(f"{root} has a column {name} already: choose another name, or remove {final}")


def _begin(root: str, name: str, job: dict[str, str]) -> None:
    """Note what the job is, or raise JobMismatchError where another one was begun. One that made nothing (its folder
    was mistyped) does not count. Only under the lock: who works elsewhere may have made nothing yet."""
    path = _work(root, name, "job.json")
    try:
        with open(path, "rb") as file:
            before = json.loads(file.read())
    except FileNotFoundError:
        write_file(path, [json.dumps(job).encode()])
        return
    different = [f"{key} was {before.get(key)}, now {job[key]}" for key in job if before.get(key) != job[key]]
    if not different:
        return
    if any(name.endswith(".arrow") for name in os.listdir(_work(root, name))) or os.path.exists(_shards(root, name)):
        raise JobMismatchError(os.path.dirname(path), different)
    write_file(path, [json.dumps(job).encode()])


def _shards(root: str, name: str) -> str:
    return os.path.join(root, "columns", name)


def _is_done(unit: _Unit) -> bool:
    """Its receipt, which is written last, is there, and so is the shard."""
    return os.path.exists(_part(unit)) and os.path.exists(os.path.join(unit.root, *_shard_path(unit).split("/")))


def _write_shard(unit: _Unit, report: Report) -> int:
    """Write one shard, then its receipt: the rows of the column's index, and how to know the file again."""
    index = Index(os.path.join(unit.root, schema.INDEX), unit.root)
    final = os.path.join(unit.root, *_shard_path(unit).split("/"))
    temporary = _work(unit.root, unit.name, f"{unit.shard.number:05d}.tmp")
    kinds: list[tuple[str, tuple[int, ...]]] = []
    file = OutputFile(temporary)
    try:
        with _parquet(file, unit.name) as writer:
            for keys, arrays in _groups(index, unit, report):
                kinds += [(array.dtype, array.shape) for array in arrays]
                writer.write_table(_table(unit.name, keys, arrays))
        digest = file.close()
    except BaseException:
        file.abort()
        raise
    made = LocalFile(temporary)
    ranges = value_ranges(made, pq.read_metadata(temporary), f"{unit.name}.data")
    if ranges is None:
        raise DamagedFileError(temporary, "pages", "the arrays do not lie in the file as they are")
    size, footer = footer_digest(made)
    make_folder(os.path.dirname(final))
    publish(temporary, final)
    columns = [ranges.offsets, ranges.lengths, [dtype for dtype, _ in kinds], [list(shape) for _, shape in kinds]]
    check = json.dumps({"size": size, "footer": footer}).encode()
    part = pa.table(columns, schema=COLUMN_ROW.with_metadata({b"check": check, b"digest": digest.encode()}))
    write_file(_part(unit), [memoryview(to_ipc(part))])
    return unit.shard.number


def _groups(index: Index, unit: _Unit, report: Report) -> Iterator[tuple[list[str], list[Array]]]:
    """The shard's keys and arrays, a row group at a time: as much as stays under GROUP_BYTES."""
    keys: list[str] = []
    arrays: list[Array] = []
    size = 0
    find = _Finder(unit.folder)
    for row in range(unit.first, unit.end):
        batch, at = index.place(row)
        array = find(batch.text("path", at))
        report(1, len(array.data))
        if arrays and size + len(array.data) > GROUP_BYTES:
            yield keys, arrays
            keys, arrays, size = [], [], 0
        keys.append(batch.text("key", at))
        arrays.append(array)
        size += len(array.data)
    yield keys, arrays


def _parquet(file: OutputFile, name: str) -> pq.ParquetWriter:
    """Arrays uncompressed, PLAIN and without statistics, so that they lie contiguous; the small columns compressed."""
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


def _table(name: str, keys: Sequence[str], arrays: Sequence[Array]) -> pa.Table:
    fields = [
        pa.array([array.data for array in arrays], pa.binary()),
        pa.array([array.dtype for array in arrays], pa.string()),
        pa.array([array.shape for array in arrays], pa.list_(pa.int32())),
    ]
    column = pa.StructArray.from_arrays(fields, names=["data", "dtype", "shape"])
    return pa.table({"key": pa.array(keys, pa.string()), name: column})


def _write_index(root: str, name: str, digest: str, units: Sequence[_Unit]) -> int:
    """All receipts as one index, and the checksums of all files. Returns the bytes of all arrays."""
    files, rows = [], 0
    digests = {}
    for unit in units:
        part = _read_part(unit)
        rows += part.num_rows
        notes = part.schema.metadata or {}
        check = json.loads(notes[b"check"])
        digests[_shard_path(unit)] = notes[b"digest"].decode()
        files.append(IndexedFile(_shard_path(unit), "parquet", part.num_rows, check))
    header = ColumnHeader(name, rows, digest, tuple(files))
    table = COLUMN_ROW.with_metadata({schema.INDEX_METADATA_KEY: header.to_json()})
    final, temporary = column_index(root, name), _work(root, name, "index.tmp")
    make_folder(os.path.dirname(final))
    file = OutputFile(temporary)
    size = 0
    try:
        with pa.ipc.new_file(ArrowSink(file), table) as writer:
            for batch in _rebatched(units):
                size += int(batch.column("size").to_numpy().sum())
                writer.write_batch(batch.replace_schema_metadata(table.metadata))
        digests[f"{schema.META}/columns/{name}.arrow"] = file.close()
    except BaseException:
        file.abort()
        raise
    write_file(column_checksums(root, name), [seal(digests)], _work(root, name, "checksums.tmp"))
    publish(temporary, final)
    return size


def _rebatched(units: Sequence[_Unit]) -> Iterator[pa.RecordBatch]:
    """The receipts' rows in batches of INDEX_BATCH_ROWS, the last shorter."""
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


class _Finder:
    """The array of an image path, from a file of one of the known kinds. The kind that was there last is tried
    first."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._kinds: list[tuple[str, Callable[[str], Array]]] = [
            (".pt", _load_pt),
            (".npy", _load_npy),
            (".safetensors", _load_safetensors),
        ]

    def __call__(self, image: str) -> Array:
        """Raises SourceError."""
        for place, (ending, load) in enumerate(self._kinds):
            path = os.path.join(self._folder, *image.split("/")) + ending
            if os.path.exists(path):
                self._kinds.insert(0, self._kinds.pop(place))
                return _loaded(load, path)
        raise SourceError(f"{self._folder} has no {image}.pt, .npy or .safetensors; a column needs one for every row")


def _loaded(load: Callable[[str], Array], path: str) -> Array:
    try:
        array = load(path)
        if not all(type(length) is int and length <= _LONGEST for length in array.shape):  # True is an int to Python
            raise ValueError(f"a shape of {array.shape}; lengths are whole numbers of up to {_LONGEST:,}")
        if len(array.data) > _LONGEST:
            raise ValueError(f"{len(array.data):,} bytes; {_LONGEST:,} are the most that a row can have")
    except DamagedFileError as error:
        raise _no_array(path, error) from error
    except (Laion6mError, MemoryError):
        raise
    except Exception as error:  # numpy, torch and pickle raise whatever a damaged file leads them to
        raise _no_array(path, error) from error
    return array


def _no_array(path: str, error: Exception) -> SourceError:
    why = str(error) or type(error).__name__
    return SourceError(f"{path} holds no single array: {why}. Make it again, then run the same command to go on.")


def _load_pt(path: str) -> Array:
    try:
        tensors = import_module("builder.mm.tensors")  # the one way up to torch, taken only where there are .pt files
    except ImportError as error:
        raise MissingExtraError(f"reading {path}", "torch", "mm") from error
    array: Array = tensors.to_array(tensors.load_tensor(path))
    return array


_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _load_npy(path: str) -> Array:
    """Raises ValueError, before any memory is asked for, where the header claims more than the file holds."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in _NPY_HEADERS:
            raise ValueError(f"it is of .npy version {version}, which only structured arrays need")
        shape, fortran, dtype = _NPY_HEADERS[version](file)
        if min(shape, default=0) < 0:
            raise ValueError(f"a shape of {shape}")
        claimed, left = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size - file.tell()
        if claimed > left:
            raise ValueError(f"its header claims {claimed:,} bytes, {left:,} follow")
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        data = file.read(claimed)
    array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, data, order="F" if fortran else "C")
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
    return Array(plain.tobytes(), str(array.dtype.newbyteorder("=")), tuple(plain.shape))


def _load_safetensors(path: str) -> Array:
    """One tensor, by the format's own description: 8 bytes length, JSON, data."""
    with open(path, "rb") as file:
        data = file.read()
    if len(data) < 8 or (length := struct.unpack("<Q", data[:8])[0]) > len(data) - 8:
        raise ValueError("it is cut short")
    header = json.loads(data[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    entries = [entry for key, entry in header.items() if key != "__metadata__"]
    if len(entries) != 1:
        raise ValueError(f"expected one tensor, found {len(entries)}")
    dtype, shape, (start, end) = (entries[0][key] for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(shape, list):
        raise ValueError(f"a shape of {shape!r}")
    return Array(data[8 + length :][start:end], _SAFETENSORS.get(dtype, f"safetensors' {dtype}"), tuple(shape))
