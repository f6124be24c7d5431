"""An image's verdict from its two ends: for an index, which copies no image."""

from __future__ import annotations

from builder.errors import SourceChangedError
from builder.records import ImageInfo
from builder.source import jpegs
from builder.source.files import ByteFile
from builder.source.images import PILLOW_PIXEL_LIMIT, probe

HEAD = 16 << 10  # bytes: EXIF with a thumbnail and a colour profile fit before nearly all photos' first scan
TAIL = 4 << 10  # bytes: where the end marker is looked for first


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
            tail = _read(file, offset + size - TAIL, TAIL)
            if tail.rfind(b"\xff\xd9") >= 0:
                return ImageInfo("JPEG", width, height, 1, True)
    return probe(_read(file, offset, size))


def _read(file: ByteFile, offset: int, size: int) -> bytes:
    data = file.read_at(offset, size)
    if len(data) < size:
        raise SourceChangedError(file.name, f"its byte {offset + len(data):,} is gone")
    return data
