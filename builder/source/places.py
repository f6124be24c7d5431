"""List and read a source's folders, local or behind a URL, in one way."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from builder.base.errors import SourceError
from builder.base.urls import StorageOptions, is_url, join


@dataclass(frozen=True, slots=True)
class Item:
    """A file or folder. ``name``: text that can be encoded. ``path``: for opening it. ``size`` and ``version``: as in
    :class:`Archive`; None if not asked for yet."""

    name: str
    path: str
    is_folder: bool
    size: int | None = None
    version: int | None = None


class LocalPlace:
    """A folder on this machine."""

    remote = False

    def __init__(self, root: str) -> None:
        self.root = root

    def entries(self, path: str, most: int | None = None) -> list[Item]:
        """The entries of a folder, by name. If there are more than ``most``, any that many. Raises SourceError."""
        try:
            with os.scandir(path) as found:
                entries = list(islice(found, most))
        except OSError as error:
            raise cannot_read(path, error) from error
        entries.sort(key=lambda entry: os.fsencode(entry.name))
        return [Item(_text(entry.name), entry.path, _is_folder(entry)) for entry in entries]

    def looked_at(self, item: Item) -> Item:
        """The same item with size and version. Raises SourceError if it is no readable file."""
        if not (item.is_folder or os.path.isfile(item.path)):  # a dangling link, or a pipe that would never answer
            raise SourceError(f"cannot read {shlex.quote(item.path)}: it is a broken link or a special file")
        try:
            status = os.stat(item.path)
        except OSError as error:
            raise cannot_read(item.path, error) from error
        return Item(item.name, item.path, item.is_folder, 0 if item.is_folder else status.st_size, status.st_mtime_ns)

    def head(self, item: Item, length: int) -> bytes:
        """Its first bytes; none if it cannot be read."""
        try:
            if not os.path.isfile(item.path):
                return b""
            with open(item.path, "rb") as handle:
                return handle.read(length)
        except OSError:
            return b""


class RemotePlace:
    """A folder behind a URL, with the same methods."""

    remote = True

    def __init__(self, root: str, options: StorageOptions) -> None:
        from builder.base.storage import Storage

        self.root = root
        self._storage = Storage(options)

    def entries(self, path: str, most: int | None = None) -> list[Item]:
        found = [
            Item(entry.name, join(path, entry.name), entry.is_folder, entry.size, entry.version)
            for entry in self._storage.entries(path)
        ]
        return sorted(found, key=lambda item: item.name.encode())

    def looked_at(self, item: Item) -> Item:
        if item.size is None and not item.is_folder:  # an HTML listing has only names
            entry = self._storage.look(item.path)
            if entry.size is None:
                raise SourceError(
                    f"{shlex.quote(item.path)}: the server does not say how long it is. Download it first."
                )
            return Item(item.name, item.path, False, entry.size, entry.version)
        return item

    def head(self, item: Item, length: int) -> bytes:
        from builder.base.storage import read_range

        try:
            end = min(length, self.looked_at(item).size or 0)
            return self._storage.ask(item.path, lambda system, path: read_range(system, path, 0, end)) if end else b""
        except (SourceError, OSError):
            return b""


Place = LocalPlace | RemotePlace
"""A source's location."""


def place_of(path: str, storage: StorageOptions) -> Place:
    """The place of a path or URL."""
    return RemotePlace(path.rstrip("/"), storage) if is_url(path) else LocalPlace(path)


def cannot_read(path: str, error: OSError) -> SourceError:
    """The error for a file or folder of a source that the system does not let us read."""
    reason = error.strerror or "it is not there"
    return SourceError(f"cannot read {shlex.quote(os.fsdecode(path))}: {reason}")


def files_below(place: Place, path: str, deepest: int, most: int) -> Iterator[Item]:
    """Files below a folder: ``deepest`` levels down, from at most ``most`` folders. Unreadable folders are left out."""
    waiting = [(path, 0)]
    looked = 0
    while waiting and looked < most:
        here, depth = waiting.pop(0)
        looked += 1
        try:
            items = place.entries(here)
        except SourceError:
            continue
        for item in items:
            if not item.is_folder:
                yield item
            elif depth < deepest:
                waiting.append((item.path, depth + 1))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _text(name: str) -> str:
    """A file's name as text for tables and JSON."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
