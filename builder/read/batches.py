"""Read the bytes of many rows at once: in file order, in threads, and with rows merged into one read if that is
faster. Or bring them from a local disk into the page cache before they are read.

The page cache belongs to the whole machine. So the training process can announce the rows that its loader's workers
will read.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import groupby
from operator import itemgetter

import numpy as np

from builder.base.errors import Laion6mError
from builder.read.handles import Handles, LocalHandle
from builder.read.local_cache import CachedHandles
from builder.read.threads import ForkLock, in_threads, one_by_one
from builder.source.files import Read, merge_ranges

Wanted = tuple[int, int, int, int]
"""File number, offset, size, and the place of its bytes in the result."""

_ASKED = 8
"""One row in so many is checked for being in the page cache."""

_COLD = 16
"""Simultaneous reads from a disk whose cache is empty. A disk answers 8 to 32 of them at the same speed: 1.7 times that
of one."""

_MOST = 4 << 20
"""The most bytes of one request for several rows. A larger request is not faster than several requests at a time."""


def read_together(files: Handles, wanted: list[Wanted], images: list[bytes | None]) -> None:
    """Read all that is ``wanted`` and put each into ``images`` at its number. Sorts ``wanted`` in place. Raises
    IndexMismatchError, SourceError."""
    wanted.sort()
    storage = files.storage
    if storage.gap < 0:
        read = partial(_read, files, images)
        if is_cold(files, wanted[:: _ASKED if len(wanted) > _ASKED else 1]):
            one_by_one(read, [list(same) for _, same in groupby(wanted, key=itemgetter(0, 1, 2))], _COLD)
        else:
            in_threads(read, wanted, storage.threads)
        return
    if isinstance(files, CachedHandles):
        for file, offset, size, number in wanted:
            images[number] = files.kept(file, offset, size)
        wanted = [each for each in wanted if images[each[3]] is None]
    one_by_one(files.get, sorted({each[0] for each in wanted}), storage.threads)  # each is opened once
    one_by_one(partial(_read_merged, files, images), merged(wanted, storage.gap, _MOST), storage.threads)


def _read(files: Handles, images: list[bytes | None], wanted: list[Wanted]) -> None:
    """Read one by one, in file order. Bytes that are wanted twice are read once."""
    read, last, image = files.read, (-1, 0, 0), b""
    for file, offset, size, number in wanted:
        if last != (file, offset, size):
            image, last = read(file, offset, size), (file, offset, size)
        images[number] = image


def is_cold(files: Handles, wanted: list[Wanted]) -> bool:
    """Whether some of these bytes would come from a disk. It costs a microsecond a row. Raises SourceError."""
    for file, offset, size, _ in wanted:
        handle = files.get(file)
        if isinstance(handle, LocalHandle) and handle.is_cold(offset, size):
            return True
    return False


def merged(wanted: list[Wanted], gap: int, most: int) -> list[tuple[Read, list[Wanted]]]:
    """Merged reads, each with the rows it serves. ``wanted`` is sorted. A read skips at most ``gap`` unwanted bytes
    between two rows. Only a larger row has more than ``most`` bytes."""
    work: list[tuple[Read, list[Wanted]]] = []
    for _, same in groupby(wanted, key=itemgetter(0)):
        some = list(same)
        offsets, sizes = [each[1] for each in some], [each[2] for each in some]
        reads = merge_ranges(offsets, sizes, max_gap=gap, max_size=most)
        work += [(read, [some[item] for item in read.items]) for read in reads]
    return work


def _read_merged(files: Handles, images: list[bytes | None], work: tuple[Read, list[Wanted]]) -> None:
    (start, end, _), wanted = work
    data = Handles.read(files, wanted[0][0], start, end - start)
    for file, offset, size, number in wanted:
        image = images[number] = data[offset - start : offset - start + size]  # bytes: all of it is data itself
        if isinstance(files, CachedHandles):
            files.keep(file, offset, size, image)


THREADS = 4
"""Simultaneous reads. With large reads, more are not faster."""

PIECE = 1 << 20
"""Bytes of one read."""

NEAR = 128 << 10
"""The most unwanted bytes between two rows that are read together. Reading them costs about as much as one more
request."""

_WAITING = 4096
"""The most pieces that wait: 4 GiB. If there are more, the oldest are dropped: by now somebody has read them."""

_PROBES = 8
"""The number of announced rows that are checked. If all of them are in the page cache, nothing is read."""

Piece = tuple[int, int, int]
"""File number, offset, size (at most ``PIECE``)."""


class ReadAhead:
    """Reads announced pieces in the background, in the order of the announcements. Thread-safe. Survives fork.

    It reads with ``pread`` and drops the bytes. ``POSIX_FADV_WILLNEED`` is as fast, but in two tries
    reading the pages again took longer. Memory: ``THREADS`` × ``PIECE`` while it works.
    """

    def __init__(self, files: Handles) -> None:
        self._files = files
        self._lock = ForkLock()
        self._forget()

    def announce(self, rows: Sequence[int], places: Callable[[Sequence[int]], list[Wanted]]) -> None:
        """Read these rows soon, unless they are in the page cache. ``places``: where given rows lie. Returns at once.
        Raises nothing: reading a bad row itself raises the error."""
        if not len(rows) or self._files.is_remote:
            return
        try:
            if is_cold(self._files, places(rows[:: -(-len(rows) // _PROBES)])):
                self.add(pieces_of(places(rows)))
        except Laion6mError:
            pass

    def _forget(self) -> None:
        self._pieces: deque[Piece] = deque(maxlen=_WAITING)
        self._threads = 0
        self._process = os.getpid()

    def add(self, pieces: list[Piece]) -> None:
        """Read these pieces soon. Returns at once. Pieces that cannot be read are left out."""
        with self._lock:
            if self._process != os.getpid():
                self._forget()  # a fork does not copy the threads
            self._pieces += pieces
            more = min(THREADS, len(self._pieces)) - self._threads
            self._threads += max(0, more)
        for _ in range(more):
            threading.Thread(target=self._work, name="laion6m-ahead", daemon=True).start()

    def _work(self) -> None:
        """Read until no piece is left."""
        buffer = memoryview(bytearray(PIECE))
        while True:
            with self._lock:
                if not self._pieces:
                    self._threads -= 1
                    return
                number, offset, size = self._pieces.popleft()
            try:
                handle = self._files.get(number)
                if isinstance(handle, LocalHandle) and handle.is_cold(offset, size):
                    handle.read_into(buffer[:size], offset)
            except (Laion6mError, OSError):  # reading the row itself says so
                continue


def pieces_of(wanted: list[Wanted]) -> list[Piece]:
    """The pieces that hold these rows, in file order. Rows that lie near each other share a piece."""
    pieces = []
    for (start, end, _), rows in merged(sorted(wanted), NEAR, PIECE):
        pieces += [(rows[0][0], at, min(PIECE, end - at)) for at in range(start, end, PIECE)]
    return pieces


_LARGEST = (32 << 20) - (64 << 10)
"""Bytes: just under glibc's DEFAULT_MMAP_THRESHOLD_MAX, 32 MiB on 64-bit machines."""


@cache
def keep_freed_memory() -> None:
    """Make this process keep up to 64 MiB of the memory that it frees.

    glibc makes a separate map for each block of 128 KiB or more, and unmaps it when it is freed. Then the next batch
    has a page fault for every 4 KiB of its images, which took three times as long as reading them.

    But when a mapped block is freed, glibc keeps blocks up to that size from then on (mallopt(3), M_MMAP_THRESHOLD).
    So this allocates a large block and frees it, without touching a byte. It does other allocators no harm.
    """
    np.empty(_LARGEST, np.uint8)
