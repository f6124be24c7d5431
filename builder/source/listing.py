"""Read a listing: the listed samples, in their order.

A listing is a JSON list of {"image": path, "annotation": path}, JSON lines, CSV or TSV, compressed or not. An entry may
hold its caption ({"image": path, "caption": text}, or LLaVA's conversations). Then the entry is the annotation.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from builder.base.arrays import OtherEnding, TextColumn, Texts, stretches_of
from builder.base.errors import DamagedFileError, ListingError
from builder.source import listing_json
from builder.source.captions import has_caption
from builder.source.compressed import compression_of, open_compressed
from builder.source.endings import IMAGE_ENDINGS, stem_of
from builder.source.files import ByteFile, PositionedFile
from builder.source.listing_json import ends_well, json_stretches
from builder.source.listing_plain import Plain
from builder.source.tar_headers import normal_name

IMAGE_KEYS = ("image", "image_path", "file_name", "filename", "path")
"""Keys for an entry's image path. The first that exists counts."""

_ROWS = 1 << 12  # CSV rows held as Python objects at a time


@dataclass(frozen=True, slots=True)
class Listing:
    """Listed samples as columns of length n, in listing order. Paths are normalised (``./a`` is ``a``).

    A column may be chunked: 6 million captions are more text than one Arrow array holds. ``recaptions``: JSON objects
    with the captions from the listing itself; "" for a sample whose caption is in its annotation.
    """

    images: pa.StringArray | pa.ChunkedArray
    annotations: Texts
    recaptions: pa.StringArray | pa.ChunkedArray | None = None

    def __len__(self) -> int:
        return len(self.images)


def _follow(images: list[str], annotations: list[str], cut: int, ending: bytes) -> bool:
    """Whether each annotation is its image's path with another ending (see OtherEnding)."""
    made = [image.encode()[:-cut] + ending if len(image) >= cut else None for image in images]
    return made == list(map(str.encode, annotations))


class _Columns:
    """The columns of a listing while it is read."""

    def __init__(self, caption_key: str) -> None:
        self._caption_key = caption_key
        self.images, self.annotations = TextColumn(), TextColumn()
        self.inline: TextColumn | None = None
        self._sidecar: tuple[int, bytes] | None = None  # if all annotations so far follow from their images
        self._count = 0

    def append(self, plain: Plain) -> None:
        """Add paths that need no check."""
        if self.inline is not None:
            self.inline.add([""] * plain.entries)
        if plain.sidecar is None or (self._count and plain.sidecar != self._sidecar):
            self._write_annotations()
            self.annotations.append(*plain.written())
        else:
            self._sidecar = plain.sidecar
        self.images.append(plain.images, plain.image_lengths)
        self._count += plain.entries

    def _write_annotations(self) -> None:
        """Write down the annotations so far that follow from their images: one that comes next does not."""
        if self._sidecar is not None:
            images, self.images = self.images.done(), TextColumn()
            for some in stretches_of(images, _ROWS):
                self.images.add(some.to_pylist())
            for some in stretches_of(OtherEnding(images, *self._sidecar), _ROWS):
                self.annotations.add(some.to_pylist())
            self._sidecar = None

    def add(self, entries: list[Any], name: str, first: int) -> None:
        """Add entries. Raises ListingError if an entry names no image, or neither an annotation nor a caption."""
        inline: list[str] | None = None
        try:
            images = [entry["image"] for entry in entries]
            annotations = [entry["annotation"] for entry in entries]
            "".join(images), "".join(annotations)
        except (KeyError, TypeError, IndexError):
            parts = [_parts(entry, self._caption_key, name, number) for number, entry in enumerate(entries, first)]
            images, annotations, inline = (list(column) for column in zip(*parts, strict=True))
        if inline is not None and self.inline is None and any(inline):
            self.inline = TextColumn()
            for done in range(0, self._count, _ROWS):
                self.inline.add([""] * min(_ROWS, self._count - done))
        if self.inline is not None:
            self.inline.add(inline or [""] * len(entries))
        images, annotations = _normal(images), _normal(annotations)
        if self._sidecar is None or not _follow(images, annotations, *self._sidecar):
            self._write_annotations()
            self.annotations.add(annotations)
        self.images.add(images)
        self._count += len(entries)

    def done(self) -> Listing:
        inline = None if self.inline is None else self.inline.done()
        images = self.images.done()
        annotations = OtherEnding(images, *self._sidecar) if self._sidecar else self.annotations.done()
        return Listing(images, annotations, inline)


def read_listing(files: Iterable[ByteFile], caption_key: str = "auto") -> Listing:
    """Read the files of a listing, one after another. ``caption_key``: the key of an entry's own caption.

    Raises ListingError with the file and the byte or entry if it is cut off, not JSON, not a list, or an entry lacks a
    path. Other keys of an entry that names its annotation are ignored.
    """
    columns = _Columns(caption_key)
    for file in files:
        first = 0
        for found in _paths_or_entries(file):
            if isinstance(found, Plain):
                columns.append(found)
                first += found.entries
            else:
                columns.add(found, file.name, first)
                first += len(found)
    return columns.done()


def _paths_or_entries(file: ByteFile) -> Iterator[list[Any] | Plain]:
    """A listing's paths or entries, read in the fastest way for its form."""
    compressed = compression_of(file.read_at(0, 64)) is not None
    return entries_of(file) if compressed or _is_table(file.name) else json_stretches(file, plain=True)


def check_listing(file: ByteFile, most: int) -> None:
    """Read a listing to check it, keeping nothing. Raises what :func:`read_listing` raises.

    A listing larger than ``most`` bytes is read only at its beginning (that many bytes) and at its end. The end shows
    if a download was cut off or is something else. If the end is not sound all is read, to find the place.
    """
    long = False
    if file.size is not None and file.size > most and (last := ends_well(file, file.size)):
        with suppress(ListingError):
            _Columns("auto").add(last, file.name, 0)
            long = True
    first = 0
    for number, entries in enumerate(entries_of(file)):
        _Columns("auto").add(entries, file.name, first)
        first += len(entries)
        if long and number * listing_json.STRETCH > most:
            break


def entries_of(file: ByteFile) -> Iterator[list[Any]]:
    """Lists of entries, for any form of listing."""
    head = file.read_at(0, 64)
    if compression_of(head) is not None:
        file = open_compressed(file)
    try:
        if _is_table(file.name):
            yield from _rows(file, "\t" if ".tsv" in os.path.basename(file.name.lower()) else ",")
        else:
            for entries in json_stretches(file):
                assert isinstance(entries, list)
                yield entries
    except DamagedFileError as error:
        raise ListingError(file.name, "the compressed data", str(error.args[-1])) from None


def _is_table(name: str) -> bool:
    return any(kind in os.path.basename(name.lower()) for kind in (".csv", ".tsv"))


def _rows(file: ByteFile, delimiter: str) -> Iterator[list[Any]]:
    """Rows of CSV as dicts by the names in its first row. Without such a row: a path and a caption each."""
    text = io.TextIOWrapper(io.BufferedReader(PositionedFile(file), 1 << 16), "utf-8-sig", newline="")
    csv.field_size_limit(1 << 27)
    try:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        names = next(reader, [])
        some: list[Any] = []
        if names and names[0].lower().endswith(IMAGE_ENDINGS):
            some.append({"image": names[0], "caption": names[1] if len(names) > 1 else ""})
            names = ["image", "caption"]
        for row in reader:
            if row:
                some.append(dict(zip(names, row, strict=False)))
            if len(some) >= _ROWS:
                yield some
                some = []
        yield some
    except UnicodeDecodeError as error:
        raise ListingError(file.name, f"byte {error.start} of a block", "not UTF-8") from None
    except csv.Error as error:
        raise ListingError(file.name, f"line {reader.line_num}", str(error)) from None


def _normal(paths: list[str]) -> list[str]:
    joined = "\n".join(["", *paths, ""])
    # One search of all paths. Only a listing with odd paths pays for normalising each.
    if not joined.isascii() or any(odd in joined for odd in ("/.", "//", "\n/", "\n.", "/\n", "\0")):
        return [normal_name(path.encode("utf-8", "backslashreplace").decode()) for path in paths]
    return paths


def _parts(entry: Any, caption_key: str, name: str, number: int) -> tuple[str, str, str]:
    """An entry's image, its annotation (a path), and its own document; "" if it has none."""
    place = f"entry {number}"
    if not isinstance(entry, dict):
        raise ListingError(name, place, f"{json.dumps(entry)[:80]} is not an object")
    image_key = next((key for key in IMAGE_KEYS if key in entry), None)
    if image_key is None:
        raise ListingError(name, place, f'has no "image"; its keys: {_keys(entry)}')
    image, annotation = entry[image_key], entry.get("annotation")
    if not isinstance(image, str):
        raise ListingError(name, place, f'"{image_key}" is {json.dumps(image)[:80]}, not a path')
    document = annotation if isinstance(annotation, dict) else entry
    if isinstance(annotation, str):
        return image, annotation, ""
    if has_caption(document, caption_key):
        text = json.dumps(document, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
        return image, f"{stem_of(image)}.json", text
    if "annotation" in entry:
        raise ListingError(name, place, f'"annotation" is {json.dumps(annotation)[:80]}, not a path')
    raise ListingError(name, place, f'has no "annotation" and no caption; its keys: {_keys(entry)}')


def _keys(entry: dict[str, Any]) -> str:
    return ", ".join(sorted(map(str, entry))[:8]) or "none"
