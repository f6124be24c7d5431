"""The listing of a source with Parquet files of recaptions: every row is a listed sample."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builder.base.arrays import TextColumn, take_text
from builder.base.errors import ListingError
from builder.source.captions import AUTO_KEYS
from builder.source.implied import TOGETHER, images_at, members_of
from builder.source.listing import Listing, path_ids
from builder.source.pairs import NOT_FOUND, IdLookup
from builder.source.scan import stem_of
from builder.source.tables import ArchiveTable

_FREE_ROWS = 1 << 22
"""pyarrow makes room for the rows that are claimed: so many, and one for each byte of the file, are believed."""

_MOST_CHARACTERS = 1 << 28  # of one Arrow array: at 4 bytes each, half of what its 32-bit offsets hold


def listing_of_recaptions(files: Sequence[str], raw: Sequence[ArchiveTable], caption_key: str) -> Listing:
    """A listing in the order of the recaptions' rows, each joined with the member whose sidecar has its ``url``, or
    whose name without extension is its ``key``.

    Needs tables scanned with names, and with urls for files that have a url column (see :func:`wants_urls`). Raises
    ListingError for a file that is no Parquet or lacks the columns.
    """
    names, stems = members_of(raw, None)
    image_names, image_stems = members_of(raw, "is_image")
    by_stem = IdLookup(image_stems)
    url_ids = [table.url_ids for table in raw if table.url_ids is not None]
    by_url = IdLookup(*url_ids) if url_ids else None
    images, sidecars, documents = TextColumn(), TextColumn(), TextColumn()
    for file in files:
        first = 0
        for rows in _recaption_rows(file, caption_key):
            keys = [str(row["key"]) if row.get("key") is not None else "" for row in rows]
            at = by_stem.last(path_ids(keys))
            missing = [key or _nowhere(file, str(first + number)) for number, key in enumerate(keys)]
            if by_url is not None and "url" in rows[0]:
                urls = [row["url"] if isinstance(row["url"], str) else "" for row in rows]
                member = by_url.last(path_ids(urls))
                found = (member != NOT_FOUND) & np.array([url != "" for url in urls])  # "": members without one
                at[:] = NOT_FOUND
                at[found] = by_stem.last(stems[member[found]])
                sidecar_stems = iter(map(stem_of, take_text(names, member[found]).to_pylist()))
                missing = [
                    next(sidecar_stems) if known else _nowhere(file, url or str(first + number))
                    for number, (known, url) in enumerate(zip(found.tolist(), urls, strict=True))
                ]
            paths = [image or f"{key}.jpg" for image, key in zip(images_at(image_names, at), missing, strict=True)]
            images.add(paths)
            sidecars.add([f"{stem_of(path)}.json" for path in paths])
            for some in _documents(rows):
                documents.add(some)
            first += len(rows)
    return Listing(images.done(), sidecars.done(), documents.done())


def _documents(rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Each row as JSON, in lists that fit into a column."""
    some: list[str] = []
    size = 0
    for row in rows:
        document = json.dumps(row, ensure_ascii=False, default=str)
        if size + len(document) > _MOST_CHARACTERS:
            yield some
            some, size = [], 0
        some.append(document)
        size += len(document)
    yield some


def _nowhere(file: str, label: str) -> str:
    """A name for a recaption that belongs to no member. With ``//`` in it no member has it: else one that the url did
    not lead to might be taken for its image."""
    return label if "//" in label else f"{os.path.basename(file)}//{label}"


def wants_urls(files: Sequence[str]) -> bool:
    """Whether any of the recaptions is to be joined by url. Raises ListingError."""
    return any("url" in _names(file, _open(file)) for file in files)


def _recaption_rows(file: str, caption_key: str) -> Iterator[list[dict[str, Any]]]:
    """Rows as dicts, some at a time, the caption under ``re_caption``; columns of bytes are left out."""
    parquet = _open(file)
    names = _names(file, parquet)
    wanted = AUTO_KEYS if caption_key == "auto" else (caption_key,)
    column = next((name for name in wanted if name in names), None)
    if column is None or not {"url", "key"} & set(names):
        need = f"{' or '.join(wanted)}, and url or key"
        raise ListingError(file, "columns", f"found {', '.join(names)}; needed are {need}")
    counts = [parquet.metadata.row_group(number).num_rows for number in range(parquet.metadata.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) > os.path.getsize(file) + _FREE_ROWS:
        raise ListingError(file, "footer", f"claims {sum(counts):,} rows in {os.path.getsize(file):,} bytes")
    kept = [field.name for field in parquet.schema_arrow if not _holds_bytes(field.type)]
    rename = column != "re_caption" and caption_key == "auto"
    try:
        for batch in parquet.iter_batches(TOGETHER, columns=kept):
            rows: list[dict[str, Any]] = batch.to_pylist()
            if rename:
                for row in rows:
                    row["re_caption"] = row.pop(column)
            if rows:
                yield rows
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # text that is no UTF-8, times beyond 9999
        raise ListingError(file, "columns", f"cannot be read: {error}") from None


def _holds_bytes(kind: pa.DataType) -> bool:
    if kind.num_fields:
        return any(_holds_bytes(kind.field(number).type) for number in range(kind.num_fields))
    return "binary" in str(kind)  # binary, large_binary, fixed_size_binary, views and dictionaries of them


def _open(file: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise ListingError(file, "footer", f"not a Parquet file: {error}") from None


def _names(file: str, parquet: pq.ParquetFile) -> list[str]:
    try:
        names: list[str] = parquet.schema_arrow.names
    except UnicodeDecodeError as error:
        raise ListingError(file, "columns", f"a name is not UTF-8: {error}") from None
    return names
