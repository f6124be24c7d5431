"""The record of a job's finished work, kept beside its output. A restart does the plan minus the receipts.

OUT/.laion6m/
├── job.json                what the job is: source and options
├── plan.arrow              which sample goes where (see plan/plan.py), plan-rejects.arrow; plan.json: their checksums
├── receipts/00003.json     shard 3 is whole and on disk; written after its other files; has checksums of these two:
├── receipts/00003.index.arrow, 00003.rejects.arrow
├── scans/raw-00007.arrow   for a source behind a URL: where the members of raw archive 7 lie; also captions-00007.arrow
├── passed/00003.json       the stretch that begins with shard 3 was read once; written after its other files
├── pushed/, pushed-cards.json    store/pushed.py; captions-only/: hub/captions_only.py; sha256.jsonl: hub/items.py
├── locks/0-16              the lock on raw archives 0 (inclusive) to 16 (exclusive), and who holds it
└── tmp/                    files that are not whole yet
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import xxhash

from builder.base import schema
from builder.base.arrays import ipc_buffer
from builder.base.errors import DamagedFileError, JobMismatchError, LockedError, OutputError, WriteError, refuse_denied
from builder.base.names import PLAN
from builder.base.urls import join
from builder.store.folders import Folder, LocalFolder, open_folder, write
from builder.store.output import NewFile, make_folder
from builder.store.seals import seal, unseal

_PATIENCE = 10.0  # seconds to wait for a lock: workers of a killed run hold it until they notice, within one second


Describe = Callable[[dict[str, Any], dict[str, Any]], list[str]]
"""Two jobs → their differences, in words."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A finished shard. ``digest``: xxh3-128 of the file, hex. ``check``: how an index tells that the file is still the
    same. ``formats``: number of images by format. ``animated``: number of images with more than one frame. ``parts``:
    checksums of its parts of the index and the rejects, added when those are written."""

    number: int
    rows: int
    image_bytes: int
    size: int
    digest: str
    check: dict[str, Any]
    rejected: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    animated: int = 0
    parts: dict[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Passed:
    """A stretch of a source behind a URL that was read once (conversion/one_pass.py).

    ``first``: the number of its first shard. ``receipts``: of the shards made on the way, from the first on; empty if
    the stretch was only scanned. ``digests``: one for each shard, of what its rows were made from. A shard stays valid
    if the plan gives the same digest."""

    first: int
    receipts: tuple[Receipt, ...]
    digests: tuple[str, ...]


def describe_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The differences between two jobs, in words: the first five, and how many more there are."""
    found = list(_differences(before, now, ""))
    return found[:5] + ([f"and {len(found) - 5} more"] if len(found) > 5 else [])


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str) -> Iterator[str]:
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif key == "columns" and old is None:
            yield "an earlier version began it, with the columns in another order"
        elif old != new:
            yield f"{prefix}{key} was {_brief(old)}, is {_brief(new)}"


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


_IGNORED = ".gitignore"
_IGNORES = f"/{schema.WORK}/\n".encode()


class Ledger:
    """The bookkeeping folder of one OUT."""

    def __init__(self, out: str | Folder) -> None:
        """``out``: a path, or an open folder."""
        self.folder = open_folder(out)
        self.out = self.folder.root
        self._proved: set[str] = set()  # parts of receipts whose checksums were found right
        self._held: set[str] = set()  # names of the locks that this object holds

    def path(self, *names: str) -> str:
        """The path or URL of a bookkeeping file."""
        return join(self.out, "/".join((schema.WORK, *names)))

    def create(self, name: str) -> NewFile:
        """A new bookkeeping file."""
        return self.folder.create(f"{schema.WORK}/{name}")

    def local(self, name: str) -> str:
        """A path at which a bookkeeping file can be memory-mapped. Raises FileNotFoundError."""
        return self.folder.local(f"{schema.WORK}/{name}")

    def read(self, name: str) -> bytes | None:
        """The bytes of a bookkeeping file; None if it does not exist."""
        return self.folder.read(f"{schema.WORK}/{name}")

    def begin(self, job: dict[str, Any], describe: Describe = describe_differences) -> None:
        """Write down what the job is. Raises JobMismatchError if another job was begun here; ``describe`` names the
        differences. Raises OutputError if data/ is there without a job. A job that left nothing is replaced: its
        listing could not be read, say, and the user has mended the source."""
        noted = self.job
        if noted is None and self.folder.sizes(schema.DATA):
            rest = shlex.quote(join(self.out, schema.DATA))
            raise OutputError(
                f"{shlex.quote(self.out)} holds {schema.DATA}/, but not {schema.WORK}/, the record of finished work. "
                f"Without it the work cannot go on. Choose another OUT, or remove {rest}."
            )
        differences = [] if noted is None else describe(noted, json.loads(json.dumps(job)))
        if differences and (self.read(PLAN) is not None or not self._made_nothing()):
            raise JobMismatchError(self.out, differences)
        if noted is None or differences:
            self.adopt(job)

    def keep_apart(self) -> None:
        """Make git and ``hf upload`` ignore the bookkeeping, unless OUT already has a .gitignore."""
        if self.folder.read(_IGNORED) is None:
            write(self.folder, _IGNORED, [_IGNORES])

    def adopt(self, job: dict[str, Any]) -> None:
        """Write the job down. It replaces the one that was written before, unchecked."""
        self._write("job.json", json.dumps(job, indent=1, sort_keys=True).encode())

    def discard(self) -> None:
        """Remove the folder of a job that made nothing, unless another process holds a lock in it."""
        if self._made_nothing():
            shutil.rmtree(self.path(), ignore_errors=True)
            if self.folder.read(_IGNORED) == _IGNORES:
                self.folder.remove(_IGNORED)
            for name in (schema.DATA, schema.META, ""):
                with suppress(OSError):  # missing, or somebody has put a file into it
                    os.rmdir(os.path.join(self.out, name))

    def _made_nothing(self) -> bool:
        """Whether nothing is left of the job but its plan, and no other process holds a lock on it. False behind a URL,
        where there are no locks."""
        if not isinstance(self.folder, LocalFolder):
            return False
        kept = (schema.DATA, *(f"{schema.WORK}/{name}" for name in ("receipts", "passed", "scans", "pushed")))
        return not any(map(self.folder.sizes, kept)) and self._overlapping(0, sys.maxsize) is None

    @property
    def job(self) -> dict[str, Any] | None:
        """The job begun here; None in a fresh OUT."""
        text = self.read("job.json")
        if text is None:
            return None
        try:
            job = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DamagedFileError(self.path("job.json"), "JSON", str(error)) from None
        return job if isinstance(job, dict) else {}

    def write_receipt(self, receipt: Receipt, index: pa.RecordBatch, rejects: pa.RecordBatch) -> Receipt:
        """Write down that a shard is done. The shard must already be on disk under its final name. Returns the receipt
        with the checksums of its parts."""
        receipt = self.write_parts(receipt, index, rejects)
        self._write(f"receipts/{receipt.number:05d}.json", seal(asdict(receipt)))
        return receipt

    def write_parts(self, receipt: Receipt, index: pa.RecordBatch, rejects: pa.RecordBatch) -> Receipt:
        """Write a shard's parts of the index and the rejects. Returns the receipt with the checksums of both."""
        parts = {
            what: self._write(f"receipts/{receipt.number:05d}.{what}.arrow", memoryview(ipc_buffer(part)))
            for what, part in (("index", index), ("rejects", rejects))
        }
        return replace(receipt, parts=parts)

    def write_passed(self, passed: Passed) -> None:
        """Write down that a stretch was passed. Its shards, their parts and its scans must already be written."""
        self._write(f"passed/{passed.first:05d}.json", seal(asdict(passed)))

    def passed(self) -> dict[int, Passed]:
        """Passed stretches of the source, by the number of their first shard. Unreadable records are skipped."""
        found = {}
        for _, text in self._records("passed"):
            with suppress(ValueError, TypeError, KeyError):
                fields = unseal(text or b"")
                receipts = tuple(Receipt(**each) for each in fields["receipts"])
                found[fields["first"]] = Passed(fields["first"], receipts, tuple(fields["digests"]))
        return found

    def write_scan(self, side: str, number: int, table: bytes) -> None:
        """Keep the scan of one archive. ``side`` is "raw" or "captions"; ``number`` is its place on that side."""
        self._write(f"scans/{side}-{number:05d}.arrow", table)

    def scans(self, side: str) -> set[int]:
        """Numbers of the archives with a kept scan."""
        names = [name.removesuffix(".arrow").split("-") for name in self.folder.sizes(f"{schema.WORK}/scans")]
        return {int(name[1]) for name in names if name[0] == side and len(name) == 2 and name[1].isdecimal()}

    def read_scans(self, side: str, numbers: Sequence[int]) -> list[bytes]:
        """The tables that :meth:`write_scan` kept, in the order of ``numbers``."""
        names = [f"{schema.WORK}/scans/{side}-{number:05d}.arrow" for number in numbers]
        return [data or b"" for data in self.folder.read_all(names)]

    def receipts(self) -> dict[int, Receipt]:
        """All finished shards, by number."""
        receipts = {}
        for name, text in self._records("receipts"):
            try:
                receipt = Receipt(**unseal(text or b""))
            except (ValueError, TypeError, KeyError) as error:
                problem = f"{error}; remove it to do its shard again"
                raise DamagedFileError(self.path("receipts", name), "receipt", problem) from None
            receipts[receipt.number] = receipt
        return receipts

    def _records(self, kind: str) -> Iterator[tuple[str, bytes | None]]:
        """(name, bytes) of each JSON file in a bookkeeping folder, by name."""
        folder = f"{schema.WORK}/{kind}"
        names = sorted(name for name in self.folder.sizes(folder) if name.endswith(".json"))
        return zip(names, self.folder.read_all([f"{folder}/{name}" for name in names]), strict=True)

    def index_part(self, receipt: Receipt) -> pa.Table:
        """Index rows of a finished shard, memory-mapped."""
        return self._part(receipt, "index")

    def rejects_part(self, receipt: Receipt) -> pa.Table:
        """Rejects of a finished shard, memory-mapped."""
        return self._part(receipt, "rejects")

    def _part(self, receipt: Receipt, what: str) -> pa.Table:
        name = f"receipts/{receipt.number:05d}.{what}.arrow"
        path = self.path(name)
        try:
            with pa.memory_map(self.local(name)) as source:
                data = source.read_buffer()
            if path not in self._proved:
                if xxhash.xxh3_128_hexdigest(data) != receipt.parts.get(what):
                    raise pa.ArrowInvalid("its checksum is not the one in its receipt")
                self._proved.add(path)
            return pa.ipc.open_stream(data).read_all()
        except (pa.ArrowException, OSError) as error:
            refuse_denied(path, error)
            noted = shlex.quote(self.path("receipts", f"{receipt.number:05d}.json"))
            raise DamagedFileError(path, what, f"{error}; remove {noted} to do its shard again") from None

    def clear(self) -> None:
        """Delete all bookkeeping but the locks."""
        files = ("job.json", "plan.arrow", "plan-rejects.arrow", PLAN)
        for name in (*files, "receipts", "passed", "scans", "pushed", "tmp"):
            self.folder.remove(f"{schema.WORK}/{name}")

    def clear_temporary(self) -> None:
        """Remove unfinished files."""
        self.folder.remove(f"{schema.WORK}/tmp")

    def _write(self, name: str, data: bytes | memoryview) -> str:
        return write(self.folder, f"{schema.WORK}/{name}", [data])

    @contextmanager
    def locked(self, first: int, last: int) -> Iterator[None]:
        """Lock raw archives ``first`` to ``last`` (exclusive) against other runs. Raises LockedError.

        The kernel holds the lock (flock). It releases it when the last process that has it ends, in whatever way, so no
        lock is ever stale. Object stores have no locks. There, two runs of one job do the same work twice and write the
        same bytes; ``begin`` refuses a run of another job.
        """
        if not isinstance(self.folder, LocalFolder):
            yield
            return
        make_folder(self.path("locks"))
        deadline = time.monotonic() + _PATIENCE
        while True:
            with self.guarded():
                holder = self._overlapping(first, last)
                if holder is None:
                    path = self.path("locks", f"{first}-{last}")
                    handle = _open(path)
                    try:
                        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        os.ftruncate(handle, 0)
                        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                    except OSError as error:  # a full disk, or a file system without locks
                        _close(handle)
                        raise WriteError(path, error.strerror) from error
                    self._held.add(os.path.basename(path))
                    break
            if time.monotonic() > deadline:
                raise LockedError(self.out, holder)
            time.sleep(0.2)
        try:
            yield
        finally:
            with suppress(OSError):  # a file left behind locks nothing
                os.unlink(path)
            self._held.discard(os.path.basename(path))
            _close(handle)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """A short critical section between runs: to take locks, and to write files that all runs share."""
        if not isinstance(self.folder, LocalFolder):
            yield
            return
        make_folder(self.path("locks"))
        path = self.path("locks", "guard")
        handle = _open(path)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError as error:
                raise WriteError(path, error.strerror) from error
            yield
        finally:
            _close(handle)

    def _overlapping(self, first: int, last: int) -> str | None:
        """Who holds a lock that overlaps this stretch. None if no other living process does."""
        locks = self.path("locks")
        for name in sorted(set(os.listdir(locks) if os.path.isdir(locks) else []) - self._held):
            edges = re.fullmatch(r"(\d+)-(\d+)", name)  # copying a folder can leave files of other names
            if edges is None or not (int(edges[1]) < last and first < int(edges[2])):
                continue
            handle = _open(self.path("locks", name))
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return os.pread(handle, 200, 0).decode("utf-8", "replace") or "another process"
            finally:
                _close(handle)
        return None


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise WriteError(path, error.strerror) from error


def _close(handle: int) -> None:
    with suppress(OSError):  # only a lock's file; nobody relies on its content
        os.close(handle)
