"""Which columns of somebody's table hold the images, their captions, keys and sizes: told by name and type."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from builder.errors import SourceError
from builder.source.captions import AUTO_KEYS


@dataclass(frozen=True, slots=True)
class ImageColumns:
    """What the columns of a file are called; None where there is none. ``image``: a struct with bytes and path, or
    plain binary."""

    image: str
    nested: bool
    path: bool
    key: str | None
    caption: str | None
    width: str | None
    height: str | None

    @property
    def sized(self) -> bool:
        return bool(self.width and self.height)


def recognise_columns(path: str, table: pa.Schema) -> ImageColumns:
    """Find the columns by name and type. Raises SourceError."""

    def named(fits: Callable[[pa.DataType], bool], *names: str) -> str | None:
        found = (name for name in names if len(table.get_all_field_indices(name)) == 1)
        return next((name for name in found if fits(table.field(name).type)), None)

    def is_image(field: pa.Field) -> bool:
        kind = field.type
        return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)

    kinds = _features(table)
    single = [field for field in table if len(table.get_all_field_indices(field.name)) == 1]
    images = [field for field in single if is_image(field) and kinds.get(field.name, "Image") == "Image"]
    plain = [field for field in single if _is_bytes(field.type)]
    # Of several: the one that datasets calls an image, a struct before plain bytes, the one whose name says so.
    found = sorted(
        [*images, *plain],
        key=lambda field: (field.name not in kinds, field.name != "image", not is_image(field), _rank(field.name)),
    )
    image = next(iter(found), None)
    if image is None:
        raise SourceError(f"{path} has no column of images; its columns: {', '.join(table.names)}")
    nested = is_image(image)
    return ImageColumns(
        image.name,
        nested,
        nested and image.type.get_field_index("path") >= 0 and _is_text(image.type.field("path").type),
        named(lambda kind: _is_text(kind) or pa.types.is_integer(kind), "key", "__key__"),
        named(_is_text, *AUTO_KEYS, "text", "txt", "prompt", "TEXT"),
        named(pa.types.is_integer, "width"),
        named(pa.types.is_integer, "height"),
    )


_IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "img")


def _rank(name: str) -> int:
    return _IMAGE_NAMES.index(name) if name in _IMAGE_NAMES else len(_IMAGE_NAMES)


def _features(table: pa.Schema) -> dict[str, str]:
    """What ``datasets`` notes of the columns that are an Image, an Audio, a Video …; nothing where it noted nothing."""
    try:
        features = json.loads((table.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        kinds = {str(name): str(feature["_type"]) for name, feature in features.items() if "_type" in feature}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {name: kind for name, kind in kinds.items() if kind != "Value"}


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
