"""Join listed samples with the members that hold them: by path, across all archives.

Works on columns only; no file is read. Paths are joined by their 128-bit hashes: sort once, then bisect. 6 million
samples have 12 million members. So the work is done one side, one column and one stretch at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from builder.base.ids import Ids, column_ids
from builder.base.records import WHOLE
from builder.source.listing import Listing
from builder.source.tables import ArchiveTable

NOT_FOUND = -1

Int64s = npt.NDArray[np.int64]
Integers = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]

_TOGETHER = 1 << 18
"""Paths looked up at a time. Each batch is bisected in ascending order, many times as fast as in random order. Larger
batches are faster; each path takes 150 bytes of memory."""


@dataclass(frozen=True, slots=True)
class Join:
    """Which members the listing names. Columns in listing order: positions among all members of a side (or NOT_FOUND),
    and whether an earlier entry names the same image. ``unlisted``: number of images that no entry names. ``replaced``:
    images and JSON files that a later member of the same name replaces."""

    image_at: Integers
    annotation_at: Integers
    duplicate: Bools
    unlisted: int
    replaced: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """Where each listed path lies. Columns in listing order. A path that was not found has archive -1, offset 0, size
    0."""

    archives: npt.NDArray[np.int32]
    offsets: Integers  # bytes in the archive
    sizes: Integers
    states: npt.NDArray[np.uint8]
    shapes: npt.NDArray[np.uint32] | None = None  # of images, if their scan noted them

    @property
    def there(self) -> Bools:
        """Which paths were found."""
        return np.not_equal(self.archives, NOT_FOUND)

    @property
    def whole(self) -> Bools:
        """Which members have all their bytes."""
        return self.there & np.equal(self.states, WHOLE)


class IdLookup:
    """From an id to the position of its last occurrence. On duplicate names the last wins, as on extraction.

    20 bytes of memory per id. ``parts``: shape (n, 2) each, concatenated.
    """

    def __init__(self, *parts: Ids) -> None:
        first = np.concatenate([np.zeros(0, dtype="<u8"), *(part[:, 0] for part in parts)])
        order = np.argsort(first, kind="stable")  # equal ids keep their order
        self._order = order.astype(index_type(len(order)))
        del order
        self._first = first[self._order]
        del first
        self._second = np.concatenate([np.zeros(0, dtype="<u8"), *(part[:, 1] for part in parts)])[self._order]
        self._sort_within_first_halves()

    def __len__(self) -> int:
        return len(self._order)

    def _sort_within_first_halves(self) -> None:
        """Sort ids with the same first half by the second half. These are equal ids, and rarely two different ones: one
        pair in a million listings of 6 million."""
        same = self._first[1:] == self._first[:-1]
        if not same.any():
            return
        inside = np.zeros(len(self), dtype=np.bool_)
        inside[1:] |= same
        inside[:-1] |= same
        places = np.flatnonzero(inside)
        sort = places[np.lexsort((self._second[places], self._first[places]))]
        self._order[places], self._second[places] = self._order[sort], self._second[sort]

    def last(self, wanted: Ids) -> Int64s:
        """Positions, shape (len(wanted),); NOT_FOUND if an id does not occur."""
        found = np.full(len(wanted), NOT_FOUND, dtype=np.int64)
        if not len(self) or not len(wanted):
            return found
        first, second = self._first, self._second
        ascending = np.argsort(wanted[:, 0])
        wanted = wanted[ascending]
        place = np.searchsorted(first, wanted[:, 0], side="right") - 1
        near = (place >= 0) & (first[place] == wanted[:, 0])
        hit = near & (second[place] == wanted[:, 1])
        found[ascending[hit]] = self._order[place[hit]]
        # Two ids share 64 bits (in 6 million: p ≈ 1e-6). Check all ids that share them.
        for number in np.flatnonzero(near & ~hit):
            at = place[number]
            while at >= 0 and first[at] == wanted[number, 0]:
                if second[at] == wanted[number, 1]:
                    found[ascending[number]] = self._order[at]
                    break
                at -= 1
        return found

    def effective(self) -> Bools:
        """Which positions hold the last occurrence of their id."""
        mask = np.ones(len(self), dtype=np.bool_)
        same = (self._first[:-1] == self._first[1:]) & (self._second[:-1] == self._second[1:])
        mask[self._order[:-1][same]] = False
        return mask

    def find(self, paths: pa.StringArray | pa.ChunkedArray) -> Integers:
        """The positions of all paths in a column."""
        at = np.full(len(paths), NOT_FOUND, dtype=index_type(len(self)))
        start = 0
        for ids in column_ids(paths, _TOGETHER):
            at[start : start + len(ids)] = self.last(ids)
            start += len(ids)
        return at


def index_type(count: int) -> type[np.signedinteger]:
    """The type for positions below ``count`` and NOT_FOUND. 32 bits, half the memory, if 31 are enough."""
    return np.int32 if count < 2**31 else np.int64


def join(listing: Listing, raw: Sequence[ArchiveTable], captions: Sequence[ArchiveTable]) -> Join:
    """Find images and annotations by their paths. ``captions`` is ``raw`` if the JSON lies beside the images.

    A lookup of 6 million members takes 120 MB. The lookups of the two sides are never in memory together.
    """
    lookup = IdLookup(*(table.ids for table in raw))
    image_at = lookup.find(listing.images)
    unlisted = unlisted_images(raw, lookup, image_at)
    replaced = replaced_members(raw, lookup)
    members = len(lookup)
    if captions is not raw:
        del lookup
        lookup = IdLookup(*(table.ids for table in captions))
        replaced += replaced_members(captions, lookup)
    annotation_at = lookup.find(listing.annotations)
    del lookup
    return Join(image_at, annotation_at, named_before(listing.images, image_at, members), unlisted, replaced)


def places(tables: Sequence[ArchiveTable], at: Integers) -> Found:
    """Archive, offset and size of the members at these positions. Columns are made one after the other."""

    def of(name: str, absent: int) -> npt.NDArray[np.generic]:
        column = np.concatenate([np.zeros(0, dtype=np.uint8), *(getattr(table, name) for table in tables)])
        return _at(column, at, absent)

    counts = [len(table.offsets) for table in tables]
    archives = _at(np.repeat(np.arange(len(tables), dtype=np.int32), counts), at, NOT_FOUND)
    noted = any(table.shapes is not None for table in tables)
    shapes = _at(np.concatenate([_shapes(table) for table in tables]), at, 0) if noted else None
    return Found(archives, of("offsets", 0), of("sizes", 0), of("states", WHOLE), shapes)  # type: ignore[arg-type]


def _shapes(table: ArchiveTable) -> npt.NDArray[np.uint32]:
    return np.zeros(len(table.offsets), np.uint32) if table.shapes is None else table.shapes


def _at(column: npt.NDArray[np.generic], at: Integers, absent: int) -> npt.NDArray[np.generic]:
    if not len(column):
        return np.full(len(at), absent, dtype=column.dtype)
    values = column[at]  # NOT_FOUND takes the last value
    values[at == NOT_FOUND] = absent
    return values


def repeated(ids: Ids) -> Bools:
    """Which positions hold an id that occurred earlier."""
    order = np.lexsort((ids[:, 1], ids[:, 0]))
    mask = np.zeros(len(ids), dtype=np.bool_)
    if len(ids):
        in_order = ids[order]
        mask[order[1:][np.all(in_order[1:] == in_order[:-1], axis=1)]] = True
    return mask


def named_before(paths: pa.StringArray | pa.ChunkedArray, at: Integers, members: int) -> Bools:
    """Which listed paths an earlier entry also names. ``at``: where they were found among ``members``. Two found
    paths are equal if and only if their positions are."""
    mask = np.zeros(len(at), dtype=np.bool_)
    there = at != NOT_FOUND
    often = np.bincount(at[there], minlength=members) > 1
    if often.any():
        some = np.flatnonzero(there)
        some = some[often[at[some]]]
        order = some[np.argsort(at[some], kind="stable")]
        mask[order[1:][at[order[1:]] == at[order[:-1]]]] = True
    if not there.all():
        lost = np.flatnonzero(~there)
        start, ids = 0, [np.zeros((0, 2), dtype="<u8")]
        for some_ids in column_ids(paths, _TOGETHER):
            ids.append(some_ids[~there[start : start + len(some_ids)]])
            start += len(some_ids)
        mask[lost[repeated(np.concatenate(ids))]] = True
    return mask


def shared(ids: Ids, among: Bools) -> Bools:
    """Which positions in ``among`` hold an id that another position in ``among`` also holds."""
    mask = np.zeros(len(ids), dtype=np.bool_)
    chosen = np.flatnonzero(among)
    if len(chosen) < 2:
        return mask
    order = chosen[np.lexsort((ids[chosen, 1], ids[chosen, 0]))]
    same = np.all(ids[order[1:]] == ids[order[:-1]], axis=1)
    mask[order[1:][same]] = True
    mask[order[:-1][same]] = True
    return mask


def suspects(hashes: npt.NDArray[np.uint64], among: Bools) -> Int64s:
    """Positions in ``among`` whose hash another of them has too. With 64 bits, nearly all are equal strings."""
    twice = np.concatenate([_twice(hashes[among & (hashes >> np.uint64(61) == part)]) for part in range(8)])
    found = [np.zeros(0, dtype=np.int64)]
    for first in range(0, len(hashes) if len(twice) else 0, _TOGETHER):
        some = hashes[first : first + _TOGETHER]
        place = np.minimum(np.searchsorted(twice, some), len(twice) - 1)
        found.append(first + np.flatnonzero((twice[place] == some) & among[first : first + _TOGETHER]))
    return np.concatenate(found)


def _twice(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Hashes that occur more than once, ascending."""
    hashes.sort()
    again: npt.NDArray[np.uint64] = hashes[1:][hashes[1:] == hashes[:-1]]
    return np.concatenate([again[:1], again[1:][again[1:] != again[:-1]]])  # np.unique imports numpy.ma, 15 ms


def unlisted_images(tables: Sequence[ArchiveTable], lookup: IdLookup, named: Integers) -> int:
    """How many images no entry names. ``named``: positions of found images, may hold NOT_FOUND."""
    free = lookup.effective()
    free &= np.concatenate([np.zeros(0, np.bool_), *(table.is_image for table in tables)])
    free[named[named != NOT_FOUND]] = False
    return int(free.sum())


def replaced_members(tables: Sequence[ArchiveTable], lookup: IdLookup) -> int:
    """How many images and JSON files are replaced by a later member of the same name."""
    earlier = ~lookup.effective()
    if not earlier.any():
        return 0
    wanted = np.concatenate([np.zeros(0, np.bool_), *(table.is_image | table.is_json for table in tables)])
    return int((earlier & wanted).sum())


def by_place(found: Found, at: Integers, chosen: Bools, members: int) -> Integers:
    """The ``chosen`` positions in the listing, in the order of their members: by archive, then offset. ``at``: the
    members' positions among all; no two chosen ones are equal."""
    # Members mostly stand in file order. Then their positions have that order already and nothing is sorted.
    listed = np.full(members, NOT_FOUND, dtype=index_type(len(at)))
    listed[at[chosen]] = np.arange(len(at), dtype=listed.dtype)[chosen]
    order: Integers = listed[listed != NOT_FOUND]
    del listed
    for first in range(0, len(order), _TOGETHER):
        some = order[first : first + _TOGETHER + 1]
        archives, offsets = found.archives[some], found.offsets[some]
        same, further = archives[1:] == archives[:-1], offsets[1:] > offsets[:-1]
        if not np.all((archives[1:] > archives[:-1]) | (same & further)):  # links name members before them
            positions = np.flatnonzero(chosen)
            sort = np.lexsort((found.offsets[positions], found.archives[positions]))
            return positions[sort].astype(order.dtype)
    return order
