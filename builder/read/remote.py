"""A dataset behind a URL. Its index is fetched once and kept. Then each sample is one range request."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Coroutine, Mapping
from typing import Any

import xxhash

from builder.base import schema
from builder.base.errors import ChangedFileError, Laion6mError, SourceError
from builder.base.paths import cache_folder
from builder.base.storage import NO_RANGES, Storage, entry_of, persist, read_range, status_of
from builder.base.urls import StorageOptions, join, say
from builder.read.handles import Handle
from builder.read.local_cache import LocalCache
from builder.store.seals import file_digest


class RemoteStorage(Storage):
    """Files behind URLs. Picklable and safe after fork."""

    threads = 32
    gap = 64 << 10  # 1.3 ms at 50 MB/s, less than a request takes

    def __init__(self, options: Mapping[str, Any] | StorageOptions | None, cache: LocalCache | None = None) -> None:
        """``cache``: keeps images on this machine. None: they are not kept."""
        super().__init__(options)
        self.cache = cache

    def open(self, path: str) -> Handle:
        scheme = path.partition("://")[0]
        if "::" in path:
            return RemoteFile(self, path)
        if scheme == "hf":
            from builder.read.hub import HubFile, HubPlace

            if place := HubPlace.of(path):
                return HubFile(self, path, place)
        kind = {"s3": S3File, "s3a": S3File, "http": HttpFile, "https": HttpFile}.get(scheme, RemoteFile)
        return kind(self, path)

    def fetch(self, root: str, name: str) -> str:
        """The file is fetched only if there is no copy yet. Some servers send nothing that tells apart two files of the
        same size; from those it is fetched each time."""
        place = join(root, name)
        ending = os.path.splitext(name)[1]
        try:
            found = self.look(place)
        except SourceError as error:
            if status_of(error) == 404:  # huggingface_hub before 1.0 raises it as it is
                raise FileNotFoundError(place) from error
            raise
        folder = cache_folder()
        known = xxhash.xxh3_128_hexdigest(repr([place, found.size, found.version]).encode()) if found.version else None
        if known and os.path.exists(kept := os.path.join(folder, known + ending)):
            return kept
        handle, temporary = tempfile.mkstemp(dir=folder)
        os.close(handle)
        try:
            self.ask(place, lambda system, path: system.get_file(path, temporary))
            # Without a version, the name comes from the content. So a copy that an older reader has open is never
            # replaced.
            kept = os.path.join(folder, (known or file_digest(temporary)) + ending)
            if not os.path.exists(kept):
                os.replace(temporary, kept)
        except OSError as error:
            raise SourceError(f"cannot fetch {place}: {type(error).__name__}: {say(error)}") from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        return kept

    def names(self, folder: str) -> list[str]:
        return [entry.name for entry in self.entries(folder)]


class RemoteFile:
    """One file behind a URL, of any file system. Thread-safe. Each read makes two requests: one for the bytes, one to
    check that the file has not changed."""

    mtime_ns = None  # each storage reports times in another way; ``state`` has them

    def __init__(self, storage: RemoteStorage, url: str) -> None:
        """Raises SourceError."""
        self.name = url
        self._storage = storage
        try:
            info = persist(url, self._info)
        except FileNotFoundError:
            raise SourceError(f"{url}: not found") from None
        found = entry_of(info)
        if found.size is None:
            raise SourceError(f"{url}: the server does not tell the size of the file")
        self.size: int = found.size
        self._version, self._tag = found.version, str(info.get("ETag") or info.get("etag") or "")

    @property
    def state(self) -> tuple[object, ...]:
        return self.size, self._version, self.name

    def check(self) -> None:
        """Does nothing: each read checks the file."""

    def close(self) -> None:
        """Does nothing: no connection is held between requests."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Raises SourceError. Raises ChangedFileError if the file has changed since it was opened, or is gone."""
        if not length:
            return b""

        def attempt() -> bytes:
            try:
                return self._range(offset, offset + length)
            except Laion6mError:
                raise
            except Exception as error:  # storages' libraries share no base class for errors
                if status_of(error) in (404, 410, 412, 416) or isinstance(error, FileNotFoundError):
                    raise ChangedFileError(self.name, _CHANGED.get(status_of(error) or 404, "it is gone")) from error
                raise

        return persist(self.name, attempt)

    def _info(self) -> Mapping[str, Any]:
        system, path = self._storage.system(self.name)
        system.invalidate_cache()
        info: Mapping[str, Any] = system.info(path)
        return info

    def _range(self, start: int, end: int) -> bytes:
        data = read_range(*self._storage.system(self.name), start, end)
        now = entry_of(self._info())
        if (now.size, now.version) != (self.size, self._version):
            raise ChangedFileError(self.name, f"it is another file now, of {now.size:,} bytes")
        return data


_CHANGED = {412: "it is another file now", 416: "it is shorter now"}


class S3File(RemoteFile):
    """An object of S3. Requests name the ETag, so S3 answers only with the object that was opened."""

    def _range(self, start: int, end: int) -> bytes:
        system, path = self._storage.system(self.name)
        bucket, key, version = system.split_path(path)
        request = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{end - 1}"}
        if self._tag:
            request["IfMatch"] = self._tag
        if version:
            request["VersionId"] = version

        async def get() -> bytes:
            answer = await system._call_s3("get_object", **request)
            try:
                data: bytes = await answer["Body"].read()
                return data
            finally:
                answer["Body"].close()

        return complete(_on_loop(system, get()), end - start)


class HttpFile(RemoteFile):
    """A file of a web server. A server may ignore If-Match, so each answer's headers are compared as well."""

    def _range(self, start: int, end: int) -> bytes:
        system, path = self._storage.system(self.name)
        given = dict(system.kwargs)
        headers = {**given.pop("headers", {}), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        if self._tag and not self._tag.startswith("W/"):  # a weak tag never matches
            headers["If-Match"] = self._tag

        async def get() -> bytes:
            session = await system.set_session()
            async with session.get(system.encode_url(path), headers=headers, **given) as answer:
                if answer.status == 200:
                    raise NotImplementedError(NO_RANGES)
                answer.raise_for_status()
                tag, total = answer.headers.get("ETag", ""), answer.headers.get("Content-Range", "").rpartition("/")[2]
                if (tag and self._tag and tag != self._tag) or (total.isdigit() and int(total) != self.size):
                    raise ChangedFileError(self.name, _CHANGED[412])
                data: bytes = await answer.read()
                return data

        return complete(_on_loop(system, get()), end - start)


def _on_loop(system: Any, work: Coroutine[Any, Any, bytes]) -> bytes:
    """Run a coroutine in the file system's own thread and return its result."""
    return asyncio.run_coroutine_threadsafe(work, system.loop).result()


def complete(data: bytes, length: int) -> bytes:
    """``data``, if it has ``length`` bytes. Raises EOFError: the request is sent again."""
    if len(data) != length:
        raise EOFError(f"{len(data):,} of {length:,} bytes came")
    return data


def pinned(url: str, storage: RemoteStorage) -> str:
    """A place where the dataset cannot change. For a branch on the Hub: its commit. With HF_HUB_OFFLINE: the folder in
    the Hub's cache. Any other URL is returned as it is, and its files are checked when they are read. Raises
    SourceError."""
    if not url.startswith("hf://") or "::" in url:
        return url
    from builder.read import hub

    return hub.pinned(url, storage.options.for_scheme("hf"))


def fetch_index(url: str, storage: RemoteStorage) -> str:
    """The path of a local copy of the dataset's index. Raises SourceError."""
    try:
        return storage.fetch(url, schema.INDEX)
    except FileNotFoundError:
        raise SourceError(f"{url}: {_absence(url, storage)}") from None


def _absence(url: str, storage: RemoteStorage) -> str:
    """Says what is missing for a folder without an index: the bucket, the folder or the index."""
    system, path = storage.system(url)
    top = path.strip("/").partition("/")[0]
    with contextlib.suppress(Exception):  # if the question fails, leave the detail out
        if url.startswith(_BUCKETS) and not system.exists(top):
            return f"there is no bucket {top}"
        if not url.startswith("http") and not system.exists(path):
            return "it does not exist"
    return f"it has no {schema.INDEX}. Download the folder to read it without one."


_BUCKETS = ("s3://", "s3a://", "gs://", "gcs://")
