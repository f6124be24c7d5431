"""The listing of a source without data.json: every annotation is a listed sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from builder.base.arrays import MOST_TEXT, TextColumn, bool_array, string_array, take_text
from builder.base.errors import LayoutError
from builder.base.ids import Ids, path_ids
from builder.plan.pairs import NOT_FOUND, Bools, IdLookup, Integers
from builder.source.endings import IMAGE_ENDINGS, TABLE, TROUBLE, WAYS_OUT, stem_of, without_ending
from builder.source.layout import EXPECTED, Archive, Layout
from builder.source.layouts import meant_instead
from builder.source.listing import Listing
from builder.source.tables import ArchiveTable

TOGETHER = 1 << 16
"""Rows or paths held as Python objects at a time. 6 million would take gigabytes."""


def listing_of_annotations(raw: Sequence[ArchiveTable], annotations: Sequence[ArchiveTable]) -> Listing:
    """A listing in the order of the annotations: by archive, then offset. The image of ``a/b.json`` is the member
    ``a/b.*`` with an image's ending (endings.IMAGE_ENDINGS), or ``a/b`` itself if it has one (``a/b.jpg.json``). If
    there is no image, the sample is listed as ``a/b.jpg`` and will count as missing. Images without JSON, but with a
    caption in a ``.txt``, follow at the end.

    Needs tables scanned with names.
    """
    image_names, image_stems = members_of(raw, "is_image")
    by_stem = IdLookup(image_stems)
    by_name = IdLookup(*(table.ids[table.is_image] for table in raw))
    images, paths = TextColumn(), TextColumn()
    taken = np.zeros(len(image_names), np.bool_)
    for which in ("is_json", "is_text"):
        names, stems = members_of(annotations, which)
        chosen = np.flatnonzero(IdLookup(*(table.ids[_mark(table, which)] for table in annotations)).effective())
        for first in range(0, len(chosen), TOGETHER):
            some = chosen[first : first + TOGETHER]
            at = by_stem.last(stems[some])
            other = at == NOT_FOUND
            at[other] = by_name.last(stems[some[other]])
            if which == "is_text":
                free = at != NOT_FOUND
                free[free] = ~taken[at[free]]
                some, at = some[free], at[free]
            mine = take_text(names, some).to_pylist()
            images.add([image or _image_of(name) for image, name in zip(images_at(image_names, at), mine, strict=True)])
            paths.add(mine)
            taken[at[at != NOT_FOUND]] = True
    return Listing(images.done(), paths.done())


def _image_of(annotation: str) -> str:
    """The image name that belongs to an annotation."""
    stem = stem_of(annotation)
    return stem if stem.lower().endswith(IMAGE_ENDINGS) else f"{stem}.jpg"


def names_repeat(raw: Sequence[ArchiveTable], archives: Sequence[Archive]) -> bool:
    """Whether images of two tars have the same name apart from the ending. Then they are different samples: names begin
    anew in every tar. Needs tables scanned with names."""
    parts, owners = [np.zeros((0, 2), dtype="<u8")], [np.zeros(0, np.int32)]
    for number, (table, archive) in enumerate(zip(raw, archives, strict=True)):
        if not archive.is_folder and table.stem_ids is not None:
            mine = table.stem_ids[table.is_image]
            parts.append(mine)
            owners.append(np.full(len(mine), number, np.int32))
    ids, owner = np.concatenate(parts), np.concatenate(owners)
    order = np.lexsort((ids[:, 1], ids[:, 0]))
    same = np.all(ids[order[1:]] == ids[order[:-1]], axis=1)
    return bool(np.any(same & (owner[order[1:]] != owner[order[:-1]])))


def under_tars(tables: Sequence[ArchiveTable], archives: Sequence[Archive]) -> list[ArchiveTable]:
    """The same members, each under its tar's path without ending: ``000003.jpg`` of ``00002.tar`` becomes
    ``00002/000003.jpg``. Files of folders already carry their folder's name."""
    stems = Counter(without_ending(archive.name) for archive in archives if not archive.is_folder)
    found = []
    for table, archive in zip(tables, archives, strict=True):
        if archive.is_folder or table.names is None:
            found.append(table)
            continue
        stem = without_ending(archive.name)
        prefix = archive.name if stems[stem] > 1 else stem
        names = [f"{prefix}/{name}" for name in table.names.to_pylist()]
        stem_ids = path_ids(map(stem_of, names))
        found.append(replace(table, ids=path_ids(names), names=string_array(names), stem_ids=stem_ids))
    return found


def refuse_unpaired(layout: Layout, raw: Sequence[ArchiveTable], annotations: Sequence[ArchiveTable]) -> None:
    """Raises LayoutError if a source without data.json can give no sample. Either it has no annotations; or its tars
    lie in its top folder, and they hold no images. Does not raise if damage may be the cause: that is reported."""
    in_folder = layout.raw_root == layout.root
    place = "its tars" if in_folder else "captions/" if layout.captions else "raw/"
    if not any(table.is_json.any() or _mark(table, "is_text").any() for table in annotations):
        found = f"no annotation (*.json, *.txt) in {place}, and no data.json"
    elif in_folder and not any(table.is_image.any() for table in raw):
        found = f"annotations (*.json) but no image in {place}"
    else:
        return
    for each in layout.unread:
        if each.kind in TROUBLE:
            found += f"; not read: {each.example}. {WAYS_OUT[each.kind]}"
        elif each.kind == TABLE:
            found += f"; captions may be in {each.example}: give it with --recaptions"
    meant = meant_instead(layout.root)
    if meant or not any(table.damage for table in (*raw, *annotations)):
        raise LayoutError(layout.root, found, meant or EXPECTED)


def members_of(tables: Sequence[ArchiveTable], which: str | None) -> tuple[pa.ChunkedArray, Ids]:
    """Names and stem ids of the members of all tables. ``which``: only members with that mark."""
    names: list[pa.StringArray] = []
    stems = [np.zeros((0, 2), dtype="<u8")]
    for table in tables:
        if table.names is None or table.stem_ids is None:
            raise ValueError("these archives were scanned without names")
        mask = np.ones(len(table.offsets), np.bool_) if which is None else _mark(table, which)
        names.append(table.names.filter(bool_array(mask)))
        stems.append(table.stem_ids[mask])
    return _few_chunks(names), np.concatenate(stems)


def _mark(table: ArchiveTable, which: str) -> Bools:
    mask: Bools | None = getattr(table, which)
    return np.zeros(len(table.offsets), np.bool_) if mask is None else mask


def _few_chunks(names: list[pa.StringArray]) -> pa.ChunkedArray:
    """One chunk if all text fits into one: ``take`` from 6,000 chunks is slow."""
    column = pa.chunked_array(names, type=pa.string())
    return column.combine_chunks() if 0 < column.nbytes < MOST_TEXT else column


def images_at(names: pa.ChunkedArray, at: Integers) -> list[str]:
    """The names at these positions; "" for NOT_FOUND."""
    found = at != NOT_FOUND
    there = iter(take_text(names, at[found]).to_pylist())
    return [next(there) if known else "" for known in found.tolist()]
