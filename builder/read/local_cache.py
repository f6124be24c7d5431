"""A disk cache for images that came over a network. It has a size limit. Any number of processes can share it.

Each image is one file, ``CACHE_DIR/3f/3fa9….img``: its bytes, then their xxh3-128. A file is written under another name
and then renamed, so nobody sees a half-written file. An image that is written twice is still one file.

A process that has written enough checks the size of the folder, one process at a time. If it is over the limit, the
process deletes the least recently used files.

Why this is not a library's cache (fsspec 2026.9, huggingface_hub 2.4): none has a size limit, so none fits a disk that
is smaller than the dataset. And two of fsspec's are not safe. ``simplecache`` downloads to the final name. If a process
is killed, or still downloads, others read a part of a file as the whole file. ``blockcache`` marks blocks by path.
After a remote file had changed, it gave 6 old blocks and 14 new ones, even with ``check_files=True``. ``filecache`` and
huggingface_hub download whole shards: hundreds of MB for one image.
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
from builder.read.handles import Handles, Prove, Storage

DEFAULT_BYTES = 100_000_000_000
_DIGEST = 16  # bytes
_ENDING = ".img"
_UNFINISHED = "new-"
_HOUR = 3600  # seconds


class LocalCache:
    """Bytes by key. Thread-safe, safe under many processes, picklable."""

    def __init__(self, folder: str, most: int) -> None:
        """``most``: the most bytes of all files together. Raises OptionError if the folder cannot be written."""
        if most < 1:
            raise OptionError("cache_bytes", most, "it must be 1 or more")
        self.folder, self.most = folder, most
        self._unseen = most  # bytes written since the last check; full at first, so the first write checks
        self._full = False
        try:
            os.makedirs(folder, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise OptionError("cache_dir", folder, f"cannot be written: {error.strerror}") from None

    def get(self, key: str) -> bytes | None:
        """The bytes put under the key. None if they were deleted or are damaged."""
        path = self._path(key)
        try:
            with open(path, "rb") as file:
                content = file.read()
            data = content[:-_DIGEST]
            if xxhash.xxh3_128_digest(data) == content[-_DIGEST:]:
                os.utime(path)  # mark it as used now
                return data
            os.unlink(path)
        except OSError:  # for example, another process has deleted it
            pass
        return None

    def put(self, key: str, data: bytes) -> None:
        """Keep ``data``. Warns once if the disk refuses it, such as a full disk."""
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
            if self._unseen >= self.most // 100:  # 1/100 of the limit: many processes may write before one checks
                self._unseen = 0
                self._shrink()
        except OSError as error:
            with suppress(OSError):
                os.unlink(temporary)
            if not self._full:
                self._full = True
                warnings.warn(f"{shlex.quote(self.folder)} keeps no more images: {error.strerror}", stacklevel=2)

    def _path(self, key: str) -> str:
        name = xxhash.xxh3_128_hexdigest(key.encode("utf-8", "surrogateescape"))
        return os.path.join(self.folder, name[:2], name + _ENDING)

    def _shrink(self) -> None:
        """If the files take over 90 % of the limit, delete the least recently used until they take 80 %. Does nothing
        while another process does this."""
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
    """Each file's last use (ns), bytes and path. Unfinished files younger than an hour are left out: somebody may be
    writing them."""
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
    """Files behind a URL whose reads are kept on this machine. A kept read needs no request but the two that open its
    file, once in each process."""

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
        """The bytes if they are kept here, else None."""
        data = self.cache.get(self._key(number, offset, size))
        return data if data is not None and len(data) == size else None

    def keep(self, number: int, offset: int, size: int, data: bytes) -> None:
        self.cache.put(self._key(number, offset, size), data)

    def _key(self, number: int, offset: int, size: int) -> str:
        """The cache key. ``state`` names the version that was opened, such as its ETag. So old and new bytes of a file
        never mix, not even if size and footer stay the same."""
        return repr((self.files[number].check, self.get(number).state, offset, size))


def handles_of(root: str, files: Sequence[IndexedFile], storage: Storage | None, prove: Prove | None = None) -> Handles:
    """The files of an index, with their storage's cache if it has one. ``prove``: as for ``Handles``."""
    cache = getattr(storage, "cache", None)
    return CachedHandles(cache, root, files, storage) if cache else Handles(root, files, storage, prove)
