"""Parse the parts of a tar: 512 bytes as a header, the records of a pax header, names, and link targets.

Pure functions. ``tars.py`` reads the bytes and handles bad ones.
Sources: POSIX.1-1988 (ustar) and POSIX.1-2001 (pax), GNU tar 1.34 ``src/tar.h`` and ``from_header`` in ``src/list.c``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from zlib import adler32

from builder.base.records import Member
from builder.base.words import printable

BLOCK = 512
MAX_EXTENDED = 1 << 20
"""Longest extended header that is read, in bytes. Real ones hold a path or two. A longer one only costs memory."""

MAX_SHARED_NAME = 4096
"""Longest path that a global header may give, in characters. Every member would get a copy as its name."""

_ASCII = bytes(range(128))
_OCTAL = re.compile(rb"[ \0]*([0-7]*)(?:[ \0]|\Z)")
_DECIMAL = re.compile(rb"0*([1-9][0-9]{0,19})?")  # some writers pad with zeros
_RECORD = re.compile(rb"0*([1-9][0-9]{0,19}) ")


@dataclass(frozen=True, slots=True)
class Link:
    """A second name. ``target``: for a hard link the other member's name, for a symbolic link the path as written.

    A hard link may carry its data again: ``size`` bytes from ``offset`` on.
    """

    name: str
    target: str
    hard: bool
    offset: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Header:
    """One header. ``size`` is None if the field is no number from 0 to 2^63 - 1."""

    name: bytes
    kind: bytes
    size: int | None
    link: bytes
    more_sparse: bool  # old GNU sparse only: another sparse-map block lies between header and data


@dataclass(frozen=True, slots=True)
class Pax:
    """The records of a pax header that give a member's place and name; None for a missing record.

    An empty ``path`` or ``link`` cancels a global header's. ``size`` is -1 if it is given but no number.
    """

    path: str | None = None
    size: int | None = None
    link: str | None = None
    sparse: bool = False
    problems: tuple[str, ...] = field(default=(), compare=False)

    def over(self, other: Pax) -> Pax:
        """These records, completed with ``other``'s."""
        return Pax(
            other.path if self.path is None else self.path,
            other.size if self.size is None else self.size,
            other.link if self.link is None else self.link,
            self.sparse or other.sparse,
        )

    def for_all(self) -> Pax:
        """These records as a global header's. Names too long to repeat for a million members are left out."""
        path = None if len(self.path or "") > MAX_SHARED_NAME else self.path
        return Pax(path, self.size, None if len(self.link or "") > MAX_SHARED_NAME else self.link, self.sparse)


def text(raw: bytes) -> str:
    """``raw`` up to its first NUL, as text that can be encoded. Bytes that are not UTF-8 become ``\\xNN``."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def normal_name(name: str) -> str:
    """``name`` as a key: cut at a NUL, no ``.`` and no empty parts. ``..`` stays: no key is opened as a path."""
    name = name.split("\0", 1)[0]
    if name and "//" not in name and "/." not in name and name[0] not in "./" and name[-1] != "/":
        return name
    return "/".join([part for part in name.split("/") if part and part != "."])


def number(raw: bytes) -> int | None:
    """A number field: octal digits between spaces or NULs (no digits: 0), or base-256. None if it is neither."""
    if raw[0] & 0x80:
        bits = 8 * len(raw) - 1  # the first bit marks base-256; what follows is two's complement
        value = int.from_bytes(raw, "big") & ((1 << bits) - 1)
        return value - (1 << bits) if raw[0] & 0x40 else value
    octal = _OCTAL.match(raw)
    return int(octal[1] or b"0", 8) if octal else None


@lru_cache(maxsize=1 << 14)
def expected_adler(checksum: bytes) -> int:
    """The low half of the Adler-32 that an ASCII header with this checksum field must have; -1 if none can.

    Adler-32's low 16 bits are ``(1 + sum of bytes) mod 65521``. 512 bytes below 128 sum to at most 65,024. So for an
    ASCII block nothing wraps, and equal values mean equal sums. Any other block needs ``checksum_fits``. A header's own
    checksum counts its field as eight spaces (256); the Adler-32 counts the digits in it.
    """
    stored = number(checksum)
    if stored is None or not checksum.strip(b" \0"):
        return -1
    return stored - 256 + sum(checksum) + 1


def checksum_fits(block: bytes) -> bool:
    """Whether the checksum in ``block`` (512 bytes) is the sum of its bytes, unsigned, or signed as in old tars."""
    checksum = block[148:156]
    if block.isascii():
        return adler32(block) & 0xFFFF == expected_adler(checksum)
    stored = number(checksum)
    if stored is None or not checksum.strip(b" \0"):
        return False
    summed = block[:148] + b"        " + block[156:]
    unsigned = sum(summed)
    return stored in (unsigned, unsigned - 256 * len(summed.translate(None, _ASCII)))


def padded(size: int) -> int:
    """``size`` rounded up to whole blocks."""
    return (size + BLOCK - 1) // BLOCK * BLOCK


def parse_header(block: bytes) -> Header | None:
    """``block`` as a header; None if it is too short, all zero, or its checksum does not fit."""
    if len(block) < BLOCK or not checksum_fits(block):
        return None
    name = block[:100].split(b"\0", 1)[0]
    kind = block[156:157]
    # GNU's "ustar  \0" has times and sparse maps where POSIX has the prefix. Go before 1.8 wrote a prefix there.
    posix = block[257:263] == b"ustar\0" or (block[257:263] == b"ustar " and number(block[345:357]) is None)
    if posix and block[345] and kind != b"S":
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    size = number(block[124:136])
    if size is not None and not 0 <= size < 1 << 63:
        size = None
    return Header(name, kind, size, block[157:257].split(b"\0", 1)[0], block[482] != 0)


def parse_pax(data: bytes) -> Pax:
    """Parse the records ``LENGTH KEY=VALUE\\n`` in ``data``. After a malformed record it continues at the next line."""
    path = size = link = sparse_name = None
    sparse = False
    problems = []
    place, end = 0, len(data.rstrip(b"\0"))
    while place < end:
        begin = _RECORD.match(data, place)
        stop = place + int(begin[1]) if begin else 0
        if not begin or not begin.end() < stop <= len(data) or data[stop - 1] not in b"\n\0":
            problems.append(f"malformed pax record at byte {place} of an extended header")
            place = data.find(b"\n", place) + 1 or end
            continue
        key, equals, value = data[begin.end() : stop - 1].partition(b"=")
        if not equals or data[stop - 1] == 0:
            problems.append(f"malformed pax record at byte {place} of an extended header")
        place = stop  # also after a bad record: to read on inside it could take quadratic time
        if key == b"path":
            path = text(value)
        elif key == b"linkpath":
            link = text(value)
        elif key == b"size":
            digits = _DECIMAL.fullmatch(value)
            size = None if not value else int(digits[1] or 0) if digits else -1
        elif key.startswith(b"GNU.sparse."):
            sparse = True
            if key == b"GNU.sparse.name":
                sparse_name = text(value)
    return Pax(sparse_name or path, size, link, sparse, tuple(problems[:1]))


def find_header(data: bytes, begin: int, end: int, phase: int) -> int:
    """The first place from ``begin`` to ``end`` (exclusive) in ``data`` where a whole header stands; -1 if none.

    At block boundaries (``phase`` modulo 512) any header is found; elsewhere only one with the ustar magic.
    """
    end = min(end, len(data) - BLOCK + 1)
    hit = -1
    for place in range(begin + (phase - begin) % BLOCK, end, BLOCK):
        if _may_begin(data, place) and checksum_fits(data[place : place + BLOCK]):
            hit = end = place
            break
    magic = data.find(b"ustar", begin + 257, end + 261)
    while magic >= 0:
        if _may_begin(data, magic - 257) and checksum_fits(data[magic - 257 : magic + 255]):
            return magic - 257
        magic = data.find(b"ustar", magic + 1, end + 261)
    return hit


def _may_begin(data: bytes, place: int) -> bool:
    """A cheap test, mostly False: the third byte of a possible checksum is a digit, or a space before a digit."""
    return 48 <= data[place + 150] <= 55 or data[place + 150] == 32


def resolve_links(entries: list[Member | Link]) -> list[Member]:
    """The entries, each link replaced by its member. Links to missing members or in circles are left out."""
    latest: dict[str, int] = {}
    aims: dict[int, int] = {}
    soft: list[int] = []
    for place, entry in enumerate(entries):
        if isinstance(entry, Link):
            if not entry.hard:
                soft.append(place)
            elif entry.target in latest:
                aims[place] = latest[entry.target]
            elif not entry.size:
                continue
        latest[entry.name] = place
    for place in soft:
        link = entries[place]
        assert isinstance(link, Link)
        target = _beside(link.name, link.target)
        if target in latest:
            aims[place] = latest[target]

    ends: dict[int, Member | None] = {}  # results of links already followed, so long chains are walked once

    def follow(place: int) -> Member | None:
        path = []
        while True:
            entry = entries[place]
            if isinstance(entry, Member):
                end: Member | None = entry
                break
            if place in ends:
                end = ends[place]
                break
            ends[place] = None  # a link that comes back here is a circle
            path.append(place)
            if place not in aims:
                end = Member(entry.name, entry.offset, entry.size) if entry.size else None
                break
            place = aims[place]
        ends.update(dict.fromkeys(path, end))
        return end

    members = []
    for place, entry in enumerate(entries):
        if isinstance(entry, Member):
            members.append(entry)
        elif end := follow(place):
            members.append(Member(entry.name, end.offset, end.size, end.state))
    return members


def _beside(name: str, target: str) -> str:
    """The member that symbolic link ``name`` points to by ``target``. An absolute one is treated like absolute
    names."""
    parts: list[str] = [] if target.startswith("/") else name.split("/")[:-1]
    for part in target.split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part and part != ".":
            parts.append(part)
    return "/".join(parts)


def too_short(name: str, size: int) -> str:
    """What is wrong with a member of ``size`` bytes that the archive ends in."""
    return f'"{printable(name)}" should have {size:,} bytes, but the archive ends before'
