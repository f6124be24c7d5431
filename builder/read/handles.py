"""Open files of a dataset, few at a time, each proved to be the file the index was made for."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

import pyarrow as pa
import xxhash

from builder.base.errors import DamagedFileError, IndexMismatchError, RemovedShardError, SourceError, too_many_open
from builder.base.schema import IndexedFile
from builder.read.threads import ForkLock

MOST_OPEN = 128
"""Of thousands of shards: with two descriptors for a mapped one far below the 1,024 that processes are commonly
allowed."""

_MOUNTS = "/proc/self/mountinfo"


class Handle(Protocol):
    """An open file. Thread-safe: reads carry their own positions."""

    path: str
    size: int

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset`` on, none only at the end. Raises SourceError."""

    def keep(self) -> None:
        """It stays open, and will be read from many times."""

    @property
    def mtime_ns(self) -> int | None:
        """When it was modified; None where storage does not say."""


class Storage(Protocol):
    """Where a dataset's files are. Picklable."""

    threads: int
    """How many reads at a time get the most out of it."""

    gap: int
    """Bytes between two rows that are cheaper read than asked around; -1 where only rows that overlap (one that is
    asked for twice) should share a read."""

    def join(self, root: str, path: str) -> str:
        """The place of a file, of ``path`` (with ``/``) below ``root``."""

    def open(self, path: str) -> Handle:
        """Raises SourceError when it is not there."""

    def for_arrow(self, path: str) -> Any:
        """What pyarrow opens to read the file: a path, or a file object that seeks."""


class LocalHandle:
    """A file on this machine. Closed when nobody holds it any more, so a thread that reads from it never loses it.

    A file that lies in memory (tmpfs) is mapped once it is to be kept: an image of 107 kB then costs 10 to 14 µs
    instead of 15 to 19, which are for the system's way through its pages. Files on disks and networks are not: there
    an error under a map is SIGBUS, which ends the process without a word, and a cold map is fetched in small pieces.
    """

    __slots__ = ("__weakref__", "_device", "_map", "fd", "mtime_ns", "path", "size")

    def __init__(self, path: str) -> None:
        self.fd = -1
        self.path = path
        self._map: pa.MemoryMappedFile | None = None
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would wait for its other end
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}") from error
        except ValueError as error:  # a NUL in the path
            raise SourceError(f"{path}: {error}") from error
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{path}: a {'directory' if stat.S_ISDIR(status.st_mode) else 'device'}, not a file")
        self.size = status.st_size
        self.mtime_ns: int | None = status.st_mtime_ns
        self._device = status.st_dev

    def read(self, offset: int, size: int) -> bytes:
        try:
            # What has been cut off since is not to be touched under a map: the size is asked for each time.
            if self._map is not None and os.lseek(self.fd, 0, os.SEEK_END) >= offset + size:
                return self._map.read_at(size, offset)  # type: ignore[no-any-return]
            return os.pread(self.fd, size, offset)
        except OSError as error:
            raise SourceError(f"{self.path}: {error.strerror}") from error

    def keep(self) -> None:
        if self._map is None and self.size and self._device in _devices_in_memory():
            with contextlib.suppress(OSError, pa.ArrowException):  # as where the address space is limited
                self._map = pa.memory_map(f"/proc/self/fd/{self.fd}")  # not the path: that may be another file by now

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # os may be gone when Python ends
        if self.fd >= 0:
            close(self.fd)


@cache
def _devices_in_memory() -> frozenset[int]:
    """Device numbers (``st_dev``) of what is mounted as tmpfs or ramfs, by proc_pid_mountinfo(5); none elsewhere."""
    devices = set()
    try:
        with open(_MOUNTS, encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                before, _, after = line.partition(" - ")
                if after.split(" ", 1)[0] in ("tmpfs", "ramfs"):
                    major, minor = before.split(" ")[2].split(":")
                    devices.add(os.makedev(int(major), int(minor)))
    except (OSError, ValueError, IndexError):
        return frozenset()
    return frozenset(devices)


class LocalStorage:
    """Files on this machine."""

    threads = min(4, os.cpu_count() or 1)
    gap = -1  # a read costs less than cutting its bytes out of a larger one

    def join(self, root: str, path: str) -> str:
        return os.path.join(root, *path.split("/"))

    def open(self, path: str) -> Handle:
        return LocalHandle(path)

    def for_arrow(self, path: str) -> Any:
        return path


class Handles:
    """Files by their numbers in an index. Thread-safe; survives fork and pickling (nothing open travels)."""

    def __init__(self, root: str, files: Sequence[IndexedFile], storage: Storage | None = None) -> None:
        self.root, self.files, self.storage = root, files, storage or LocalStorage()
        self._open: OrderedDict[int, Handle] = OrderedDict()
        self._lock = ForkLock()

    def __getstate__(self) -> tuple[str, Sequence[IndexedFile], Storage]:
        return self.root, self.files, self.storage

    def __setstate__(self, state: tuple[str, Sequence[IndexedFile], Storage]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def path(self, number: int) -> str:
        """Where file ``number`` is. Raises DamagedFileError for a name that leads out of the index's root."""
        return self._inside(self.files[number].path)

    def get(self, number: int) -> Handle:
        """The file, opened and checked. Raises IndexMismatchError when it is not the one indexed, RemovedShardError
        when only the Hub has it."""
        with self._lock:
            handle = self._open.get(number)
            if handle is not None:
                self._open.move_to_end(number)
                return handle
        if not 0 <= number < len(self.files):
            raise DamagedFileError(self.root, "index", f"it names file {number} of {len(self.files)}")
        try:
            handle = self._checked(self.path(number), self.files[number].check)
        except IndexMismatchError as error:
            if url := self._pushed_to(number):
                raise RemovedShardError(self.path(number), url) from error
            raise
        handle.keep()
        with self._lock:
            self._open[number] = handle
            while len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        return handle

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes. Raises IndexMismatchError when the file does not have them."""
        handle = self._open.get(number) or self.get(number)
        if offset < 0 or size < 0 or offset + size > handle.size:
            raise IndexMismatchError(handle.path, f"bytes {offset:,} to {offset + size:,} of {handle.size:,}")
        data = handle.read(offset, size)
        while len(data) != size:  # network storage may give a part at a time
            more = handle.read(offset + len(data), size - len(data))
            if not more:
                raise IndexMismatchError(handle.path, f"it ends at byte {offset + len(data):,}")
            data += more
        return data

    def read_member(self, number: int, path: str, size: int, offset: int) -> bytes:
        """A whole file below the side (raw/ or captions/) that file ``number``, a folder, lies in. ``offset``: its
        row's, which is its modification time where the folder's check says so. Raises IndexMismatchError."""
        folder = self.files[number]
        side = folder.path.split("/")[0]
        timed = folder.check.get("offset") == "mtime_ns"
        handle = self._checked(
            self._inside(f"{side}/{path}"), {"size": size, "mtime_ns": offset} if timed else {"size": size}
        )
        return handle.read(0, size)

    def _inside(self, path: str) -> str:
        if ".." in path.split("/"):  # an index may be a stranger's, and be there to be read out
            raise DamagedFileError(self.root, "index", f"it names {path!r}, which leads out of it")
        return self.storage.join(self.root, path)

    def _pushed_to(self, number: int) -> str | None:
        """The repository that has file ``number``, where it was removed here for that reason."""
        name = self.files[number].path
        if not isinstance(self.storage, LocalStorage) or os.path.exists(self.path(number)):
            return None
        from builder.store.pushed import PushRecords  # what a reader that finds its files has no use for

        mark = PushRecords(self.root).marks().get(name)
        return mark.url if mark else None

    def _checked(self, path: str, check: dict[str, Any]) -> Handle:
        try:
            handle = self.storage.open(path)
            if difference := describe_difference(handle, check):
                raise IndexMismatchError(path, difference)
        except SourceError as error:
            request_failed = error.__cause__ is not None and not isinstance(self.storage, LocalStorage)
            if request_failed or too_many_open(error.__cause__):
                raise  # of the file itself that says nothing
            raise IndexMismatchError(path, str(error).removeprefix(f"{path}: ")) from error
        return handle


def describe_difference(handle: Handle, check: dict[str, Any]) -> str | None:
    """What tells a file from the one that was indexed, in words; None when nothing does."""
    size, footer, mtime = check.get("size"), check.get("footer"), check.get("mtime_ns")
    if size is not None and size != handle.size:
        pointer = f"; it is {LFS_POINTER}" if 64 <= handle.size < 1024 and is_lfs_pointer(handle.read(0, 64)) else ""
        return f"{handle.size:,} bytes, {size:,} when it was indexed{pointer}"
    if footer is not None and footer != parquet_footer_digest(handle):
        return "its footer is another one"
    if mtime is not None and handle.mtime_ns is not None and mtime != handle.mtime_ns:
        return "it was modified since it was indexed"
    return None


LFS_POINTER = "a pointer to a file that Git LFS has: git lfs pull fetches it"


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file that begins so is what ``git clone`` leaves of a large one without Git LFS."""
    return start.startswith(b"version https://git-lfs.github.com/spec/")


def parquet_footer_digest(handle: Handle) -> str | None:
    """xxh3-128 of a Parquet file's footer with its length and magic, hex; None where there is no whole footer."""
    tail = handle.read(max(0, handle.size - 8), 8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length > handle.size - 12:
        return None
    return xxhash.xxh3_128_hexdigest(handle.read(handle.size - length - 8, length + 8))
