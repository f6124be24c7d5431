"""Paths and URLs as callers give them: text or ``os.PathLike``, ``~`` for the home folder."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from typing import TypeAlias

from builder.base.errors import SourceError
from builder.base.urls import is_url

StrPath: TypeAlias = "str | os.PathLike[str]"
"""What every path argument takes."""

_SQUEEZED = re.compile(r"([a-z][a-z0-9+]+):/(?!/)")  # "s3://b" in a pathlib.Path becomes "s3:/b"
_LOCAL = re.compile(r"(?:file|local):(?://(?:localhost(?=/))?|(?=/))")
_ONE_SLASH = re.compile(r"(s3a?|gs|gcs|hf|https?|ftps?|sftp|ssh|abfss?|az|adl|oss|webhdfs|hdfs|memory):(?!//)")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def path_of(place: StrPath) -> str:
    """The path or URL as text, with ``~`` and ``~user`` expanded; ``file://`` and ``local://`` are paths.

    Raises TypeError for anything else, SourceError for a URL with one slash (``s3:/bucket``).
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
        meant = f"{scheme[1]}://{text[scheme.end() :].lstrip('/')}"
        raise SourceError(f"{text} looks like a URL without its two slashes. Give {meant}, or ./{text} for a folder")
    return os.path.expanduser(text)


def path_or_none(place: StrPath | None) -> str | None:
    return None if place is None else path_of(place)


def paths_of(places: StrPath | Iterable[StrPath]) -> tuple[str, ...]:
    """Each of several; one alone is one, not its letters."""
    if isinstance(places, str | os.PathLike):
        return (path_of(places),)
    return tuple(map(path_of, places))


def require_folder(path: str) -> None:
    """Raises SourceError, in words with a way out, where ``path`` is no folder of this machine."""
    if not os.path.isdir(path):
        raise SourceError(f"{path} is not a folder" if os.path.lexists(path) else not_there(path))


def not_there(path: str) -> str:
    """``path is not there``, and what may be meant where it looks like the name of a repository on the Hub."""
    head = path.partition("/")[0]
    if _REPO_ID.fullmatch(path) and not os.path.exists(head):
        return f"{path} is not there. If it is a repository on the Hub, give hf://datasets/{path}"
    return f"{path} is not there"


def cache_folder() -> str:
    """Where indexes without a place beside their data are kept: ``LAION6M_CACHE``, else ~/.cache/laion6m. A temporary
    folder if neither can be written."""
    home = os.path.abspath(os.path.expanduser(os.environ.get("LAION6M_CACHE") or "~/.cache/laion6m"))
    with suppress(OSError):
        os.makedirs(home, exist_ok=True)
        if os.access(home, os.W_OK):
            return home
    return tempfile.mkdtemp(prefix="laion6m-")
