"""URLs as names of places (``s3://``, ``gs://``, ``hf://``, ``https://`` …), and the options that open them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from builder.base.errors import OptionError, SourceError

_SCHEMES = {"s3", "s3a", "gs", "gcs", "http", "https", "hf"}
"""Names in storage options that are those of a scheme, not of an option."""

_CACHES = {"blockcache", "filecache", "simplecache"}
"""Links of a chained URL that keep what the next one has: ``simplecache::s3://bucket/path``."""

_SECRETS = re.compile(
    r"(?<=://)[^/\s@]+(?=@)|(?i:(?<=signature=)|(?<=[?&]sig=)|(?<=token=))[^&\s]+"
    r"|(?<=\bhf_)[A-Za-z0-9_.-]{6,}|(?<=Bearer )[^\s'\"]+"
)

_LINKS = {*_CACHES, "libarchive", "tar", "zip"}
"""Links that may stand without slashes, in front of another: ``zip::data.zip``."""


def is_url(path: str) -> bool:
    """Whether a place is behind a URL rather than on this machine's disks."""
    return "://" in path or (path.split("::", 1)[0] in _LINKS and "::" in path)


@dataclass(frozen=True, slots=True)
class Chain:
    """A URL taken apart where fsspec chains them: ``zip://out::s3://bucket/x.zip`` is ``out`` in that archive.

    ``link``: the one that names the place, here ``zip://out``; what stands before it are caches.
    """

    before: tuple[str, ...]
    link: str
    after: tuple[str, ...]

    @staticmethod
    def of(url: str) -> Chain:
        links = url.split("::")
        at = 0
        while at < len(links) - 1 and links[at].removesuffix("://") in _CACHES:
            at += 1
        link = links[at]
        if at < len(links) - 1 and "://" not in link:
            link += "://"
        return Chain(tuple(links[:at]), link, tuple(links[at + 1 :]))

    @property
    def scheme(self) -> str:
        return self.link.partition("://")[0] if "://" in self.link else "file"

    @property
    def links(self) -> tuple[str, ...]:
        return (*self.before, self.link, *self.after)


def join(root: str, name: str) -> str:
    """A file's place below a folder that is a path or a URL."""
    if not is_url(root):
        return os.path.join(root, *name.split("/"))
    chain = Chain.of(root)
    link = f"{chain.link}{name}" if chain.link.endswith("://") else f"{chain.link.rstrip('/')}/{name}"
    return "::".join((*chain.before, link, *chain.after))


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
    if not isinstance(mine, Mapping):
        mine = {name: each for name, each in options.items() if name not in _SCHEMES}
    return {name: _stripped(value) for name, value in mine.items()}


def _stripped(value: Any) -> Any:
    """Without blanks around text: a token read from a file ends in a newline, which no header may hold."""
    if isinstance(value, str):
        return value.strip()
    return {name: _stripped(each) for name, each in value.items()} if type(value) is dict else value


NO_OPTIONS = StorageOptions()


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
