"""Columns of arrays: pack one file per image into a column beside the images. No image is read or written."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
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
    SourceError,
)
from builder.base.options import GROUP_BYTES, PAGE_BYTES
from builder.base.words import counted
from builder.curate.columns import (
    ColumnShard,
    ColumnSummary,
    begin_job,
    column_shards,
    publish_index,
    refuse_made,
    work_path,
)
from builder.engines.contract import EngineChoice, Report
from builder.engines.local import make_engine
from builder.engines.progress import Progress
from builder.read.columns import COLUMN_ROW, Array, ColumnHeader, index_digest
from builder.read.index import Index
from builder.source.files import LocalFile
from builder.store.footers import footer_check
from builder.store.ledger import Ledger, describe_differences
from builder.store.output import ArrowSink, OutputFile, publish, whole, write_file
from builder.store.pages import value_ranges

_SAFETENSORS = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "U16": "uint16", "I16": "int16", "F16": "float16", "BF16": "bfloat16",
    "U32": "uint32", "I32": "int32", "F32": "float32", "U64": "uint64", "I64": "int64", "F64": "float64",
}  # fmt: skip

_LONGEST = (1 << 31) - 1
"""Upper limit of each length in a shape (stored as int32), and of an array's bytes (Arrow's binary type)."""


@dataclass(frozen=True, slots=True)
class _Unit:
    """One shard, whose arrays lie below ``folder``."""

    shard: ColumnShard
    folder: str
    missing_ok: bool

    @property
    def name(self) -> str:
        return self.shard.path

    @property
    def receipt(self) -> str:
        return self.shard.work("arrow")

    def is_done(self) -> bool:
        """Whether the shard exists, and its receipt, which is written last."""
        return os.path.exists(self.receipt) and os.path.exists(self.shard.final)

    def read_receipt(self) -> pa.Table:
        """The shard's rows of the column's index."""
        with open(self.receipt, "rb") as file:
            return from_ipc(file.read())


def add_arrays(
    root: str, name: str, folder: str, *, missing_ok: bool, num_proc: int | None, engine: str, quiet: bool
) -> ColumnSummary:
    """Pack ``<folder>/<image path>.pt``, ``.npy`` or ``.safetensors`` of every row of the dataset ``root`` into the new
    column ``name``. Arguments and errors as for ``add_column``. Continues an earlier run that stopped."""
    started = time.monotonic()
    shards = column_shards(root, name, Index(os.path.join(root, schema.INDEX), root))
    units = [_Unit(shard, folder, missing_ok) for shard in shards]
    rows = shards[-1].end if shards else 0
    job = {"index": index_digest(root), "folder": folder, **({"missing": "ok"} if missing_ok else {})}

    def replace(before: dict[str, Any]) -> None:
        """A job that made nothing (its folder was mistyped) does not count."""
        if before and os.path.exists(os.path.join(root, "columns", name)):
            raise JobMismatchError(work_path(root, name), describe_differences(before, job))

    with Ledger(work_path(root, name)).locked(0, 1):
        refuse_made(root, name)  # the run we waited for may have made it
        begin_job(work_path(root, name, "job.json"), job, replace)
        pending = [unit for unit in units if not unit.is_done()]
        left = sum(unit.shard.end - unit.shard.first for unit in pending)
        try:
            with (
                Progress(f"column {name}", left, quiet=quiet) as progress,
                make_engine(EngineChoice(engine, num_proc)) as crew,
            ):
                for _ in crew.run(_write_shard, pending, progress.update):
                    pass
        except KeyboardInterrupt:
            raise InterruptedRunError(sum(map(_Unit.is_done, units)), len(units)) from None
        files, digests, size, missing = [], {}, 0, 0
        for unit in units:
            part = unit.read_receipt()
            size += int(part.column("size").to_numpy().sum())
            missing += part.column("dtype").null_count
            notes = part.schema.metadata or {}
            digests[unit.shard.path] = notes[b"digest"].decode()
            files.append(unit.shard.made(json.loads(notes[b"check"])))
        if rows and missing == rows:
            images = counted(missing, "image")
            raise SourceError(f"{shlex.quote(folder)} has no .pt, .npy or .safetensors file for any of {images}")
        header = ColumnHeader(name, rows, job["index"], tuple(files))
        publish_index(root, header, COLUMN_ROW, map(_Unit.read_receipt, units), digests)
        shutil.rmtree(work_path(root, name))
    matched = rows - missing if missing_ok else None
    seconds = time.monotonic() - started
    return ColumnSummary(root, name, "array", rows, len(units), size, seconds, matched=matched, missing=missing)


def _write_shard(unit: _Unit, report: Report) -> None:
    """Write one shard, then its receipt: the rows of the column's index, and the file's identity."""
    shard = unit.shard
    temporary = shard.work("tmp")
    kinds: list[tuple[str, list[int]] | tuple[None, None]] = []
    with whole(OutputFile(temporary)) as file:
        with _parquet(file, shard.column) as writer:
            for keys, arrays in _groups(unit, report):
                kinds += [(array.dtype, list(array.shape)) if array else (None, None) for array in arrays]
                writer.write_table(_table(shard.column, keys, arrays))
        digest = file.close()
    ranges = value_ranges(LocalFile(temporary), pq.read_metadata(temporary), f"{shard.column}.data")
    if ranges is None:
        raise DamagedFileError(temporary, "pages", "the arrays are not stored unchanged in the file")
    check = json.dumps(footer_check(LocalFile(temporary))).encode()
    publish(temporary, shard.final)
    columns = [ranges.offsets, ranges.lengths, [dtype for dtype, _ in kinds], [shape for _, shape in kinds]]
    part = pa.table(columns, schema=COLUMN_ROW.with_metadata({b"check": check, b"digest": digest.encode()}))
    write_file(unit.receipt, [memoryview(to_ipc(part))])


def _groups(unit: _Unit, report: Report) -> Iterator[tuple[list[str], list[Array | None]]]:
    """The shard's keys and arrays, one row group at a time, each within GROUP_BYTES."""
    index = Index(os.path.join(unit.shard.root, schema.INDEX), unit.shard.root)
    keys: list[str] = []
    arrays: list[Array | None] = []
    size = 0
    find = Finder(unit.folder, missing_ok=unit.missing_ok)
    for row in range(unit.shard.first, unit.shard.end):
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


class Finder:
    """Finds the array of an image path, in a file of a known kind. The kind that was found last is tried first."""

    def __init__(self, folder: str, *, missing_ok: bool = False) -> None:
        """``missing_ok``: an image may have no array."""
        self._folder, self._missing_ok = folder, missing_ok
        self._kinds: list[tuple[str, Callable[[str], Array]]] = [
            (".pt", _load_pt),
            (".npy", _load_npy),
            (".safetensors", _load_safetensors),
        ]

    def __call__(self, image: str) -> Array | None:
        """None if the array is missing and may be. Raises SourceError."""
        for place, (ending, load) in enumerate(self._kinds):
            path = os.path.join(self._folder, *image.split("/")) + ending
            if os.path.exists(path):
                self._kinds.insert(0, self._kinds.pop(place))
                return _loaded(load, path)
        if self._missing_ok:
            return None
        raise SourceError(
            f"{shlex.quote(self._folder)} has no {image}.pt, .npy or .safetensors. Every row needs an array. To allow "
            "rows without one, add --missing-ok"
        )


def _loaded(load: Callable[[str], Array], path: str) -> Array:
    try:
        array = load(path)
        if not all(type(length) is int and length <= _LONGEST for length in array.shape):  # to Python True is an int
            raise ValueError(f"its shape is {list(array.shape)}. Lengths are whole numbers, {_LONGEST:,} at most")
        if len(array.data) > _LONGEST:
            raise ValueError(f"it has {len(array.data):,} bytes. A row can have {_LONGEST:,} at most")
    except Exception as error:  # numpy, torch and pickle can raise anything for a damaged file
        if isinstance(error, Laion6mError | MemoryError) and not isinstance(error, DamagedFileError):
            raise
        at, why = shlex.quote(path), str(error) or type(error).__name__
        next_step = "Write it again, then run the same command to go on."
        raise SourceError(f"{at} cannot be read as one array: {why}. {next_step}") from error
    return array


def _load_pt(path: str) -> Array:
    try:
        tensors = import_module("builder.mm.tensors")  # the only import upwards, to torch; only for .pt files
    except ImportError as error:
        raise MissingExtraError(f"reading {shlex.quote(path)}", "torch", "mm") from error
    array: Array = tensors.to_array(tensors.load_tensor(path))
    return array


_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _load_npy(path: str) -> Array:
    """Load a .npy file. If the header claims more than the file holds, raises ValueError before memory is allocated."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in _NPY_HEADERS:
            raise ValueError(f"it has .npy version {version[0]}, which is only for structured arrays")
        shape, fortran, dtype = _NPY_HEADERS[version](file)
        if min(shape, default=0) < 0:
            raise ValueError(f"its shape is {list(shape)}")
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
    """Load one tensor as the format defines it: 8 bytes length, JSON, data."""
    with open(path, "rb") as file:
        data = file.read()
    if len(data) < 8 or (length := struct.unpack("<Q", data[:8])[0]) > len(data) - 8:
        raise ValueError("it is cut short")
    header = json.loads(data[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    entries = [entry for key, entry in header.items() if key != "__metadata__"]
    if len(entries) != 1:
        raise ValueError(f"expected one tensor, found {len(entries)}")
    dtype, shape, (start, end) = (entries[0][key] for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(shape, list):
        raise ValueError(f"its shape is {json.dumps(shape)}")
    return Array(data[8 + length :][start:end], _SAFETENSORS.get(dtype, f"safetensors' {dtype}"), tuple(shape))
