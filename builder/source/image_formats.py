"""Read image formats by their bytes: the end marker of PNG, GIF and WebP, the frames of GIF, the pages of TIFF.

Every function reads ``buffer[start:end]`` in place, at absolute offsets; ``0 <= start <= end <= len(buffer)``.

WebP also has its size read here, since not every Pillow has a WebP decoder. ``webp_header`` answers only if it is sure:
a size means that ``PIL.Image.open`` (10.1 to 13) with that decoder opens the image and gives the same size. A check
that looks needless exists because Pillow would fail. Not being sure costs a call of Pillow; a wrong size would be a
wrong row. JPEG: see ``jpegs``.
"""

from __future__ import annotations

from struct import Struct

from builder.source.files import is_pointer

Buffer = bytes | bytearray

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

_png_chunk = Struct(">I4s").unpack_from
_riff_chunk = Struct("<4sI").unpack_from
_u16le = Struct("<H").unpack_from
_u32le = Struct("<I").unpack_from


# PNG: W3C Portable Network Graphics (Third Edition), sections 5 and 11.

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


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


def recognise(buffer: Buffer, start: int, end: int) -> str:
    """ "PNG", "WEBP" or "GIF" by the signature; "" if it is none of them."""
    if buffer.startswith(PNG_MAGIC, start, end):
        return "PNG"
    if buffer.startswith(b"RIFF", start, end) and buffer.startswith(b"WEBP", start + 8, end):
        return "WEBP"
    return "GIF" if buffer.startswith((b"GIF87a", b"GIF89a"), start, end) else ""


def other_format(head: bytes) -> str:
    """What bytes are that are no supported image, by the first 512 of them; "" if unknown."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if is_pointer(head):
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
