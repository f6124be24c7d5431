"""The listing of a source with files of recaptions: every row is a listed sample.

Parquet, JSON lines, a JSON list, CSV or TSV → rows → joined with the members by a field of their sidecars, or by name
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builder.base.arrays import TextColumn, take_text
from builder.base.errors import ListingError, OptionError, SourceError
from builder.base.ids import path_ids
from builder.base.urls import NO_OPTIONS
from builder.base.words import counted, printable
from builder.plan.implied import TOGETHER, images_at, members_of
from builder.plan.pairs import NOT_FOUND, IdLookup
from builder.source.captions import AUTO_KEYS, joined_value
from builder.source.endings import stem_of
from builder.source.files import refuse_pointer
from builder.source.listing import Listing, entries_of
from builder.source.scan import open_bytes
from builder.source.tables import ArchiveTable
from builder.store.parquet_file import open_parquet

_FREE_ROWS = 1 << 22
"""pyarrow allocates memory for the rows that a file claims to have. This many are believed, plus one for each byte."""

_MOST_CHARACTERS = 1 << 28  # of one Arrow array: at 4 bytes each, half of what 32-bit offsets reach
_NAMES = ("key", "path", "image", "file_name")
"""Columns that hold a member's name."""


@dataclass(frozen=True, slots=True)
class On:
    """What joins a file of recaptions with images: its ``column`` equals ``field`` of the sidecars. If ``field`` is "",
    it equals the members' names."""

    column: str
    field: str

    @property
    def words(self) -> str:
        return self.column if self.field in ("", self.column) else f"{self.field}={self.column}"


@dataclass(frozen=True, slots=True)
class Recaptions:
    """``listing``: the rows of all files. ``matched``: how many belong to an image. ``words``: what joins them, in
    words. ``example``: a value that should join one. ``member``: an image's name."""

    listing: Listing
    matched: int
    words: str
    example: str
    member: str

    def refuse_unmatched(self) -> None:
        """Raise SourceError if no row belongs to an image."""
        if len(self.listing) and self.member and not self.matched:
            raise SourceError(
                f"none of {counted(len(self.listing), 'recaption')} belongs to an image, joined {self.words}: one says "
                f'"{printable(self.example):.80}", an image is called "{printable(self.member):.80}". Name the field '
                "that joins them: --on key, or --on url=COLUMN."
            )


def listing_of_recaptions(
    files: Sequence[str], raw: Sequence[ArchiveTable], caption_key: str, on: str | None = None
) -> Recaptions:
    """A listing in the order of the recaptions' rows. A row is joined with the member whose sidecar has its ``url``, or
    whose name without extension is its ``key``. ``on``: join by something else (see :func:`joined_on`).

    Needs tables scanned with names and with the field of :func:`wanted_field`. Raises ListingError for a file that
    cannot be read or lacks the columns.
    """
    names, stems = members_of(raw, None)
    image_names, image_stems = members_of(raw, "is_image")
    by_stem = IdLookup(image_stems)
    field_ids = [table.field_ids for table in raw if table.field_ids is not None]
    by_field = IdLookup(*field_ids) if field_ids else None
    images, sidecars, documents = TextColumn(), TextColumn(), TextColumn()
    matched, ways, example = 0, dict[str, None](), ""
    for file in files:
        first, chosen = 0, joined_on(file, on)
        ways[chosen.words] = None
        for rows in _recaption_rows(file, caption_key, chosen.column):
            labels = [joined_value(chosen.field, row.get(chosen.column)) for row in rows]
            if by_field is not None and chosen.field:
                at = np.full(len(rows), NOT_FOUND, dtype=np.int64)
                member = by_field.last(path_ids(labels))
                found = (member != NOT_FOUND) & np.array([label != "" for label in labels])  # "": none
                at[found] = by_stem.last(stems[member[found]])
                sidecar_stems = iter(map(stem_of, take_text(names, member[found]).to_pylist()))
                missing = [
                    next(sidecar_stems) if known else _nowhere(file, label or str(first + number))
                    for number, (known, label) in enumerate(zip(found.tolist(), labels, strict=True))
                ]
            else:
                keys = labels if chosen.column == "key" else [stem_of(label) for label in labels]
                at = by_stem.last(path_ids(keys))
                missing = [key or _nowhere(file, str(first + number)) for number, key in enumerate(keys)]
            matched += int((at != NOT_FOUND).sum())
            example = example or next(filter(None, labels), "")
            paths = [image or f"{key}.jpg" for image, key in zip(images_at(image_names, at), missing, strict=True)]
            images.add(paths)
            sidecars.add([f"{stem_of(path)}.json" for path in paths])
            for some in _documents(rows):
                documents.add(some)
            first += len(rows)
    listing = Listing(images.done(), sidecars.done(), documents.done())
    words = f"by {', '.join(ways)}"
    image = str(image_names[0].as_py()) if len(image_names) else ""
    return Recaptions(listing, matched, words, example, image)


def joined_on(file: str, on: str | None) -> On:
    """What a file's rows are joined by. ``on``: ``url``, ``sha256`` or another field of the sidecars. ``FIELD=COLUMN``
    if the file calls it otherwise. ``key`` or ``path``: the members' names. None: ``url`` if the file has that column,
    else ``key``. Raises ListingError if the file lacks the column."""
    names = column_names(file)
    if on is not None:
        field, _, column = on.partition("=")
        if not field:
            raise OptionError("on", on, "give a field, such as url, or FIELD=COLUMN")
        column = column or field
        if column not in names:
            raise ListingError(file, "columns", f"there is no column {column} to join by; there are {', '.join(names)}")
        return On(column, "" if field in _NAMES else field)
    if "url" in names:
        return On("url", "url")
    for column in _NAMES:
        if column in names:
            return On(column, "")
    need = "a column url or key is needed. If it has another name, give --on FIELD=COLUMN"
    raise ListingError(file, "columns", f"found {', '.join(names)}; {need}")


def wanted_field(files: Sequence[str], on: str | None) -> str:
    """The field of the sidecars that recaptions are joined by; "" for none. Raises ListingError."""
    fields = {chosen.field for chosen in (joined_on(file, on) for file in files)} - {""}
    if len(fields) > 1:
        raise SourceError(
            f"recaptions must be joined by one field, but these files are joined by {' and '.join(sorted(fields))}. "
            "Name one that all of them have with --on, or convert them one after another."
        )
    return next(iter(fields), "")


def column_names(file: str) -> list[str]:
    """The names of a file's columns. Raises ListingError."""
    if _is_parquet(file):
        return _names(file, _open(file))
    with closing(open_bytes(file, NO_OPTIONS)) as handle:
        first = next((some[0] for some in entries_of(handle) if some), None)
    return list(map(str, first)) if isinstance(first, dict) else []


def _documents(rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Each row as JSON, in lists that fit into a column."""
    some: list[str] = []
    size = 0
    for row in rows:
        document = json.dumps(row, ensure_ascii=False, default=str)
        if not document.isascii():
            document = document.encode("utf-8", "backslashreplace").decode()  # lone surrogates stay escapes
        if size + len(document) > _MOST_CHARACTERS:
            yield some
            some, size = [], 0
        some.append(document)
        size += len(document)
    yield some


def _nowhere(file: str, label: str) -> str:
    """A name for a recaption that belongs to no member. It contains ``//``, so no member has it. Otherwise a member
    that the url did not lead to could be taken for its image."""
    return label if "//" in label else f"{os.path.basename(file)}//{label}"


def _recaption_rows(file: str, caption_key: str, join: str) -> Iterator[list[dict[str, Any]]]:
    """Rows as dicts, some at a time, the caption under ``re_caption``. Columns of bytes are left out, unless the writer
    marks no text as text."""
    names = column_names(file)
    wanted = AUTO_KEYS if caption_key == "auto" else (caption_key,)
    column = next((name for name in wanted if name in names), None)
    if column is None:
        raise ListingError(file, "columns", f"found {', '.join(names)}; a column {' or '.join(wanted)} is needed")
    rename = column != "re_caption" and caption_key == "auto"
    for rows in _parquet_rows(file, {column, join}) if _is_parquet(file) else _text_rows(file):
        if rename:
            for row in rows:
                row["re_caption"] = row.pop(column, None)
        if rows:
            yield rows


def _text_rows(file: str) -> Iterator[list[dict[str, Any]]]:
    with closing(open_bytes(file, NO_OPTIONS)) as handle:
        for rows in entries_of(handle):
            if wrong := next((row for row in rows if not isinstance(row, dict)), None):
                raise ListingError(file, "a row", f"{json.dumps(wrong)[:80]} is not an object")
            yield rows


def _parquet_rows(file: str, needed: set[str]) -> Iterator[list[dict[str, Any]]]:
    """``needed``: columns of text. If one of them holds bytes, the writer marks no text (ClickHouse's String, Hive).
    Then a column of bytes is text if its first value is."""
    parquet = _open(file)
    counts = [parquet.metadata.row_group(number).num_rows for number in range(parquet.metadata.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) > os.path.getsize(file) + _FREE_ROWS:
        raise ListingError(file, "footer", f"claims {sum(counts):,} rows in {os.path.getsize(file):,} bytes")
    fields = parquet.schema_arrow
    unmarked = {field.name for field in fields if field.type in (pa.binary(), pa.large_binary())}
    try:
        text = {name for name in unmarked if name in needed or _is_text(parquet, name)} if unmarked & needed else set()
        kept = [field.name for field in fields if field.name in text or not _holds_bytes(field.type)]
        for batch in parquet.iter_batches(TOGETHER, columns=kept):
            rows: list[dict[str, Any]] = batch.to_pylist()
            for row in rows if text else ():
                row.update((name, row[name].decode()) for name in text if row[name] is not None)
            yield rows
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # invalid UTF-8, years after 9999
        raise ListingError(file, "columns", f"cannot be read: {error}") from None


def _is_text(parquet: pq.ParquetFile, name: str) -> bool:
    """Whether the first value that is not null is UTF-8."""
    for batch in parquet.iter_batches(16, columns=[name]):
        for value in filter(None, batch.column(0).to_pylist()):
            try:
                value.decode()
            except UnicodeDecodeError:
                return False
            return True
    return False


def _holds_bytes(kind: pa.DataType) -> bool:
    if kind.num_fields:
        return any(_holds_bytes(kind.field(number).type) for number in range(kind.num_fields))
    return "binary" in str(kind)  # binary, large_binary, fixed_size_binary, views and dictionaries of them


def _is_parquet(file: str) -> bool:
    """Whether to read a file as Parquet: its name is not that of a text format."""
    lower = file.lower()
    return not any(f".{kind}" in os.path.basename(lower) for kind in ("json", "ndjson", "csv", "tsv"))


def _open(file: str) -> pq.ParquetFile:
    try:
        with open(file, "rb") as handle:
            refuse_pointer(file, handle.read(64))
        return open_parquet(file)
    except PermissionError as error:
        raise SourceError(f"cannot read {shlex.quote(file)}: {error.strerror}") from None
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise ListingError(file, "footer", f"not a Parquet file: {error}") from None


def _names(file: str, parquet: pq.ParquetFile) -> list[str]:
    try:
        names: list[str] = parquet.schema_arrow.names
    except UnicodeDecodeError as error:
        raise ListingError(file, "columns", f"a name is not UTF-8: {error}") from None
    return names
