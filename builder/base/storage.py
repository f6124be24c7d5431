"""Files behind URLs: the one door to fsspec, which knows the storages.

Whoever reads or writes there asks through :class:`Storage`, which makes its connections when they are needed, in each
process anew: a connection, and the thread that serves it, do not outlive a fork. Whatever a storage's library raises
comes out as one line of ours.
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
"""To one store, in each process."""

_EXTRAS = {
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "gcs": ("gcsfs", "gs"),
    "http": ("aiohttp", "http"),
    "https": ("aiohttp", "http"),
}
"""URL scheme → the package that fsspec needs for it, and the extra of ours that brings it."""

_TIMES = ("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created")
IDENTITY = ("ETag", "etag", "blob_id", "md5Hash", *_TIMES)
"""What storages say of an object that is another when the object is, the surest first: it alone counts, as listings and
single answers state times to different parts of a second."""

_FINAL = (PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError, TypeError)
_FINAL_NAMES = {"BadZipFile", "ReadError"}  # of zipfile and tarfile, which most runs do not import
"""Answers that asking again does not change."""

_PASSING = (408, 425, 429)
"""Statuses below 500 that may pass: too slow, too early, too many requests."""

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
"""Names of what storages' libraries raise where credentials are missing or do not do. They have no common base."""

_S3 = 'set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; a public bucket needs the option {"anon": true}'
_GS = (
    "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS; a public bucket needs the "
    'option {"token": "anon"}'
)
_HTTP = 'give the option {"headers": {"Authorization": "…"}}'
_ACCESS = {
    "s3": _S3,
    "s3a": _S3,
    "gs": _GS,
    "gcs": _GS,
    "hf": "run hf auth login, or set HF_TOKEN",
    "http": _HTTP,
    "https": _HTTP,
}
"""How credentials are given. Options: ``--storage-options``, or ``storage_options`` in Python."""

_systems: dict[tuple[object, ...], Any] = {}
"""File systems in use, by process, URL without the path, and options: making one takes 0.1 s where there is much to
load (botocore). Not fsspec's own instances: the thread with their event loop would not be there after a fork."""


class Storage:
    """File systems by URL. Picklable; safe after fork; its methods may be called from several threads."""

    def __init__(self, options: Mapping[str, Any] | StorageOptions | None = None) -> None:
        self.options = StorageOptions.of(options)

    def system(self, url: str) -> tuple[Any, str]:
        """The file system that serves a URL, this process's own, and the path in it. Raises MissingExtraError,
        SourceError, and what the storage's library raises when it connects: see :meth:`ask`."""
        import fsspec

        chain = Chain.of(url)
        try:
            kind = fsspec.get_filesystem_class(chain.scheme)
            host = sorted(kind._get_kwargs_from_urls(chain.link).items())
            key = (os.getpid(), chain.before, chain.scheme, repr(host), chain.after, self.options.text)
            system = _systems.get(key)
            if system is None:
                system = _systems[key] = fsspec.core.url_to_fs("::".join(chain.links), **self._arguments(chain))[0]
        except ImportError as error:
            if chain.scheme not in _EXTRAS:
                raise SourceError(f"{url}: {say(error)}") from error
            raise MissingExtraError(f"{chain.scheme}://", *_EXTRAS[chain.scheme]) from error
        except (ValueError, TypeError) as error:  # an unknown scheme; options that it does not take
            raise SourceError(f"{url}: {say(error)}") from error
        except FileNotFoundError as error:  # the archive that it is a file of
            raise SourceError(f"{url}: not found: {say(error)}") from error
        return system, str(kind._strip_protocol(chain.link))

    def _arguments(self, chain: Chain) -> dict[str, Any]:
        """Of ``url_to_fs``: those of one file system, or by scheme for each link of a chain."""
        if len(chain.links) == 1:
            return self._options(chain.scheme)
        schemes = [link.partition("://")[0] if "://" in link or link.isalpha() else "file" for link in chain.links]
        return {each: self._options(each) for each in schemes}

    def _options(self, scheme: str) -> dict[str, Any]:
        given = {**self.options.for_scheme(scheme), "skip_instance_cache": True}
        if scheme in ("s3", "s3a"):  # botocore has 10, which is what a batch of reads would wait for
            given["config_kwargs"] = {"max_pool_connections": _CONNECTIONS, **given.get("config_kwargs", {})}
        return given

    def ask(self, url: str, what: Callable[[Any, str], Answer], pause: float | None = None) -> Answer:
        """``what(system, path)``, asked again where the network fails, with growing pauses.

        Raises FileNotFoundError; SourceError with what the storage said.
        """
        return persist(url, lambda: what(*self.system(url)), pause)

    def look(self, url: str) -> Entry:
        """What there is under a URL. Raises FileNotFoundError, SourceError."""
        return entry_of(self.ask(url, lambda system, path: system.info(path)))

    def entries(self, url: str) -> list[Entry]:
        """What lies directly in a folder, asked anew each time; nothing where there is none. Raises SourceError."""

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
        """A whole object; None where there is none."""
        try:
            data: bytes = self.ask(url, lambda system, path: system.cat_file(path))
        except FileNotFoundError:
            return None
        return data


def persist(url: str, attempt: Callable[[], Answer], pause: float | None = None) -> Answer:
    """What ``attempt`` gives, tried again where the network fails, with growing pauses.

    Raises FileNotFoundError where there is nothing; SourceError with what the storage said.
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
                raise SourceError(
                    f"{url}: the Hub shows no such repository; it may be private{_how_to_give_access(url)}"
                ) from error
            if not _network_failed(error):
                raise
            problem = error.__cause__ if isinstance(error.__cause__, Exception) else error
        # What a request raises is its library's business (aiohttp, httpx, botocore have no common base); whatever
        # it is, it is raised in the end.
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
    """Whether credentials are missing, or do not do, by what was raised and what that came of."""
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
    """The HTTP status that an error, or what it came of, tells of; None where there is none."""
    return next(filter(None, map(_status, _causes(error))), None)


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:  # requests, httpx; aiohttp
        status = getattr(response, "status_code", None) or getattr(error, "status", None)
    return status if isinstance(status, int) and status else None


def _how_to_give_access(url: str) -> str:
    schemes = (link.partition("://")[0] for link in Chain.of(url).links)
    how = next((_ACCESS[scheme] for scheme in schemes if scheme in _ACCESS), None)
    return f". If credentials are missing: {how}" if how else ""


def _network_failed(error: FileNotFoundError) -> bool:
    """fsspec's HTTP file system says "not found" whatever went wrong (HTTPFileSystem._info); the cause tells: aiohttp's
    error with a status that may pass, or one without a status, of the connection."""
    cause = error.__cause__
    if status := status_of(cause):
        return status >= 500 or status in _PASSING
    return isinstance(cause, TimeoutError | ConnectionError) or type(cause).__module__.startswith("aiohttp")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder behind a URL. ``size``: bytes, None where the server does not say. ``version``: a number that is
    another when the object is (from its ETag, its blob's id, its time), 0 where the server says nothing."""

    name: str
    is_folder: bool
    size: int | None
    version: int


def entry_of(info: Mapping[str, Any]) -> Entry:
    """From what a file system says of an object."""
    fact = next((info[name] for name in IDENTITY if info.get(name) is not None), None)
    said = str(fact.timestamp() if isinstance(fact, datetime) else fact)  # a listing may have it as a number
    version = 0 if fact is None else xxhash.xxh3_64_intdigest(said.encode()) >> 1
    name = str(info["name"]).rstrip("/").rpartition("/")[2]
    size = info.get("size")
    return Entry(name, info.get("type") == "directory", None if size is None else int(size), version)


def state_of(path: str, options: StorageOptions) -> tuple[int, int]:
    """Size in bytes of a file, on this machine or behind a URL, and a number that is another when the file is. Raises
    OSError where it is not there, SourceError."""
    if not is_url(path):
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    entry = Storage(options).look(path)
    return entry.size or 0, entry.version


def read_range(system: Any, path: str, start: int, end: int) -> bytes:
    """One request for bytes ``start`` to ``end`` (exclusive) and no others. Raises NotImplementedError where the server
    sends others all the same."""
    if system.async_impl:
        data: bytes = system.cat_file(path, start=start, end=end)
        if len(data) > end - start:
            raise NotImplementedError(
                "the server answers a request for a range with the whole file; use one with ranges"
            )
        return data
    # Of the others, hf:// among them, cat_file opens the file with a cache that reads on for 5 MiB.
    with system.open(path, "rb", cache_type="none") as handle:
        handle.seek(start)
        return bytes(handle.read(end - start))
