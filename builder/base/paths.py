"""Paths and URLs as callers give them: text or ``os.PathLike``, with ``~`` for the home folder."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from typing import TypeAlias

from builder.base.errors import SourceError
from builder.base.urls import is_url

StrPath: TypeAlias = "str | os.PathLike[str]"
"""The type of every path argument."""

_SQUEEZED = re.compile(r"([a-z][a-z0-9+]+):/(?!/)")  # "s3://b" in a pathlib.Path becomes "s3:/b"
_LOCAL = re.compile(r"(?:file|local):(?://(?:localhost(?=/))?|(?=/))")
_ONE_SLASH = re.compile(r"(s3a?|gs|gcs|hf|https?|ftps?|sftp|ssh|abfss?|az|adl|oss|webhdfs|hdfs|memory):(?!//)")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def path_of(place: StrPath) -> str:
    """The path or URL as text. ``~`` and ``~user`` are expanded. ``file://`` and ``local://`` URLs become paths.

    Raises TypeError for anything but text or ``os.PathLike[str]``, SourceError for a URL with one slash
    (``s3:/bucket``).
    """
    text = os.fspath(place)
    if not isinstance(text, str):
        raise TypeError(f"expected a path as str or os.PathLike[str], not bytes: {text!r}")
    if not isinstance(place, str):
        text = _SQUEEZED.sub(r"\1://", text, count=1) if _SQUEEZED.match(text) else text
    if local := _LOCAL.match(text):
        return text[local.end() :]
    if is_url(text):
        return text
    if (scheme := _ONE_SLASH.match(text)) and not os.path.lexists(f"{scheme[1]}:"):
        meant, folder = f"{scheme[1]}://{text[scheme.end() :].lstrip('/')}", shlex.quote(f"./{text}")
        problem = f"{shlex.quote(text)} looks like a URL without its two slashes"
        raise SourceError(f"{problem}. Give {shlex.quote(meant)}, or {folder} for a folder")
    return os.path.expanduser(text)


def path_or_none(place: StrPath | None) -> str | None:
    return None if place is None else path_of(place)


def paths_of(places: StrPath | Iterable[StrPath]) -> tuple[str, ...]:
    """Several paths as a tuple. A single path is one path, not a list of letters."""
    if isinstance(places, str | os.PathLike):
        return (path_of(places),)
    return tuple(map(path_of, places))


def require_folder(path: str) -> None:
    """Raises SourceError if ``path`` is no folder on this machine."""
    if not os.path.isdir(path):
        raise SourceError(f"{shlex.quote(path)} is not a folder" if os.path.lexists(path) else not_there(path))


def not_there(path: str) -> str:
    """The words ``path is not there``. If it looks like a repository on the Hub, they also name its URL."""
    head = path.partition("/")[0]
    if _REPO_ID.fullmatch(path) and not os.path.exists(head):
        return f"{path} is not there. If it is a repository on the Hub, give hf://datasets/{path}"
    return f"{shlex.quote(path)} is not there"


def size_of(path: str) -> int | None:
    """Bytes; None if the file is missing."""
    try:
        return os.path.getsize(path)
    except OSError:
        return None


def cache_folder() -> str:
    """The folder for indexes that cannot lie beside their data: ``LAION6M_CACHE``, else ~/.cache/laion6m. It is created
    if missing. If it cannot be written, a temporary folder is used."""
    home = os.path.abspath(os.path.expanduser(os.environ.get("LAION6M_CACHE") or "~/.cache/laion6m"))
    with suppress(OSError):
        os.makedirs(home, exist_ok=True)
        if os.access(home, os.W_OK):
            return home
    return tempfile.mkdtemp(prefix="laion6m-")
