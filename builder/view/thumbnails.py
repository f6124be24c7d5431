"""Small pictures of large ones: decoded at reduced scale when asked for, kept in memory, never on disk."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from builder.base.records import Reason, SampleProblem
from builder.source.images import opened

SIDES = (160, 320, 640, 1600)
"""Longer sides in pixels that can be asked for. A fixed list, so that nobody fills the cache with sizes."""

_MOST_PIXELS = 100_000_000  # decoded at full scale, a picture of 178 million would be 0.7 GB for one thumbnail
_KEPT_BYTES = 48 << 20  # some 5,000 thumbnails of 320 pixels
_AT_ONCE = 2  # decoders: each holds all pixels of an image that has no reduced scale


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """``data`` is a JPEG, or a PNG where the picture is transparent. ``width``, ``height``: pixels, turned by EXIF."""

    data: bytes
    media_type: str
    width: int
    height: int


def make_thumbnail(data: bytes, side: int, *, quality: int = 82) -> Thumbnail:
    """A picture of at most ``side`` × ``side`` pixels, never larger than the original.

    Raises SampleProblem for bytes that are no image, and for images of more than 100 million pixels.
    """
    from PIL import ImageOps

    with opened(io.BytesIO(data)) as image:
        if image.width * image.height > _MOST_PIXELS:
            raise SampleProblem(Reason.IMAGE_TOO_LARGE, f"{image.width} x {image.height}: too large for a thumbnail")
        transparent = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa")
        image.draft("RGB", (side, side))  # a JPEG is decoded at 1/2, 1/4 or 1/8
        turned = ImageOps.exif_transpose(image)
        small = turned.convert("RGBA" if transparent else "RGB")
        small.thumbnail((side, side), reducing_gap=2.0)
        sink = io.BytesIO()
        if transparent:
            small.save(sink, "PNG")
        else:
            small.save(sink, "JPEG", quality=quality)
    return Thumbnail(sink.getvalue(), "image/png" if transparent else "image/jpeg", *small.size)


class Thumbnails:
    """Thumbnails by their image's digest, the least recently used forgotten first. Thread-safe."""

    def __init__(self, most_bytes: int = _KEPT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[tuple[object, int], Thumbnail] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._decoders = threading.BoundedSemaphore(_AT_ONCE)

    def get(self, name: object, side: int, read: Callable[[], bytes]) -> Thumbnail:
        """The thumbnail of the image called ``name`` (a digest, or whatever tells it from others). ``read`` gives the
        image's bytes; it is called where the thumbnail is not kept. Raises what ``read`` does, and SampleProblem."""
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
