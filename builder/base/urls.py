"""URLs of files and folders (``s3://``, ``gs://``, ``hf://``, ``https://`` …), and the options that open them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from builder.base.errors import OptionError, SourceError

_SCHEMES = {"s3", "s3a", "gs", "gcs", "http", "https", "hf"}
"""Keys of storage options that name a scheme, not an option."""

_CACHES = {"blockcache", "filecache", "simplecache"}
"""Links of a chained URL that cache the next link's files: ``simplecache::s3://bucket/path``."""

_SECRETS = re.compile(
    r"(?<=://)[^/\s@]+(?=@)|(?i:(?<=signature=)|(?<=[?&]sig=)|(?<=token=))[^&\s]+"
    r"|(?<=\bhf_)[A-Za-z0-9_.-]{6,}|(?<=Bearer )[^\s'\"]+"
)

_LINKS = {*_CACHES, "libarchive", "tar", "zip"}
"""Links that may stand before another link without slashes: ``zip::data.zip``."""


def is_url(path: str) -> bool:
    """Whether a place is a URL, not a path on this machine's disks."""
    return "://" in path or (path.split("::", 1)[0] in _LINKS and "::" in path)


@dataclass(frozen=True, slots=True)
class Chain:
    """A chained URL of fsspec, split into its links. ``zip://out::s3://bucket/x.zip`` means ``out`` in that archive.

    ``link``: the link that names the place, here ``zip://out``. ``before``: links of caches. ``after``: all links after
    ``link``.
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
    """The path or URL of the file ``name`` below the folder ``root``."""
    if not is_url(root):
        return os.path.join(root, *name.split("/"))
    chain = Chain.of(root)
    link = f"{chain.link}{name}" if chain.link.endswith("://") else f"{chain.link.rstrip('/')}/{name}"
    return "::".join((*chain.before, link, *chain.after))


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """Options that open file systems, as JSON text: the same for all, or by scheme (``{"s3": {…}, "hf": {…}}``).

    Picklable and hashable. The repr hides the text: it may hold keys.
    """

    text: str = field(default="{}", repr=False)

    def __post_init__(self) -> None:
        try:
            value = json.loads(self.text)
        except ValueError as error:
            raise OptionError("storage_options", None, f"the text is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise OptionError("storage_options", None, 'give a JSON object, such as {"endpoint_url": "http://…"}')

    @classmethod
    def of(cls, options: Mapping[str, Any] | StorageOptions | None) -> StorageOptions:
        """From a mapping, or None for no options. StorageOptions are returned unchanged."""
        return options if isinstance(options, StorageOptions) else cls(json.dumps(dict(options or {})))

    def for_scheme(self, scheme: str) -> dict[str, Any]:
        """The options for one scheme: its own, else those for all."""
        options = json.loads(self.text)
        mine = options.get(scheme)
        if not isinstance(mine, dict):
            mine = {name: each for name, each in options.items() if name not in _SCHEMES}
        return {name: _stripped(value) for name, value in mine.items()}


def _stripped(value: Any) -> Any:
    """The value with no blanks around its text. A token read from a file ends in a newline, and HTTP headers allow
    none."""
    if isinstance(value, str):
        return value.strip()
    return {name: _stripped(each) for name, each in value.items()} if type(value) is dict else value


NO_OPTIONS = StorageOptions()


def refuse_url(place: str, command: str) -> None:
    """Raises SourceError for a URL. For commands that work only on this machine's disks."""
    if is_url(place):
        raise SourceError(f"{place}: laion6m {command} works on folders of this machine. Download the dataset first.")


def masked(text: str) -> str:
    """``text`` with all secrets masked: users, passwords, signatures and tokens in URLs; tokens of the Hub and in
    headers."""
    return _SECRETS.sub("…", text)


def say(error: object) -> str:
    """The message of a storage library's error: masked, in one line, at most 500 characters. Queries of URLs are cut
    off: those of signed URLs are long and tell people nothing."""
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\")]+", r"\1", " ".join(str(error).split()))
    return masked(text)[:500]
