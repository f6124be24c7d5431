"""OUT as a folder: on this machine's disks, or behind a URL (store/remote.py). Names are relative to it, with ``/``."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from builder.base import schema
from builder.base.errors import AccessError, WriteError
from builder.base.paths import path_of
from builder.base.urls import StorageOptions, is_url
from builder.store.output import NewFile, OutputFile, make_folder, write_whole


class Folder(Protocol):
    """A folder in which files only ever appear whole. Picklable. Several processes may call each method at once."""

    @property
    def root(self) -> str:
        """Its path or URL."""

    def create(self, name: str) -> NewFile:
        """A new file. On close it replaces a file of the same name. Raises WriteError."""

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file; None if it does not exist."""

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """The bytes of small files; None for each that does not exist."""

    def sizes(self, name: str) -> dict[str, int]:
        """Name → size in bytes, of the files directly in a folder. Empty if the folder does not exist."""

    def local(self, name: str) -> str:
        """A path on this machine that has the file's bytes, for memory-mapping. Raises FileNotFoundError."""

    def remove(self, name: str) -> None:
        """Delete a file, or a folder with all its content. Does nothing if it does not exist."""


class LocalFolder:
    """A folder on this machine's disks. Other processes may use it too.

    ``work_lasts``: a later run may continue from the bookkeeping, so each file in it is synced to disk before a receipt
    names it. False: the bookkeeping is not synced, as no later run needs it.
    """

    def __init__(self, root: str, *, work_lasts: bool = True) -> None:
        self.root = root
        self._work_lasts = work_lasts

    def path(self, name: str) -> str:
        return os.path.join(self.root, *name.split("/"))

    def create(self, name: str) -> NewFile:
        # The name is this process's own: a task that was given up for dead with its node may still be writing.
        mine = f"{name.replace('/', '-')}.{socket.gethostname()}-{os.getpid()}"
        temporary = os.path.join(self.root, schema.WORK, "tmp", mine)
        make_folder(os.path.dirname(temporary))
        lasts = self._work_lasts or not name.startswith(f"{schema.WORK}/")
        return OutputFile(temporary, self.path(name), sync=lasts)

    def read(self, name: str) -> bytes | None:
        try:
            with open(self.path(name), "rb") as handle:
                return handle.read()
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise AccessError(self.path(name), error.strerror) from error

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        return [self.read(name) for name in names]

    def sizes(self, name: str) -> dict[str, int]:
        try:
            with os.scandir(self.path(name)) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except PermissionError as error:
            raise AccessError(self.path(name), error.strerror) from error

    local = path

    def remove(self, name: str) -> None:
        path = self.path(name)
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
            return
        try:
            with suppress(FileNotFoundError):
                os.unlink(path)
        except OSError as error:
            raise WriteError(path, error.strerror) from error


def open_folder(out: str | Folder, options: Mapping[str, Any] | StorageOptions | None = None) -> Folder:
    """The folder at a path or URL. ``options``: for the file system behind a URL. Raises SourceError, OptionError."""
    if not isinstance(out, str):
        return out
    out = path_of(out)
    if is_url(out):
        from builder.store.remote import RemoteFolder  # late: it imports fsspec, which local work does not need

        return RemoteFolder(out, StorageOptions.of(options))
    return LocalFolder(out)


def write(folder: Folder, name: str, pieces: Sequence[bytes | memoryview]) -> str:
    """Write a whole file. Returns its xxh3-128, hex. Raises WriteError."""
    return write_whole(folder.create(name), pieces)
