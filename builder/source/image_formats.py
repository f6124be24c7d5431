"""Read PNG, GIF and WebP by their bytes: size, end marker, number of frames; and the pages of a TIFF. JPEG: ``jpegs``.

Every function reads ``buffer[start:end]`` in place, at absolute offsets; ``0 <= start <= end <= len(buffer)``.

The ``*_header`` functions answer only if they are sure. A size means that ``PIL.Image.open`` (10.1 to 13) opens the
image and gives the same size. They mirror Pillow's plugins: a check here that looks needless exists because Pillow
would fail. None costs a call of Pillow; a wrong size would be a wrong row.
"""

from __future__ import annotations

from struct import Struct
from zlib import crc32

Buffer = bytes | bytearray

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

_png_chunk = Struct(">I4s").unpack_from
_png_size = Struct(">IIBBBBB").unpack_from  # width, height, depth, colour type, compression, filter, interlace
_riff_chunk = Struct("<4sI").unpack_from
_u16le = Struct("<H").unpack_from
_u32le = Struct("<I").unpack_from
_u32be = Struct(">I").unpack_from


# PNG: W3C Portable Network Graphics (Third Edition), sections 5 and 11; PIL/PngImagePlugin.py.

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour type
_PNG_LENGTHS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9}  # Pillow unpacks these, and may fail on shorter ones
_PNG_UNREAD = frozenset(
    (b"PLTE", b"tEXt", b"bKGD", b"tIME", b"sBIT", b"hIST", b"eXIf")
)  # stored, or skipped, as they are
_PNG_HANDFUL = 4096  # bytes; a bigger chunk's checksum costs as much as asking Pillow
_PNG_MANY = 64  # most chunks before the image data


def png_header(buffer: Buffer, start: int, end: int) -> tuple[int, int] | None:
    """Width and height, if only plain chunks with good checksums come before the image data.

    Compressed chunks (iCCP, zTXt, iTXt) and animations are left to Pillow.
    """
    position = start + 8
    if end - start < 45 or _png_chunk(buffer, position) != (13, b"IHDR"):
        return None
    width, height, depth, colour, _, filtering, _ = _png_size(buffer, position + 8)
    if width == 0 or height == 0 or filtering or depth not in _PNG_DEPTHS.get(colour, ()):
        return None
    length, kind = 13, b"IHDR"
    for _ in range(_PNG_MANY):
        after = position + 12 + length
        if after + 8 > end or _u32be(buffer, after - 4)[0] != crc32(buffer[position + 4 : after - 4]):
            return None
        position = after
        length, kind = _png_chunk(buffer, position)
        if kind == b"IDAT":
            return width, height
        if kind == b"tRNS":
            fits = colour == 3 or (colour == 0 and length == 2) or (colour == 2 and length == 6)
        else:
            fits = kind in _PNG_UNREAD or _PNG_LENGTHS.get(kind) == length
        if not fits or length > _PNG_HANDFUL:
            return None
    return None


def png_is_complete(buffer: Buffer, start: int, end: int) -> bool:
    """Whether a whole IEND chunk exists."""
    if buffer.endswith(_PNG_END, start, end):
        return True
    position = start + 8
    while position + 12 <= end:
        length, kind = _png_chunk(buffer, position)
        if kind == b"IEND":
            return True
        position += 12 + length
    return False


# GIF: GIF89a specification, sections 17 to 27; PIL/GifImagePlugin.py.


def gif_header(buffer: Buffer, start: int, end: int) -> tuple[int, int] | None:
    """Width and height: the logical screen, enlarged to hold the first frame, as Pillow does."""
    if end - start < 14:
        return None
    width, height = _u16le(buffer, start + 6)[0], _u16le(buffer, start + 8)[0]
    position = start + 13 + _palette_size(buffer[start + 10])
    while position + 10 < end:
        block = buffer[position]
        if block == 0x2C:
            (x,), (y,) = _u16le(buffer, position + 1), _u16le(buffer, position + 3)
            (w,), (h,) = _u16le(buffer, position + 5), _u16le(buffer, position + 7)
            if not (w and h) or position + 10 + _palette_size(buffer[position + 9]) >= end:
                return None
            return max(width, x + w), max(height, y + h)
        label, size = buffer[position + 1], buffer[position + 2]
        # For an empty first sub-block Pillow deviates from the specification.
        if block != 0x21 or size == 0 or (label == 0xF9 and size != 4):
            return None
        if label == 0xFF and buffer.startswith(b"NETSCAPE2.0\0", position + 3):
            return None  # the loop count is missing
        position = _behind_sub_blocks(buffer, position + 2, end)
    return None


def _palette_size(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 128 else 0


def _behind_sub_blocks(buffer: Buffer, position: int, end: int) -> int:
    while position < end:
        size = buffer[position]
        position += size + 1
        if size == 0:
            break
    return position


def gif_frames(buffer: Buffer, start: int, end: int) -> tuple[int, bool]:
    """Number of frames (at least 1), and whether the trailer exists. Walks by lengths, decodes nothing."""
    frames = 0
    position = start + 13
    if position < end:
        position += _palette_size(buffer[start + 10])
    while position < end:
        block = buffer[position]
        if block == 0x3B:
            return max(frames, 1), True
        if block == 0x2C and position + 11 <= end:
            frames += 1
            position = _behind_sub_blocks(buffer, position + 11 + _palette_size(buffer[position + 9]), end)
        elif block == 0x21:
            position = _behind_sub_blocks(buffer, position + 2, end)
        else:
            position += 1  # bytes that begin no block are skipped, as in Pillow
    return max(frames, 1), False


# WebP: RFC 9649, section 2; libwebp src/demux/demux.c and src/dec/webp_dec.c, which Pillow asks when it opens one.

_WEBP_FLAGS = 0x3E  # of VP8X: ICC profile, alpha, EXIF, XMP, animation
_WEBP_ANIMATION, _WEBP_ALPHA = 0x02, 0x10
_WEBP_METADATA = (b"ICCP", b"EXIF", b"XMP ")


def webp_header(buffer: Buffer, start: int, end: int) -> tuple[int, int] | None:
    """Width and height of an image, or of an animation's canvas, if its chunks fill the RIFF exactly."""
    if end - start < 30:
        return None
    stop = start + 8 + _u32le(buffer, start + 4)[0]
    if stop > end or not buffer.startswith(b"WEBPVP8", start + 8):
        return None
    position = start + 12
    canvas = size = None
    flags = 0
    if buffer[start + 15] == 0x58:  # VP8X
        flags = buffer[start + 20]
        if _u32le(buffer, start + 16)[0] != 10 or flags & ~_WEBP_FLAGS:
            return None
        # Two 24-bit numbers, each one less than the side.
        canvas = (_u32le(buffer, start + 23)[0] >> 8) + 1, (_u32le(buffer, start + 26)[0] >> 8) + 1
        position = start + 30
    while position + 8 <= stop:
        kind, length = _riff_chunk(buffer, position)
        payload = position + 8
        position = payload + length + (length & 1)
        if position > stop:
            return None
        if kind == b"VP8 " and size is None and not flags & _WEBP_ANIMATION:
            size = _vp8_size(buffer, payload, length)
        elif kind == b"VP8L" and size is None and not flags & _WEBP_ANIMATION:
            size = _vp8l_size(buffer, payload, length)
        elif kind == b"ANMF" and canvas is not None and flags & _WEBP_ANIMATION:
            size = canvas if _fits_canvas(buffer, payload, length, canvas) else None
        elif canvas is None or not (
            kind in _WEBP_METADATA
            or (kind == b"ALPH" and flags & _WEBP_ALPHA and size is None and length > 1)
            or (kind == b"ANIM" and flags & _WEBP_ANIMATION and length == 6)
        ):
            return None
        else:
            continue
        if size is None:
            return None
    if position != stop or size is None or (canvas or size) != size:
        return None
    return size


def _fits_canvas(buffer: Buffer, payload: int, length: int, canvas: tuple[int, int]) -> bool:
    """Whether an animation's frame holds a picture of its stated size and lies on the canvas."""
    if length < 24:
        return False
    at = [(_u32le(buffer, payload + place)[0] & 0xFFFFFF) for place in (0, 3, 6, 9)]
    x, y, width, height = 2 * at[0], 2 * at[1], at[2] + 1, at[3] + 1
    position, stop = payload + 16, payload + length
    while position + 8 <= stop:
        kind, size = _riff_chunk(buffer, position)
        inside = position + 8
        position = inside + size + (size & 1)
        if position > stop:
            return False
        if kind in (b"VP8 ", b"VP8L"):
            read = _vp8_size if kind == b"VP8 " else _vp8l_size
            on_canvas = x + width <= canvas[0] and y + height <= canvas[1]
            return position == stop and on_canvas and read(buffer, inside, size) == (width, height)
        if kind != b"ALPH":
            return False
    return False


def webp_frames(buffer: Buffer, start: int, end: int) -> int:
    """Number of frames of a WebP that ``webp_header`` is sure of."""
    if buffer[start + 15] != 0x58 or not buffer[start + 20] & _WEBP_ANIMATION:
        return 1
    frames, position = 0, start + 30
    while position + 8 <= end:
        kind, length = _riff_chunk(buffer, position)
        frames += kind == b"ANMF"
        position += 8 + length + (length & 1)
    return max(1, frames)


def _vp8_size(buffer: Buffer, payload: int, length: int) -> tuple[int, int] | None:
    """RFC 6386, section 9.1: a shown key frame of a known version, with its first partition inside the chunk."""
    if length < 10 or not buffer.startswith(b"\x9d\x01\x2a", payload + 3):
        return None
    bits = _u32le(buffer, payload)[0] & 0xFFFFFF
    if bits & 1 or (bits >> 1) & 7 > 3 or not bits & 16 or bits >> 5 >= length:
        return None
    width, height = _u16le(buffer, payload + 6)[0] & 0x3FFF, _u16le(buffer, payload + 8)[0] & 0x3FFF
    return (width, height) if width and height else None


def _vp8l_size(buffer: Buffer, payload: int, length: int) -> tuple[int, int] | None:
    """RFC 9649, section 3.4: signature, 14 bits of width - 1, 14 of height - 1, alpha, three bits of version 0."""
    if length < 5 or buffer[payload] != 0x2F or buffer[payload + 4] >> 5:
        return None
    bits = _u32le(buffer, payload + 1)[0]
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1


def webp_is_complete(buffer: Buffer, start: int, end: int) -> bool:
    """Whether all the bytes that the RIFF header states exist."""
    return end - start >= 12 and start + 8 + _u32le(buffer, start + 4)[0] <= end


HEADERS = {"PNG": png_header, "GIF": gif_header, "WEBP": webp_header}
"""Pillow's format name → the function that reads a size, or is not sure (None)."""


def frames(form: str, buffer: Buffer, start: int, end: int) -> int:
    """Number of frames of an image whose header was read here."""
    if form == "GIF":
        return gif_frames(buffer, start, end)[0]
    return webp_frames(buffer, start, end) if form == "WEBP" else 1


def recognise(buffer: Buffer, start: int, end: int) -> str:
    """The key of ``HEADERS`` whose signature the bytes have, or ""."""
    if buffer.startswith(PNG_MAGIC, start, end):
        return "PNG"
    if buffer.startswith(b"RIFF", start, end) and buffer.startswith(b"WEBP", start + 8, end):
        return "WEBP"
    return "GIF" if buffer.startswith((b"GIF87a", b"GIF89a"), start, end) else ""


def other_format(head: bytes) -> str:
    """What bytes are that are no supported image, by the first 512 of them; "" if unknown."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer (git lfs pull fetches the image)"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return "HEIC" if brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1") else "a video (MP4)"
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")):
        return "JPEG XL"
    if b"<svg" in text and text.startswith(b"<"):
        return "SVG"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or (b"<html" in text and text[:1] == b"<"):
        return "HTML"
    known = {b"%pdf-": "PDF", b"pk\x03\x04": "ZIP", b"<?xml": "XML", b"\x1f\x8b": "gzip", b"{": "JSON"}
    return next((name for magic, name in known.items() if text.startswith(magic)), "")


def tiff_pages(buffer: Buffer, start: int, end: int) -> int:
    """Number of image directories, at least 1. Pillow's own count takes time quadratic in their number.

    Each directory is visited once, so the bytes bound the walk.
    """
    order = "<" if buffer.startswith(b"II", start) else ">"
    big = end - start >= 16 and buffer[start + 2] == 43  # BigTIFF
    count_at, offset_at = Struct(order + ("Q" if big else "H")), Struct(order + ("Q" if big else "I"))
    entry = 20 if big else 12
    link = start + (8 if big else 4)
    seen: set[int] = set()
    while link + offset_at.size <= end:
        (offset,) = offset_at.unpack_from(buffer, link)
        if offset == 0 or offset in seen or start + offset + count_at.size > end:
            break
        seen.add(offset)
        link = start + offset + count_at.size + entry * count_at.unpack_from(buffer, start + offset)[0]
    return max(1, len(seen))
