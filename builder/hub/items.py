"""Files to push: their size and checksums, and whether the Hub has them."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import threading
from contextlib import suppress
from dataclasses import dataclass

import xxhash

from builder.base.errors import OutputError, WriteError
from builder.hub.client import RemoteFile
from builder.store.output import make_folder

LEAVE_ALONE = "Do not change OUT during a push. Run the same command again."

_BLOCK = 4 << 20


@dataclass(frozen=True, slots=True)
class Item:
    """A file of the repository. ``file``: its path here. ``data``: its bytes, if it is in no file. Neither: the file
    was deleted after a push, and only ``sha256`` is known. ``digest``: xxh3-128 from the manifest, or "". ``checked``:
    refuse to send a file with another digest."""

    path: str
    size: int
    file: str = ""
    data: bytes | None = None
    sha256: str = ""
    digest: str = ""
    checked: bool = False


def bytes_item(path: str, data: bytes) -> Item:
    return Item(path, len(data), data=data, sha256=hashlib.sha256(data).hexdigest())


def local_item(path: str, file: str, digest: str, *, checked: bool = False) -> Item:
    """Raises OutputError."""
    try:
        return Item(path, os.path.getsize(file), file=file, digest=digest, checked=checked)
    except OSError as error:
        raise cannot_read(file, error) from error


def cannot_read(file: str, error: OSError) -> OutputError:
    return OutputError(
        f"cannot read {shlex.quote(file)}: {error.strerror}. Correct that, then run the same command again."
    )


def not_as_converted(file: str) -> OutputError:
    return OutputError(
        f"{shlex.quote(file)} differs from the file that laion6m convert wrote. Delete it, then run the same laion6m "
        "convert command again."
    )


class Digests:
    """sha256 of local files, by which the Hub knows them. Each file is read once; a file of JSON lines remembers the
    result while size, modification time and manifest checksum stay the same. Thread-safe."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known = _load(path)

    def of(self, item: Item) -> str:
        """sha256, hex. Raises OutputError if the file cannot be read, changes meanwhile, or is ``checked`` and
        differs."""
        if item.sha256:
            return item.sha256
        before = _stamp(item)
        sound, other = (_key(item, before, fits=fits) for fits in (True, False))
        known = self._known.get(sound) or (None if item.checked else self._known.get(other))
        if known is None:
            known, digest = _digests(item.file)
            if _stamp(item) != before:
                raise OutputError(f"{shlex.quote(item.file)} changed while it was read. {LEAVE_ALONE}")
            if item.checked and digest != item.digest:
                raise not_as_converted(item.file)
            self._remember(sound if digest == item.digest else other, known)
        return known

    def sound(self, item: Item) -> bool:
        """Whether the file was read before, matched the manifest, and has not changed since. Reads nothing. Raises
        OutputError."""
        return _key(item, _stamp(item), fits=True) in self._known

    def same(self, item: Item, remote: RemoteFile | None) -> bool:
        """Whether the Hub has exactly this file. Reads the file only if the sizes agree. Raises what ``of`` raises."""
        if remote is None or remote.size != item.size:
            return False
        sha256 = self.of(item)
        return remote.sha256 == sha256 if remote.sha256 else remote.blob == git_blob(item)

    def _remember(self, key: str, sha256: str) -> None:
        with self._lock, suppress(OSError, WriteError):  # not written: the file is read again next time
            self._known[key] = sha256
            make_folder(os.path.dirname(self._path))
            with open(self._path, "ab") as file:
                file.write(b"\n" + json.dumps([key, sha256]).encode())  # ends a line that a kill cut off


def git_blob(item: Item) -> str:
    """git's blob id of a small file, which the Hub keeps in git itself."""
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
        raise cannot_read(item.file, error) from error
    return found.st_size, found.st_mtime_ns


def _digests(path: str) -> tuple[str, str]:
    """sha256 and xxh3-128, hex, in one reading."""
    sha256, xxh3 = hashlib.sha256(), xxhash.xxh3_128()
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                sha256.update(block)
                xxh3.update(block)
    except OSError as error:
        raise cannot_read(path, error) from error
    return sha256.hexdigest(), xxh3.hexdigest()


def _load(path: str) -> dict[str, str]:
    """Skips broken lines: a killed run may leave one, and that file is read again."""
    known: dict[str, str] = {}
    with suppress(OSError), open(path, "rb") as file:
        for line in file:
            with suppress(ValueError, TypeError):
                key, sha256 = json.loads(line)
                known[str(key)] = str(sha256)
    return known
