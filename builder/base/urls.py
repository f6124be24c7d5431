"""Places behind URLs (``s3://``, ``gs://``, ``hf://``, ``https://`` …): the one door to fsspec.

Whoever reads or writes there asks through :class:`Storage`, which makes its connections when they are needed, in each
process anew: a connection, and the thread that serves it, do not outlive a fork.
"""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import xxhash

from builder.base.errors import Laion6mError, MissingExtraError, OptionError, SourceError

Answer = TypeVar("Answer")

TRIES = 5
_PAUSE = 0.5  # seconds before the second try; doubled each time

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

_SECRETS = re.compile(
    r"(?<=://)[^/\s@]+(?=@)|(?i:(?<=signature=)|(?<=[?&]sig=)|(?<=token=))[^&\s]+"
    r"|(?<=\bhf_)[A-Za-z0-9_.-]{6,}|(?<=Bearer )[^\s'\"]+"
)

_FINAL = (PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError, TypeError)
"""Answers that asking again does not change."""


def is_url(path: str) -> bool:
    """Whether a place is behind a URL rather than on this machine's disks."""
    return "://" in path


def join(root: str, name: str) -> str:
    """A file's place below a folder that is a path or a URL."""
    return f"{root.rstrip('/')}/{name}" if is_url(root) else os.path.join(root, *name.split("/"))


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """What file systems are opened with, as JSON text: of one for all, or by scheme (``{"s3": {…}, "hf": {…}}``).

    Picklable and hashable. Its repr shows nothing of it: there may be keys inside.
    """

    text: str = field(default="{}", repr=False)

    def __post_init__(self) -> None:
        try:
            value = json.loads(self.text)
        except ValueError as error:
            raise OptionError("storage_options", "…", f"not JSON: {error}") from None
        if not isinstance(value, dict):
            raise OptionError("storage_options", "…", 'give a JSON object, such as {"endpoint_url": "http://…"}')

    @classmethod
    def of(cls, options: Mapping[str, Any] | StorageOptions | None) -> StorageOptions:
        """From what a caller has."""
        return options if isinstance(options, StorageOptions) else cls(json.dumps(dict(options or {})))

    def for_scheme(self, scheme: str) -> dict[str, Any]:
        return options_for(scheme, json.loads(self.text))


def options_for(scheme: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a file system is opened with, of options for all or by scheme."""
    mine = options.get(scheme)
    if isinstance(mine, Mapping):
        return dict(mine)
    return {name: each for name, each in options.items() if name not in _EXTRAS and name != "hf"}


NO_OPTIONS = StorageOptions()


_systems: dict[tuple[int, str, str], Any] = {}
"""File systems in use, by process, scheme and options: making one takes 0.1 s where there is much to load (botocore).
Not fsspec's own instances: the thread with their event loop would not be there after a fork."""


class Storage:
    """File systems by URL. Picklable; safe after fork; its methods may be called from several threads."""

    def __init__(self, options: Mapping[str, Any] | StorageOptions | None = None) -> None:
        self.options = StorageOptions.of(options)

    def system(self, url: str) -> tuple[Any, str]:
        """The file system that serves a URL, this process's own, and the path in it. Raises MissingExtraError,
        SourceError."""
        scheme = url.partition("://")[0]
        key = (os.getpid(), scheme, self.options.text)
        system = _systems.get(key)
        if system is None:
            system, path = filesystem(url, {**self.options.for_scheme(scheme), "skip_instance_cache": True})
            _systems[key] = system
            return system, path
        return system, str(system._strip_protocol(url))

    def ask(self, url: str, what: Callable[[Any, str], Answer], pause: float = _PAUSE) -> Answer:
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


def persist(url: str, attempt: Callable[[], Answer], pause: float = _PAUSE) -> Answer:
    """What ``attempt`` gives, tried again where the network fails, with growing pauses.

    Raises FileNotFoundError where there is nothing; SourceError with what the storage said.
    """
    problem: Exception | None = None
    for number in range(TRIES):
        if number:
            time.sleep(pause * 2 ** (number - 1))
        try:
            return attempt()
        except Laion6mError:
            raise
        except FileNotFoundError as error:
            if not _network_failed(error):
                raise
            problem = error.__cause__ if isinstance(error.__cause__, Exception) else error
        except _FINAL as error:
            raise SourceError(f"{url}: {type(error).__name__}: {say(error)}") from error
        # What a request raises is its library's business (aiohttp, httpx, botocore have no common base); whatever
        # it is, it is raised in the end.
        except Exception as error:  # noqa: BLE001
            problem = error
    raise SourceError(f"{url}: {type(problem).__name__}: {say(problem)} (tried {TRIES} times)") from problem


def _network_failed(error: FileNotFoundError) -> bool:
    """fsspec's HTTP file system says "not found" whatever went wrong (HTTPFileSystem._info); the cause tells: aiohttp's
    error with a status that may pass, or one without a status, of the connection."""
    cause = error.__cause__
    status = getattr(cause, "status", None)
    if isinstance(status, int) and status:
        return status >= 500 or status in (408, 425, 429)
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


def filesystem(url: str, options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """The fsspec file system that serves a URL, and the path in it. Raises MissingExtraError, SourceError."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url, **(options or {}))
    except ImportError as error:
        scheme = url.partition("://")[0]
        if scheme not in _EXTRAS:
            raise SourceError(f"{url}: {error}") from error
        raise MissingExtraError(f"{scheme}://", *_EXTRAS[scheme]) from error
    except (ValueError, TypeError) as error:  # an unknown scheme; options that it does not take
        raise SourceError(f"{url}: {error}") from error
    return system, path


def refuse_url(place: str, command: str) -> None:
    """For what works on this machine's disks only. Raises SourceError."""
    if is_url(place):
        raise SourceError(
            f"{place}: laion6m {command} works on folders of this machine. Download it, or copy it here, first."
        )


def masked(text: str) -> str:
    """``text`` without what gives access: in addresses a user's password, a signature, a token; tokens of the Hub."""
    return _SECRETS.sub("…", text)


def say(error: object) -> str:
    """What a storage library's error says, masked, in one line, without the queries of addresses: signed ones are long,
    and their other parts tell nobody anything."""
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\")]+", r"\1", " ".join(str(error).split()))
    return masked(text)[:500]


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


def serve(protocol: str, read: Callable[[str], bytes]) -> Any:
    """Make ``protocol://address`` openable by all that opens files through fsspec, in this process: ``read`` gives the
    bytes for what stands behind ``://``. Returns the file system's class, for fsspec's entry points."""
    import fsspec

    class Served(fsspec.AbstractFileSystem):  # type: ignore[misc]
        def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BytesIO:
            if mode != "rb":
                raise PermissionError(f"{protocol}://{path} can only be read")
            return io.BytesIO(read(path))

        def info(self, path: str, **_: Any) -> dict[str, Any]:
            return {"name": self._strip_protocol(path), "size": len(read(self._strip_protocol(path))), "type": "file"}

    Served.protocol = protocol
    fsspec.register_implementation(protocol, Served, clobber=True)
    return Served
