"""Read AVIF by its boxes: size, frames, end. Pillow is not asked, so the result does not depend on how it was built.

Sources: ISO/IEC 14496-12 (boxes), 23008-12 (items and their properties), AVIF 1.1. Every function reads
``buffer[start:end]`` in place, at absolute offsets.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

Buffer = bytes | bytearray

_box = Struct(">I4s").unpack_from
_u16 = Struct(">H").unpack_from
_u32 = Struct(">I").unpack_from
_u64 = Struct(">Q").unpack_from
_BRANDS = (b"avif", b"avis")
_MOST = 10_000  # boxes per level


class Avif(NamedTuple):
    """Pixels as stored (rotation and mirroring are separate properties), frames, and whether every box is whole."""

    width: int
    height: int
    frames: int
    complete: bool


class _Box(NamedTuple):
    kind: bytes
    start: int  # where its content starts
    end: int


def is_avif(buffer: Buffer, start: int, end: int) -> bool:
    """Whether the bytes begin as an AVIF: its brand is the major brand or a compatible one."""
    if end - start < 16 or not buffer.startswith(b"ftyp", start + 4):
        return False
    stop = min(end, start + _u32(buffer, start)[0], start + 512)
    return any(bytes(buffer[at : at + 4]) in _BRANDS for at in (start + 8, *range(start + 16, stop - 3, 4)))


def read_avif(buffer: Buffer, start: int, end: int) -> Avif | None:
    """What an AVIF states about itself; None if its boxes cannot be read or do not give a size."""
    try:
        top: dict[bytes, _Box] = {}
        complete = True
        for box in _boxes(buffer, start, end):
            complete = complete and box.end <= end
            top.setdefault(box.kind, box)
        if b"moov" in top and buffer.startswith(b"avis", start + 8):
            size = _track(buffer, top[b"moov"], end)
        else:
            size = _primary(buffer, top[b"meta"], end)
    except (KeyError, IndexError, ValueError, ArithmeticError):
        return None
    width, height, frames = size
    return Avif(width, height, max(1, frames), complete) if width and height else None


def is_cut(buffer: Buffer, start: int, end: int) -> bool:
    """Whether the last box, or its header, reaches beyond ``end``."""
    last = start
    try:
        for box in _boxes(buffer, start, end):
            last = box.end
    except ValueError:
        return False
    return last != end


def _boxes(buffer: Buffer, start: int, end: int) -> Iterator[_Box]:
    """Consecutive boxes. The last may end beyond ``end`` if the file was cut."""
    at = start
    for _ in range(_MOST):
        if at + 8 > end:
            return
        length, kind = _box(buffer, at)
        content = at + 8
        if length == 1:
            if at + 16 > end:
                return
            length, content = _u64(buffer, at + 8)[0], at + 16
        elif length == 0:
            length = end - at
        if length < content - at:
            raise ValueError("a box shorter than its header")
        yield _Box(kind, content, at + length)
        at += length


def _inside(buffer: Buffer, box: _Box, end: int, skip: int = 0) -> dict[bytes, _Box]:
    """The boxes inside a box, by kind. Of several of a kind, the first."""
    found: dict[bytes, _Box] = {}
    for each in _boxes(buffer, box.start + skip, _whole(box, end).end):
        found.setdefault(each.kind, each)
    return found


def _whole(box: _Box, end: int) -> _Box:
    if box.end > end:
        raise ValueError("a box that was cut")
    return box


def _primary(buffer: Buffer, meta: _Box, end: int) -> tuple[int, int, int]:
    """The ``ispe`` property of the primary item."""
    parts = _inside(buffer, meta, end, skip=4)
    pitm = _whole(parts[b"pitm"], end)
    item = (_u32 if buffer[pitm.start] else _u16)(buffer, pitm.start + 4)[0]
    properties = _inside(buffer, parts[b"iprp"], end)
    ipco = _whole(properties[b"ipco"], end)
    kinds = list(_boxes(buffer, ipco.start, ipco.end))
    for number in _associated(buffer, _whole(properties[b"ipma"], end), item):
        if 0 < number <= len(kinds) and kinds[number - 1].kind == b"ispe":
            at = kinds[number - 1].start + 4
            return _u32(buffer, at)[0], _u32(buffer, at + 4)[0], 1
    raise KeyError("ispe")


def _associated(buffer: Buffer, ipma: _Box, item: int) -> list[int]:
    """Numbers of the item's properties, counted from 1."""
    version, flags = buffer[ipma.start], _u32(buffer, ipma.start)[0] & 0xFFFFFF
    at = ipma.start + 8
    for _ in range(min(_u32(buffer, ipma.start + 4)[0], _MOST)):
        if at + 4 > ipma.end:
            break
        mine = (_u32 if version else _u16)(buffer, at)[0] == item
        at += 4 if version else 2
        count, at = buffer[at], at + 1
        wide = 2 if flags & 1 else 1
        if at + wide * count > ipma.end:
            break
        if mine:
            places = range(at, at + wide * count, wide)
            return [_u16(buffer, place)[0] & 0x7FFF if wide == 2 else buffer[place] & 0x7F for place in places]
        at += wide * count
    return []


def _track(buffer: Buffer, moov: _Box, end: int) -> tuple[int, int, int]:
    """The first track with a size: its size and its number of samples."""
    for trak in _boxes(buffer, moov.start, _whole(moov, end).end):
        if trak.kind != b"trak":
            continue
        parts = _inside(buffer, trak, end)
        tkhd = _whole(parts[b"tkhd"], end)
        at = tkhd.start + (88 if buffer[tkhd.start] else 76)
        width, height = _u32(buffer, at)[0] >> 16, _u32(buffer, at + 4)[0] >> 16
        if width and height:
            table = _inside(buffer, _inside(buffer, _inside(buffer, parts[b"mdia"], end)[b"minf"], end)[b"stbl"], end)
            sizes = table[b"stsz"]
            return width, height, _u32(buffer, sizes.start + 8)[0]
    raise KeyError("trak")
