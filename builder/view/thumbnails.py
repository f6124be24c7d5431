"""Thumbnails, kept in memory and never on disk."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from builder.curate.thumbnails import Thumbnail, make_thumbnail

SIDES = (160, 320, 640, 1600)
"""Allowed lengths of the longer side, in pixels. The list is fixed, so nobody can fill the cache with other sizes."""

_KEPT_BYTES = 48 << 20  # some 5,000 thumbnails of 320 pixels
_AT_ONCE = 2  # decoders at a time: each holds all pixels of an image whose format has no smaller scale


class Thumbnails:
    """Thumbnails by their image's digest. Drops the least recently used first. Thread-safe."""

    def __init__(self, most_bytes: int = _KEPT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[tuple[object, int], Thumbnail] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._decoders = threading.BoundedSemaphore(_AT_ONCE)

    def get(self, name: object, side: int, read: Callable[[], bytes]) -> Thumbnail:
        """The thumbnail of the image called ``name`` (a digest, or any unique name). ``read`` gives the image's bytes.
        It is called only if the thumbnail is not kept. Raises what ``read`` raises, and SampleProblem."""
        with self._lock:
            if kept := self._kept.get((name, side)):
                self._kept.move_to_end((name, side))
                return kept
        data = read()
        with self._decoders:
            made = make_thumbnail(data, side)
        with self._lock:
            if (name, side) not in self._kept:
                self._kept[name, side] = made
                self._bytes += len(made.data)
            while self._bytes > self._most_bytes and len(self._kept) > 1:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= len(oldest.data)
        return made
