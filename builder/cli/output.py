"""What a command prints and where: results on stdout (one object with ``--json``), messages on stderr."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import resource
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from builder import __version__
from builder.base.errors import OutputError
from builder.base.paths import path_of
from builder.base.urls import masked
from builder.base.words import counted, printable
from builder.engines import progress

if TYPE_CHECKING:
    from builder.conversion.summary import Summary

DONE, FAILED, USAGE, LOOK = 0, 1, 2, 3
"""Exit codes. LOOK: done, but with many rejects, or with damaged or unread parts of the source."""

_log = logging.getLogger("builder")
_NO_FILES_LEFT = os.strerror(errno.EMFILE)
_NOR_ANYWHERE = os.strerror(errno.ENFILE)  # the whole system's limit; its text extends the other's


def say(text: str) -> None:
    """Show a message for people on stderr, and log it."""
    progress.say(masked(text))


def say_warnings() -> None:
    """From now on show warnings to users as one plain line on stderr, without Python's file and source line."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, UserWarning):
            say(f"warning: {printable(str(message))}")
        else:
            before(message, category, *place, **more)

    before, warnings.showwarning = warnings.showwarning, show


def start_log(path: str, argv: Sequence[str]) -> None:
    """From now on append messages with times to a file. Raises OutputError."""
    try:
        handler = logging.FileHandler(path_of(path), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"cannot write the log {shlex.quote(path)}: {error.strerror}. Give another file.") from error
    logging.raiseExceptions = False  # a full disk for the log must not end the work
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.info("laion6m %s: laion6m %s", __version__, masked(shlex.join(argv)))


def show(arguments: argparse.Namespace, document: dict[str, Any], text: str, *, ok: bool = True) -> int:
    """Print a command's result on stdout: one object with ``--json``, else the text. Returns the exit code: DONE if
    ``ok``, else FAILED. Raises OutputError, BrokenPipeError."""
    result = json.dumps(document) if arguments.json else masked(text)
    _log.info("%s", result)
    write(result)
    return DONE if ok else FAILED


def write(text: str) -> None:
    """Print one or more lines on stdout. Characters that its encoding lacks are escaped. Raises OutputError,
    BrokenPipeError."""
    if sys.stdout is None:
        raise OutputError("cannot write the result to stdout: it is closed")
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_stdout()
        raise OutputError(f"cannot write the result to stdout: {error.strerror}") from error


def verdict(max_reject_ratio: float, summary: Summary) -> int:
    """The exit code of a conversion. Prints why it is not 0."""
    totals = summary.totals
    if summary.trouble:
        say(f"laion6m: look at the source: {', '.join(summary.trouble)}")
    rejected = sum(totals.rejected.values())
    if rejected <= max_reject_ratio * totals.listed:
        return LOOK if summary.trouble else DONE
    whole = "The output is whole. meta/rejects.parquet names them."
    say(
        f"laion6m: {rejected:,} of {counted(totals.listed, 'sample')} rejected, more than --max-reject-ratio "
        f"{max_reject_ratio:g} allows. {whole if summary.complete else 'This slice is done.'}"
    )
    return LOOK


def fail(words: str, code: int, *, as_json: bool = False) -> int:
    """Print why a command ended, and return its exit code. ``as_json``: on stdout too. Unprintable characters are
    escaped: names may come from strangers."""
    text = masked(printable(_with_limit(words)))
    say(f"{_red('laion6m:')} {text}")
    if as_json and sys.stdout is not None:
        try:
            sys.stdout.write(json.dumps({"error": text}) + "\n")
            sys.stdout.flush()
        except OSError:  # stderr has it already
            discard_stdout()
    return code


def _red(text: str) -> str:
    """Red text on a terminal, unless NO_COLOR is set (no-color.org)."""
    wanted = sys.stderr is not None and sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    return f"\033[31m{text}\033[0m" if wanted and os.environ.get("TERM") != "dumb" else text


def discard_stdout() -> None:
    """Discard what stdout still holds, so that it does not raise again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def out_of_files(text: str) -> bool:
    """Whether an error from any library says that no more files can be opened."""
    return _NO_FILES_LEFT in text


def _with_limit(words: str) -> str:
    if not out_of_files(words) or _NOR_ANYWHERE in words:
        return words
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (
        f"{words.rstrip('.')}. A process may open {limit:,} files here. To allow more: ulimit -n {max(1024, 2 * limit)}"
    )
