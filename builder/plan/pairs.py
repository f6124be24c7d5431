"""Join listed samples with the members that hold them: by path, across all archives.

Works on columns only; no file is read. Paths are joined by their 128-bit hashes, in a hash table. 6 million
samples have 12 million members. So the work is done one side, one column and one stretch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.base.arrays import Texts
from builder.base.ids import Ids, column_ids
from builder.base.records import WHOLE
from builder.source.listing import Listing
from builder.source.tables import ArchiveTable

NOT_FOUND = -1

_NO_IDS: Ids = np.zeros((0, 2), dtype="<u8")

Int64s = npt.NDArray[np.int64]
Integers = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]

_TOGETHER = 1 << 14
"""Paths looked up at a time. A batch and its columns fit into the processor's cache."""

_THREADS = 2
"""Threads that look up paths. One hashes, which holds the GIL; the other waits for memory. More gain nothing."""


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

    A hash table of sorted slots: the upper bits of an id's first half, then its position. 8 bytes of memory for each
    id, 2 to 4 for its bucket, 16 for the id. ``parts``: shape (n, 2) each, concatenated.
    """

    def __init__(self, *parts: Ids) -> None:
        self._ids = parts[0] if len(parts) == 1 else np.concatenate([_NO_IDS, *parts])
        count = len(self._ids)
        self._position_bits = np.uint64(count.bit_length())
        self._positions = np.uint64((1 << count.bit_length()) - 1)  # the mask of a slot's position
        slots = self._ids[:, 0] & ~self._positions
        for some in _stretches(count):
            slots[some] |= np.arange(some.start, some.stop, dtype=np.uint64)
        _sort(slots)
        self._replaced = self._come_again(slots)
        if len(self._replaced):
            last = self.effective()
            slots = slots[last[self._position(slots)]]
        self._slots = slots
        bits = max(1, count.bit_length() - 1)  # 1 or 2 ids in a bucket
        self._bucket_shift = np.uint64(64 - bits)
        # Where each bucket begins among the slots: the number of slots in all buckets before it.
        self._starts = np.zeros((1 << bits) + 1, dtype=index_type(count))
        for some in _stretches(len(slots)):
            buckets = (slots[some] >> self._bucket_shift).astype(np.int64)
            counts = np.bincount(buckets - buckets[0])
            self._starts[buckets[0] + 1 : buckets[-1] + 2] += counts.astype(self._starts.dtype)
        np.cumsum(self._starts, out=self._starts)

    def __len__(self) -> int:
        return len(self._ids)

    def _position(self, slots: npt.NDArray[np.uint64]) -> Int64s:
        positions: Int64s = (slots & self._positions).astype(np.int64)
        return positions

    def _come_again(self, slots: npt.NDArray[np.uint64]) -> Int64s:
        """Positions of ids that occur again later. Compares ids only where slots have the same upper bits."""
        same = np.zeros(max(0, len(slots) - 1), np.bool_)
        for some in _stretches(len(same)):
            same[some] = (slots[1:][some] ^ slots[:-1][some]) <= self._positions
        inside = np.zeros(len(slots), dtype=np.bool_)
        inside[1:] |= same
        inside[:-1] |= same
        positions = self._position(slots[inside])
        positions.sort()
        order = positions[_by_id(self._ids[positions])]
        replaced: Int64s = order[:-1][np.all(self._ids[order[1:]] == self._ids[order[:-1]], axis=1)]
        return replaced

    def last(self, wanted: Ids) -> Int64s:
        """Positions, shape (len(wanted),); NOT_FOUND if an id does not occur."""
        found = np.full(len(wanted), NOT_FOUND, dtype=np.int64)
        if not len(self) or not len(wanted):
            return found
        ids, wanted_ids = _as_one(self._ids), _as_one(wanted)
        open_, key = np.arange(len(wanted)), wanted[:, 0] >> self._position_bits
        place = self._starts[wanted[:, 0] >> self._bucket_shift]
        while len(open_):  # as often as the fullest bucket has ids
            slot = self._slots.take(place, mode="clip")
            there = slot >> self._position_bits
            alike = np.flatnonzero(there == key)
            at = self._position(slot[alike])
            hit = ids.take(at).view(np.uint64) == wanted_ids.take(open_[alike]).view(np.uint64)
            hit = hit[0::2] & hit[1::2]
            found[open_[alike[hit]]] = at[hit]
            further = (there <= key) & (place < len(self._slots) - 1)
            further[alike[hit]] = False
            open_, key, place = open_[further], key[further], place[further] + 1
        return found

    def effective(self) -> Bools:
        """Which positions hold the last occurrence of their id."""
        mask = np.ones(len(self), dtype=np.bool_)
        mask[self._replaced] = False
        return mask

    def find(self, paths: Texts) -> Integers:
        """The positions of all paths in a column."""
        at = np.full(len(paths), NOT_FOUND, dtype=index_type(len(self)))

        def look_up(first: int) -> None:
            for ids in column_ids(paths.slice(first, _TOGETHER), _TOGETHER):
                at[first : first + len(ids)] = self.last(ids)
                first += len(ids)

        _in_threads(look_up, range(0, len(paths), _TOGETHER))
        return at


def _in_threads(work: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Call ``work`` on each item. The threads end here: unlike those of read/threads, a later fork does not see
    them."""
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(work, items))  # raises what a thread raised


def _sort(numbers: npt.NDArray[np.uint64]) -> None:
    """Sort in place: both halves at a time, then as one. A stable sort merges what is in order already."""
    middle = len(numbers) // 2
    _in_threads(np.ndarray.sort, (numbers[:middle], numbers[middle:]))
    numbers.sort(kind="stable")


def _by_id(ids: Ids) -> Int64s:
    """The order that sorts ids. Equal ones keep their order."""
    return np.lexsort((ids[:, 1], ids[:, 0]))


def _as_one(ids: Ids) -> npt.NDArray[np.complex128]:
    """Ids as numbers of 16 bytes, only to copy them: ``take`` is 5 times as fast as with rows of two."""
    return np.ascontiguousarray(ids).view(np.complex128)[:, 0]


def _stretches(count: int) -> Iterator[slice]:
    """0 to ``count`` (exclusive) in stretches. An array of 6 million numbers more would be in memory otherwise."""
    for first in range(0, count, _TOGETHER):
        yield slice(first, min(first + _TOGETHER, count))


def index_type(count: int) -> type[np.signedinteger]:
    """The type for positions below ``count`` and NOT_FOUND. 32 bits, half the memory, if 31 are enough."""
    return np.int32 if count < 2**31 else np.int64


def join(listing: Listing, raw: list[ArchiveTable], captions: list[ArchiveTable]) -> Join:
    """Find images and annotations by their paths. ``captions`` is ``raw`` if the JSON lies beside the images.

    The tables in both lists lose their names and ids. The ids of 6 million members and their lookup take 160 MB. Those
    of the two sides are never in memory together.
    """
    lookup = IdLookup(_taken_ids(raw))
    image_at = lookup.find(listing.images)
    unlisted = unlisted_images(raw, lookup, image_at)
    replaced = replaced_members(raw, lookup)
    members = len(lookup)
    if captions is not raw:
        del lookup
        lookup = IdLookup(_taken_ids(captions))
        replaced += replaced_members(captions, lookup)
    annotation_at = lookup.find(listing.annotations)
    del lookup
    return Join(image_at, annotation_at, named_before(listing.images, image_at, members), unlisted, replaced)


def _taken_ids(tables: list[ArchiveTable]) -> Ids:
    ids = np.concatenate([_NO_IDS, *(table.ids for table in tables)])
    tables[:] = [table.without_names() for table in tables]
    return ids


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
    order = _by_id(ids)
    mask = np.zeros(len(ids), dtype=np.bool_)
    if len(ids):
        in_order = ids[order]
        mask[order[1:][np.all(in_order[1:] == in_order[:-1], axis=1)]] = True
    return mask


def named_before(paths: Texts, at: Integers, members: int) -> Bools:
    """Which listed paths an earlier entry also names. ``at``: where they were found among ``members``. Two found
    paths are equal if and only if their positions are."""
    mask = np.zeros(len(at), dtype=np.bool_)
    there = at != NOT_FOUND
    # Each entry leaves its number at its member. Who finds another's there has the member in common with it. (What -1
    # leaves at the last member is seen below.)
    again = np.zeros(len(at), np.bool_)
    entry = np.empty(max(members, 1), dtype=index_type(len(at)))
    for stretch in _stretches(len(at)):
        entry[at[stretch]] = np.arange(stretch.start, stretch.stop)
    for stretch in _stretches(len(at)):
        again[stretch] = there[stretch] & (entry[at[stretch]] != np.arange(stretch.start, stretch.stop))
    if again.any():
        often = np.zeros(len(entry), np.bool_)
        often[at[again]] = True
        some = np.flatnonzero(there & often[at])
        order = some[np.argsort(at[some], kind="stable")]
        mask[order[1:][at[order[1:]] == at[order[:-1]]]] = True
    if not there.all():
        lost = np.flatnonzero(~there)
        start, ids = 0, [_NO_IDS]
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
    order = chosen[_by_id(ids[chosen])]
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
    free, first = lookup.effective(), 0
    for table in tables:
        free[first : first + len(table.is_image)] &= table.is_image
        first += len(table.is_image)
    for stretch in _stretches(len(named)):
        some = named[stretch]
        free[some[some != NOT_FOUND]] = False
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
    for stretch in _stretches(len(at)):
        mine = np.flatnonzero(chosen[stretch])
        listed[at[stretch][mine]] = stretch.start + mine
    count = 0
    for stretch in _stretches(members):
        some = listed[stretch]
        mine = some[some != NOT_FOUND]
        listed[count : count + len(mine)] = mine
        count += len(mine)
    order: Integers = listed[:count]
    for first in range(0, len(order), _TOGETHER):
        some = order[first : first + _TOGETHER + 1]
        archives, offsets = found.archives[some], found.offsets[some]
        same, further = archives[1:] == archives[:-1], offsets[1:] > offsets[:-1]
        if not np.all((archives[1:] > archives[:-1]) | (same & further)):  # links name members before them
            positions = np.flatnonzero(chosen)
            sort = np.lexsort((found.offsets[positions], found.archives[positions]))
            return positions[sort].astype(order.dtype)
    return order
