"""Find the members of a tar: one forward walk over the headers. The walk goes on after damage.

    file → walk_tar → Member | Link | Damage, as found → scan_tar → TarScan (links resolved)

Reads V7, ustar, old and new GNU, pax, star and Solaris tars, concatenated tars, and tars without end blocks.
Python's tarfile and GNU tar stop at the first thing they cannot read. Here a damaged header costs its own member only:
the walk goes on at the next valid header, at any byte. Two limits. If the search for a header passes through a member
that is itself a tar, its inner members appear. A wrong size in a valid header hides what it spans, inside the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from struct import Struct
from zlib import adler32

from builder.base.errors import DamagedFileError, SourceChangedError
from builder.base.records import CUT, SPARSE, WHOLE, Damage, Member, TarScan
from builder.base.words import printable
from builder.source.files import ByteFile
from builder.source.tar_headers import (
    BLOCK,
    MAX_EXTENDED,
    Header,
    Link,
    Pax,
    expected_adler,
    find_header,
    normal_name,
    padded,
    parse_header,
    parse_pax,
    resolve_links,
    text,
    too_short,
)

WINDOW = 256 << 10  # most bytes read at once; an extended header may take 1 MiB
_SMALL = 2 << 10  # one header; or an extended header, its data and the next header
_DENSE = 8 << 10  # bytes between headers; below it, reading through is cheaper than one read each (~0.5 µs)
_STEP = 8 << 10
_MOST_ZEROS = (1 << 20) + 2 * BLOCK  # bytes of zeros at the end: GNU tar pads to 10 KiB, tapes to 1 MiB
_FAR = 1 << 63  # larger than any valid size

_COMMON = Struct("100s24x11sc12x8sc100x8s80xB166x").unpack  # name, size, its end, checksum, kind, magic, prefix[0]
_new = object.__new__
_set_name, _set_offset, _set_size, _set_state = (vars(Member)[slot].__set__ for slot in Member.__slots__)
_NONZERO = re.compile(rb"[^\0]")
_NO_DATA = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))  # links, devices, a directory, a fifo
_NOT_FILES = frozenset((b"D", b"V", b"N", b"A"))  # GNU: dumpdir, volume label, old long names; Solaris: ACL
_EXTENDED = frozenset((b"x", b"X", b"g", b"L", b"K"))


def walk_tar(file: ByteFile, start: int = 0) -> Iterator[Member | Damage | Link]:
    """Yield what the tar holds, in file order. ``start``: where the first header is expected.

    Reads forward only, except what was read ahead (1.3 MB at most). A member comes when its header was read. If its
    data proves cut, or not all its own, the same member comes again as CUT. Its data is read in two cases only: a
    stream (a file of unknown size) ends in it, or bytes are missing from a file of known size. A hard link comes as
    Link, even if its target is missing. Damage may be zero bytes long: something is missing there.

    Raises SourceChangedError if the file ends before its own ``size``. Anything else that is wrong comes as Damage.
    """
    return _walk(_Walk(file), start)


def scan_tar(file: ByteFile, watch: Callable[[Member], None] | None = None) -> TarScan:
    """Scan a whole archive: regular files, and links under their own names, in file order. ``watch`` gets each member
    when it is met, and may read from the file.

    ``offset + size`` is always within the archive. A CUT member has the size that is there, a SPARSE one the stored
    size. A hard link reads as the member of that name before it, a symbolic link as the last one.
    """
    walk = _Walk(file)
    entries: list[Member | Link] = []
    damage: list[Damage] = []
    links = 0
    for found in _walk(walk, 0):
        if isinstance(found, Member):
            entries.append(found)
            if watch is not None:
                watch(found)
        elif isinstance(found, Link):
            entries.append(found)
            links += 1
        else:
            damage.append(found)
    if damage:
        last = {e.offset: place for place, e in enumerate(entries) if isinstance(e, Member) and e.state == CUT}
        entries = [e for place, e in enumerate(entries) if isinstance(e, Link) or last.get(e.offset, place) == place]
    members = resolve_links(entries) if links else entries
    return TarScan(tuple(members), tuple(damage), walk.end)  # type: ignore[arg-type]


def _walk(walk: _Walk, start: int) -> Iterator[Member | Damage | Link]:
    """Common headers are parsed in line, all others by ``walk.step``; both give the same. ``at`` < 0 means the end."""
    read_at, end = walk.file.read_at, walk.end
    at = data_from = start
    last: Member | None = None
    data, base, limit, ahead, served = b"", start, -1, _SMALL, 0
    while at >= 0:
        place = at - base
        if not 0 <= place <= limit:
            ahead = min(ahead * 4, WINDOW) if place <= served * _DENSE else _SMALL
            if walk.streamed or at + ahead > end:
                walk.data_from = data_from
                walk.fill(at, ahead)
                data = walk.data
            else:
                data = walk.data = read_at(at, ahead)
                walk.base = at
                if len(data) < ahead:
                    walk.fill(at, ahead)
                    data = walk.data
            base, limit, place, served = at, len(data) - BLOCK, 0, 0
        served += 1
        block = data[place : place + BLOCK]
        if limit >= 0 and block.isascii():
            raw, digits, ending, checksum, kind, magic, prefix = _COMMON(block)
            if (
                adler32(block) & 0xFFFF == expected_adler(checksum)
                and (kind == b"0" or kind == b"\0")
                and (magic == b"ustar  \0" or magic == b"ustar\x0000")
                and not prefix
                and (ending == b"\0" or ending == b" ")
                and digits.isdigit()
                and walk.shared is None
            ):
                name = raw.split(b"\0", 1)[0].decode()
                try:
                    size = int(digits, 8)
                except ValueError:
                    size = _FAR
                after = at + BLOCK + (size + 511 & -512)
                if after <= walk.end and name and name[-1] != "/":
                    if name[0] in "./" or "/." in name or "//" in name:
                        name = normal_name(name)
                    data_from = at + BLOCK
                    at = after
                    last = _new(Member)  # saves a third of the time of __init__
                    _set_name(last, name)
                    _set_offset(last, data_from)
                    _set_size(last, size)
                    _set_state(last, WHOLE)
                    yield last
                    continue
        walk.data_from = data_from
        found, at = walk.step(at, last)
        data, base, limit, data_from = walk.data, walk.base, len(walk.data) - BLOCK, walk.data_from
        served = 1
        for item in found:
            if isinstance(item, Member):
                last = item
        yield from found
    if walk.broken:
        yield Damage(walk.end, walk.end, walk.broken)


class _Walk:
    """The window of bytes, where the archive ends, what its global headers said. All places are archive offsets."""

    def __init__(self, file: ByteFile) -> None:
        self.file = file
        self.streamed = file.size is None
        self.end = _FAR if file.size is None else file.size
        self.data = b""
        self.base = 0
        self.data_from = 0  # where the last header's data begins; all before it is accounted for
        self.shared: Pax | None = None
        self.broken = ""

    def fill(self, at: int, length: int) -> None:
        """Move the window to ``at``: ``length`` bytes, or up to the end. The end of a stream is found here."""
        length = min(length, self.end - at)
        data = self._read(at, length) if length > 0 else b""
        while len(data) < length:
            more = self._read(at + len(data), length - len(data))
            if not more:
                self._meet_end(at, len(data))
                break
            data += more
        self.data, self.base = data, at

    def _read(self, at: int, length: int) -> bytes:
        try:
            return self.file.read_at(at, length)
        except DamagedFileError as error:
            if not self.streamed:
                raise
            self.broken = str(error)
            return b""

    def _meet_end(self, at: int, length: int) -> None:
        if self.end != _FAR:
            raise SourceChangedError(self.file.name, f"it ends at byte {at + length}, before byte {self.end}")
        end = at + length if length else min(at, self.data_from)
        while more := self._read(end, WINDOW):
            end += len(more)
        self.end = end

    def bytes_at(self, at: int, length: int) -> bytes:
        """``length`` bytes from ``at``; fewer only at the end."""
        if not self.base <= at <= self.base + len(self.data) - length:
            self.fill(at, length + _SMALL)
        return self.data[at - self.base : at - self.base + length]

    def step(self, at: int, last: Member | None) -> tuple[list[Member | Damage | Link], int]:
        """Parse what stands at ``at``: extended headers and their member, or none. Then where to go on; -1: the end."""
        begin, own = at, Pax()
        long_name = long_link = ""
        problem = ""
        notes: list[Member | Damage | Link] = []
        while header := parse_header(self.bytes_at(at, BLOCK)):
            self.data_from = at + BLOCK
            if header.kind not in _EXTENDED:
                break
            size = header.size
            if size is None or self.data_from + size > self.end:
                return self._search(begin, self.data_from, "an extended header with a wrong size")
            after = self.data_from + padded(size)
            if size > MAX_EXTENDED:
                problem = f"an extended header of {size:,} bytes; at most {MAX_EXTENDED:,} are read"
                if header.kind == b"g":
                    notes.append(Damage(at, min(after, self.end), problem))
                    problem = ""
            else:
                data = self.bytes_at(self.data_from, size)
                if len(data) < size:
                    return self._search(begin, self.data_from, "cut within an extended header")
                if header.kind == b"L":
                    long_name = text(data)
                elif header.kind == b"K":
                    long_link = text(data)
                else:
                    pax = parse_pax(data)
                    notes += [Damage(at, min(after, self.end), note) for note in pax.problems]
                    if header.kind == b"g":
                        shared = pax.for_all().over(self.shared or Pax())
                        self.shared = None if shared == Pax() else shared  # git's comment only: stay on the fast path
                    else:
                        own = pax.over(own)
            at = after
            if header.kind == b"g":
                begin = at if begin == self.data_from - BLOCK else begin
        if header is None:
            found, at = self._no_header(at, begin, last)
            return notes + found, at
        pax = own.over(self.shared) if self.shared else own
        size = header.size if pax.size is None else pax.size
        name = pax.path or long_name or text(header.name)
        target = pax.link or long_link or text(header.link)
        if problem or size is None or not 0 <= size < _FAR:
            # Without its extended header the name or size may be wrong. A missing member is better than a wrong one.
            after = self.data_from if problem == "" else self.data_from + padded(size or 0)
            problem = problem or f'the size of "{printable(name)}" is not valid'
            found, at = self._search(begin, min(after, self.end), problem)
            return notes + found, at
        found, at = self._entry(header, name, size, target, pax.sparse)
        return notes + found, at

    def _entry(
        self, header: Header, name: str, size: int, target: str, sparse: bool
    ) -> tuple[list[Member | Damage | Link], int]:
        kind = header.kind
        key = normal_name(name)
        begin = self.data_from
        if kind in _NO_DATA and size:
            # Some writers state a size and write no data. A header, or the end, right behind shows it.
            behind = self.bytes_at(begin, BLOCK)
            if not _NONZERO.search(behind) or parse_header(behind):
                size = 0
        if kind == b"S" and header.more_sparse:
            more = self.bytes_at(begin, BLOCK)
            while len(more) == BLOCK and not parse_header(more):
                begin += BLOCK
                if not more[504]:
                    break
                more = self.bytes_at(begin, BLOCK)
            self.data_from = begin
        found: list[Member | Damage | Link] = []
        cut = begin + size > self.end
        if kind == b"1" or kind == b"2":
            hard = kind == b"1"
            stored = size if hard and not cut else 0
            found.append(Link(key, normal_name(target) if hard else target, hard, begin, stored))
        elif kind not in _NO_DATA and kind not in _NOT_FILES and not name.endswith("/"):
            if cut:
                return self._cut(key, begin, size)
            state = CUT if kind == b"M" else SPARSE if sparse or kind == b"S" else WHOLE
            found.append(Member(key, begin, size, state))
        if cut:
            more_found, at = self._search(begin, begin, too_short(key, size))
            return found + more_found, at
        return found, begin + padded(size)

    def _cut(self, name: str, begin: int, size: int) -> tuple[list[Member | Damage | Link], int]:
        """A member that claims more bytes than there are. It gets the bytes up to the next header, or to the end."""
        found, at = self._search(begin, begin, too_short(name, size))
        end = self.end if at < 0 else at
        return [Member(name, begin, max(0, end - begin), CUT), *found], at

    def _no_header(self, at: int, begin: int, last: Member | None) -> tuple[list[Member | Damage | Link], int]:
        """``at`` holds no header. From ``begin`` on there are extended headers without a member."""
        block = self.bytes_at(at, BLOCK)
        if len(block) < BLOCK:
            if at > self.end and last is not None and last.offset == self.data_from:
                if last.offset + last.size > self.end:
                    return self._cut(last.name, last.offset, last.size)
            elif at >= self.end + BLOCK:
                return self._search(self.data_from, self.data_from, "cut short")
            if self.end == 0:
                return [Damage(0, 0, "empty")], -1
            problem = "cut within a header" if _NONZERO.search(block) else "no end-of-archive blocks"
            return [Damage(min(begin, self.end), self.end, problem)], -1
        if _NONZERO.search(block):
            start = self.data_from
            if begin == at and start < at and (inside := self._overrun(start, at)) >= 0:
                if last is None or last.offset != start:  # a link or a non-file that has data
                    return [Damage(start, inside, "bytes in front of a header are missing")], inside
                end = min(inside, start + last.size)
                lost = Damage(start, inside, f'bytes of "{printable(last.name)}" are missing')
                cut = Member(last.name, start, end - start, CUT)
                return [cut, lost] if end < start + last.size else [lost], inside
            return self._search(begin, at, "no valid header")
        found: list[Member | Damage | Link] = []
        if begin < at:
            found.append(Damage(begin, at, "an extended header without a member"))
        zeros, at = at, self._after_zeros(at)
        if at < 0:
            return found + self._unfilled(zeros, last), -1
        lone = at - zeros == BLOCK  # an end has two zero blocks or more; a single one is an erased header
        if parse_header(self.bytes_at(at, BLOCK)):
            if lone:
                found.append(Damage(zeros, at, "a lone zero block"))
            return found, at
        more, at = self._search(zeros if lone else at, at, "no valid header")
        return (found + more if lone or at >= 0 else found), at

    def _overrun(self, start: int, at: int) -> int:
        """The header inside the data from ``start`` to ``at`` that does not belong to it: bytes were lost, the rest
        moved up.

        -1 if there is none. A tar stored as a member has headers in it too, but its members all end by ``at``, where
        its data ends. Of members that moved up, one reaches beyond ``at``. A stream is not read again for this.
        """
        if self.streamed:
            return -1
        first = place = self._find(start, at)
        while 0 <= place < at:
            header = parse_header(self.bytes_at(place, BLOCK))
            if header is None or header.size is None:
                return -1
            place += BLOCK + (0 if header.kind in _NO_DATA else padded(header.size))
        return first if place > at else -1

    def _after_zeros(self, at: int) -> int:
        """The first block from ``at`` on that is not all zero; -1 if there is none."""
        place = at
        while place < self.end:
            if not self.base <= place < self.base + len(self.data):
                self.data_from = place
                self.fill(place, WINDOW)
            if other := _NONZERO.search(self.data, place - self.base):
                return at + (self.base + other.start() - at) // BLOCK * BLOCK
            place = self.base + len(self.data)
        return -1

    def _unfilled(self, zeros: int, last: Member | None) -> list[Member | Damage | Link]:
        """Damage if far more zeros follow than an end needs: space reserved for a download that stopped. The last
        member is CUT if its data ends in zeros too."""
        if self.end - zeros <= _MOST_ZEROS:
            return []
        words = f"{self.end - zeros:,} bytes of zeros up to the end: its download did not finish. Download it again"
        found: list[Member | Damage | Link] = [Damage(zeros, self.end, words)]
        if last is None or last.size < 16 or self.streamed:
            return found
        cut = not any(self.bytes_at(last.offset + last.size - 16, 16))  # no image or text ends in 16 zeros
        return [Member(last.name, last.offset, last.size, CUT), *found] if cut else found

    def _search(self, begin: int, look: int, problem: str) -> tuple[list[Member | Damage | Link], int]:
        """The next header from ``look`` on (-1: none). The damage reaches from ``begin`` to it, or to the end."""
        at = self._find(look, _FAR)
        return [Damage(begin, self.end if at < 0 else at, problem)], at

    def _find(self, look: int, stop: int) -> int:
        """Where the first header between ``look`` and ``stop`` begins; -1 for none."""
        at = look
        while at < stop and at + BLOCK <= self.end:
            if not self.base <= at <= self.base + len(self.data) - BLOCK - _STEP:
                self.data_from = max(self.data_from, at)
                self.fill(at, WINDOW)
            begin = at - self.base
            hit = find_header(self.data, begin, min(begin + _STEP, stop - self.base), look - self.base)
            if hit >= 0:
                return self.base + hit
            at += _STEP
        return -1
