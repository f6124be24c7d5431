"""Open files of a dataset, a limited number at a time. Each is checked to be the file that was indexed."""

from __future__ import annotations

import os
import shlex
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from os import fstat, pread, preadv
from typing import Any, Protocol

import pyarrow as pa
import xxhash

from builder.base.errors import (
    ChangedFileError,
    DamagedFileError,
    IndexMismatchError,
    RemovedShardError,
    SourceError,
    refuse_denied,
    too_many_open,
)
from builder.base.schema import IndexedFile
from builder.base.urls import join
from builder.read.threads import ForkLock
from builder.source.files import ByteFile, LocalFile, is_pointer, whole_time

MOST_OPEN = 128
"""The most files open at a time. A dataset may have thousands of shards, but a process often may open only 1,024
files. Files behind URLs take no file descriptor, and two requests to open. So they all stay open."""

SAYS_COLD = hasattr(os, "RWF_NOWAIT")
"""Whether the system can say what is in its page cache. Linux can, macOS cannot."""
_PROBE = bytearray(1)

_TICK_NS = 20_000_000
"""Longer than any tick of file times: their clock ticks every 1 to 10 ms."""

_TAIL = 64 << 10
"""Bytes at a Parquet file's end that are read first. Most footers fit, so most need only one request."""


class Handle(ByteFile, Protocol):
    """An open file. Thread-safe: each read gives its own position. ``read_at`` raises ChangedFileError if the file has
    changed since it was opened, and SourceError if it cannot be read."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def mtime_ns(self) -> int | None:
        """Time of the last modification. None if storage does not say."""

    @property
    def state(self) -> tuple[object, ...]:
        """Values that differ if the file has changed. A difference in one of the first two is enough to be sure."""

    def check(self) -> None:
        """Raises ChangedFileError if the file is known to have changed since it was opened."""


class Storage(Protocol):
    """The place that holds a dataset's files. Picklable."""

    threads: int
    """The number of simultaneous reads at which it is fastest."""

    gap: int
    """The most bytes between two rows that are still read in one request. -1: only rows that overlap share a read (a
    row that is asked for twice)."""

    def open(self, path: str) -> Handle:
        """Raises SourceError if the file is missing."""

    def fetch(self, root: str, name: str) -> str:
        """The path on this machine of the small file ``name`` below ``root``. For a URL, of a copy. Raises SourceError,
        FileNotFoundError."""

    def names(self, folder: str) -> list[str]:
        """The names in a folder. Empty if the folder is missing. Raises SourceError."""


Prove = Callable[[str, Handle], bool]
"""Whether a file holds the bytes that were indexed, given its path in the index. It is called if the file was written
to, or its time was set, since it was first opened."""


class LocalHandle(LocalFile):
    """A file on this machine. It is closed when its last user lets go, so it never closes under a thread that reads.

    Images are not read through a map. If a mapped file is cut short, or its disk fails, SIGBUS kills the process
    without a message. And a map that is not in the page cache is read in small pieces.
    """

    size: int
    mtime_ns: int
    strict = False
    """Whether a touched inode counts as a change although size and time are the same. True if the file's bytes can then
    be proved. A removed file (no names left) does not count: nobody can write to it any more."""

    def __init__(self, path: str) -> None:
        """Raises SourceError."""
        try:
            super().__init__(path)
        except OSError as error:
            raise SourceError(f"{shlex.quote(path)}: {error.strerror}") from error
        except ValueError as error:  # a NUL in the path
            raise SourceError(f"{shlex.quote(path)}: {error}") from error
        status = fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(
                f"{shlex.quote(path)}: a {'directory' if stat.S_ISDIR(status.st_mode) else 'device'}, not a file"
            )
        self.size, self.mtime_ns, self._ctime_ns = status.st_size, status.st_mtime_ns, status.st_ctime_ns

    @property
    def state(self) -> tuple[object, ...]:
        return self.size, self.mtime_ns, self._ctime_ns

    def read_at(self, offset: int, length: int) -> bytes:
        """Checks after the read that the file has not changed (about 1 µs). A write sets the time before the bytes. So
        if the time has not changed, the bytes are those of the file that was opened."""
        try:
            data = pread(self._fd, length, offset)
            if fstat(self._fd).st_ctime_ns != self._ctime_ns:  # the only time that nobody can set
                self.check()
        except OSError as error:
            raise self._failure(offset, error) from error
        return data

    def check(self) -> None:
        status = fstat(self._fd)
        if status.st_size != self.size:
            raise ChangedFileError(self.name, f"{status.st_size:,} bytes, {self.size:,} when it was opened")
        if status.st_mtime_ns != self.mtime_ns:
            raise ChangedFileError(self.name, "it was written to")
        if status.st_ctime_ns != self._ctime_ns and self.strict and status.st_nlink:
            raise ChangedFileError(self.name, "its time was set back, or its rights or names changed")
        self._ctime_ns = status.st_ctime_ns

    def is_cold(self, offset: int, length: int) -> bool:
        """Whether the bytes are missing from the page cache, as far as the system says. Only the middle is checked: the
        first and the last page also hold bytes of neighbours."""
        if not SAYS_COLD:
            return False
        try:
            preadv(self._fd, [_PROBE], offset + length // 2, os.RWF_NOWAIT)
        except BlockingIOError:
            return True
        except OSError:  # some file systems cannot answer, such as those in memory
            return False
        return False

    def map(self) -> pa.MemoryMappedFile:
        """A map of the open file, even if its name now belongs to another file. For columns that are copied at once."""
        return pa.memory_map(f"/dev/fd/{self._fd}")


class LocalStorage:
    """Files on this machine."""

    threads = min(4, os.cpu_count() or 1)
    gap = -1  # a read costs less than cutting its bytes out of a larger read

    def open(self, path: str) -> Handle:
        return LocalHandle(path)

    def fetch(self, root: str, name: str) -> str:
        return join(root, name)

    def names(self, folder: str) -> list[str]:
        return os.listdir(folder) if os.path.isdir(folder) else []


class Handles:
    """Files by their numbers in an index. Thread-safe. Survives fork and pickling (open files are not pickled)."""

    def __init__(
        self,
        root: str,
        files: Sequence[IndexedFile],
        storage: Storage | None = None,
        prove: Prove | None = None,
    ) -> None:
        """Without ``prove``, a file that was written to, or whose time was set, since it was first opened is an
        error."""
        self.root, self.files, self.storage, self._prove = root, files, storage or LocalStorage(), prove
        self._open: OrderedDict[int, Handle] = OrderedDict()
        self._seen: dict[int, object] = {}
        self._lock = ForkLock()
        if not self.is_remote:
            self._note_states()

    def __getstate__(self) -> tuple[Any, ...]:
        return self.root, self.files, self.storage, self._prove

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def _note_states(self) -> None:
        """Note the state of Arrow shards before anything is read. Their index knows only their size. So another file of
        that size, put there before the first read, would pass for the shard."""
        for number, file in enumerate(self.files):
            if file.kind == "arrow":
                try:
                    status = os.stat(self.path(number))
                except (OSError, DamagedFileError):
                    continue  # reading a row of it raises the error
                self._seen[number] = self._state((status.st_size, status.st_mtime_ns, status.st_ctime_ns))

    def _state(self, state: tuple[object, ...]) -> tuple[object, ...]:
        """The values that tell a changed file here. The last, the time of the inode, counts only if bytes can be
        proved."""
        return state if self._prove else state[:2]

    @property
    def is_remote(self) -> bool:
        return not isinstance(self.storage, LocalStorage)

    def path(self, number: int) -> str:
        """The path of file ``number``. Raises DamagedFileError for a name that leads out of the index's root."""
        return self._inside(self.files[number].path)

    def get(self, number: int) -> Handle:
        """The file, opened and checked.

        Raises IndexMismatchError if it is not the file that was indexed, ChangedFileError if it has changed since it
        was first opened here, RemovedShardError if only the Hub has it.
        """
        with self._lock:
            handle = self._open.get(number)
            if handle is not None:
                self._open.move_to_end(number)
                return handle
        if not 0 <= number < len(self.files):
            raise DamagedFileError(self.root, "index", f"it names file {number} of {len(self.files)}")
        handle = self._opened(number)
        if handle.mtime_ns is not None and 0 <= time.time_ns() - handle.mtime_ns < _TICK_NS:
            time.sleep(_TICK_NS / 1e9)  # a second write in the same tick would not change the time
            handle = self._opened(number)
        state = self._state(handle.state)
        if self._seen.get(number, state) != state and not (
            self._prove and self._prove(self.files[number].path, handle)
        ):
            raise ChangedFileError(handle.name, "other bytes were written to it, or its time was set")
        if isinstance(handle, LocalHandle):
            handle.strict = self._prove is not None
        with self._lock:
            self._seen[number] = state
            self._open[number] = handle
            while len(self._open) > MOST_OPEN and not self.is_remote:
                self._open.popitem(last=False)
        return handle

    def current(self, number: int) -> Handle:
        """Like ``get``, but checks now that an open file has not changed."""
        handle = self.get(number)
        try:
            handle.check()
        except ChangedFileError as error:
            handle = self._again(number, handle, error)
        return handle

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes. Raises IndexMismatchError if the file is too short, ChangedFileError if it has
        changed."""
        handle = self._open.get(number) or self.get(number)
        if offset < 0 or size < 0 or offset + size > handle.size:
            raise IndexMismatchError(handle.name, f"bytes {offset:,} to {offset + size:,} of its {handle.size:,}")
        try:
            data = handle.read_at(offset, size)
        except ChangedFileError as error:
            handle = self._again(number, handle, error)
            data = handle.read_at(offset, size)
        while len(data) != size:  # network storage may return only a part
            more = handle.read_at(offset + len(data), size - len(data))
            if not more:
                raise IndexMismatchError(handle.name, f"it ends at byte {offset + len(data):,}")
            data += more
        return data

    def _opened(self, number: int) -> Handle:
        try:
            return self._checked(self.path(number), self.files[number].check)
        except IndexMismatchError as error:
            if url := self._pushed_to(number):
                raise RemovedShardError(self.path(number), url) from error
            raise

    def _again(self, number: int, changed: Handle, error: ChangedFileError) -> Handle:
        """Reopen a file that has changed. Raises IndexMismatchError unless it holds the same bytes, and ``error`` if
        that cannot be proved."""
        if self._prove is None:
            raise error
        with self._lock:
            if self._open.get(number) is changed:
                del self._open[number]
        return self.get(number)

    def read_member(self, number: int, path: str, size: int, offset: int) -> bytes:
        """A whole file of a folder. File ``number`` is that folder. ``path`` is below its side, raw/ or captions/.
        ``offset``: the row's offset. It holds the modification time (ns) if the folder's check says so. Raises
        IndexMismatchError."""
        folder = self.files[number]
        side = folder.path.split("/")[0]
        timed = folder.check.get("offset") == "mtime_ns"
        handle = self._checked(
            self._inside(f"{side}/{path}"), {"size": size, "mtime_ns": offset} if timed else {"size": size}
        )
        return handle.read_at(0, size)

    def _inside(self, path: str) -> str:
        if ".." in path.split("/"):  # a stranger's index must not make us read other files
            raise DamagedFileError(self.root, "index", f"it names {shlex.quote(path)}, outside of its folder")
        return join(self.root, path)

    def _pushed_to(self, number: int) -> str | None:
        """The repository that has file ``number``, if the file was removed here because it was pushed there."""
        name = self.files[number].path
        if not isinstance(self.storage, LocalStorage) or os.path.exists(self.path(number)):
            return None
        from builder.store.pushed import PushRecords  # a reader that finds its files does not need it

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
                raise  # this says nothing about the file itself
            if error.__cause__ is not None:
                refuse_denied(path, error.__cause__)
            raise IndexMismatchError(path, str(error).removeprefix(f"{shlex.quote(path)}: ")) from error
        return handle


def describe_difference(handle: Handle, check: dict[str, Any]) -> str | None:
    """The difference between a file and the one that was indexed, in words. None if there is none."""
    size, footer, mtime = check.get("size"), check.get("footer"), check.get("mtime_ns")
    if size is not None and size != handle.size:
        pointer = 64 <= handle.size < 1024 and is_pointer(handle.read_at(0, 64))
        fetched = "; it is a Git LFS pointer, not the file: run git lfs pull" if pointer else ""
        return f"{handle.size:,} bytes, {size:,} when it was indexed{fetched}"
    if footer is not None and footer != parquet_footer_digest(handle):
        return "it has another footer"
    if mtime is not None and handle.mtime_ns is not None and mtime != whole_time(handle.mtime_ns):
        return "it was modified since it was indexed"
    return None


def parquet_footer_digest(handle: Handle) -> str | None:
    """xxh3-128 (hex) of a Parquet file's footer with its length and magic. None if there is no whole footer. Unlike
    ``footer_check`` it makes one request, not two."""
    tail = handle.read_at(max(0, handle.size - _TAIL), min(_TAIL, handle.size))
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != b"PAR1" or length > handle.size - 4:
        return None
    footer = tail[-length:] if length <= len(tail) else handle.read_at(handle.size - length, length)
    return xxhash.xxh3_128_hexdigest(footer)
