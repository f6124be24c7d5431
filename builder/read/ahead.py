"""Bring rows from a local disk into the page cache before they are read.

The page cache belongs to the whole machine. So the training process can announce the rows that its loader's workers
will read.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence

from builder.base.errors import Laion6mError
from builder.read.batches import Wanted, is_cold, merged
from builder.read.handles import Handles, LocalHandle
from builder.read.threads import ForkLock

THREADS = 4
"""Simultaneous reads. With large reads, more are not faster."""

PIECE = 1 << 20
"""Bytes of one read."""

NEAR = 128 << 10
"""The most unwanted bytes between two rows that are read together. Reading them costs about as much as one more
request."""

_MOST = 4096
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
        self._pieces: deque[Piece] = deque(maxlen=_MOST)
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
