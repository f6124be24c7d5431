"""A dataset behind a URL: its index is fetched once and kept, then each sample is one range request."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import xxhash

from builder.base import schema
from builder.base.errors import SourceError
from builder.base.urls import entry_of, filesystem, options_for, persist, read_range, say
from builder.read.cache import cache_folder
from builder.read.handles import Handle
from builder.store.seals import file_digest

Answer = TypeVar("Answer")

_PAUSE = 0.5  # seconds before the second try; doubled each time


class RemoteStorage:
    """Files behind URLs that fsspec knows. Picklable and safe after fork: each process makes its own connections."""

    threads = 16
    gap = 64 << 10  # at 50 MB a second 1.3 ms, less than a request takes

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = dict(options or {})
        self._systems: dict[tuple[int, str], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"options": self.options, "_systems": {}}

    def join(self, root: str, path: str) -> str:
        return f"{root.rstrip('/')}/{path}"

    def open(self, path: str) -> Handle:
        return RemoteHandle(self, path)

    def system(self, url: str) -> tuple[Any, str]:
        """The file system of a URL, of this process, and the path in it."""
        scheme = url.partition("://")[0]
        key = (os.getpid(), scheme)
        if key not in self._systems:
            # Not the instance that fsspec keeps: its event loop's thread would not be there after a fork.
            self._systems[key] = filesystem(url, {**options_for(scheme, self.options), "skip_instance_cache": True})[0]
        system = self._systems[key]
        return system, str(system._strip_protocol(url))


class RemoteHandle:
    """One file behind a URL. Thread-safe: every read is a request of its own."""

    def __init__(self, storage: RemoteStorage, url: str) -> None:
        self.name = url
        self._storage = storage
        size = self._ask(lambda system, path: system.info(path)["size"])
        if size is None:
            raise SourceError(f"{url}: the server does not say how long it is")
        self.size: int = size

    def read_at(self, offset: int, length: int) -> bytes:
        return self._ask(lambda system, path: read_range(system, path, offset, offset + length))

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

    def _ask(self, what: Callable[[Any, str], Answer]) -> Answer:
        """Ask, and ask again when the network fails. Raises SourceError."""
        try:
            return persist(self.name, lambda: what(*self._storage.system(self.name)), _PAUSE)
        except FileNotFoundError:
            raise SourceError(f"{self.name}: not found") from None


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
    system, path = storage.system(place)
    found = entry_of(persist(place, lambda: system.info(path), _PAUSE))
    folder = cache_folder()
    known = xxhash.xxh3_128_hexdigest(repr([place, found.size, found.version]).encode()) if found.version else None
    if known and os.path.exists(kept := os.path.join(folder, known + ending)):
        return kept
    handle, temporary = tempfile.mkstemp(dir=folder)
    os.close(handle)
    try:
        persist(place, lambda: system.get_file(path, temporary), _PAUSE)
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
    system, path = storage.system(place)
    try:
        found = persist(place, lambda: system.ls(path, detail=False), _PAUSE)
    except (FileNotFoundError, NotADirectoryError, NotImplementedError):
        return []
    return [str(name).rstrip("/").rpartition("/")[2] for name in found]
