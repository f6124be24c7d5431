"""Read JPEG by its bytes: the size from the segments before the first scan, and the end marker after it.

Reads ``buffer[start:end]`` in place, at absolute offsets; ``0 <= start <= end <= len(buffer)``. Terms and markers are
those of ISO/IEC 10918-1, annex B. The walk mirrors ``PIL/JpegImagePlugin.py`` (10.1 to 13). It is ``sure`` only if
``PIL.Image.open`` opens the image with the same size. Not being sure costs a call of Pillow. Being wrong would be a row
that nobody can open, or a good image lost.
"""

from __future__ import annotations

import re
from struct import Struct
from typing import NamedTuple

MAGIC = b"\xff\xd8\xff"

_marker_and_length = Struct(">HH").unpack_from
_frame_header = Struct(">BHHB").unpack_from  # bits per sample, height, width, components
_u16le, _u32le = Struct("<H").unpack_from, Struct("<I").unpack_from
_u16be, _u32be = Struct(">H").unpack_from, Struct(">I").unpack_from

_EOI = b"\xff\xd9"
_EOI_REACH = 4096  # bytes at the end searched first for the end marker; most writers append less after it
_SCAN_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # entropy-coded data holds stuffing, restarts and fill besides

# Markers by what Pillow does with them. Those with a handler of their own are named in the walk.
_PASSED = frozenset((0xFFC4, 0xFFCC, 0xFFDC, 0xFFDD, 0xFFDF, 0xFFFE, *range(0xFFE3, 0xFFED), 0xFFEF))  # by their length
_BARE = frozenset((0xFF00, 0xFFC8, *range(0xFFD0, 0xFFDA), *range(0xFFF0, 0xFFFE)))  # two bytes, no length
_FRAMES = frozenset((*range(0xFFC0, 0xFFD0), 0xFFDE)) - _PASSED - _BARE

_RISKY_RESOLUTION = re.compile(rb"\x01\x1a\x00[\x01\x02\x07]|\x1a\x01[\x01\x02\x07]\x00")


class JpegHeader(NamedTuple):
    """``scan``: where the first scan's data begins; -1 if there is none. ``sure``: Pillow opens it, with this size."""

    width: int
    height: int
    scan: int
    sure: bool


def read_header(buffer: bytes | bytearray, start: int, end: int) -> JpegHeader:
    """Walk the segments as Pillow does, up to the first start of scan. The bytes must begin with ``MAGIC``."""
    width = height = 0
    sure = True
    resolution_known = exif_seen = False
    position = start + 2
    last = end - 4
    while position <= last:
        marker, length = _marker_and_length(buffer, position)
        if marker == 0xFFC4 and 2 <= length <= end - position - 2:  # Huffman tables are half of all segments
            position += 2 + length
            continue
        if marker < 0xFFC0 or marker in _BARE or marker == 0xFFFF:
            if marker < 0xFF00:  # junk
                position = buffer.find(b"\xff", position, end)
                if position < 0:
                    break
            elif marker == 0xFFFF:  # a fill byte
                position += 1
            else:
                sure = sure and marker in _BARE  # Pillow knows no marker 01 to BF
                position += 2
            continue
        if length < 2:
            sure, length = False, 2  # Pillow reads no payload; some of its handlers may fail on that
        after = position + 2 + length
        if after > end:
            break
        if marker == 0xFFDA:
            return JpegHeader(width, height, after, sure and width > 0 and height > 0)
        if marker in _PASSED:
            pass
        elif marker == 0xFFDB:  # quantization tables; 67 is one table of bytes
            if length != 67 or buffer[position + 4] > 15:
                sure = _tables_fit(buffer, position + 4, after) and sure
        elif marker == 0xFFE0:
            # Pillow unpacks JFIF's version at 5. Its unit 1 is dots per inch; only newer versions read 2 as well.
            if length < 9:
                sure = False
            elif length >= 14 and buffer[position + 11] == 1 and buffer.startswith(b"JFIF", position + 4):
                resolution_known = True
        elif marker == 0xFFE1:
            if buffer.startswith(b"Exif\0", position + 4, after):
                # Without a resolution Pillow reads it from the EXIF. Versions differ in what two EXIF segments mean.
                if exif_seen or not (resolution_known or _exif_is_harmless(buffer, position + 9, after)):
                    sure = False
                exif_seen = True
        elif marker in _FRAMES:
            if length < 8:
                sure = False
            else:
                # The last frame header counts. Each component takes three bytes, or Pillow has an IndexError. Lossless,
                # hierarchical and arithmetic frames (SOF3 and above) are left to Pillow.
                bits, height, width, components = _frame_header(buffer, position + 4)
                if bits != 8 or components not in (1, 3, 4) or (length - 8) % 3 or marker > 0xFFC2:
                    sure = False
        elif marker == 0xFFE2:
            # Pillow takes byte 13 of an ICC segment; a multi-picture index makes it an MPO, with frames of its own.
            if length < 16 or buffer.startswith(b"MPF\0", position + 4):
                sure = False
        elif marker == 0xFFED:
            # A Photoshop block that ends right after its resource code is an IndexError. Any other cut is accepted.
            if buffer.startswith(b"8BIM", max(position + 4, after - 6), after):
                sure = False
        elif length < 9:  # 0xFFEE: Pillow unpacks Adobe's version at 5
            sure = False
        position = after
    return JpegHeader(width, height, -1, False)


def _tables_fit(buffer: bytes | bytearray, position: int, after: int) -> bool:
    """Whether tables of 64 entries fill the segment exactly. Entries have two bytes if the first byte is over 15."""
    while position < after:
        position += 65 if buffer[position] < 16 else 129
    return position == after


def _exif_is_harmless(buffer: bytes | bytearray, start: int, end: int) -> bool:
    """Whether Pillow's search for a resolution in this EXIF (from the byte after ``Exif\\0``) cannot fail the image.

    Only an IndexError escapes the search: XResolution (tag 0x011A) stored as bytes or text of length below two. So it
    is enough that nothing in the first directory looks like this tag with type 1, 2 or 7.
    """
    tiff = start + 1  # after a second 0; without it only old versions see EXIF, and never a TIFF header
    if end - tiff < 8:
        return True  # no TIFF header is a SyntaxError, which Pillow catches
    if buffer[tiff] == 0x49:
        directory, count_at = tiff + _u32le(buffer, tiff + 4)[0], _u16le
    elif buffer[tiff] == 0x4D:
        directory, count_at = tiff + _u32be(buffer, tiff + 4)[0], _u16be
    else:
        return buffer[tiff] != 0x45  # "Exif" once more shifts all offsets, in some versions
    if directory + 2 > end:
        return True
    entries_end = directory + 2 + 12 * count_at(buffer, directory)[0]
    return _RISKY_RESOLUTION.search(buffer, directory + 2, min(entries_end, end)) is None


def is_complete(buffer: bytes | bytearray, scan: int, end: int) -> bool:
    """Whether an end marker follows the first scan's start (``scan``; -1: there is none)."""
    if scan < 0:
        return False
    if buffer.rfind(_EOI, max(scan, end - _EOI_REACH), end) >= 0:
        return True
    return end - scan > _EOI_REACH and _scans_end(buffer, scan, end)


def _scans_end(buffer: bytes | bytearray, position: int, end: int) -> bool:
    """Follow entropy-coded data to an end marker. Skips segments between scans: they may hold anything."""
    while found := _SCAN_MARKER.search(buffer, position, end):
        position = found.end()
        marker = buffer[position - 1]
        if marker == 0xD9:
            return True
        if marker > 0xBF and marker != 0xD8:
            if position + 2 > end:
                return False
            position += max(2, _u16be(buffer, position)[0])
    return False
