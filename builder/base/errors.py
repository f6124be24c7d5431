"""Every error this package raises on purpose. The tree::

    Laion6mError
    ├── SourceError             the source cannot be used
    │   ├── LayoutError         a folder has none of the known layouts
    │   ├── ListingError        a data.json cannot be read; names the place in it
    │   └── SourceChangedError  a source file changed since the work was planned
    ├── OptionError             an option's value is out of its range
    ├── OutputError             the output folder cannot be used or written
    │   ├── JobMismatchError    OUT holds another job: other options or another source
    │   ├── LockedError         another process is writing into OUT
    │   ├── WriteError          the disk refused a write (full, read-only, failing)
    │   └── AccessError         this user may not read a file or folder
    ├── IndexMismatchError      an index no longer fits the files it points into
    │   ├── ChangedFileError    a file changed while a dataset was open
    │   └── RemovedShardError   a shard was removed here after the Hub had it
    ├── DamagedFileError        a file of ours, or a Parquet file, contradicts itself
    ├── WorkerDiedError         a worker process ended without an answer
    ├── ClusterError            a Ray cluster cannot be used
    ├── MissingExtraError       an optional package is not installed
    ├── InterruptedRunError     the user or the system asked a run to stop
    └── HubError                the Hub refused a request, or did not answer

``Exception.__init__`` gets the facts unchanged; ``_words`` makes the message from them. An exception that formats its
message in ``__init__`` cannot be unpickled, and then a process pool hangs.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
from typing import TypeGuard


class Laion6mError(Exception):
    """Base of all errors raised on purpose. ``args`` are the facts. ``str()`` is the message."""

    def __str__(self) -> str:
        if len(self.args) == 1 and isinstance(self.args[0], str):
            return self.args[0]  # the message itself: torch's loader rebuilds a worker's error from it alone
        return self._words()

    def _words(self) -> str:
        """The message, made from the facts."""
        return "; ".join(str(fact) for fact in self.args if fact not in ("", None))


class SourceError(Laion6mError):
    """The source cannot be used. Args: message."""


class LayoutError(SourceError):
    """A folder fits none of the layouts. Args: path, found (what the folder holds), hint."""

    def _words(self) -> str:
        path, found, hint = self.args
        return f"{shlex.quote(path)} is not a source this tool knows: found {found}. {hint}"


class ListingError(SourceError):
    """A listing cannot be read. Args: path, place (byte offset, entry number …), problem."""

    def _words(self) -> str:
        path, place, problem = self.args
        return f"{shlex.quote(path)}: {place}: {problem}"


class SourceChangedError(SourceError):
    """A source file changed since the work was planned. Args: path, what was seen."""

    def _words(self) -> str:
        path, seen = self.args
        return (
            f"{shlex.quote(path)} is not what it was when the work was planned: {seen}. Shards that are already "
            "written hold the old bytes. When nothing writes to the source any more, convert it into a new OUT."
        )


class OptionError(Laion6mError, ValueError):
    """An option is out of range. Args: option name, value (None if it is not to be shown), what is allowed."""

    def _words(self) -> str:
        name, value, allowed = self.args
        shown = _as_given(value)
        return f"{name} {shown}: {allowed}" if shown else f"{name}: {allowed}"


def _as_given(value: object) -> str:
    """An option's value as a user wrote it; "" for none, and for a switch, whose name says all."""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value) if isinstance(value, int | float) else f'"{value}"'


class OutputError(Laion6mError):
    """The output folder cannot be used. Args: message."""


class JobMismatchError(OutputError):
    """OUT was begun with other options or another source. Args: path, list of differences, each in words."""

    def _words(self) -> str:
        path, differences = self.args
        return (
            f"{shlex.quote(path)} was begun as another job: {'; '.join(differences)}. "
            "Give the same source and options as before, choose another OUT, or remove this one."
        )


class LockedError(OutputError):
    """Another process writes into OUT. Args: path, who holds the lock."""

    def _words(self) -> str:
        path, holder = self.args
        return f"{shlex.quote(path)} is being written by {holder}. Wait for it to end, or choose another OUT."


class WriteError(OutputError):
    """The system refused a write. Args: path, reason."""

    def _words(self) -> str:
        path, reason = self.args
        full = reason in (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
        first = "make room" if full else "mend that"
        way_on = f"What was finished is kept: {first}, then run the same command to go on."
        return f"cannot write {shlex.quote(path)}: {reason}. {way_on}"


class AccessError(OutputError):
    """The system does not let this user read a file or folder. It is neither lost nor damaged. Args: path, reason."""

    def _words(self) -> str:
        path, reason = self.args
        return f"cannot read {shlex.quote(path)}: {reason}. Ask its owner for access, or run as a user who has it."


class IndexMismatchError(Laion6mError):
    """An index points into files that changed since. Args: path, what differs."""

    def _words(self) -> str:
        path, difference = self.args
        return (
            f"{shlex.quote(path)} is not the file the index was made for: {difference}. Make the index again, restore "
            "the file, or say where it is: open_dataset(PATH, source=FOLDER)."
        )


class ChangedFileError(IndexMismatchError):
    """A file was changed, or removed, while a dataset was open. Args: path, what differs."""

    def _words(self) -> str:
        path, difference = self.args
        return (
            f"{shlex.quote(path)} was changed while the dataset was open: {difference}. Open the dataset again. If the "
            "file should not have changed, restore it."
        )


class RemovedShardError(IndexMismatchError):
    """A shard is only on the Hub. Args: its path on this machine, the repository as hf:// URL."""

    def _words(self) -> str:
        path, url = self.args
        return (
            f"{shlex.quote(path)} was removed here after it was pushed. {url} has it: open_dataset({url!r}). Or run "
            "the same laion6m convert without --push-to: it makes the shard anew."
        )


class DamagedFileError(Laion6mError):
    """A file's content contradicts itself. Args: path, place, problem."""

    def _words(self) -> str:
        path, place, problem = self.args
        return f"{shlex.quote(path)}: {place}: {problem}"


class WorkerDiedError(Laion6mError):
    """A worker ended without an answer. Args: what it was working on, how it ended."""

    def _words(self) -> str:
        work, ending = self.args
        return (
            f"the worker at {work} died ({ending}). Most often the system ran out of memory: "
            "use a smaller --num-proc, then run the same command to go on."
        )


class ClusterError(Laion6mError):
    """A Ray cluster cannot be reached, or cannot do the work in the same way as this process. Args: address, problem,
    way out."""

    def _words(self) -> str:
        address, problem, way_out = self.args
        return f"Ray at {address}: {problem}. {way_out}"


class MissingExtraError(Laion6mError, ImportError):
    """An optional package is missing. Args: what needs it, package, extra of this project."""

    def _words(self) -> str:
        need, package, extra = self.args
        return f"{need} needs {package}, which is not installed: pip install 'laion6m[{extra}]'"


class InterruptedRunError(Laion6mError):
    """A run was asked to stop. Args: done, total (shards)."""

    def _words(self) -> str:
        done, total = self.args
        return f"interrupted with {done} of {total} shards done. Run the same command again to go on from there."


class HubError(Laion6mError):
    """The Hub refused. Args: what was tried, what it said, how to go on."""

    def _words(self) -> str:
        tried, said, way_on = self.args
        return f"{tried}: {said}. {way_on}"


def refuse_denied(path: str, error: BaseException) -> None:
    """Raises AccessError if ``error`` is only a missing permission. For callers that would report it as damage."""
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
        raise AccessError(path, os.strerror(error.errno)) from error


def too_many_open(error: BaseException | None) -> TypeGuard[OSError]:
    """Whether the error is only that this process, or the system, has too many files open."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
