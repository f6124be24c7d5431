"""Find the images of another tool's file: the columns of its table by name and type, and where the images lie."""

from __future__ import annotations

import functools
import json
import shlex
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.base.arrays import numbers_of
from builder.base.errors import DamagedFileError, OptionError, SourceError
from builder.base.records import ImageInfo, SampleProblem
from builder.read.column_types import is_bytes, is_text, leaves, settled
from builder.read.groups import column_parts
from builder.source.captions import AUTO_KEYS
from builder.source.files import LocalFile
from builder.source.glance import glance
from builder.source.images import probe
from builder.store.pages import ValueRanges

CAPTION_NAMES = (*AUTO_KEYS, "text", "txt", "prompt", "TEXT")
"""Names of caption columns, in this order. After them come fields of these names in a column ``json``: ``datasets``
makes that column from a tar's JSON documents."""


@dataclass(frozen=True, slots=True)
class ImageColumns:
    """Names of a file's columns; None if it has no such column.

    ``image``: a struct with bytes and path (``nested``), or plain binary. ``path``: the path in that struct.
    ``caption``: a column of text, or ``column.field`` for a field of a struct.
    """

    image: str
    nested: bool
    path: str | None
    key: str | None
    caption: str | None
    width: str | None
    height: str | None

    @property
    def leaf(self) -> str:
        """Parquet's name of the column with the images' bytes."""
        return f"{self.image}.bytes" if self.nested else self.image

    @property
    def sized(self) -> bool:
        return bool(self.width and self.height)


def recognise_columns(
    path: str, table: pa.Schema, image_column: str | None = None, caption_column: str | None = None
) -> ImageColumns:
    """Find the columns by name and type. Columns that are given are used as they are. Raises SourceError, OptionError,
    and what ``first_value`` raises."""
    table, place = settled(table, path, image_column), shlex.quote(path)

    def named(fits: Callable[[pa.DataType], bool], *names: str) -> str | None:
        found = (name for name in names if len(table.get_all_field_indices(name)) == 1)
        return next((name for name in found if fits(table.field(name).type)), None)

    images = _image_fields(table)
    if image_column is not None:
        images = [field for field in images if field.name == image_column]
        if not images:
            raise OptionError("image_column", image_column, f"{place} has no such column of images{_columns(table)}")
    if not images:
        raise SourceError(f"{place} has no column of images{_columns(table)}")
    image = images[0]
    nested = _is_image(image)
    has_path = nested and image.type.get_field_index("path") >= 0 and is_text(image.type.field("path").type)
    return ImageColumns(
        image.name,
        nested,
        f"{image.name}.path" if has_path else None,
        named(lambda kind: is_text(kind) or pa.types.is_integer(kind), *_KEY_NAMES),
        _caption_column(path, table, caption_column),
        named(pa.types.is_integer, "width"),
        named(pa.types.is_integer, "height"),
    )


def _columns(table: pa.Schema) -> str:
    return f". Its columns: {', '.join(table.names)}"


def _image_fields(table: pa.Schema) -> list[pa.Field]:
    """Columns that may hold images, the likeliest first."""
    kinds = _features(table)
    single = [field for field in table if len(table.get_all_field_indices(field.name)) == 1]
    images = [field for field in single if _is_image(field) and kinds.get(field.name, "Image") == "Image"]
    plain = [field for field in single if is_bytes(field.type)]
    return sorted([*images, *plain], key=lambda field: _likelihood(field, kinds))


def _likelihood(field: pa.Field, kinds: dict[str, str]) -> tuple[bool, bool, bool, int]:
    """A sort key, the likeliest first: a column that ``datasets`` marks as an image, then one called image, then a
    struct before plain bytes, then the order of _IMAGE_NAMES."""
    return (
        field.name not in kinds,
        field.name != "image",
        not _is_image(field),
        (*_IMAGE_NAMES, field.name).index(field.name),
    )


def _is_image(field: pa.Field) -> bool:
    kind = field.type
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and is_bytes(kind.field("bytes").type)


def warn_of_guesses(path: str, image_column: str | None, caption_column: str | None) -> None:
    """Warn if several columns are equally likely to be the images. Warn if there is text, but no column that is known
    as a caption. Raises OptionError."""
    try:
        table = _schema(path, image_column)
        leaves(table)  # reads all names: a damaged one raises here
    except (pa.ArrowException, UnicodeError, OSError, DamagedFileError):
        return  # indexing it raises the error that says what is wrong
    images, kinds = _image_fields(table), _features(table)
    alike = [each.name for each in images if _likelihood(each, kinds) == _likelihood(images[0], kinds)]
    if image_column is None and len(alike) > 1:
        warnings.warn(
            f"{shlex.quote(path)}: each of the columns {', '.join(alike)} may be the images. The first is used. To use "
            "another: open_dataset(PATH, image_column=NAME)",
            stacklevel=3,
        )
    texts = _texts(table) if images else []
    if texts and _caption_column(path, table, caption_column) is None:
        warnings.warn(
            f"{shlex.quote(path)}: no column is known as a caption ({', '.join(CAPTION_NAMES)}), so captions are "
            f"empty. There is text in {', '.join(texts)}. To use it: open_dataset(PATH, caption_column=NAME)",
            stacklevel=3,
        )


def _schema(path: str, image_column: str | None) -> pa.Schema:
    """The schema of a Parquet file or an Arrow stream. Types tell text from images: see ``settled``."""
    if not path.endswith(".arrow"):
        return settled(pq.read_schema(path), path, image_column)
    with pa.memory_map(path) as source, pa.ipc.open_stream(source) as stream:
        return settled(stream.schema, path, image_column)


def _caption_column(path: str, table: pa.Schema, wanted: str | None) -> str | None:
    texts = [name for name, kind in leaves(table).items() if is_text(kind)]
    if wanted is not None:
        if wanted not in texts:
            there = ", ".join(_texts(table)) or "no column"
            problem = f"{shlex.quote(path)} has no such column of text. There is text in {there}"
            raise OptionError("caption_column", wanted, problem)
        return wanted
    known = (*CAPTION_NAMES, *(f"json.{name}" for name in CAPTION_NAMES))
    return next((name for name in known if name in texts), None)


def _texts(table: pa.Schema) -> list[str]:
    """Names of columns and fields that may be captions, for a message: text, and lists of text."""
    found = []
    for name, kind in leaves(table).items():
        if name in (*_KEY_NAMES, "__url__") or name.endswith(".path"):
            continue
        if is_text(kind):
            found.append(name)
        elif (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and is_text(kind.value_type):
            found.append(f"{name} (lists of text, which cannot be captions)")
    return found


_KEY_NAMES = ("key", "__key__")
_IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "img")


def _features(table: pa.Schema) -> dict[str, str]:
    """The features that ``datasets`` stored in the schema (Image, Audio, Video …), by column. Plain values are left
    out. Empty if it stored none."""
    try:
        features = json.loads((table.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        kinds = {str(name): str(feature["_type"]) for name, feature in features.items() if "_type" in feature}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {name: kind for name, kind in kinds.items() if kind != "Value"}


NO_RANGES = ValueRanges(np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class Places:
    """Where the images of a file lie, as arrays of one length. ``widths`` and ``heights`` are empty if the file has
    columns for them."""

    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int32]
    heights: npt.NDArray[np.int32]


def arrow_ranges(path: str, whole: pa.Buffer, column: pa.ChunkedArray, *, nested: bool) -> ValueRanges:
    """Where each value lies in a mapped stream: the address of its buffer minus the address of the map. Raises
    SourceError if a buffer lies outside the map, as decompressed buffers do."""
    found, place = [NO_RANGES], shlex.quote(path)
    for chunk in column.chunks:
        values = chunk.field("bytes") if nested else chunk
        if values.type not in (pa.binary(), pa.large_binary(), pa.string(), pa.large_string()):
            raise SourceError(f"{place} has images of type {values.type}. No index can point into it. Write Parquet")
        _, ends, data = values.buffers()
        if not len(values):
            continue
        size = data.size if data else 0
        first = data.address - whole.address if size else 0
        if not 0 <= first <= first + size <= whole.size:
            raise SourceError(f"{place} has compressed buffers, which no index can point into. Write it as Parquet")
        width = np.int32 if values.type in (pa.binary(), pa.string()) else np.int64
        edges = np.frombuffer(ends, dtype=width)[values.offset : values.offset + len(values) + 1].astype(np.int64)
        present = numbers_of(pc.and_(chunk.is_valid(), values.is_valid()).cast(pa.uint8())).astype(np.bool_)
        found.append(ValueRanges(first + edges[:-1], np.where(present, np.diff(edges), -1)))
    return ValueRanges(
        np.concatenate([each.offsets for each in found]), np.concatenate([each.lengths for each in found])
    )


def glance_all(file: LocalFile, ranges: ValueRanges, columns: ImageColumns) -> Places:
    """The places of these images. Their sides are read from their own headers."""
    sides = []
    if not columns.sized:
        places = zip(ranges.offsets.tolist(), ranges.lengths.tolist(), strict=True)
        sides = [_size(functools.partial(glance, file, offset, length), length) for offset, length in places]
    return Places(ranges.offsets, ranges.lengths, *_sides(sides))


def decode_all(parquet: pq.ParquetFile, leaf: str, *, probe_sizes: bool) -> Places:
    """For a compressed or encoded column: decode all images for their lengths and, if asked, their sides."""
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
    return Places(np.arange(len(lengths), dtype=np.int64), np.array(lengths, dtype=np.int64), *_sides(sides))


def _size(look: Callable[[], ImageInfo], length: int) -> tuple[int, int]:
    """Width and height. 0, 0 for a null, or for bytes that are not an image."""
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
