"""What a folder that the tool made holds, and the tool's command line as a process of its own."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from builder.read.opening import open_dataset
from tests.sources import picture

ROOT = Path(__file__).parents[1]
ALL = "LAION6M_TEST_ALL" in os.environ
"""Whether to take all of what the tests otherwise take a fixed part of (CONTRIBUTING.md)."""


class OutRow(NamedTuple):
    """A row as it came out."""

    key: str
    path: str
    image: bytes
    caption: str
    document: str
    size: tuple[int, int]


def read_rows(out: Path) -> list[OutRow]:
    """All rows of data/, in order."""
    rows = []
    if json.loads((out / "meta" / "manifest.json").read_bytes())["kind"] == "webdataset":  # no columns: by its index
        return [
            OutRow(row.key, row.path, row.image, row.caption, row.annotation, (row.width, row.height))
            for row in open_dataset(out)
        ]
    for shard in sorted((out / "data").iterdir()):
        if shard.suffix == ".parquet":
            table = pq.ParquetFile(shard).read()
        else:
            with pa.memory_map(str(shard)) as source:
                table = pa.ipc.open_stream(source).read_all()
        for row in table.to_pylist():
            image = row["image"]
            size = (row["width"], row["height"])
            rows.append(OutRow(row["key"], image["path"], image["bytes"], row["caption"], row["annotation"], size))
    return rows


def read_rejects(out: Path) -> list[dict[str, Any]]:
    """meta/rejects.parquet, row by row."""
    rows: list[dict[str, Any]] = pq.ParquetFile(out / "meta" / "rejects.parquet").read().to_pylist()
    return rows


def output_bytes(out: Path) -> dict[str, str]:
    """Digests of all that has to be the same in every run: data/, meta/, README.md and the like."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and ".laion6m" not in path.parts)
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def leftovers(out: Path) -> list[str]:
    """Files that are not whole: temporary names anywhere below OUT."""
    paths = (str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    return sorted(path for path in paths if path.endswith(".tmp") or path.startswith(".laion6m/tmp/"))


class Ran(NamedTuple):
    """What a command did."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        value: dict[str, Any] = json.loads(self.stdout)
        return value


def environment(*, leaks: bool = True) -> dict[str, str]:
    """For a Python that finds this project, and speaks up at files left open, as the tests do. Not ``leaks``: where it
    will be interrupted, which may come between ``open`` and the ``with`` around it."""
    warnings = {"PYTHONWARNINGS": "error::ResourceWarning"} if leaks else {}
    return {**os.environ, "PYTHONPATH": str(ROOT), **warnings}


def start(*arguments: object, leaks: bool = True, **options: Any) -> subprocess.Popen[str]:
    """The command line, as the leader of a process group of its own."""
    command = [sys.executable, "-m", "builder", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(leaks=leaks),
        start_new_session=True,
        **options,
    )


def run_command(*arguments: object, **options: Any) -> Ran:
    """The command line, to its end."""
    process = start(*arguments, **options)
    stdout, stderr = process.communicate(timeout=60)
    return Ran(process.returncode, stdout, stderr)


def run_python(script: str, *arguments: object) -> Ran:
    """A script in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def group_members(group: int) -> list[int]:
    """Process ids of a process group, those that only wait to be reaped left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, its_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(its_group) == group and state != "Z":
                found.append(int(entry.name))
    return sorted(found)


def wait_until(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for a condition; AssertionError when it does not come about. As long as a busy machine may take."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def make_large_source(folder: Path, tars: int = 3, per_tar: int = 24, caption: str = "a caption") -> list[str]:
    """A card source of images of 67 kB each, so that shards of 1 MB are about as many as megabytes of tar. Returns the
    keys in their order."""
    keys = []
    listing = []
    for side in ("raw", "captions"):
        (folder / side).mkdir(parents=True, exist_ok=True)
    for number in range(tars):
        names = [f"{number:05d}/{number * per_tar + i:09d}" for i in range(per_tar)]
        with (
            tarfile.open(folder / "raw" / f"{number:05d}.tar", "w") as raw,
            tarfile.open(folder / "captions" / f"{number:05d}.tar", "w") as captions,
        ):
            for i, name in enumerate(names):
                for tar, ending, data in (
                    (raw, "png", picture(i % 24, "PNG", (150, 150))),
                    (captions, "json", json.dumps({"caption": f"{caption} of {name}"}).encode()),
                ):
                    info = tarfile.TarInfo(f"{name}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        keys += names
        listing += [{"image": f"{name}.png", "annotation": f"{name}.json"} for name in names]
    (folder / "data.json").write_text(json.dumps(listing))
    return keys
