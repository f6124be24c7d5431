"""Index Parquet or Arrow files that came without one: downloaded without meta/, or written by somebody else.

The index is made by walking the files' page headers, kept in a cache folder (``LAION6M_CACHE``, else
``~/.cache/laion6m``) under a name that says which files it is of, and memory-mapped from there like any other.
"""

from __future__ import annotations

import functools
import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from builder import schema
from builder.arrays import from_ipc, number_array, numbers_of, string_array, to_ipc
from builder.errors import DamagedFileError, SourceError
from builder.read.cache import cache_folder
from builder.read.groups import column_parts
from builder.read.image_columns import ImageColumns, recognise_columns
from builder.records import ImageInfo, SampleProblem
from builder.source.files import LocalFile
from builder.source.glance import glance
from builder.source.images import probe
from builder.source.scan import stem_of
from builder.store.index import write_index
from builder.store.output import OutputFile
from builder.store.pages import ValueRanges, check_claims, footer_digest, value_ranges

_SPLIT_FILE = re.compile(r"(\w+(?:\.\w+)*)-\d{5,}-of-\d{5,}")
_BATCH = 4096  # rows of text columns in memory at a time
_NO_RANGES = ValueRanges(np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the images of a file lie, columns of one length. ``widths``, ``heights``: empty where columns have them."""

    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int32]
    heights: npt.NDArray[np.int32]


def data_files(folder: str) -> list[str]:
    """Shards below a folder, by path: those that ``save_to_disk`` names where it wrote the folder, else of data/ if
    there is one, else everywhere but in meta/ and hidden folders. Of several splits train. Raises SourceError,
    DamagedFileError."""
    if os.path.exists(os.path.join(folder, "dataset_dict.json")):  # DatasetDict.save_to_disk
        splits = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
        raise SourceError(f"{folder} holds splits, open one of them: {', '.join(splits)}")
    state = os.path.join(folder, "state.json")
    if os.path.exists(state):  # Dataset.save_to_disk; beside its files lie what map and shuffle have cached
        try:
            with open(state, "rb") as file:
                names = [str(each["filename"]) for each in json.load(file)["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedFileError(state, "JSON", error) from None
        if any(os.path.isabs(name) or ".." in name.split("/") for name in names):
            raise DamagedFileError(state, "_data_files", "a file lies outside of its folder")
        return [os.path.join(folder, *name.split("/")) for name in names]
    top = os.path.join(folder, schema.DATA)
    found: list[str] = []
    for where, folders, names in os.walk(top if os.path.isdir(top) else folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != schema.META)
        shards = (name for name in names if name.endswith(tuple(schema.SUFFIXES.values())))
        found += [os.path.join(where, name) for name in shards if not schema.CACHE_OF_DATASETS.fullmatch(name)]
    return _of_one_split(folder, sorted(found))


def _of_one_split(folder: str, files: list[str]) -> list[str]:
    """Files as ``push_to_hub`` names them (train-00000-of-00002.parquet) may be of several splits: rows of test have no
    place among those of train."""
    splits: dict[str, list[str]] = {}
    for path in files:
        match = _SPLIT_FILE.match(os.path.basename(path))
        splits.setdefault(match[1] if match else "", []).append(path)
    if len(splits) < 2 or schema.SPLIT not in splits:
        return files
    others = ", ".join(sorted(name or "files of no split" for name in splits if name != schema.SPLIT))
    warnings.warn(f"{folder}: of its splits, {schema.SPLIT} is read, not {others}", stacklevel=3)
    return splits[schema.SPLIT]


def index_files(folder: str, files: list[str]) -> str:
    """The path of an index of these files, made now unless it was before. Raises DamagedFileError, SourceError."""
    identities = [_identify(path) for path in files]
    # With the times: files of equal size and footer may still hold other images.
    times = [os.stat(path).st_mtime_ns for path in files]
    name = xxhash.xxh3_128_hexdigest(json.dumps([folder, files, identities, times]).encode())
    path = os.path.join(cache_folder(), f"{name}.arrow")
    if not os.path.exists(path):
        with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as scratch:
            indexed = []
            for number, (file, check) in enumerate(zip(files, identities, strict=True)):
                rows, kind, column = _write_part(number, file, os.path.join(scratch, f"{number}.arrow"))
                relative = os.path.relpath(file, folder).replace(os.sep, "/")
                indexed.append(schema.IndexedFile(relative, kind, rows, {**check, "column": column}))
            parts = [os.path.join(scratch, f"{number}.arrow") for number in range(len(files))]
            new = OutputFile(os.path.join(scratch, "index"), path)
            write_index(new, folder, indexed, lambda: map(_read_part, parts))
    return path


def _identify(path: str) -> dict[str, int | str]:
    if path.endswith(".arrow"):  # has no footer to know it by
        return {"size": os.path.getsize(path), "mtime_ns": os.stat(path).st_mtime_ns}
    file = LocalFile(path)
    try:
        size, footer = footer_digest(file)
    finally:
        file.close()
    return {"size": size, "footer": footer}


def _write_part(number: int, path: str, part: str) -> tuple[int, str, str]:
    """Index rows of one file, into ``part``. Returns how many, the kind of file, and the images' column."""
    file = LocalFile(path)
    try:
        if path.endswith(".arrow"):
            return _write_arrow_part(number, file, part)
        return _write_parquet_part(number, file, part)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DamagedFileError(path, "Arrow" if path.endswith(".arrow") else "Parquet", str(error)) from None
    finally:
        file.close()


def _write_parquet_part(number: int, file: LocalFile, part: str) -> tuple[int, str, str]:
    path = file.name
    with pq.ParquetFile(path) as parquet:
        columns = recognise_columns(path, parquet.schema_arrow)
        leaf = f"{columns.image}.bytes" if columns.nested else columns.image
        check_claims(path, parquet.metadata, file.size or 0)
        rows = parquet.metadata.num_rows
        ranges = value_ranges(file, parquet.metadata, leaf) if rows else _NO_RANGES
        if ranges is None:
            warnings.warn(
                f"{path}: the images are compressed or dictionary-encoded, so whole row groups are read for each; "
                "laion6m convert writes them so that they need not be",
                stacklevel=2,
            )
            places = _decode_all(parquet, leaf, probe_sizes=not columns.sized)
        else:
            places = _Places(ranges.offsets, ranges.lengths, *_glance_all(file, ranges, columns))
        names = [name for name in (columns.key, columns.caption, columns.width, columns.height) if name]
        wanted = [*names, *([f"{columns.image}.path"] if columns.path else [])]
        _save(number, path, part, columns, parquet.iter_batches(_BATCH, columns=wanted), places)
    return rows, "rowgroups" if ranges is None else "parquet", leaf


def _write_arrow_part(number: int, file: LocalFile, part: str) -> tuple[int, str, str]:
    path = file.name
    with pa.memory_map(path) as source:
        whole = source.read_buffer()
        if whole.size >= 6 and whole[:6].to_pybytes() == b"ARROW1":
            raise SourceError(f"{path} is an Arrow IPC file; read are IPC streams, as datasets writes them, or Parquet")
        table = pa.ipc.open_stream(whole).read_all()
        table.validate(full=True)  # Arrow takes offsets for granted: a lie would be a crash of whoever reads the column
        columns = recognise_columns(path, table.schema)
        ranges = _arrow_ranges(path, whole, table.column(columns.image), nested=columns.nested)
        places = _Places(ranges.offsets, ranges.lengths, *_glance_all(file, ranges, columns))
        _save(number, path, part, columns, table.to_batches(max_chunksize=_BATCH), places)
    return len(ranges.offsets), "arrow", f"{columns.image}.bytes" if columns.nested else columns.image


def _arrow_ranges(path: str, whole: pa.Buffer, column: pa.ChunkedArray, *, nested: bool) -> ValueRanges:
    """Where each value lies in a mapped stream: the addresses of its buffers, less the map's. Raises SourceError where
    they lie elsewhere, as compressed ones do."""
    found = [_NO_RANGES]
    for chunk in column.chunks:
        values = chunk.field("bytes") if nested else chunk
        if values.type not in (pa.binary(), pa.large_binary()):
            raise SourceError(f"{path}: images stored as {values.type} cannot be pointed at; write them as Parquet")
        _, ends, data = values.buffers()
        if not len(values):
            continue
        size = data.size if data else 0
        first = data.address - whole.address if size else 0
        if not 0 <= first <= first + size <= whole.size:
            raise SourceError(f"{path}: its buffers are compressed, so no image can be pointed at; write it as Parquet")
        width = np.int32 if values.type == pa.binary() else np.int64
        edges = np.frombuffer(ends, dtype=width)[values.offset : values.offset + len(values) + 1].astype(np.int64)
        present = numbers_of(pc.and_(chunk.is_valid(), values.is_valid()).cast(pa.uint8())).astype(np.bool_)
        found.append(ValueRanges(first + edges[:-1], np.where(present, np.diff(edges), -1)))
    return ValueRanges(
        np.concatenate([each.offsets for each in found]), np.concatenate([each.lengths for each in found])
    )


def _save(
    number: int,
    path: str,
    part: str,
    columns: ImageColumns,
    batches: Iterable[pa.RecordBatch],
    places: _Places,
) -> None:
    tables = list(_part_batches(number, columns, _counted(path, batches, len(places.offsets)), places))
    table = pa.Table.from_batches(tables, schema=tables[0].schema if tables else schema.INDEX_PART)
    with open(part, "wb") as handle:
        handle.write(to_ipc(table))


def _counted(path: str, batches: Iterable[pa.RecordBatch], images: int) -> Iterator[pa.RecordBatch]:
    """The batches, as many rows in all as there are images. Raises DamagedFileError: columns of a file may differ."""
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        if rows > images:
            break
        yield batch
    if rows != images:
        raise DamagedFileError(path, "columns", f"{images} images, but other columns have {rows} values or more")


def _part_batches(
    number: int,
    columns: ImageColumns,
    batches: Iterable[pa.RecordBatch],
    places: _Places,
) -> Iterator[pa.RecordBatch]:
    first = 0
    for batch in batches:
        count = batch.num_rows
        rows = slice(first, first + count)
        paths = _paths(batch, columns, first)
        given = batch.column(columns.key).to_pylist() if columns.key else [None] * count
        keys = [stem_of(path) if key is None else str(key) for key, path in zip(given, paths, strict=True)]
        captions = batch.column(columns.caption).to_pylist() if columns.caption else [""] * count
        widths, heights = places.widths, places.heights
        if columns.width and columns.height:
            sides = [
                np.array([_pixels(value) for value in batch.column(name).to_pylist()], dtype=np.int32)
                for name in (columns.width, columns.height)
            ]
        else:
            sides = [widths[rows], heights[rows]]
        yield pa.RecordBatch.from_arrays(
            [
                number_array(np.full(count, number, dtype=np.int32)),
                number_array(places.offsets[rows]),
                number_array(places.lengths[rows]),
                *map(number_array, sides),
                number_array(np.arange(first, first + count, dtype=np.int64)),
                number_array(np.full(count, schema.IN_SHARD, dtype=np.int32)),
                number_array(np.zeros(count, dtype=np.int64)),
                number_array(np.full(count, -1, dtype=np.int64)),
                number_array(np.zeros(count, dtype=np.uint8)).cast(pa.bool_()),
                pa.nulls(count, pa.binary(16)),
                string_array(keys),
                string_array(paths),
                string_array([f"{stem_of(each)}.json" for each in paths]),
                string_array([caption or "" for caption in captions]),
                pa.nulls(count, pa.string()),
                number_array(np.array([xxhash.xxh3_64_intdigest(key.encode()) for key in keys], dtype=np.uint64)),
            ],
            schema=schema.INDEX_PART,
        )
        first += count


def _pixels(value: int | None) -> int:
    return value if value is not None and 0 <= value < 2**31 else 0


def _paths(batch: pa.RecordBatch, columns: ImageColumns, first: int) -> list[str]:
    """The image's path as the file has it; its key, or its row number, where it has none."""
    rows = range(first, first + batch.num_rows)
    if columns.path:
        image = batch.column(columns.image)
        paths = image.field("path").to_pylist()
    else:
        paths = [None] * batch.num_rows
    keys = batch.column(columns.key).to_pylist() if columns.key else [None] * batch.num_rows
    return [
        path or (str(key) if key is not None else f"{row:09d}")
        for path, key, row in zip(paths, keys, rows, strict=True)
    ]


def _glance_all(
    file: LocalFile, ranges: ValueRanges, columns: ImageColumns
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Widths and heights by the images' own headers, where no column has them."""
    if columns.sized:
        nothing = np.zeros(0, dtype=np.int32)
        return nothing, nothing
    places = zip(ranges.offsets.tolist(), ranges.lengths.tolist(), strict=True)
    return _sides([_size(functools.partial(glance, file, offset, length), length) for offset, length in places])


def _decode_all(parquet: pq.ParquetFile, leaf: str, *, probe_sizes: bool) -> _Places:
    """For a column whose values lie nowhere as they are: decode all for their lengths and, if asked, their sides."""
    name, field = column_parts(leaf, parquet.schema_arrow.names)
    lengths: list[int] = []
    sides: list[tuple[int, int]] = []
    for batch in parquet.iter_batches(64, columns=[leaf]):
        column = batch.column(name).field(field) if field else batch.column(name)
        for value in column:
            data = value.as_buffer().to_pybytes() if value.is_valid else b""
            lengths.append(len(data) if value.is_valid else -1)
            if probe_sizes:
                sides.append(_size(functools.partial(probe, data), lengths[-1]))
    return _Places(np.arange(len(lengths), dtype=np.int64), np.array(lengths, dtype=np.int64), *_sides(sides))


def _size(look: Callable[[], ImageInfo], length: int) -> tuple[int, int]:
    """Width and height; 0, 0 for a null or for bytes that are no image."""
    if length < 0:
        return 0, 0
    try:
        info = look()
    except SampleProblem:
        return 0, 0
    return info.width, info.height


def _sides(sides: list[tuple[int, int]]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    both = np.array(sides, dtype=np.int32).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _read_part(path: str) -> pa.Table:
    with open(path, "rb") as handle:
        return from_ipc(handle.read())
