"""Decide which sample goes where, before anything is written. A pure function of what scanning found.

Shards are cut by the archives' sizes alone. So their names and number follow from a file listing of the source. They
do not depend on bad samples, on ``--start/--end`` or on who does the work.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from builder.base.arrays import all_end_alike, bool_array, chunks_of, not_empty, number_array, numbers_of, take_text
from builder.base.ids import path_ids
from builder.base.options import MAX_ANNOTATION_BYTES, MAX_IMAGE_BYTES, ConvertOptions
from builder.plan.losses import Losses
from builder.plan.pairs import (
    Bools,
    Found,
    Integers,
    Join,
    by_place,
    places,
    shared,
    suspects,
)
from builder.source.endings import stem_of
from builder.source.layout import Layout
from builder.source.listing import Listing
from builder.source.tables import ArchiveTable

PLAN_ROW = pa.schema(
    [
        ("archive", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("position", pa.int64()),
        ("annotation_archive", pa.int32()),  # -1: none, the whole document is in "recaption"
        ("annotation_offset", pa.int64()),
        ("annotation_size", pa.int64()),
        ("keeps_ending", pa.bool_()),
        ("path", pa.string()),
        ("annotation_path", pa.string()),
        ("recaption", pa.string()),  # a JSON object whose fields replace the annotation's; null or "": none
    ]
)
"""A sample to read: where its image and annotation lie, and their names."""

SHAPE = pa.field("shape", pa.uint32())
"""One more column, if the scans noted it (source/glance.py); 0: not known."""

BATCH_ROWS = 1 << 16
"""Planned rows in memory at a time while the plan is written."""

FRAMING = 0.98
"""Share of a shard that archive bytes may fill. The rest is for page headers, page indexes and the footer."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A shard's stretch of the source: from byte ``start`` of archive ``first`` to byte ``end`` of archive ``last``.
    Both archives are inclusive, ``end`` is exclusive."""

    first: int
    start: int
    last: int
    end: int


class Rows(Protocol):
    """Planned rows (PLAN_ROW) in output order, with the methods of ``pa.Table``. From disk they are one,
    memory-mapped."""

    @property
    def num_rows(self) -> int: ...

    def __len__(self) -> int: ...

    def slice(self, offset: int, length: int) -> pa.Table:
        """``length`` rows from ``offset`` on."""

    def column(self, name: str) -> pa.ChunkedArray:
        """A whole column."""


@dataclass(frozen=True, slots=True)
class Plan:
    """``rows``: PLAN_ROW, in output order; shard i holds rows ``bounds[i]`` to ``bounds[i + 1]``. ``rejects``:
    REJECT_ROW, samples that are lost without reading them. ``owners``: for each shard, the raw archive where it
    begins."""

    rows: Rows
    bounds: tuple[int, ...]
    owners: tuple[int, ...]
    rejects: pa.Table
    unlisted: int
    listed: int

    @property
    def shards(self) -> int:
        return len(self.owners)


def cut_shards(sizes: Sequence[int], text_bytes: int, max_shard_size: int) -> tuple[Cut, ...]:
    """Cut archives of ``sizes`` bytes into shards. Whole archives share a shard while they fit; a larger archive is cut
    into even parts. ``text_bytes``: annotations in archives of their own, spread evenly over all. At least one
    shard."""
    factor = 1 + text_bytes / max(1, sum(sizes))
    room = max_shard_size * FRAMING / factor
    cuts: list[Cut] = []
    first, filled = 0, 0.0
    for number, size in enumerate(sizes):
        if filled + size > room and first < number:
            cuts.append(Cut(first, 0, number - 1, sizes[number - 1]))
            first, filled = number, 0.0
        if size > room:
            parts = math.ceil(size / room)
            edges = [size * part // parts for part in range(parts + 1)]
            cuts += [Cut(number, edges[part], number, edges[part + 1]) for part in range(parts)]
            first, filled = number + 1, 0.0
        else:
            filled += size
    if first < len(sizes) or not cuts:
        cuts.append(Cut(first, 0, max(first, len(sizes) - 1), sizes[-1] if sizes else 0))
    return tuple(cuts)


def cuts_of(layout: Layout, options: ConvertOptions) -> tuple[Cut, ...]:
    """The shards of a source of uncompressed tars."""
    text = sum(archive.size for archive in layout.captions)
    return cut_shards([archive.size for archive in layout.raw], text, options.max_shard_size)


def plan_joined(
    layout: Layout,
    listing: Listing,
    joined: Join,
    raw: Sequence[ArchiveTable],
    captions: Sequence[ArchiveTable],
    max_shard_size: int,
) -> Plan:
    """Plan a listing that was joined with the members. The names and ids of ``raw`` and ``captions`` (the tables of
    ``layout.annotations``) are no longer needed."""
    duplicate = joined.duplicate
    keeps_ending = endings_kept(listing, duplicate)
    image, annotation = places(raw, joined.image_at), places(captions, joined.annotation_at)
    small_enough = image.sizes <= MAX_IMAGE_BYTES
    image_ok, annotation_ok = image.whole, annotation.whole
    text_fits = ~annotation_ok | (annotation.sizes <= MAX_ANNOTATION_BYTES)
    if listing.recaptions is not None:  # the caption is in the listing itself
        annotation_ok |= ~annotation.there & not_empty(listing.recaptions)
    good = ~duplicate & image_ok & small_enough & annotation_ok & text_fits
    del text_fits
    order = by_place(image, joined.image_at, good, sum(len(table.offsets) for table in raw))
    cuts = cut_shards(
        [table.size for table in raw],
        sum(table.size for table in captions) if layout.captions else 0,
        max_shard_size,
    )
    losses = Losses(layout, listing, raw, captions, image, annotation, keeps_ending)
    return Plan(
        rows=PlannedRows(listing, order, image, annotation, keeps_ending),
        bounds=_bounds(cuts, order, image),
        owners=tuple(cut.first for cut in cuts),
        rejects=losses.table(np.flatnonzero(~good), duplicate, image_ok, small_enough, annotation_ok),
        unlisted=joined.unlisted,
        listed=len(listing),
    )


def first_samples(plan: Plan, count: int) -> Plan:
    """The plan of the first ``count`` samples only: rows in output order, then samples known to be lost."""
    assert isinstance(plan.rows, PlannedRows)
    rows = min(count, len(plan.rows))
    shards = max(1, sum(first < rows for first in plan.bounds[:-1]))
    rejects = plan.rejects.slice(0, count - rows)
    return replace(
        plan,
        rows=replace(plan.rows, order=plan.rows.order[:rows]),
        bounds=(*plan.bounds[:shards], rows),
        owners=plan.owners[:shards],
        rejects=rejects,
        listed=rows + rejects.num_rows,
    )


_DECIDING = ("archive", "offset", "size", "position", "annotation_archive", "annotation_offset", "annotation_size")
"""Columns of PLAN_ROW that decide a row's bytes. Its paths follow from its position in the listing."""


def rows_digests(rows: Rows, bounds: Sequence[int]) -> tuple[str, ...]:
    """For each shard the xxh3-128 (hex) of all that decides its rows (_DECIDING and ``keeps_ending``). Equal digests
    mean equal shards. Shard i has rows ``bounds[i]`` to ``bounds[i + 1]``."""
    digests = [xxhash.xxh3_128() for _ in bounds[1:]]
    for name in (*_DECIDING, "keeps_ending"):
        column = rows.column(name)
        numbers = numbers_of(column.cast(pa.uint8()) if name == "keeps_ending" else column).astype(np.int64)
        for digest, first, last in zip(digests, bounds, bounds[1:], strict=False):
            digest.update(numbers[first:last].tobytes())
    return tuple(digest.hexdigest() for digest in digests)


def _bounds(cuts: Sequence[Cut], order: Integers, image: Found) -> tuple[int, ...]:
    """Where each shard begins among the ordered rows. A row belongs where its image's first byte lies."""

    def place(position: int) -> tuple[int, int]:
        return int(image.archives[position]), int(image.offsets[position])

    bounds = [bisect.bisect_left(order, (cut.first, cut.start), key=place) for cut in cuts]
    return (0, *bounds[1:], len(order))


def endings_kept(listing: Listing, duplicate: Bools) -> Bools:
    """Which keys keep their ending: without it another listed image would have the same key."""
    keeps = np.zeros(len(listing), dtype=np.bool_)
    if _one_ending(listing):
        return keeps
    hashes = _stem_hashes(listing)
    while True:  # a kept "a.jpg" may be the stem of "a.jpg.png"; ends as whole paths are unique
        doubtful = suspects(hashes, ~duplicate)
        kept = keeps[doubtful]
        paths = take_text(listing.images, doubtful).to_pylist()
        keys = [path if whole else stem_of(path) for path, whole in zip(paths, kept.tolist(), strict=True)]
        more = doubtful[shared(path_ids(keys), np.ones(len(keys), dtype=np.bool_)) & ~kept]
        if not len(more):
            return keeps
        keeps[more] = True
        hashes[more] = _hashes(take_text(listing.images, more).to_pylist())


def _one_ending(listing: Listing) -> bool:
    """Whether all images have the same ending. Then no two paths have the same stem."""
    if not len(listing):
        return True
    first = str(listing.images[0].as_py())
    ending = first[len(stem_of(first)) :].encode()
    return bool(ending) and all_end_alike(listing.images, ending)


def _stem_hashes(listing: Listing) -> npt.NDArray[np.uint64]:
    found = np.zeros(len(listing), dtype=np.uint64)
    start = 0
    for chunk in chunks_of(listing.images):
        for first in range(0, len(chunk), BATCH_ROWS):
            some = _hashes(map(stem_of, chunk.slice(first, BATCH_ROWS).to_pylist()))
            found[start : start + len(some)] = some
            start += len(some)
    return found


def _hashes(keys: Iterable[str]) -> npt.NDArray[np.uint64]:
    """A 64-bit hash for each key."""
    return np.frombuffer(b"".join(map(xxhash.xxh3_64_digest, map(str.encode, keys))), dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class PlannedRows:
    """Rows of a plan that is not on disk yet. They are built from the planned columns on request: as a table, 6 million
    rows would take 0.6 GB more."""

    listing: Listing
    order: Integers
    image: Found
    annotation: Found
    keeps_ending: Bools

    @property
    def num_rows(self) -> int:
        return len(self.order)

    def __len__(self) -> int:
        return len(self.order)

    def slice(self, offset: int, length: int) -> pa.Table:
        schema = PLAN_ROW if self.image.shapes is None else PLAN_ROW.append(SHAPE)
        return pa.Table.from_arrays(
            [self._column(name, self.order[offset : offset + length]) for name in schema.names], schema=schema
        )

    def column(self, name: str) -> pa.ChunkedArray:
        made = self._column(name, self.order)
        return made if isinstance(made, pa.ChunkedArray) else pa.chunked_array([made])

    def _column(self, name: str, order: Integers) -> pa.Array | pa.ChunkedArray:
        if name in _TEXTS:
            column = getattr(self.listing, _TEXTS[name])
            return pa.nulls(len(order), pa.string()) if column is None else take_text(column, order)
        if name == "position":
            return number_array(order.astype(np.int64))
        if name == "keeps_ending":
            return bool_array(self.keeps_ending[order])
        if name == SHAPE.name:
            assert self.image.shapes is not None
            return number_array(self.image.shapes[order])
        found = self.annotation if name.startswith("annotation") else self.image
        numbers = getattr(found, _NUMBERS[name.removeprefix("annotation_")])[order]
        return number_array(numbers.astype(PLAN_ROW.field(name).type.to_pandas_dtype()))


_TEXTS = {"path": "images", "annotation_path": "annotations", "recaption": "recaptions"}
_NUMBERS = {"archive": "archives", "offset": "offsets", "size": "sizes"}
