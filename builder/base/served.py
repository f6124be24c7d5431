"""Serves bytes of this package as files of an fsspec file system, for libraries that open files by address.

Imported late: it imports fsspec, which local work does not need.
"""

from __future__ import annotations

import errno
import io
import os
from typing import Any

import fsspec

from builder.base.errors import SourceError


class AddressError(SourceError, FileNotFoundError):
    """An address has no file. fsspec expects a FileNotFoundError here. Args as in OSError: ENOENT, why, address."""

    @staticmethod
    def of(address: str, why: str) -> AddressError:
        return AddressError(errno.ENOENT, why, address)

    def _words(self) -> str:
        return f"{self.filename}: {self.strerror}"


class ServedFile(io.BytesIO):
    """A file in memory. ``size``: bytes. fsspec needs it to read blocks and the end of a file."""

    def __init__(self, data: bytes, name: str = "") -> None:
        super().__init__(data)
        self.size, self.name = len(data), name


class ServedFiles(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A read-only file system. A subclass sets ``protocol`` and defines ``data``, ``entry`` and ``children``.

    Keeps fsspec's contract: picklable, ``info``, ``ls``, ``find``, ``size``, ``cat_file`` with negative bounds,
    ``read_block``, and FileNotFoundError (:class:`AddressError`) for a missing file.
    """

    root_marker = ""

    def data(self, path: str) -> bytes:
        """The bytes of a file. Raises AddressError."""
        raise NotImplementedError

    def entry(self, path: str) -> dict[str, Any]:
        """``name``, ``type`` ("file" or "directory") and ``size`` of the entry at ``path``. Raises AddressError."""
        raise NotImplementedError

    def children(self, path: str) -> list[dict[str, Any]]:
        """The entries of a directory. Raises AddressError."""
        raise NotImplementedError

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return self.entry(self._strip_protocol(path))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        found = self.info(path)
        entries = [found] if found["type"] == "file" else self.children(found["name"])
        return entries if detail else [entry["name"] for entry in entries]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return self._bytes(path)[start:end]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> ServedFile:
        if mode != "rb":
            raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), self.unstrip_protocol(path))
        return ServedFile(self._bytes(path), path)

    def _bytes(self, path: str) -> bytes:
        found = self.info(path)
        if found["type"] != "file":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.unstrip_protocol(path))
        return self.data(found["name"])
