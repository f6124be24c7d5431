"""Files behind URLs. Only this module opens file systems with fsspec for reading and writing.

All reads and writes go through :class:`Storage`. It connects on first use, and again in each process: a connection and
the thread that serves it do not survive a fork. Any error of a storage's library becomes a one-line error of ours.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import xxhash

from builder.base.errors import Laion6mError, MissingExtraError, SourceError
from builder.base.urls import Chain, StorageOptions, is_url, say

Answer = TypeVar("Answer")

TRIES = 5
_PAUSE = 0.5  # seconds before the second try; doubled each time

_CONNECTIONS = 64
"""The most connections to one store, in each process."""

_STORES = {"s3a": "s3", "gcs": "gs", "https": "http"}
"""Second name of a scheme → its first."""

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp"}
"""Scheme → the package that fsspec needs for it. Our extra of the same name installs it."""

_TIMES = ("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created")
IDENTITY = ("ETag", "etag", "blob_id", "md5Hash", *_TIMES)
"""Fields that change when an object changes, the most reliable first. Only the first one present is used: listings and
single answers give times with different precision."""

_FINAL = (PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError, TypeError)
_FINAL_NAMES = {"BadZipFile", "ReadError"}  # of zipfile and tarfile, which most runs do not import
"""Errors that a second try would only repeat."""

NO_RANGES = "the server ignores ranges and sends the whole file. Use one that supports ranges"

_PASSING = (408, 425, 429)
"""Statuses below 500 that may go away on a later try: timeout, too early, too many requests."""

_NO_ACCESS = {
    "ClientAuthenticationError",
    "CredentialRetrievalError",
    "DefaultCredentialsError",
    "GatedRepoError",
    "LocalTokenNotFoundError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "PermissionError",
    "ProfileNotFound",
    "RefreshError",
    "TokenRetrievalError",
}
"""Names of the errors that storages' libraries raise if credentials are missing or refused. The classes share no
base."""

_ACCESS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; a public bucket needs the option "
    '{"anon": true}',
    "gs": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS; a public bucket needs the "
    'option {"token": "anon"}',
    "hf": "run hf auth login, or set HF_TOKEN",
    "http": 'give the option {"headers": {"Authorization": "…"}}',
}
"""How to give credentials, by scheme. Options go into ``--storage-options``, or ``storage_options`` in Python."""

_systems: dict[tuple[object, ...], Any] = {}
"""File systems in use. The key is the process, the URL without its path, and the options. Making one takes 0.1 s if its
library is large (botocore). fsspec's own instance cache is not used: its event loop's thread is gone after a fork."""


class Storage:
    """File systems by URL. Picklable; safe after fork; its methods may be called from several threads."""

    def __init__(self, options: Mapping[str, Any] | StorageOptions | None = None) -> None:
        self.options = StorageOptions.of(options)

    def system(self, url: str) -> tuple[Any, str]:
        """This process's file system for a URL, and the path in it. Raises MissingExtraError and SourceError, and
        whatever the storage's library raises when it connects: see :meth:`ask`."""
        import fsspec

        chain = Chain.of(url)
        try:
            kind = fsspec.get_filesystem_class(chain.scheme)
            host = sorted(kind._get_kwargs_from_urls(chain.link).items())
            key = (os.getpid(), chain.before, chain.scheme, repr(host), chain.after, self.options.text)
            system = _systems.get(key)
            if system is None:
                system = _systems[key] = fsspec.core.url_to_fs("::".join(chain.links), **self._arguments(chain))[0]
        except (ImportError, ValueError, TypeError) as error:  # an unknown scheme, or options that it does not know
            store = _STORES.get(chain.scheme, chain.scheme)
            if isinstance(error, ImportError) and store in _PACKAGES:
                raise MissingExtraError(f"{chain.scheme}://", _PACKAGES[store], store) from error
            raise SourceError(f"{url}: {say(error)}") from error
        except FileNotFoundError as error:  # the archive that should hold the file
            raise SourceError(f"{url}: not found: {say(error)}") from error
        return system, str(kind._strip_protocol(chain.link))

    def _arguments(self, chain: Chain) -> dict[str, Any]:
        """Keyword arguments for ``url_to_fs``: the options of one file system. For a chain: scheme → options."""
        if len(chain.links) == 1:
            return self._options(chain.scheme)
        schemes = [link.partition("://")[0] if "://" in link or link.isalpha() else "file" for link in chain.links]
        return {each: self._options(each) for each in schemes}

    def _options(self, scheme: str) -> dict[str, Any]:
        given = {**self.options.for_scheme(scheme), "skip_instance_cache": True}
        if scheme in ("s3", "s3a"):  # botocore's default is 10, too few for a batch of reads
            given["config_kwargs"] = {"max_pool_connections": _CONNECTIONS, **given.get("config_kwargs", {})}
        return given

    def ask(self, url: str, what: Callable[[Any, str], Answer], pause: float | None = None) -> Answer:
        """Return ``what(system, path)``. If the network fails, try again after growing pauses.

        Raises FileNotFoundError, and SourceError with the storage's own message.
        """
        return persist(url, lambda: what(*self.system(url)), pause)

    def look(self, url: str) -> Entry:
        """Facts about the file or folder at a URL. Raises FileNotFoundError, SourceError."""
        return entry_of(self.ask(url, lambda system, path: system.info(path)))

    def entries(self, url: str) -> list[Entry]:
        """The files and folders directly in a folder. Asks the storage each time. Empty if the folder does not exist.
        Raises SourceError."""

        def listed(system: Any, path: str) -> list[dict[str, Any]]:
            system.invalidate_cache()
            found: list[dict[str, Any]] = system.ls(path, detail=True)
            here = path.rstrip("/")
            return [each for each in found if str(each["name"]).rstrip("/") != here]  # s3's folder markers

        try:
            return [entry_of(each) for each in self.ask(url, listed)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, url: str) -> bytes | None:
        """The bytes of a whole object; None if it does not exist."""
        try:
            return self.ask(url, lambda system, path: bytes(system.cat_file(path)))
        except FileNotFoundError:
            return None


def persist(url: str, attempt: Callable[[], Answer], pause: float | None = None) -> Answer:
    """Return what ``attempt`` returns. If the network fails, try again after growing pauses, TRIES times in all.

    Raises FileNotFoundError for a missing file, and SourceError with the storage's own message.
    """
    problem: Exception | None = None
    first = _PAUSE if pause is None else pause
    for number in range(TRIES):
        if number:
            time.sleep(first * 2 ** (number - 1))
        try:
            return attempt()
        except Laion6mError:
            raise
        except FileNotFoundError as error:
            if type(error.__cause__).__name__ == "RepositoryNotFoundError":  # of huggingface_hub
                words = "the Hub shows no such repository. It may be private"
                raise SourceError(f"{url}: {words}{_how_to_give_access(url)}") from error
            if not _network_failed(error):
                raise
            problem = error.__cause__ if isinstance(error.__cause__, Exception) else error
        # A request may raise anything: the errors of aiohttp, httpx and botocore share no base. The last one is
        # raised in the end.
        except Exception as error:
            problem = error
            if _access_refused(error):
                raise SourceError(f"{url}: {_said(error)}{_how_to_give_access(url)}") from error
            status = status_of(error)
            final = status is not None and 400 <= status < 500 and status not in _PASSING
            if final or isinstance(error, _FINAL) or type(error).__name__ in _FINAL_NAMES:
                raise SourceError(f"{url}: {_said(error)}") from error
    raise SourceError(f"{url}: {_said(problem)} (tried {TRIES} times)") from problem


def _said(error: Exception | None) -> str:
    return f"{type(error).__name__}: {say(error)}"


def _access_refused(error: BaseException) -> bool:
    """Whether credentials are missing or refused. Looks at the error and its causes."""
    for each in _causes(error):
        if _status(each) in (401, 403) or any(kind.__name__ in _NO_ACCESS for kind in type(each).__mro__):
            return True
    return False


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(5):
        if error is None:
            return
        yield error
        error = error.__cause__


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status in an error or its causes; None if there is none."""
    return next(filter(None, map(_status, _causes(error))), None)


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:  # requests, httpx; aiohttp
        status = getattr(response, "status_code", None) or getattr(error, "status", None)
    return status if isinstance(status, int) and status else None


def _how_to_give_access(url: str) -> str:
    schemes = [link.partition("://")[0] for link in Chain.of(url).links]
    how = next(filter(None, (_ACCESS.get(_STORES.get(scheme, scheme)) for scheme in schemes)), None)
    return f". If credentials are missing: {how}" if how else ""


def _network_failed(error: FileNotFoundError) -> bool:
    """Whether a "not found" of fsspec's HTTP file system was really a network failure.

    HTTPFileSystem._info says "not found" for every failure; only the cause tells the difference. It is a network
    failure if the cause has a status that may go away on a later try, or has no status and is an error of the
    connection."""
    cause = error.__cause__
    if status := status_of(cause):
        return status >= 500 or status in _PASSING
    return isinstance(cause, TimeoutError | ConnectionError) or type(cause).__module__.startswith("aiohttp")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder behind a URL. ``size``: bytes; None if the server does not say. ``version``: a number that
    changes when the object changes, made from its ETag, its blob's id or its time; 0 if the server gives none of
    them."""

    name: str
    is_folder: bool
    size: int | None
    version: int


def entry_of(info: Mapping[str, Any]) -> Entry:
    """The entry for an object, from a file system's ``info`` of it."""
    fact = next((info[name] for name in IDENTITY if info.get(name) is not None), None)
    said = str(fact.timestamp() if isinstance(fact, datetime) else fact)  # a listing may give it as a number
    version = 0 if fact is None else xxhash.xxh3_64_intdigest(said.encode()) >> 1
    name = str(info["name"]).rstrip("/").rpartition("/")[2]
    size = info.get("size")
    return Entry(name, info.get("type") == "directory", None if size is None else int(size), version)


def state_of(path: str, options: StorageOptions) -> tuple[int, int]:
    """(size in bytes, a number that changes when the file changes), for a file on this machine or behind a URL. Raises
    OSError for a missing file, and SourceError."""
    if not is_url(path):
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    entry = Storage(options).look(path)
    return entry.size or 0, entry.version


def read_range(system: Any, path: str, start: int, end: int) -> bytes:
    """Read bytes ``start`` to ``end`` (exclusive) with one request. Raises NotImplementedError if the server sends more
    than that."""
    if system.async_impl:
        data: bytes = system.cat_file(path, start=start, end=end)
        if len(data) > end - start:
            raise NotImplementedError(NO_RANGES)
        return data
    # In file systems that are not async (hf:// is one), cat_file opens the file with a cache that reads 5 MiB ahead.
    with system.open(path, "rb", cache_type="none") as handle:
        handle.seek(start)
        return bytes(handle.read(end - start))
