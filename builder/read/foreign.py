"""Make an index for Parquet or Arrow files that have none: downloaded without meta/, or written by another tool.

The index is made from the files' page headers. It is kept in a cache folder (``LAION6M_CACHE``, else
``~/.cache/laion6m``). Its name is a hash of the files it belongs to. It is memory-mapped like any other index.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from builder.base import schema
from builder.base.arrays import from_ipc, number_array, string_array, to_ipc
from builder.base.errors import DamagedFileError, SourceError
from builder.base.paths import cache_folder
from builder.read.column_types import arrow_peek, checked, parquet_peek, text_of
from builder.read.groups import column_parts
from builder.read.handles import LFS_POINTER, is_lfs_pointer
from builder.read.image_columns import ImageColumns, recognise_columns
from builder.read.image_places import NO_RANGES, Places, arrow_ranges, decode_all, glance_all
from builder.source.endings import stem_of
from builder.source.files import LocalFile
from builder.store.footers import check_claims, footer_digest
from builder.store.index import write_index
from builder.store.output import OutputFile
from builder.store.pages import UnexpectedPageError, value_ranges

_BATCH = 4096  # rows of text columns in memory at a time
_MADE_AS = 2  # raise it when the way of indexing changes; older indexes are then not used


@dataclass(frozen=True, slots=True)
class _Part:
    """One file's part of an index.

    * ``number``, ``path``: the file. ``first``: the number of its first row in the dataset.
    * ``named``: the columns of images and captions that the user gave, or None.
    * ``warned``: whether the warning about slow files was given already.
    * ``place``: the file that the rows are written to.
    """

    number: int
    path: str
    first: int
    named: tuple[str | None, str | None]
    warned: bool
    place: str


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
            places = [os.path.join(scratch, f"{number}.arrow") for number in range(len(files))]
            indexed: list[schema.IndexedFile] = []
            first, slow = 0, False
            captions: dict[str | None, str] = {}
            for number, (file, check) in enumerate(zip(files, identities, strict=True)):
                rows, kind, columns = _write_part(_Part(number, file, first, named, slow, places[number]))
                first, slow = first + rows, slow or kind == "rowgroups"
                relative = os.path.relpath(file, folder).replace(os.sep, "/")
                indexed.append(schema.IndexedFile(relative, kind, rows, {**check, "column": columns.leaf}))
                if rows:
                    captions.setdefault(columns.caption, file)
            if None in captions and len(captions) > 1:
                others = ", ".join(str(name) for name in captions if name)
                warnings.warn(f"{captions[None]}: it has no captions, as others do in {others}", stacklevel=3)
            new = OutputFile(os.path.join(scratch, "index"), path)
            write_index(new, folder, indexed, lambda: map(_read_part, places))
    return path


def _identify(path: str) -> dict[str, int | str]:
    """The facts that identify a file's content. Raises SourceError, DamagedFileError."""
    try:
        file = LocalFile(path)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error
    try:
        if is_lfs_pointer(file.read_at(0, 64)):
            raise SourceError(f"{path} is {LFS_POINTER}")
        if path.endswith(".arrow"):  # it has no footer to identify it
            return {"size": file.size or 0, "mtime_ns": file.mtime_ns}
        size, footer = footer_digest(file)
    finally:
        file.close()
    return {"size": size, "footer": footer}


def _write_part(part: _Part) -> tuple[int, str, ImageColumns]:
    """Write one file's index rows. Returns their number, the kind of file, and its columns."""
    path = part.path
    file = LocalFile(path)
    try:
        return _write_arrow_part(part, file) if path.endswith(".arrow") else _write_parquet_part(part, file)
    except (pa.ArrowException, UnicodeError, OSError) as error:
        raise DamagedFileError(path, "Arrow" if path.endswith(".arrow") else "Parquet", str(error)) from None
    finally:
        file.close()


def _write_parquet_part(part: _Part, file: LocalFile) -> tuple[int, str, ImageColumns]:
    path = part.path
    with pq.ParquetFile(path) as parquet:
        check_claims(path, parquet.metadata, file.size or 0)
        columns = recognise_columns(path, parquet.schema_arrow, parquet_peek(path), *part.named)
        rows = parquet.metadata.num_rows
        reason = "compressed or dictionary-encoded"
        try:
            ranges = value_ranges(file, parquet.metadata, columns.leaf) if rows else NO_RANGES
        except UnexpectedPageError as error:
            ranges, reason = None, f"in pages of an unknown kind ({error.args[1]}: {error.args[2]})"
        if ranges is None:
            if not part.warned:  # warn once, before the slow work
                warnings.warn(
                    f"{path}: the images are {reason}, so all are decoded now, and whole row "
                    "groups for each later; not if written with compression='none', use_dictionary=False (pyarrow)",
                    stacklevel=5,
                )
            places = decode_all(parquet, columns.leaf, probe_sizes=not columns.sized)
        else:
            places = Places(ranges.offsets, ranges.lengths, *glance_all(file, ranges, columns))
        names = [name for name in (columns.key, columns.caption, columns.width, columns.height) if name]
        wanted = [*names, *([f"{columns.image}.path"] if columns.path else [])]
        _save(part, columns, parquet.iter_batches(_BATCH, columns=wanted), places)
    return rows, "rowgroups" if ranges is None else "parquet", columns


def _write_arrow_part(part: _Part, file: LocalFile) -> tuple[int, str, ImageColumns]:
    path = part.path
    with pa.memory_map(path) as source:
        whole = source.read_buffer()
        if whole.size >= 6 and whole[:6].to_pybytes() == b"ARROW1":
            raise SourceError(f"{path} is an Arrow IPC file; read are IPC streams, as datasets writes them, or Parquet")
        with pa.ipc.open_stream(whole) as stream:
            table = pa.Table.from_batches(map(checked, stream), stream.schema)
        columns = recognise_columns(path, table.schema, arrow_peek(path), *part.named)
        ranges = arrow_ranges(path, whole, table.column(columns.image), nested=columns.nested)
        places = Places(ranges.offsets, ranges.lengths, *glance_all(file, ranges, columns))
        _save(part, columns, table.to_batches(max_chunksize=_BATCH), places)
    return len(ranges.offsets), "arrow", columns


def _save(part: _Part, columns: ImageColumns, batches: Iterable[pa.RecordBatch], places: Places) -> None:
    tables = list(_part_batches(part, columns, _counted(part.path, batches, len(places.offsets)), places))
    table = pa.Table.from_batches(tables, schema=tables[0].schema if tables else schema.INDEX_PART)
    with open(part.place, "wb") as handle:
        handle.write(to_ipc(table))


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
        raise DamagedFileError(path, "columns", f"{images} images, but other columns have {rows} values or more")


def _part_batches(
    part: _Part,
    columns: ImageColumns,
    batches: Iterable[pa.RecordBatch],
    places: Places,
) -> Iterator[pa.RecordBatch]:
    first = 0
    for batch in batches:
        count = batch.num_rows
        rows = slice(first, first + count)
        paths = _paths(batch, columns, part.first + first)
        given = batch.column(columns.key).to_pylist() if columns.key else [None] * count
        keys = [stem_of(path) if key is None else text_of(key) for key, path in zip(given, paths, strict=True)]
        captions = _texts(batch, columns.caption) if columns.caption else [""] * count
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
                number_array(np.full(count, part.number, dtype=np.int32)),
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


def _texts(batch: pa.RecordBatch, leaf: str) -> list[str | None]:
    """The texts of a column, or of a struct column's field."""
    name, field = column_parts(leaf, batch.schema.names)
    column = batch.column(name)
    if field:  # struct_field also applies the nulls of the struct
        column = pc.struct_field(column, [column.type.get_field_index(field)])
    return [None if text is None else text_of(text) for text in column.to_pylist()]


def _pixels(value: int | None) -> int:
    return value if value is not None and 0 <= value < 2**31 else 0


def _paths(batch: pa.RecordBatch, columns: ImageColumns, first: int) -> list[str]:
    """Each image's path. If the file has none: the key, or else the row number. ``first``: the dataset's row number of
    the batch's first row."""
    rows = range(first, first + batch.num_rows)
    if columns.path:
        image = batch.column(columns.image)
        paths = image.field("path").to_pylist()
    else:
        paths = [None] * batch.num_rows
    keys = batch.column(columns.key).to_pylist() if columns.key else [None] * batch.num_rows
    return [
        text_of(path) if path else (text_of(key) if key is not None else f"{row:09d}")
        for path, key, row in zip(paths, keys, rows, strict=True)
    ]


def _read_part(path: str) -> pa.Table:
    with open(path, "rb") as handle:
        return from_ipc(handle.read())
