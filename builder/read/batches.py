"""Stretches of files for many rows at a time: in the order they lie, in as few reads as storage likes, in threads."""

from __future__ import annotations

from functools import cache, partial
from itertools import groupby
from operator import itemgetter

import numpy as np

from builder.read.handles import Handles, LocalHandle
from builder.read.local_cache import CachedHandles
from builder.read.threads import in_threads, one_by_one
from builder.source.ranges import Read, merge_ranges

Wanted = tuple[int, int, int, int]
"""File, offset, size, and the number under which its bytes are wanted."""

_ASKED = 8

_COLD = 16
"""Reads at a time from a disk whose cache is empty: 1.7 times as fast as two. To announce the stretches instead
(``POSIX_FADV_WILLNEED``) is as fast once, but leaves them in small pages, which are read again half as fast."""

_MOST = 4 << 20
"""Bytes of one read that serves several rows. More in one request would not come faster than in several at a time."""


def read_together(files: Handles, wanted: list[Wanted], images: list[bytes | None]) -> None:
    """Read what is wanted, each into ``images`` at its number. Sorts ``wanted``. Raises IndexMismatchError,
    SourceError."""
    wanted.sort()
    storage = files.storage
    if storage.gap < 0:
        in_threads(partial(_read, files, images), wanted, _COLD if _is_cold(files, wanted) else storage.threads)
        return
    if isinstance(files, CachedHandles):
        wanted = [each for each in wanted if not _take_kept(files, images, each)]
    one_by_one(partial(_open, files), sorted({each[0] for each in wanted}), storage.threads)  # each once
    one_by_one(partial(_read_merged, files, images), _merged(wanted, storage.gap), storage.threads)


def _take_kept(files: CachedHandles, images: list[bytes | None], each: Wanted) -> bool:
    file, offset, size, number = each
    images[number] = files.kept(file, offset, size)
    return images[number] is not None


def _open(files: Handles, number: int) -> None:
    files.get(number)


def _read(files: Handles, images: list[bytes | None], wanted: list[Wanted]) -> None:
    """One by one, in file order; what is wanted twice is read once."""
    read, last, image = files.read, (-1, 0, 0), b""
    for file, offset, size, number in wanted:
        if last != (file, offset, size):
            image, last = read(file, offset, size), (file, offset, size)
        images[number] = image


def _is_cold(files: Handles, wanted: list[Wanted]) -> bool:
    """Whether some of what is wanted would come from the disk: asked of every 8th, as it costs a microsecond."""
    for file, offset, size, _ in wanted[:: _ASKED if len(wanted) > _ASKED else 1]:
        handle = files.get(file)
        if isinstance(handle, LocalHandle) and handle.is_cold(offset, size):
            return True
    return False


def _merged(wanted: list[Wanted], gap: int) -> list[tuple[Read, list[Wanted]]]:
    """Reads that pass over ``gap`` bytes at most, and what is wanted of each."""
    work: list[tuple[Read, list[Wanted]]] = []
    for _, same in groupby(wanted, key=itemgetter(0)):
        some = list(same)
        offsets, sizes = [each[1] for each in some], [each[2] for each in some]
        reads = merge_ranges(offsets, sizes, max_gap=gap, max_size=_MOST)
        work += [(read, [some[item] for item in read.items]) for read in reads]
    return work


def _read_merged(files: Handles, images: list[bytes | None], work: tuple[Read, list[Wanted]]) -> None:
    (start, end, _), wanted = work
    data = Handles.read(files, wanted[0][0], start, end - start)
    for file, offset, size, number in wanted:
        image = images[number] = data[offset - start : offset - start + size]  # bytes: all of it is data itself
        if isinstance(files, CachedHandles):
            files.keep(file, offset, size, image)


_LARGEST = (32 << 20) - (64 << 10)
"""Bytes: just under glibc's DEFAULT_MMAP_THRESHOLD_MAX, 32 MiB on 64-bit machines."""


@cache
def keep_freed_memory() -> None:
    """Have this process keep up to 64 MiB of what it frees.

    A block of 128 KiB or more is a map of its own in glibc, given back when it is freed: the next batch pays a page
    fault for every 4 KiB of its images again, which took three times as long as reading them. But freeing such a block
    once tells glibc to keep blocks up to that size from then on (mallopt(3), M_MMAP_THRESHOLD). So one is freed, of
    which not a byte was touched. Other allocators are none the worse for it.
    """
    np.empty(_LARGEST, np.uint8)
