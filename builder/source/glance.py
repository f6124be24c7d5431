"""Judge an image by its two ends. Used for an index, which copies no image.

``glance`` reads the ends of one image. ``Glances`` follows the scan of a tar. There a header lies between the end of
one image and the beginning of the next, so one read gives all three.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from builder.base.records import ImageInfo, Member
from builder.source import jpegs
from builder.source.files import ByteFile, read_whole
from builder.source.images import PILLOW_PIXEL_LIMIT, probe

HEAD = 16 << 10  # bytes: nearly every photo's first scan begins in it, after EXIF, thumbnail, profile
_LONG_HEAD = 64 << 10  # bytes: enough for a Photoshop block too
TAIL = 4 << 10  # bytes: the end marker is searched here first
_LAST = 256
_BEFORE = 576  # bytes: a tar member's padding (511 at most), and an end marker with few bytes after it
_AHEAD = 4 << 10  # bytes: a tar header, and all before most JPEGs' first scan, with a colour profile (3 KB)


def glance(file: ByteFile, offset: int, size: int) -> ImageInfo:
    """The verdict of ``probe`` on the image of ``size`` bytes at ``offset``. Reads the whole image only if its ends do
    not decide. Raises SampleProblem as ``probe`` does, SourceChangedError if the bytes are missing.

    The ends decide a JPEG if its header is certain up to the first scan and its end marker lies in the last 4 KiB. What
    is between them cannot change the verdict.
    """
    if size <= HEAD + TAIL:
        return probe(read_whole(file, offset, size))
    head = read_whole(file, offset, HEAD)
    if head.startswith(jpegs.MAGIC):
        width, height, _, sure = jpegs.read_header(head, 0, HEAD)
        if sure and width * height <= PILLOW_PIXEL_LIMIT:
            for length in (_LAST, TAIL):  # usually nothing follows the marker
                if read_whole(file, offset + size - length, length).rfind(b"\xff\xd9") >= 0:
                    return ImageInfo("JPEG", width, height, 1, True)
    return probe(read_whole(file, offset, size))


class Glances:
    """A tar as its scan reads it, and the shapes of the JPEGs it passes. Scan it as a ``ByteFile`` and call ``watch``
    with each member.

    Its answers equal those of ``glance`` and ``probe``. It gives no answer if the bytes that the scan has read do not
    decide: an end marker far from the end, a header of more than 64 KiB, other formats.
    """

    def __init__(self, file: ByteFile) -> None:
        self.name, self.size = file.name, file.size
        self._read_at = file.read_at
        self._data, self._base = b"", 0
        self._shapes: dict[int, int] = {}
        self._offset, self._end, self._scan, self._shape = 0, -1, 0, 0  # the last image, until its end was seen

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes asked for. Reads the bytes around them too: an image may end before them, the next may begin
        after."""
        before = min(offset, _BEFORE)
        self._base = offset - before
        self._data = data = self._read_at(offset - before, before + max(length, _AHEAD))
        return data[before : before + length]

    def close(self) -> None:
        """Does nothing: whoever opened the file closes it."""

    def watch(self, member: Member) -> None:
        """A member was met. The last read holds its header, before that the last member's end, and usually all that
        comes before an image's first scan. If that part is longer, it is read now."""
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
        """Note the last image as whole if ``data`` has its end marker; then no image is pending."""
        end = self._end - base
        if 0 < end <= len(data) and data.rfind(b"\xff\xd9", max(self._scan - base, end - TAIL, 0), end) >= 0:
            self._shapes[self._offset] = self._shape
        self._end = -1

    def shapes(self, members: Iterable[Member]) -> Iterator[int]:
        """For each member ``width << 16 | height`` if it is a JPEG, still and whole; else 0: not known yet."""
        if self._end >= 0:
            first = max(self._scan, self._end - _LAST)
            self._settle(self._read_at(first, self._end - first), first)
        known = self._shapes.get
        return (known(member.offset, 0) for member in members)


def shape_info(shape: int) -> ImageInfo:
    """The verdict of ``probe`` on an image of this shape (not 0)."""
    return ImageInfo("JPEG", shape >> 16, shape & 0xFFFF, 1, True)
