"""Files that get their final name only when they are whole and on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar

import xxhash

from builder.base.errors import WriteError

_MOST_PIECES = 1024  # IOV_MAX of Linux and macOS


class NewFile(Protocol):
    """A file that is written from front to back. Nobody sees it under its final name before ``close`` returns."""

    @property
    def position(self) -> int:
        """Bytes written so far."""

    def write(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Append all pieces. The caller may change them afterwards. Raises WriteError."""

    def close(self) -> str:
        """Finish the file under its final name. Returns the xxh3-128 of all its bytes, hex. Raises WriteError."""

    def abort(self) -> None:
        """Give the file up. Raises nothing: the caller is already raising an error."""


class Unfinished(Protocol):
    """A file, or several, that can still be given up."""

    def abort(self) -> None: ...


AnyUnfinished = TypeVar("AnyUnfinished", bound=Unfinished)


@contextmanager
def whole(file: AnyUnfinished) -> Iterator[AnyUnfinished]:
    """A block that writes ``file``, and closes it itself. An error in it gives the file up."""
    try:
        yield file
    except BaseException:
        file.abort()
        raise


class OutputFile:
    """A new file on this machine's disks. Its checksum is computed while it is written.

    Written at ``path``. If ``final`` is given, the file is renamed to it on close, and removed on abort. ``sync``: the
    bytes are on disk before the file gets its final name. Without it, other processes still see only a whole file, but
    a power cut may lose it. Raises WriteError if the system refuses.
    """

    def __init__(self, path: str, final: str | None = None, *, sync: bool = True) -> None:
        self.path = path
        self._sync = sync
        self.position = 0
        self._final = final
        self._digest = xxhash.xxh3_128()
        try:
            self._fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise WriteError(path, error.strerror) from error

    def write(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Append all pieces with as few system calls as possible."""
        update = self._digest.update
        size = 0
        for piece in pieces:
            update(piece)
            size += len(piece)
        try:
            for first in range(0, len(pieces), _MOST_PIECES):
                self._write_some(pieces[first : first + _MOST_PIECES])
        except OSError as error:
            raise WriteError(self.path, error.strerror) from error
        self.position += size

    def _write_some(self, pieces: Sequence[bytes | memoryview]) -> None:
        left = sum(map(len, pieces)) - os.writev(self._fd, pieces)
        if left:  # a full disk, a signal or a 2 GiB limit: go on until the system raises an error or is done
            rest = b"".join(pieces)[-left:]
            while rest:
                rest = rest[os.write(self._fd, rest) :]

    def close(self) -> str:
        """Sync to disk, then rename to the final name. Returns the xxh3-128 of all bytes written, hex."""
        fd, self._fd = self._fd, -1
        try:
            try:
                if self._sync:
                    os.fsync(fd)
            finally:
                os.close(fd)  # the last point at which network disks report a full quota
        except OSError as error:
            raise WriteError(self.path, error.strerror) from error
        if self._final is not None:
            publish(self.path, self._final, sync=self._sync)
        return self._digest.hexdigest()

    def abort(self) -> None:
        """Close the handle, and delete the file if it has a final name. Raises nothing: the caller is already raising
        an error."""
        if self._fd >= 0:
            with suppress(OSError):
                os.close(self._fd)
            self._fd = -1
        if self._final is not None:
            with suppress(OSError):
                os.unlink(self.path)


class ArrowSink:
    """A NewFile with the methods that pyarrow calls. ``close`` does not close the NewFile."""

    closed = False

    def __init__(self, file: NewFile) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        self._file.write([data])
        return len(data)

    def tell(self) -> int:
        return self._file.position

    def flush(self) -> None:
        """Does nothing: no bytes are buffered here."""

    def close(self) -> None:
        """Does nothing: whoever opened the file closes it."""


def publish(temporary: str, final: str, *, sync: bool = True) -> None:
    """Rename a whole, synced file to its final name, and sync the name. Raises WriteError."""
    try:
        os.makedirs(os.path.dirname(final), exist_ok=True)
        os.replace(temporary, final)
        if not sync:
            return
        folder = os.open(os.path.dirname(final), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise WriteError(final, error.strerror) from error


def write_file(path: str, pieces: Sequence[bytes | memoryview], temporary: str | None = None) -> str:
    """Write and publish a whole file. Returns its xxh3-128, hex. ``temporary``: the path to write at, on the same disk.
    The default is beside ``path``."""
    temporary = temporary or f"{path}.tmp"
    make_folder(os.path.dirname(temporary))
    return write_whole(OutputFile(temporary, path), pieces)


def write_whole(file: NewFile, pieces: Sequence[bytes | memoryview]) -> str:
    """Write and publish a whole file. Returns its xxh3-128, hex. Raises WriteError."""
    with whole(file):
        file.write(pieces)
        return file.close()


def make_folder(path: str) -> None:
    """``mkdir -p``. Raises WriteError."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise WriteError(path, error.strerror) from error
