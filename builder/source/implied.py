"""The listing of a source without a data.json: every annotation is a listed sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from builder.base.arrays import MOST_TEXT, TextColumn, bool_array, take_text
from builder.base.errors import LayoutError
from builder.source.layout import EXPECTED, Layout
from builder.source.layouts import meant_instead
from builder.source.listing import Ids, Listing
from builder.source.pairs import NOT_FOUND, IdLookup, Integers
from builder.source.scan import stem_of
from builder.source.tables import ArchiveTable

TOGETHER = 1 << 16
"""Rows, or paths, that are Python objects at a time: 6 million would be gigabytes."""


def listing_of_annotations(raw: Sequence[ArchiveTable], annotations: Sequence[ArchiveTable]) -> Listing:
    """A listing in the order of the annotations' archives and offsets. The image of ``a/b.json`` is the member
    ``a/b.*`` that ends as images do (scan.IMAGE_ENDINGS); where there is none the sample is listed all the same, as
    ``a/b.jpg``, and will be counted as missing.

    Needs tables scanned with names.
    """
    names, stems = members_of(annotations, "is_json")
    chosen = np.flatnonzero(IdLookup(*(table.ids[table.is_json] for table in annotations)).effective())
    image_names, image_stems = members_of(raw, "is_image")
    lookup = IdLookup(image_stems)
    images, paths = TextColumn(), TextColumn()
    for first in range(0, len(chosen), TOGETHER):
        some = chosen[first : first + TOGETHER]
        mine = take_text(names, some).to_pylist()
        found = images_at(image_names, lookup.last(stems[some]))
        images.add([image or f"{stem_of(name)}.jpg" for image, name in zip(found, mine, strict=True)])
        paths.add(mine)
    return Listing(images.done(), paths.done())


def refuse_unpaired(layout: Layout, raw: Sequence[ArchiveTable], annotations: Sequence[ArchiveTable]) -> None:
    """Raises LayoutError where no sample can come of a source without a data.json: it has no annotations, or where tars
    of both lie in the folder itself, no images. Not where damage, which is reported, may be why."""
    in_folder = layout.raw_root == layout.root
    place = "its tars" if in_folder else "captions/" if layout.captions else "raw/"
    if not any(table.is_json.any() for table in annotations):
        found = f"no annotation (*.json) in {place}, and no data.json"
    elif in_folder and not any(table.is_image.any() for table in raw):
        found = f"annotations (*.json) but no image in {place}"
    else:
        return
    meant = meant_instead(layout.root)
    if meant or not any(table.damage for table in (*raw, *annotations)):
        raise LayoutError(layout.root, found, meant or EXPECTED)


def members_of(tables: Sequence[ArchiveTable], which: str | None) -> tuple[pa.ChunkedArray, Ids]:
    """Names and stem ids of members of all tables; ``which``: only those with that mark."""
    names: list[pa.StringArray] = []
    stems = [np.zeros((0, 2), dtype="<u8")]
    for table in tables:
        if table.names is None or table.stem_ids is None:
            raise ValueError("these archives were scanned without names")
        mask = np.ones(len(table.offsets), np.bool_) if which is None else getattr(table, which)
        names.append(table.names.filter(bool_array(mask)))
        stems.append(table.stem_ids[mask])
    return _few_chunks(names), np.concatenate(stems)


def _few_chunks(names: list[pa.StringArray]) -> pa.ChunkedArray:
    """One chunk where the text of all fits into one: to take from 6,000 is slow."""
    column = pa.chunked_array(names, type=pa.string())
    return column.combine_chunks() if 0 < column.nbytes < MOST_TEXT else column


def images_at(names: pa.ChunkedArray, at: Integers) -> list[str]:
    """The names at these positions; "" for NOT_FOUND."""
    found = at != NOT_FOUND
    there = iter(take_text(names, at[found]).to_pylist())
    return [next(there) if known else "" for known in found.tolist()]
