"""OUT as a folder: on this machine's disks, or (store/remote.py) behind a URL. Names are relative to it, with ``/``."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from builder.base import schema
from builder.base.errors import WriteError, refuse_denied
from builder.base.paths import path_of
from builder.base.urls import StorageOptions, is_url
from builder.store.output import NewFile, OutputFile, make_folder, write_whole


class Folder(Protocol):
    """A folder that files are written into whole. Picklable; each method is safe to call from several processes."""

    @property
    def root(self) -> str:
        """Its path or URL."""

    def create(self, name: str) -> NewFile:
        """A new file, which takes the place of one of that name when it is closed. Raises WriteError."""

    def read(self, name: str) -> bytes | None:
        """A small file, whole; None where there is none."""

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """Small files, whole; None where there is none."""

    def sizes(self, name: str) -> dict[str, int]:
        """Files that lie directly in a folder, by their own names, and their bytes; nothing where there is none."""

    def local(self, name: str) -> str:
        """A path on this machine at which a file's bytes are, to be mapped. Raises FileNotFoundError."""

    def remove(self, name: str) -> None:
        """A file, or a folder with all that is in it; nothing happens where there is none."""


class LocalFolder:
    """A folder on this machine's disks, which others may share. ``work_lasts``: a later run may go on with what lies in
    its bookkeeping, which must be on disk before a receipt says so; else nothing there is worth waiting for a disk."""

    def __init__(self, root: str, *, work_lasts: bool = True) -> None:
        self.root = root
        self._work_lasts = work_lasts

    def path(self, name: str) -> str:
        return os.path.join(self.root, *name.split("/"))

    def create(self, name: str) -> NewFile:
        # Of this process alone: a task that was given up for dead, with its node, may still be writing.
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
            refuse_denied(self.path(name), error)
            raise

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        return [self.read(name) for name in names]

    def sizes(self, name: str) -> dict[str, int]:
        try:
            with os.scandir(self.path(name)) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except PermissionError as error:
            refuse_denied(self.path(name), error)
            raise

    def local(self, name: str) -> str:
        return self.path(name)

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
    """The folder at a path or URL; ``options``: of the file system behind a URL. Raises SourceError, OptionError."""
    if not isinstance(out, str):
        return out
    out = path_of(out)
    if is_url(out):
        from builder.store.remote import RemoteFolder  # with fsspec, which local work does not need

        return RemoteFolder(out, StorageOptions.of(options))
    return LocalFolder(out)


def write(folder: Folder, name: str, pieces: Sequence[bytes | memoryview]) -> str:
    """Write a whole file at once; returns its xxh3-128, hex. Raises WriteError."""
    return write_whole(folder.create(name), pieces)
