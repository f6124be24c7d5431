"""What the stress scripts share: files in memory, the accounting oracle, batches in processes of their own, figures."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import resource
import signal
import sys
import tarfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builder.base import schema
from builder.base.arrays import number_array, string_array
from builder.base.errors import Laion6mError
from builder.base.ids import path_ids
from builder.base.records import CUT, SPARSE, WHOLE, Reason, TarScan
from builder.read.opening import open_dataset
from builder.store.index import write_index
from builder.store.output import OutputFile
from tests.outputs import output_bytes
from tests.sources import picture

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT.parent / "shared" / "corpus"
"""Where odd tars and images lie, on machines that have them: not part of this project."""

_LOOK = 0.005  # seconds between looks at a child

REASONS = {reason.value for reason in Reason}


class LostError(AssertionError):
    """A promise was broken. The one thing that a stress script must never see."""


class MemoryFile:
    """Bytes as a ByteFile. ``taken``: how many bytes were read so far. ``known=False``: its size is not told, as with a
    compressed stream."""

    def __init__(self, data: bytes, known: bool = True) -> None:
        self.name = "memory"
        self.size = len(data) if known else None
        self.taken = 0
        self._data = data

    def read_at(self, offset: int, length: int) -> bytes:
        found = self._data[offset : offset + length]
        self.taken += len(found)
        return found

    def close(self) -> None:
        """Nothing to give back."""


def check_scan(scan: TarScan, data: bytes) -> None:
    """What holds of the walk over any bytes."""
    if scan.size != len(data):
        raise LostError(f"a size of {scan.size} for {len(data)} bytes")
    path_ids(member.name for member in scan.members)  # every name can be encoded
    for member in scan.members:
        if not (member.offset >= 0 and member.size >= 0 and member.offset + member.size <= len(data)):
            raise LostError(f"{member} outside of {len(data)} bytes")
        if member.state not in (WHOLE, CUT, SPARSE) or "\0" in member.name:
            raise LostError(f"{member} in no known state")
    for damage in scan.damage:
        if not 0 <= damage.offset <= damage.end <= max(len(data), damage.offset):
            raise LostError(f"{damage} outside of {len(data)} bytes")


def seed_index(folder: Path, rows: int = 5) -> Path:
    """A folder with a file of 4 KiB and meta/index.arrow with ``rows`` rows in it; the index's path."""
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    (folder / "a.tar").write_bytes(bytes(range(256)) * 16)
    names = [f"00000/{number:04d}" for number in range(rows)]
    counting = np.arange(rows)
    columns = [
        number_array(np.zeros(rows, dtype=np.int32)),
        number_array((counting * 700).astype(np.int64)),
        number_array((counting * 100 + 1).astype(np.int64)),
        number_array(np.full(rows, 32, dtype=np.int32)),
        number_array(np.full(rows, 24, dtype=np.int32)),
        number_array(counting.astype(np.int64)),
        number_array((counting % 3 - 2).astype(np.int32)),
        number_array((counting * 10).astype(np.int64)),
        number_array(np.full(rows, 7, dtype=np.int64)),
        number_array((counting % 2).astype(np.uint8)).cast(pa.bool_()),
        pa.nulls(rows, pa.binary(16)),
        string_array(names),
        string_array([f"{name}.jpg" for name in names]),
        string_array([f"{name}.json" for name in names]),
        string_array([f"caption {number}" for number in range(rows)]),
        pa.nulls(rows, pa.string()),
        number_array(path_ids(names)[:, 0].copy()),
    ]
    table = pa.Table.from_arrays(columns, schema=schema.INDEX_ROW.append(pa.field("key_hash", pa.uint64())))
    path = folder / "meta" / "index.arrow"
    file = schema.IndexedFile("a.tar", "tar", rows, {"size": 4096})
    write_index(OutputFile(str(path)), "", [file], lambda: [table])
    return path


def look_at(folder: str) -> str:
    """Open a folder that may be hostile and read rows in every way there is. "read", or "refused" with a project
    error; any other exception is the caller's to see."""
    try:
        reader = open_dataset(folder)
        count = len(reader)
    except Laion6mError:
        return "refused"
    outcome = "read" if count else "empty"
    for row in sorted({0, 1, count // 2, count - 1} & set(range(count))) if count < 1 << 40 else ():
        try:
            sample = reader[row]
            if len(sample.image) != sample.size and sample.size >= 0:
                raise LostError(f"row {row}: {len(sample.image)} bytes, {sample.size} by the index")
            texts = (sample.key, sample.path, sample.caption, sample.annotation_path, repr(sample))
            if not all(isinstance(text, str) for text in texts):
                raise LostError(f"row {row}: {texts}")
            _ = (sample.width, sample.height, sample.position, sample.digest)
        except Laion6mError:
            outcome = "refused"
        with contextlib.suppress(Laion6mError, UnicodeDecodeError):
            _ = reader[row].annotation
    for look in (
        lambda: list(reader[: min(count, 40)]),
        lambda: reader.find("00000/0001") if "00000/0001" in reader else None,
        lambda: reader.columns("key", "caption", "size").slice(0, 3).to_pylist(),
        lambda: (reader.widths(), reader.heights()),
    ):
        try:
            look()
        except (Laion6mError, UnicodeDecodeError):  # noqa: PERF203 - reading takes longer than that
            outcome = "refused"
    return outcome


@dataclass
class Listed:
    """One entry of data.json, and the image bytes its row would have; None where there can be no row."""

    image: str
    annotation: str
    content: bytes | None = None


@dataclass
class Account:
    """What came of a source."""

    rows: int
    rejected: dict[str, int]
    content: dict[str, bytes] = field(repr=False, default_factory=dict)

    @property
    def rejects(self) -> int:
        return sum(self.rejected.values())


def account(out: Path, listed: int, contents: Mapping[int, bytes] | None = None) -> Account:
    """Prove that each of ``listed`` positions is exactly once in the rows or the rejects of OUT, that counts agree
    wherever they stand, and that rows have the bytes put in (``contents``: by position). Raises LostError."""
    manifest = json.loads((out / schema.MANIFEST).read_bytes())
    totals = manifest["totals"]
    rejects = pq.ParquetFile(out / schema.REJECTS).read()
    with pa.OSFile(str(out / schema.INDEX)) as handle, pa.ipc.open_file(handle) as file:
        index = file.read_all()
    positions = Counter(index.column("position").to_pylist()) + Counter(rejects.column("position").to_pylist())
    if positions != Counter(range(listed)):
        wrong = {place: count for place, count in positions.items() if count != 1 or not 0 <= place < listed}
        missing = set(range(listed)) - set(positions)
        raise LostError(f"of {listed} listed: {len(missing)} nowhere {sorted(missing)[:5]}, twice or alien {wrong}")
    reasons = dict(Counter(rejects.column("reason").to_pylist()))
    if totals["rows"] != len(index) or totals["rejected"] != reasons or totals["listed"] != listed:
        raise LostError(f"{totals} where there are {len(index)} rows and {reasons}")
    if set(reasons) - REASONS:
        raise LostError(f"unknown reasons {set(reasons) - REASONS}")
    rows = [row for shard in sorted((out / "data").iterdir()) for row in pq.ParquetFile(shard).read().to_pylist()]
    if [row["key"] for row in rows] != index.column("key").to_pylist():
        raise LostError("the shards' keys are not the index's")
    reader = open_dataset(out)
    for number, (row, position) in enumerate(zip(rows, index.column("position").to_pylist(), strict=True)):
        data = row["image"]["bytes"]
        if contents is not None and contents.get(position) != data:
            raise LostError(f"row {number} ({row['key']}) has other bytes than were put in")
        if reader[number].image != data or reader[number].annotation != row["annotation"]:
            raise LostError(f"row {number} ({row['key']}) reads otherwise than its shard has it")
    return Account(len(rows), reasons)


@dataclass(frozen=True)
class Ending:
    """How a batch in a process of its own ended. ``peak``: ru_maxrss in bytes."""

    value: Any
    crashed: str
    hung: bool
    peak: int


def in_process(work: Callable[[], Any], timeout: float) -> Ending:
    """Run ``work`` in a forked child: an abort, a segmentation fault or a hang is counted, not suffered. ``timeout``:
    seconds that this process itself waits, so that no hang is seen where all of us were stopped for a while."""
    theirs, ours = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(theirs)
            answer = pickle.dumps(work())
            with os.fdopen(ours, "wb") as sink:
                sink.write(answer)
            code = 0
        except BaseException:  # noqa: BLE001 - whatever it is, the parent has to hear of it
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(ours)
    os.set_blocking(theirs, False)
    data, status, usage = b"", 0, None
    for _ in range(int(timeout / _LOOK)):
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(theirs, 1 << 20):
                data += piece
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        time.sleep(_LOOK)
    else:
        os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        os.close(theirs)
        return Ending(None, "", True, usage.ru_maxrss * 1024)
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(theirs, 1 << 20):
            data += piece
    os.close(theirs)
    peak = usage.ru_maxrss * 1024 if usage else 0
    if status == 0 and data:
        return Ending(pickle.loads(data), "", False, peak)  # noqa: S301 - from our own child
    ending = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
    return Ending(None, ending, False, peak)


def run_cli(*words: object, before: Callable[[], None] | None = None, after: Callable[[], Any] | None = None) -> Any:
    """The command line in this process (a forked child's): its exit code, its stderr, and what ``after`` says."""
    from builder.cli.commands import main

    theirs, ours = os.pipe()  # a file would be under the limits that are tried
    kept = os.dup(2)
    os.dup2(ours, 2)
    os.close(ours)
    code: int | str = 0
    try:
        if before is not None:
            before()
        code = main(list(map(str, words)))
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:  # noqa: BLE001 - what no user should see
        code = traceback.format_exc()
    finally:
        said = after() if after is not None else None
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
    with os.fdopen(theirs) as pipe:
        return code, pipe.read(), said


def shard_source(folder: Path, shards: int = 4, per_shard: int = 5) -> Path:
    """A card-layout source whose tars are about a shard of 1 MB each, with one reject in every tar."""
    (folder / "raw").mkdir(parents=True)
    (folder / "captions").mkdir()
    entries = []
    for shard in range(shards):
        images, documents = {}, {}
        for number in range(per_shard):
            key = f"{shard:05d}/{number:09d}"
            image = picture(shard * 100 + number, "PNG", (256, 250)) if number else b"no image"
            images[f"{key}.jpg"], documents[f"{key}.json"] = image, json.dumps({"caption": f"Of {key}."}).encode()
            entries.append({"image": f"{key}.jpg", "annotation": f"{key}.json"})
        write_tar(folder / "raw" / f"{shard:05d}.tar", images)
        write_tar(folder / "captions" / f"{shard:05d}.tar", documents)
    (folder / "data.json").write_text(json.dumps(entries))
    return folder


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    """A GNU tar with these members."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def receipts(out: Path) -> dict[str, int]:
    """Receipts of finished shards → when they were written."""
    folder = out / schema.WORK / "receipts"
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob("*.json"))} if folder.is_dir() else {}


def session_of(leader: int) -> list[int]:
    """Living processes that ``leader`` started, itself included."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == leader and fields[0] not in "ZX":
                    found.append(int(name))
    return sorted(found)


def half_named(out: Path, whole: Mapping[str, str]) -> list[str]:
    """Files under a final name that are not what a whole run gives (``whole``: of ``output_bytes``)."""
    return [name for name, digest in output_bytes(out).items() if whole.get(name) != digest]


def arguments(description: str, seconds: int, trials: int, **more: tuple[Any, str]) -> argparse.Namespace:
    """--seconds, --trials, --seed and what a script has of its own (name: default, help)."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=seconds, help=f"stop after so long ({seconds})")
    parser.add_argument("--trials", type=int, default=trials, help=f"stop after so many ({trials})")
    parser.add_argument("--seed", type=int, default=6, help="of all random choices (6)")
    for name, (default, text) in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=text)
    return parser.parse_args()


def batches(trials: int, size: int, seconds: float) -> Iterator[tuple[int, int]]:
    """(first, count) of stretches of trials, until there are enough or the time is up."""
    deadline = time.monotonic() + seconds
    for first in range(0, trials, size):
        if time.monotonic() > deadline:
            return
        yield first, min(size, trials - first)


def close(name: str, figures: Mapping[str, Any]) -> int:
    """Print the closing line; the exit code: 1 where anything crashed, hung or was lost."""
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    words = ", ".join(
        f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in figures.items()
    )
    print(f"{name}: {words}, peak {peak:.0f} MiB", flush=True)
    return int(any(figures.get(word) for word in ("crashes", "hangs", "lost")))
