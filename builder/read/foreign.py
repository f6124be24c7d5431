"""Make an index for Parquet or Arrow files that have none: downloaded without meta/, or written by another tool.

The index is made from the files' page headers. It is kept in a cache folder (``LAION6M_CACHE``, else
``~/.cache/laion6m``). Its name is a hash of the files it belongs to. It is memory-mapped like any other index.
"""

from __future__ import annotations

import json
import os
import shlex
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from builder.base import schema
from builder.base.arrays import bool_array, from_ipc, number_array, string_array
from builder.base.errors import DamagedFileError, SourceError
from builder.base.paths import cache_folder
from builder.read.column_types import checked, text_of
from builder.read.groups import column_parts
from builder.read.handles import LocalHandle
from builder.read.image_columns import (
    NO_RANGES,
    ImageColumns,
    Places,
    arrow_ranges,
    decode_all,
    glance_all,
    recognise_columns,
)
from builder.source.endings import stem_of
from builder.source.files import LocalFile, refuse_pointer, whole_time
from builder.store.footers import check_claims, footer_check
from builder.store.index import write_index
from builder.store.output import OutputFile
from builder.store.pages import UnexpectedPageError, value_ranges
from builder.store.parquet_file import open_parquet

_BATCH = 4096  # rows of text columns in memory at a time
_MADE_AS = 2  # raise it when the way of indexing changes; older indexes are then not used


@dataclass(frozen=True, slots=True)
class _Found:
    """What a file holds. ``kind``: as in IndexedFile. ``texts``: batches of the columns that are not images."""

    kind: str
    columns: ImageColumns
    places: Places
    texts: Iterable[pa.RecordBatch]


def index_files(
    folder: str, files: list[str], image_column: str | None = None, caption_column: str | None = None
) -> str:
    """The path of an index of these files. It is made now if it is not cached. Columns that are not named are found by
    name and type. Raises DamagedFileError, SourceError, OptionError."""
    identities = [_identify(path) for path in files]
    named = (image_column, caption_column)
    # Times are part of the name: files of equal size and footer may still hold other images.
    times = [os.stat(path).st_mtime_ns for path in files]
    name = xxhash.xxh3_128_hexdigest(json.dumps([folder, files, identities, times, *named, _MADE_AS]).encode())
    path = os.path.join(cache_folder(), f"{name}.arrow")
    if not os.path.exists(path):
        with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as scratch:
            parts: list[Path] = []
            indexed: list[schema.IndexedFile] = []
            first, slow = 0, False
            captions: dict[str | None, str] = {}
            for number, (file, check) in enumerate(zip(files, identities, strict=True)):
                parts.append(Path(scratch, f"{number}.arrow"))
                found = _write_part(parts[-1], file, number, first, named, slow)
                rows = len(found.places.offsets)
                first, slow = first + rows, slow or found.kind == "rowgroups"
                relative = os.path.relpath(file, folder).replace(os.sep, "/")
                check = {**check, "column": found.columns.leaf}
                indexed.append(schema.IndexedFile(relative, found.kind, rows, check))
                if rows:
                    captions.setdefault(found.columns.caption, file)
            if None in captions and len(captions) > 1:
                others = ", ".join(str(name) for name in captions if name)
                place = shlex.quote(captions[None])
                warnings.warn(f"{place} has no captions. Other files have them, in {others}", stacklevel=3)
            new = OutputFile(os.path.join(scratch, "index"), path)
            write_index(new, folder, indexed, lambda: (from_ipc(part.read_bytes()) for part in parts))
    return path


def _identify(path: str) -> dict[str, Any]:
    """The facts that identify a file's content. Raises SourceError, DamagedFileError."""
    file = LocalHandle(path)
    refuse_pointer(path, file.read_at(0, 64))
    if path.endswith(".arrow"):  # it has no footer to identify it
        return {"size": file.size, "mtime_ns": whole_time(file.mtime_ns)}
    return footer_check(file)


def _write_part(
    part: Path, path: str, number: int, first: int, named: tuple[str | None, str | None], warned: bool
) -> _Found:
    """Write the index rows of file ``number`` into ``part``. ``first``: the number of its first row in the dataset.
    ``named``: the columns of images and captions that the user gave. ``warned``: whether slow files were warned of."""
    arrow = path.endswith(".arrow")
    try:
        with closing(LocalFile(path)) as file:
            opened = _find_arrow(file, named) if arrow else _find_parquet(file, named, warned)
            with opened as found, pa.ipc.new_stream(str(part), schema.INDEX_PART) as writer:
                for batch in _index_rows(found, number, first):
                    writer.write_batch(batch)
    except (pa.ArrowException, UnicodeError, OSError) as error:
        raise DamagedFileError(path, "Arrow" if arrow else "Parquet", str(error)) from None
    return found


@contextmanager
def _find_parquet(file: LocalFile, named: tuple[str | None, str | None], warned: bool) -> Iterator[_Found]:
    path = file.name
    with open_parquet(path) as parquet:
        check_claims(path, parquet.metadata, file.size or 0)
        columns = recognise_columns(path, parquet.schema_arrow, *named)
        reason = "compressed or dictionary-encoded"
        try:
            rows = parquet.metadata.num_rows
            ranges = value_ranges(file, parquet.metadata, columns.leaf) if rows else NO_RANGES
        except UnexpectedPageError as error:
            ranges, reason = None, f"in pages of an unknown kind ({error.args[1]}: {error.args[2]})"
        if ranges is None:
            if not warned:  # warn once, before the slow work
                warnings.warn(
                    f"{shlex.quote(path)}: the images are {reason}. So all are decoded now, and a whole row group for "
                    "each later. To avoid this, write with compression='none', use_dictionary=False (pyarrow)",
                    stacklevel=6,
                )
            places = decode_all(parquet, columns.leaf, probe_sizes=not columns.sized)
        else:
            places = glance_all(file, ranges, columns)
        wanted = [columns.key, columns.caption, columns.width, columns.height, columns.path]
        batches = parquet.iter_batches(_BATCH, columns=[name for name in wanted if name])
        texts = _counted(path, batches, len(places.offsets))
        yield _Found("rowgroups" if ranges is None else "parquet", columns, places, texts)


@contextmanager
def _find_arrow(file: LocalFile, named: tuple[str | None, str | None]) -> Iterator[_Found]:
    path = file.name
    with pa.memory_map(path) as source:
        whole = source.read_buffer()
        if whole.size >= 6 and whole[:6].to_pybytes() == b"ARROW1":
            raise SourceError(f"{shlex.quote(path)} is an Arrow IPC file. Give an Arrow IPC stream, or Parquet")
        with pa.ipc.open_stream(whole) as stream:
            table = pa.Table.from_batches(map(checked, stream), stream.schema)
        columns = recognise_columns(path, table.schema, *named)
        ranges = arrow_ranges(path, whole, table.column(columns.image), nested=columns.nested)
        places = glance_all(file, ranges, columns)
        yield _Found("arrow", columns, places, table.to_batches(max_chunksize=_BATCH))


def _counted(path: str, batches: Iterable[pa.RecordBatch], images: int) -> Iterator[pa.RecordBatch]:
    """The batches, checked to have as many rows as there are images. A file's columns may differ in length. Raises
    DamagedFileError."""
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        if rows > images:
            break
        yield batch
    if rows != images:
        raise DamagedFileError(path, "columns", f"it has {images} images, but {rows} values or more in other columns")


def _index_rows(found: _Found, number: int, first: int) -> Iterator[pa.RecordBatch]:
    """The rows of file ``number`` as INDEX_PART. ``first``: the number of its first row in the dataset."""
    columns, places, at = found.columns, found.places, 0
    for batch in found.texts:
        count = batch.num_rows
        rows = slice(at, at + count)
        keys, paths = _names(batch, columns, first + at)
        if columns.width and columns.height:
            sides = [_pixels(batch.column(name)) for name in (columns.width, columns.height)]
        else:
            sides = [places.widths[rows], places.heights[rows]]
        captions = [caption or "" for caption in _texts(batch, columns.caption)]
        yield pa.RecordBatch.from_arrays(
            [
                number_array(np.full(count, number, dtype=np.int32)),
                number_array(places.offsets[rows]),
                number_array(places.lengths[rows]),
                *map(number_array, sides),
                number_array(np.arange(at, at + count, dtype=np.int64)),
                number_array(np.full(count, schema.IN_SHARD, dtype=np.int32)),
                number_array(np.zeros(count, dtype=np.int64)),
                number_array(np.full(count, -1, dtype=np.int64)),
                bool_array(np.zeros(count)),
                pa.nulls(count, pa.binary(16)),
                *map(string_array, (keys, paths, [f"{stem_of(path)}.json" for path in paths], captions)),
                pa.nulls(count, pa.string()),
                number_array(np.array([xxhash.xxh3_64_intdigest(key.encode()) for key in keys], dtype=np.uint64)),
            ],
            schema=schema.INDEX_PART,
        )
        at += count


def _names(batch: pa.RecordBatch, columns: ImageColumns, first: int) -> tuple[list[str], list[str]]:
    """Keys and paths. Without a path, it is the key, or else the row number. ``first``: the dataset's row number of the
    batch's first row."""
    keys, paths = [], []
    given = zip(_texts(batch, columns.key), _texts(batch, columns.path), strict=True)
    for row, (key, path) in enumerate(given, first):
        path = path or (f"{row:09d}" if key is None else key)
        keys.append(stem_of(path) if key is None else key)
        paths.append(path)
    return keys, paths


def _texts(batch: pa.RecordBatch, leaf: str | None) -> list[str | None]:
    """The texts of a column, or of a struct column's field. Nulls if there is no such column."""
    if leaf is None:
        return [None] * batch.num_rows
    name, field = column_parts(leaf, batch.schema.names)
    column = batch.column(name)
    if field:  # struct_field also applies the nulls of the struct
        column = pc.struct_field(column, [column.type.get_field_index(field)])
    return [None if text is None else text_of(text) for text in column.to_pylist()]


def _pixels(column: pa.Array) -> npt.NDArray[np.int32]:
    """Widths or heights. 0 for a null, and for a number that cannot be one."""
    sides = [side if side is not None and 0 <= side < 2**31 else 0 for side in column.to_pylist()]
    return np.array(sides, dtype=np.int32)
