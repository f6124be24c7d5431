"""Images that came over a network, kept on this machine's disk: within a bound, for any number of processes.

One file for each image: ``CACHE_DIR/3f/3fa9….img``, its bytes and then their xxh3-128. A file is written under another
name and renamed, so none is ever seen half-written, and the same image written twice is the same file. Whoever writes
enough looks, one process at a time, whether the folder has outgrown its bound, and deletes what was used least lately.
(fsspec's caches keep whole files of hundreds of MB, or blocks in one sparse file whose map of blocks two processes
overwrite for each other; neither has a bound.)
"""

from __future__ import annotations

import fcntl
import os
import shlex
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import xxhash

from builder.base.errors import OptionError
from builder.base.schema import IndexedFile
from builder.read.handles import Handles, Storage

DEFAULT_BYTES = 100_000_000_000
_DIGEST = 16  # bytes
_ENDING = ".img"
_UNFINISHED = "new-"
_HOUR = 3600  # seconds


class LocalCache:
    """Bytes by key. Thread-safe, safe under many processes, picklable."""

    def __init__(self, folder: str, most: int) -> None:
        """``most``: bytes of all files together. Raises OptionError where the folder cannot be written."""
        if most < 1:
            raise OptionError("cache_bytes", most, "1 or more")
        self.folder, self.most = folder, most
        self._unseen = most  # bytes written since the folder was looked at: it is looked at with the first one
        self._full = False
        try:
            os.makedirs(folder, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise OptionError("cache_dir", folder, f"cannot be written: {error.strerror}") from None

    def get(self, key: str) -> bytes | None:
        """What was put under the key; None where it is not there any more, or was damaged."""
        path = self._path(key)
        try:
            with open(path, "rb") as file:
                content = file.read()
            data = content[:-_DIGEST]
            if xxhash.xxh3_128_digest(data) == content[-_DIGEST:]:
                os.utime(path)  # used
                return data
            os.unlink(path)
        except OSError:  # evicted meanwhile, for one
            pass
        return None

    def put(self, key: str, data: bytes) -> None:
        """Keep ``data``, if the disk takes it."""
        path = self._path(key)
        temporary = ""
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=_UNFINISHED)
            with open(handle, "wb") as file:
                file.write(data)
                file.write(xxhash.xxh3_128_digest(data))
            os.replace(temporary, path)
            self._unseen += len(data) + _DIGEST
            if self._unseen >= self.most // 100:  # so many processes may write at once before one looks
                self._unseen = 0
                self._shrink()
        except OSError as error:
            with suppress(OSError):
                os.unlink(temporary)
            if not self._full:
                self._full = True
                warnings.warn(f"{shlex.quote(self.folder)} takes no more images: {error.strerror}", stacklevel=2)

    def _path(self, key: str) -> str:
        name = xxhash.xxh3_128_hexdigest(key.encode("utf-8", "surrogateescape"))
        return os.path.join(self.folder, name[:2], name + _ENDING)

    def _shrink(self) -> None:
        """Delete what was used least lately until nine tenths of the bound are left, unless another process is at
        it."""
        with open(os.path.join(self.folder, "lock"), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return
            found = sorted(_files(self.folder))
            size = sum(length for _, length, _ in found)
            if size <= self.most * 0.9:
                return
            for _, length, path in found:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                size -= length
                if size <= self.most * 0.8:
                    return


def _files(folder: str) -> list[tuple[int, int, str]]:
    """When each file was used, its bytes, its path. Of unfinished files those that somebody may be writing are not
    among them."""
    found = []
    for below in [entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]:
        for entry in os.scandir(below):
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if entry.name.startswith(_UNFINISHED) and time.time() - status.st_mtime < _HOUR:
                    continue
                found.append((status.st_mtime_ns, status.st_size, entry.path))
    return found


class CachedHandles(Handles):
    """Files of which what was read is kept on this machine. What is kept needs no request, not even to open a file."""

    def __init__(self, cache: LocalCache, *of: Any) -> None:
        super().__init__(*of)
        self.cache = cache

    def __getstate__(self) -> tuple[Any, ...]:
        return self.cache, *super().__getstate__()

    def read(self, number: int, offset: int, size: int) -> bytes:
        data = self.kept(number, offset, size)
        if data is None:
            data = super().read(number, offset, size)
            self.keep(number, offset, size, data)
        return data

    def kept(self, number: int, offset: int, size: int) -> bytes | None:
        """The bytes, if they are here."""
        data = self.cache.get(self._key(number, offset, size))
        return data if data is not None and len(data) == size else None

    def keep(self, number: int, offset: int, size: int, data: bytes) -> None:
        self.cache.put(self._key(number, offset, size), data)

    def _key(self, number: int, offset: int, size: int) -> str:
        """A footer tells a file's content from any other; where there is none, what the store says of it."""
        file = self.files[number]
        content = file.check["footer"] if "footer" in file.check else repr((self.path(number), self.get(number).state))
        return f"{content}\n{offset}\n{size}"


def handles_of(root: str, files: Sequence[IndexedFile], storage: Storage | None) -> Handles:
    """The files of an index, with the cache that their storage has."""
    cache = getattr(storage, "cache", None)
    return CachedHandles(cache, root, files, storage) if cache else Handles(root, files, storage)
