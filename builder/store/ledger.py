"""What is finished of a job, kept beside its output: restart is plan minus receipts.

OUT/.laion6m/
├── job.json                what the job is: source and options
├── plan.arrow              which sample goes where (see plan/plan.py), plan-rejects.arrow; plan.json: their checksums
├── receipts/00003.json     shard 3 is whole and on disk; written last of all that belongs to it, with checksums of both
├── receipts/00003.index.arrow, 00003.rejects.arrow
├── scans/raw-00007.arrow   where the members of raw archive 7 lie, of a source behind a URL; captions-00007.arrow
├── passed/00003.json       the stretch that begins with shard 3 was read once; written last of all that belongs to it
├── pushed/, pushed-cards.json    store/pushed.py; captions-only/: hub/captions_only.py; sha256.jsonl: hub/items.py
├── locks/0-16              who works on raw archives 0 to 16 (exclusive)
└── tmp/                    files that are not whole yet
"""

from __future__ import annotations

import fcntl
import json
import os
import re
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
from builder.base.errors import DamagedFileError, JobMismatchError, LockedError, WriteError, refuse_denied
from builder.base.names import PLAN
from builder.base.urls import join
from builder.store.folders import Folder, LocalFolder, open_folder, write
from builder.store.output import NewFile, make_folder
from builder.store.seals import seal, unseal

_PATIENCE = 10.0  # seconds a lock may stay held: workers of a killed run notice within one that they are orphans


Describe = Callable[[dict[str, Any], dict[str, Any]], list[str]]
"""Two jobs → what differs, in words."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A finished shard. ``digest``: xxh3-128 of the file, hex. ``check``: how an index knows the file again.
    ``formats``: images by format; ``animated``: images of more than one frame. ``parts``: checksums of what it adds to
    the index and to the rejects, noted when those are written."""

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
    """A stretch of a source behind a URL, read once (conversion/one_pass.py). ``first``: the number of its first shard.
    ``receipts``: of the shards that were made on the way, from the first on; none where it was only scanned.
    ``digests``: what the rows of each were made of: a shard stands if the plan has the same."""

    first: int
    receipts: tuple[Receipt, ...]
    digests: tuple[str, ...]


_IGNORED = ".gitignore"
_IGNORES = f"/{schema.WORK}/\n".encode()


class Ledger:
    """The bookkeeping folder of one OUT."""

    def __init__(self, out: str | Folder) -> None:
        """``out``: a path, or an open folder."""
        self.folder = open_folder(out)
        self.out = self.folder.root
        self._proved: set[str] = set()  # parts of receipts whose checksums were seen to fit
        self._passed_parts: dict[int, dict[str, str]] = {}
        self._held: set[str] = set()  # names of the locks that are ours

    def path(self, *names: str) -> str:
        """Of a file of the bookkeeping, where OUT is on this machine's disks."""
        return os.path.join(self.out, schema.WORK, *names)

    def create(self, name: str) -> NewFile:
        """A new file of the bookkeeping."""
        return self.folder.create(f"{schema.WORK}/{name}")

    def local(self, name: str) -> str:
        """A path at which a file of the bookkeeping can be mapped. Raises FileNotFoundError."""
        return self.folder.local(f"{schema.WORK}/{name}")

    def read(self, name: str) -> bytes | None:
        """A file of the bookkeeping; None where there is none."""
        return self.folder.read(f"{schema.WORK}/{name}")

    def begin(self, job: dict[str, Any], describe: Describe | None = None) -> None:
        """Note what the job is, or raise JobMismatchError where another one was begun here, with what ``describe`` says
        of the two. One that came to nothing (its listing could not be read) does not count: the way out of that is to
        mend the source."""
        noted = self.job
        if noted is None and self.folder.sizes(schema.DATA):
            raise JobMismatchError(self.out, ["it holds data/ that no job of this tool left"])
        describe = describe or describe_differences
        differences = [] if noted is None else describe(noted, json.loads(json.dumps(job)))
        if differences and not self._came_to_nothing():
            raise JobMismatchError(self.out, differences)
        if noted is None or differences:
            self._write("job.json", json.dumps(job, indent=1, sort_keys=True).encode())

    def keep_apart(self) -> None:
        """Have git and ``hf upload`` pass over the bookkeeping, unless OUT has a .gitignore already."""
        if self.folder.read(_IGNORED) is None:
            write(self.folder, _IGNORED, [_IGNORES])

    def adopt(self, job: dict[str, Any]) -> None:
        """Note the job anew: it is the same, but files of its source have other times."""
        self._write("job.json", json.dumps(job, indent=1, sort_keys=True).encode())

    def discard(self) -> None:
        """Remove a folder in which a job was begun that made nothing, if nobody else is at it."""
        if isinstance(self.folder, LocalFolder) and self._made_nothing():
            shutil.rmtree(self.path(), ignore_errors=True)
            if self.folder.read(_IGNORED) == _IGNORES:
                self.folder.remove(_IGNORED)
            for name in (schema.DATA, schema.META, ""):
                with suppress(OSError):  # it is not there, or somebody put something into it meanwhile
                    os.rmdir(os.path.join(self.out, name))

    def _came_to_nothing(self) -> bool:
        """Whether the job left nothing and nobody is at it, which only locks can tell."""
        return isinstance(self.folder, LocalFolder) and self.read(PLAN) is None and self._made_nothing()

    def _made_nothing(self) -> bool:
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
            raise DamagedFileError(self.place("job.json"), "JSON", str(error)) from None
        return job if isinstance(job, dict) else {}

    def write_receipt(self, receipt: Receipt, index: pa.RecordBatch, rejects: pa.RecordBatch) -> None:
        """Note a shard as done. The shard must be on disk under its final name already."""
        receipt = self.write_parts(receipt, index, rejects)
        self._write(f"receipts/{receipt.number:05d}.json", seal(asdict(receipt)))

    def write_parts(self, receipt: Receipt, index: pa.RecordBatch, rejects: pa.RecordBatch) -> Receipt:
        """Write what a shard adds to the index and to the rejects; returns the receipt with the checksums of both."""
        parts = {
            what: self._write(f"receipts/{receipt.number:05d}.{what}.arrow", memoryview(ipc_buffer(part)))
            for what, part in (("index", index), ("rejects", rejects))
        }
        return replace(receipt, parts=parts)

    def write_passed(self, passed: Passed) -> None:
        """Note a stretch as passed. Its shards, their parts and its scans must be there already."""
        self._write(f"passed/{passed.first:05d}.json", seal(asdict(passed)))

    def passed(self) -> dict[int, Passed]:
        """Stretches of the source that were passed over, by their first shard. One that cannot be read is none."""
        names = sorted(name for name in self.folder.sizes(f"{schema.WORK}/passed") if name.endswith(".json"))
        found = {}
        for text in self.folder.read_all([f"{schema.WORK}/passed/{name}" for name in names]):
            with suppress(ValueError, TypeError, KeyError):
                fields = unseal(text or b"")
                receipts = tuple(Receipt(**each) for each in fields["receipts"])
                passed = Passed(fields["first"], receipts, tuple(fields["digests"]))
                found[passed.first] = passed
                self._passed_parts |= {receipt.number: receipt.parts for receipt in receipts}
        return found

    def write_scan(self, side: str, number: int, table: bytes) -> None:
        """Keep what was found in an archive, ``number`` of ``side`` ("raw" or "captions")."""
        self._write(f"scans/{side}-{number:05d}.arrow", table)

    def scans(self, side: str) -> set[int]:
        """Numbers of the archives whose scans are kept."""
        names = [name.removesuffix(".arrow").split("-") for name in self.folder.sizes(f"{schema.WORK}/scans")]
        return {int(name[1]) for name in names if name[0] == side and len(name) == 2 and name[1].isdecimal()}

    def read_scans(self, side: str, numbers: Sequence[int]) -> list[bytes]:
        """What :meth:`write_scan` kept."""
        names = [f"{schema.WORK}/scans/{side}-{number:05d}.arrow" for number in numbers]
        return [data or b"" for data in self.folder.read_all(names)]

    def receipts(self) -> dict[int, Receipt]:
        """All finished shards, by number."""
        names = sorted(name for name in self.folder.sizes(f"{schema.WORK}/receipts") if name.endswith(".json"))
        receipts = {}
        for name, text in zip(names, self.folder.read_all([f"{schema.WORK}/receipts/{n}" for n in names]), strict=True):
            receipt = self._receipt(name, text)
            receipts[receipt.number] = receipt
        return receipts

    def _receipt(self, name: str, text: bytes | None) -> Receipt:
        try:
            return Receipt(**unseal(text or b""))
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedFileError(
                self.place("receipts", name), "receipt", f"{error}; remove it to do its shard again"
            ) from None

    def _checksums(self, number: str) -> dict[str, str]:
        """Of the parts of a finished shard: by its receipt, or by the pass that made it."""
        text = self.read(f"receipts/{number}.json")
        if text is not None:
            return self._receipt(f"{number}.json", text).parts
        if int(number) not in self._passed_parts:
            self.passed()  # notes the checksums of all
        return self._passed_parts.get(int(number), {})

    def index_part(self, number: int) -> pa.Table:
        """Index rows of a finished shard, memory-mapped."""
        return self._part(f"{number:05d}", "index")

    def rejects_part(self, number: int) -> pa.Table:
        """Rejects of a finished shard, memory-mapped."""
        return self._part(f"{number:05d}", "rejects")

    def _part(self, number: str, what: str) -> pa.Table:
        path = self.place("receipts", f"{number}.{what}.arrow")
        try:
            local = self.local(f"receipts/{number}.{what}.arrow")
            with pa.memory_map(local) as source:
                data = source.read_buffer()
            if path not in self._proved:
                if xxhash.xxh3_128_hexdigest(data) != self._checksums(number).get(what):
                    raise pa.ArrowInvalid("its checksum is not the one in its receipt")
                self._proved.add(path)
            return pa.ipc.open_stream(data).read_all()
        except (pa.ArrowException, OSError) as error:
            refuse_denied(path, error)
            receipt = self.place("receipts", f"{number}.json")
            raise DamagedFileError(path, what, f"{error}; remove {receipt} to do its shard again") from None

    def clear(self) -> None:
        """Forget all of it but the locks."""
        for name in (
            "job.json",
            "plan.arrow",
            "plan-rejects.arrow",
            PLAN,
            "receipts",
            "passed",
            "scans",
            "pushed",
            "tmp",
        ):
            self.folder.remove(f"{schema.WORK}/{name}")

    def clear_temporary(self) -> None:
        """Remove unfinished files."""
        self.folder.remove(f"{schema.WORK}/tmp")

    def _write(self, name: str, data: bytes | memoryview) -> str:
        return write(self.folder, f"{schema.WORK}/{name}", [data])

    def place(self, *names: str) -> str:
        """For messages."""
        return join(self.out, "/".join((schema.WORK, *names)))

    @contextmanager
    def locked(self, first: int, last: int) -> Iterator[None]:
        """Hold raw archives ``first`` to ``last`` (exclusive) against other runs. Raises LockedError.

        The lock is the kernel's (flock): it goes with the last process that has it, however that ended, so a stale lock
        cannot be. Object stores have none: there two runs of one job do the same work twice and write the same bytes,
        and a run of another job is refused by ``begin``.
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
                    except OSError as error:  # full; or a file system without locks
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
            with suppress(OSError):  # a lock file left behind is no lock
                os.unlink(path)
            self._held.discard(os.path.basename(path))
            _close(handle)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Short critical sections between runs: taking locks, writing what all of them share."""
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
        """Who else holds a stretch that overlaps, if anybody alive does."""
        locks = self.path("locks")
        for name in sorted(set(os.listdir(locks) if os.path.isdir(locks) else []) - self._held):
            edges = re.fullmatch(r"(\d+)-(\d+)", name)  # who copies folders leaves files of other names
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


def describe_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two jobs, in words, most telling first."""
    found = list(_differences(before, now, ""))
    return found[:5] + ([f"and {len(found) - 5} more"] if len(found) > 5 else [])


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str) -> Iterator[str]:
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif key == "columns" and old is None:
            yield "an earlier version began it, which listed the columns in another order"
        elif old != new:
            yield f"{prefix}{key} was {_brief(old)}, is {_brief(new)}"


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise WriteError(path, error.strerror) from error


def _close(handle: int) -> None:
    with suppress(OSError):  # of a lock's file, whose content nobody relies on
        os.close(handle)
