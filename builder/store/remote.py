"""OUT behind a URL. Object stores have no rename: a file is sent in parts, and appears when all parts have arrived."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import xxhash

from builder.base.errors import OutputError, SourceError, WriteError
from builder.base.storage import Storage
from builder.base.urls import Chain, StorageOptions, join
from builder.store.output import NewFile

PART = 16 << 20
"""Bytes of one part. S3 takes up to 10,000 parts of at least 5 MiB, so a file may have 160 GB. A shard has 500 MB."""
_UNDER_WAY = 2  # parts in memory while they are sent; the caller writes on meanwhile
_AT_ONCE = 16  # small objects fetched together

_READ_ONLY = {"http", "https", "data", "git", "github", "jlab", "laion6m", "libarchive", "reference", "tar", "zip"}
_HALF_WRITTEN = {"arrow_hdfs", "dbfs", "ftp", "ftps", "hdfs", "sftp", "smb", "ssh", "webhdfs"}


class RemoteFolder:
    """A folder behind a URL. ``local`` downloads files into a temporary folder, which is deleted with this object."""

    def __init__(self, url: str, options: StorageOptions) -> None:
        """Raises OutputError for a URL that cannot be written to."""
        chain = Chain.of(url)
        if len(chain.links) > 1 or chain.scheme in _READ_ONLY:
            raise OutputError(
                f"{url} can only be read. Give a folder, or a store that can be written to, such as s3://…"
            )
        if chain.scheme in _HALF_WRITTEN:
            raise OutputError(
                f"{url}: others see a file of {chain.scheme}:// while it is half written. So this tool does not write "
                "there. Convert into a folder of this machine, then copy it."
            )
        self.root = url.rstrip("/")
        self._storage = Storage(options)
        self._scratch: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scratch": None}  # a copy makes a temporary folder of its own

    def url(self, name: str) -> str:
        return join(self.root, name)

    def create(self, name: str) -> NewFile:
        return RemoteOutputFile(self.url(name), self._storage)

    def read(self, name: str) -> bytes | None:
        return self._storage.read(self.url(name))

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(self.read, names))

    def sizes(self, name: str) -> dict[str, int]:
        entries = self._storage.entries(self.url(name))
        return {entry.name: entry.size or 0 for entry in entries if not entry.is_folder}

    def local(self, name: str) -> str:
        if self._scratch is None:
            self._scratch = tempfile.mkdtemp(prefix="laion6m-")
            weakref.finalize(self, _remove_mine, self._scratch, os.getpid())
        path = os.path.join(self._scratch, name.replace("/", "-"))
        if not os.path.exists(path):
            temporary = f"{path}.tmp"
            self._storage.ask(self.url(name), lambda system, place: system.get_file(place, temporary))
            os.replace(temporary, path)
        return path

    def remove(self, name: str) -> None:
        def removed(system: Any, path: str) -> None:
            with suppress(FileNotFoundError):
                system.rm(path, recursive=True)
            system.invalidate_cache()

        self._storage.ask(self.url(name), removed)
        if self._scratch is not None:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self._scratch, name.replace("/", "-")))


def _remove_mine(scratch: str, owner: int) -> None:
    """Delete the temporary folder, but only in the process that made it. A forked worker has a copy of the object."""
    if os.getpid() == owner:
        shutil.rmtree(scratch, ignore_errors=True)


class RemoteOutputFile:
    """A new object. Its own thread sends one part while the next is filled. Memory: four parts."""

    def __init__(self, url: str, storage: Storage) -> None:
        self.path = url
        self.position = 0
        self._storage = storage
        self._digest = xxhash.xxh3_128()
        self._part = bytearray()
        self._under_way: deque[Future[None]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="laion6m-send")
        self._handle: Any = None

    def write(self, pieces: Sequence[bytes | memoryview]) -> None:
        for piece in pieces:
            self._digest.update(piece)
            self._part += piece
            self.position += len(piece)
            if len(self._part) >= PART:
                self._send()

    def close(self) -> str:
        self._send()
        try:
            self._wait(0)
            self._under_way.append(self._thread.submit(self._finish))  # not before all parts have arrived
            self._wait(0)
        finally:
            self._thread.shutdown()
        return self._digest.hexdigest()

    def abort(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(Exception):  # if the store hears nothing, it drops the upload by its own rules
                handle.discard()
                handle.closed = True  # else fsspec would finish the upload when the handle is collected

    def _send(self) -> None:
        part, self._part = self._part, bytearray()
        self._under_way.append(self._thread.submit(self._put, part))
        self._wait(_UNDER_WAY)

    def _wait(self, most: int) -> None:
        """Wait until at most ``most`` tasks are under way. Raises WriteError if one failed."""
        try:
            while len(self._under_way) > most:
                self._under_way.popleft().result()
        except Exception as error:
            said = str(error) if isinstance(error, OSError | SourceError) else f"{type(error).__name__}: {error}"
            raise WriteError(self.path, said) from error

    def _put(self, part: bytearray) -> None:
        if self._handle is None:
            system, path = self._storage.system(self.path)
            self._handle = system.open(path, "wb", block_size=PART)
        self._handle.write(part)

    def _finish(self) -> None:
        handle, self._handle = self._handle, None
        handle.close()
        self._storage.system(self.path)[0].invalidate_cache()
        there = self._storage.look(self.path).size
        if there != self.position:
            raise OSError(f"{self.position:,} bytes were sent, but the store has {there or 0:,}")
