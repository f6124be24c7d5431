"""A dataset behind a URL: its index is fetched once and kept, then each sample is one range request."""

from __future__ import annotations

import contextlib
import os
import tempfile

import xxhash

from builder.base import schema
from builder.base.errors import SourceError
from builder.base.storage import Storage, read_range
from builder.base.urls import join, say
from builder.read.cache import cache_folder
from builder.read.handles import Handle
from builder.store.seals import file_digest


class RemoteStorage(Storage):
    """Files behind URLs. Picklable and safe after fork."""

    threads = 16
    gap = 64 << 10  # at 50 MB a second 1.3 ms, less than a request takes

    def join(self, root: str, path: str) -> str:
        return join(root, path)

    def open(self, path: str) -> Handle:
        return RemoteHandle(self, path)


class RemoteHandle:
    """One file behind a URL. Thread-safe: every read is a request of its own."""

    def __init__(self, storage: RemoteStorage, url: str) -> None:
        self.name = url
        self._storage = storage
        try:
            size = storage.look(url).size
        except FileNotFoundError:
            raise SourceError(f"{url}: not found") from None
        if size is None:
            raise SourceError(f"{url}: the server does not say how long it is")
        self.size: int = size

    def read_at(self, offset: int, length: int) -> bytes:
        try:
            return self._storage.ask(self.name, lambda system, path: read_range(system, path, offset, offset + length))
        except FileNotFoundError:
            raise SourceError(f"{self.name}: not found") from None

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass  # nothing is open between requests

    @property
    def state(self) -> object:
        return self.size

    @property
    def mtime_ns(self) -> int | None:
        return None  # storage that says it says it in its own way; the size and the footer have to do


def fetch_index(url: str, storage: RemoteStorage) -> str:
    """The path of a local copy of the dataset's index, as of :func:`fetch`. Raises SourceError."""
    try:
        return fetch(url, storage, schema.INDEX)
    except FileNotFoundError:
        raise SourceError(f"{url} has no {schema.INDEX}. Download the folder to read it without one.") from None


def fetch(url: str, storage: RemoteStorage, name: str) -> str:
    """The path of a local copy of the file ``name`` below ``url``, fetched now unless it was before: anew each time
    from a server that says nothing by which another file of the same size could be told. Raises SourceError,
    FileNotFoundError."""
    place = storage.join(url, name)
    ending = os.path.splitext(name)[1]
    found = storage.look(place)
    folder = cache_folder()
    known = xxhash.xxh3_128_hexdigest(repr([place, found.size, found.version]).encode()) if found.version else None
    if known and os.path.exists(kept := os.path.join(folder, known + ending)):
        return kept
    handle, temporary = tempfile.mkstemp(dir=folder)
    os.close(handle)
    try:
        storage.ask(place, lambda system, path: system.get_file(path, temporary))
        # Under its content's name, where nothing else tells: what a reader of before has open stays as it is.
        kept = os.path.join(folder, (known or file_digest(temporary)) + ending)
        if not os.path.exists(kept):
            os.replace(temporary, kept)
    except OSError as error:
        raise SourceError(f"cannot fetch {place}: {type(error).__name__}: {say(error)}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return kept


def names_in(url: str, storage: RemoteStorage, folder: str) -> list[str]:
    """Names of what lies in a folder below ``url``; none where it is not there, or the server does not list.
    Raises SourceError."""
    place = storage.join(url, folder)
    try:
        found = storage.ask(place, lambda system, path: system.ls(path, detail=False))
    except (FileNotFoundError, NotADirectoryError, NotImplementedError):
        return []
    return [str(name).rstrip("/").rpartition("/")[2] for name in found]
