"""Read bytes of a file by position, wherever the file lies; and decide which bytes to read at once."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from io import SEEK_SET, RawIOBase
from typing import Any, NamedTuple, Protocol

from builder.base.errors import SourceChangedError, SourceError


class ByteFile(Protocol):
    """Bytes by position. Not thread-safe. Deterministic: the same range gives the same bytes, or an error."""

    @property
    def name(self) -> str:
        """Path or URL, for messages."""

    @property
    def size(self) -> int | None:
        """Length in bytes; None if it cannot be known before the end (a compressed stream)."""

    def read_at(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` on; fewer only at the end of the file."""

    def close(self) -> None:
        """Close the handle. A closed file cannot be read."""


class PositionedFile(RawIOBase):
    """A ByteFile with a position, for pyarrow and Python's text layers. Not thread-safe. A file whose size is unknown
    is not seekable."""

    def __init__(self, file: ByteFile) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.size is not None

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._file.size or 0)[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Without a copy of its own: pyarrow reads whole row groups so."""
        if size < 0:
            return self.readall()
        data = self._file.read_at(self._at, size)
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def read_whole(file: ByteFile, offset: int, size: int) -> bytes:
    """``size`` bytes from ``offset`` on. Raises SourceChangedError if the file ends before."""
    data = file.read_at(offset, size)
    if len(data) < size:
        raise SourceChangedError(file.name, f"it ends at byte {offset + len(data):,}")
    return data


def whole_time(ns: int) -> int:
    """A modification time in ns as tables store it: 64 bits, up to the year 2262. Later times become the last one."""
    return max(-(1 << 63), min(ns, (1 << 63) - 1))


_LFS = b"version https://git-lfs.github.com/spec/"


def is_pointer(head: bytes) -> bool:
    """Whether a file with this start is a Git LFS pointer. ``git clone`` without Git LFS leaves one for each large
    file."""
    return head.startswith(_LFS)


def refuse_pointer(path: str, head: bytes) -> None:
    """Raise SourceError for a Git LFS pointer file: it only says where the content is."""
    if is_pointer(head):
        folder = shlex.quote(os.path.dirname(path) or ".")
        raise SourceError(f"{shlex.quote(path)} is a Git LFS pointer, not the file. Run git lfs pull in {folder}.")


class LocalFile:
    """A file on this machine, read with ``pread``. It has no seek position, and no map that a truncated file could turn
    into SIGBUS."""

    def __init__(self, path: str) -> None:
        self._fd = -1
        self.name = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # open would wait for a FIFO's other end
        status = os.fstat(self._fd)
        self.size: int = status.st_size
        self.mtime_ns = whole_time(status.st_mtime_ns)

    def fileno(self) -> int:
        return self._fd

    def read_at(self, offset: int, length: int) -> bytes:
        """Raises SourceError when the disk fails."""
        try:
            return os.pread(self._fd, length, offset)
        except OSError as error:
            raise self._failure(offset, error) from error

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset`` on. Returns the number of bytes; fewer only at the end of the file."""
        done = 0
        try:
            while done < len(buffer):
                got = os.preadv(self._fd, [buffer[done:]], offset + done)
                if got == 0:
                    break
                done += got
        except OSError as error:
            raise self._failure(offset + done, error) from error
        return done

    def _failure(self, offset: int, error: OSError) -> SourceError:
        return SourceError(f"cannot read {shlex.quote(self.name)} at byte {offset:,}: {error.strerror}")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if os is not None:  # Python is not ending
            self.close()


class Read(NamedTuple):
    """Bytes ``start`` (inclusive) to ``end`` (exclusive). ``items``: numbers of the wanted ranges that it covers."""

    start: int
    end: int
    items: list[int]


def merge_ranges(offsets: Sequence[int], sizes: Sequence[int], *, max_gap: int, max_size: int) -> list[Read]:
    """Reads that cover all ranges, in file order. Ranges at most ``max_gap`` bytes apart share a read, up to
    ``max_size`` bytes. A larger range is a read of its own. Ranges may repeat and overlap."""
    reads: list[Read] = []
    first = last = 0
    items: list[int] = []
    for item in sorted(range(len(offsets)), key=offsets.__getitem__):
        start = offsets[item]
        end = start + sizes[item]
        if items:
            whole = end if end > last else last
            if start - last <= max_gap and (whole - first <= max_size or whole == last):
                items.append(item)
                last = whole
                continue
            reads.append(Read(first, last, items))
        first, last, items = start, end, [item]
    if items:
        reads.append(Read(first, last, items))
    return reads
