"""What a command says and where: messages on stderr, with ``--json`` one object on stdout. And an error's words."""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
from collections.abc import Iterable
from typing import Any

from builder.base.errors import OutputError, SourceError
from builder.base.urls import is_url, masked
from builder.base.words import printable

_NO_FILES_LEFT = os.strerror(errno.EMFILE)
_NOR_ANYWHERE = os.strerror(errno.ENFILE)  # of the system, in the same words and some more


def say(text: str) -> None:
    """A message for people."""
    sys.stderr.write(masked(text) + "\n")
    sys.stderr.flush()


def show(document: dict[str, Any]) -> None:
    """The object of ``--json``. Raises OutputError where it cannot be written, BrokenPipeError."""
    try:
        if sys.stdout is None:
            raise OutputError("cannot write the result to stdout: it is closed")
        sys.stdout.write(json.dumps(document) + "\n")  # ASCII: whatever encoding stdout has can hold it
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_stdout()
        raise OutputError(f"cannot write the result to stdout: {error.strerror}") from error


def fail(words: str, *, as_json: bool) -> None:
    """Say why a command has ended; ``as_json``: on stdout too. Names in it may be a stranger's: what does not print is
    escaped."""
    text = masked(printable(_with_limit(words)))
    say(f"laion6m: {text}")
    if as_json and sys.stdout is not None:
        try:
            sys.stdout.write(json.dumps({"error": text}) + "\n")
            sys.stdout.flush()
        except OSError:  # it has been said
            discard_stdout()


def discard_stdout() -> None:
    """What is still held of it must not raise once more when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def out_of_files(text: str) -> bool:
    """Whether an error, of whatever library, says that no more files can be opened."""
    return _NO_FILES_LEFT in text


def refuse_lost_folder(places: Iterable[str]) -> None:
    """Raises SourceError where the working directory was deleted and one of the ``places`` is looked for in it."""
    try:
        os.getcwd()
    except FileNotFoundError:
        for place in places:
            if not (os.path.isabs(place) or is_url(place)):
                raise SourceError(
                    f"{place} is looked for in the working directory, which has been deleted. "
                    "Go to one that is there (cd), or give absolute paths."
                ) from None


def _with_limit(words: str) -> str:
    if not out_of_files(words) or _NOR_ANYWHERE in words:
        return words
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (
        f"{words.rstrip('.')}. A process may have {limit:,} files open here: allow more, as with ulimit -n "
        f"{max(1024, 2 * limit)}."
    )
