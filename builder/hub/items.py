"""Files to push: what they are here, and whether the Hub has them."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from contextlib import suppress
from dataclasses import dataclass

import xxhash

from builder.base.errors import OutputError, WriteError
from builder.hub.client import RemoteFile
from builder.store.output import make_folder

_BLOCK = 4 << 20


@dataclass(frozen=True, slots=True)
class Item:
    """A file of the repository. ``file``: where it is on this machine; ``data``: its bytes, where it is in no file.
    With neither it was removed after it had been pushed, and ``sha256`` is all that is left. ``digest``: its xxh3-128
    by the manifest, "" where that has none. ``checked``: a file that has another is not to be sent."""

    path: str
    size: int
    file: str = ""
    data: bytes | None = None
    sha256: str = ""
    digest: str = ""
    checked: bool = False


def bytes_item(path: str, data: bytes) -> Item:
    return Item(path, len(data), data=data, sha256=hashlib.sha256(data).hexdigest())


def not_as_converted(file: str) -> OutputError:
    return OutputError(
        f"{file} is not the file that was converted: run the same laion6m convert again after removing it."
    )


class Digests:
    """sha256 of local files, which the Hub goes by: read once, then remembered in a file of JSON lines for as long as
    size, modification time and the manifest's checksum are the same. Thread-safe."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known = _load(path)

    def of(self, item: Item) -> str:
        """Raises OutputError when the file cannot be read, changes meanwhile, or is ``checked`` and not what it was."""
        if item.sha256:
            return item.sha256
        before = _stamp(item)
        sound, other = (_key(item, before, fits=fits) for fits in (True, False))
        known = self._known.get(sound) or (None if item.checked else self._known.get(other))
        if known is None:
            known, digest = _digests(item.file)
            if _stamp(item) != before:
                raise OutputError(f"{item.file} changed while it was being read. Let OUT rest, then push again.")
            if item.checked and digest != item.digest:
                raise not_as_converted(item.file)
            self._remember(sound if digest == item.digest else other, known)
        return known

    def sound(self, item: Item) -> bool:
        """Whether a file has been read and was what the manifest says, and is the same since. Reads nothing. Raises
        OutputError."""
        return _key(item, _stamp(item), fits=True) in self._known

    def _remember(self, key: str, sha256: str) -> None:
        with self._lock, suppress(OSError, WriteError):  # a folder that cannot be written is read again next time
            self._known[key] = sha256
            make_folder(os.path.dirname(self._path))
            with open(self._path, "ab") as file:
                file.write(b"\n" + json.dumps([key, sha256]).encode())  # a line that was cut ends here


def same(item: Item, sha256: str, remote: RemoteFile | None) -> bool:
    """Whether the Hub has just this file. ``sha256``: of the item."""
    if remote is None or remote.size != item.size:
        return False
    return remote.sha256 == sha256 if remote.sha256 else remote.blob == git_blob(item)


def git_blob(item: Item) -> str:
    """git's id of a file kept in git itself (those are small)."""
    data = item.data
    if data is None:
        with open(item.file, "rb") as file:
            data = file.read()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _key(item: Item, stamp: tuple[int, int], *, fits: bool) -> str:
    return json.dumps([item.path, *stamp, item.digest, fits])


def _stamp(item: Item) -> tuple[int, int]:
    try:
        found = os.stat(item.file)
    except OSError as error:
        raise OutputError(f"cannot read {item.file}: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns


def _digests(path: str) -> tuple[str, str]:
    """sha256 and xxh3-128, hex, of one reading."""
    sha256, xxh3 = hashlib.sha256(), xxhash.xxh3_128()
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                sha256.update(block)
                xxh3.update(block)
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}") from error
    return sha256.hexdigest(), xxh3.hexdigest()


def _load(path: str) -> dict[str, str]:
    """The last line of a run that was killed may be cut: then its file is read again."""
    known: dict[str, str] = {}
    with suppress(OSError), open(path, "rb") as file:
        for line in file:
            with suppress(ValueError, TypeError):
                key, sha256 = json.loads(line)
                known[str(key)] = str(sha256)
    return known
