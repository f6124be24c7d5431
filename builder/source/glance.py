"""An image's verdict from its two ends: for an index, which copies no image.

``glance`` reads the ends of one image. ``Glances`` goes along with the scan of a tar, whose headers lie between the end
of one image and the beginning of the next: one read gives all three.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from builder.base.errors import SourceChangedError
from builder.base.records import ImageInfo, Member
from builder.source import jpegs
from builder.source.files import ByteFile
from builder.source.images import PILLOW_PIXEL_LIMIT, probe

HEAD = 16 << 10  # bytes: EXIF with a thumbnail and a colour profile fit before nearly all photos' first scan
_LONG_HEAD = 64 << 10  # bytes: a Photoshop block as well
TAIL = 4 << 10  # bytes: where the end marker is looked for first
_LAST = 256
_BEFORE = 576  # bytes: the padding of a tar member, 511 at most, and an end marker with little behind it
_AHEAD = 4 << 10  # bytes: a header and, of most JPEGs, all before the first scan, a colour profile (3 KB) included


def glance(file: ByteFile, offset: int, size: int) -> ImageInfo:
    """What ``probe`` says of the image at ``offset``, ``size`` bytes long, reading all of it only where its ends do not
    settle it. Raises SampleProblem as ``probe`` does, SourceChangedError where the bytes are not there.

    The ends settle a JPEG when its header is certain up to the first scan and its end marker lies in the last 4 KiB:
    what is between them cannot change that verdict.
    """
    if size <= HEAD + TAIL:
        return probe(_read(file, offset, size))
    head = _read(file, offset, HEAD)
    if head.startswith(jpegs.MAGIC):
        width, height, _, sure = jpegs.read_header(head, 0, HEAD)
        if sure and width * height <= PILLOW_PIXEL_LIMIT:
            for length in (_LAST, TAIL):  # the marker is mostly all there is at the end
                if _read(file, offset + size - length, length).rfind(b"\xff\xd9") >= 0:
                    return ImageInfo("JPEG", width, height, 1, True)
    return probe(_read(file, offset, size))


class Glances:
    """A tar as its scan reads it, and what can be said of the JPEGs that it passes. To be scanned as a ``ByteFile``,
    with ``watch`` told of each member.

    What it says is what ``glance`` and ``probe`` say; of images that it cannot tell enough of from what the scan has
    read (an end marker far from the end, a header of more than 64 KiB, other formats) it says nothing.
    """

    def __init__(self, file: ByteFile) -> None:
        self.name, self.size = file.name, file.size
        self._read_at = file.read_at
        self._data, self._base = b"", 0
        self._shapes: dict[int, int] = {}
        self._offset, self._end, self._scan, self._shape = 0, -1, 0, 0  # the last image, while its end is to be seen

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes asked for. What lies around them, where an image may end and the next begin, is read along."""
        before = min(offset, _BEFORE)
        self._base = offset - before
        self._data = data = self._read_at(offset - before, before + max(length, _AHEAD))
        return data[before : before + length]

    def close(self) -> None:
        """The file is closed by who opened it."""

    def watch(self, member: Member) -> None:
        """A member was met. What was read last has its header in it, before that the end of the last member, and
        mostly all that comes before an image's first scan; if that is longer, it is read now."""
        data, base = self._data, self._base
        if self._end >= 0:
            self._settle(data, base)
        offset, size = member.offset, member.size
        start = offset - base
        if start < 0 or not data.startswith(jpegs.MAGIC, start):
            return
        width, height, scan, sure = jpegs.read_header(data, start, min(len(data), start + size))
        for length in (HEAD, _LONG_HEAD):
            if scan < 0 and len(data) - start < min(size, length):
                base, start = offset, 0
                data = self._read_at(offset, min(size, length))
                width, height, scan, sure = jpegs.read_header(data, 0, len(data))
        if sure and width * height <= PILLOW_PIXEL_LIMIT:
            self._offset, self._end, self._scan, self._shape = offset, offset + size, base + scan, width << 16 | height

    def _settle(self, data: bytes, base: int) -> None:
        """Note the last image as whole if the end marker is in what ``data`` has of its last bytes; then it is the last
        no more."""
        end = self._end - base
        if 0 < end <= len(data) and data.rfind(b"\xff\xd9", max(self._scan - base, end - TAIL, 0), end) >= 0:
            self._shapes[self._offset] = self._shape
        self._end = -1

    def shapes(self, members: Iterable[Member]) -> Iterator[int]:
        """Of each member ``width << 16 | height`` if it is a JPEG, still and whole; else 0: nobody knows yet."""
        if self._end >= 0:
            first = max(self._scan, self._end - _LAST)
            self._settle(self._read_at(first, self._end - first), first)
        known = self._shapes.get
        return (known(member.offset, 0) for member in members)


def shape_info(shape: int) -> ImageInfo:
    """What ``probe`` says of an image of this shape, which is not 0."""
    return ImageInfo("JPEG", shape >> 16, shape & 0xFFFF, 1, True)


def _read(file: ByteFile, offset: int, size: int) -> bytes:
    data = file.read_at(offset, size)
    if len(data) < size:
        raise SourceChangedError(file.name, f"its byte {offset + len(data):,} is gone")
    return data
