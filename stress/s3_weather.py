"""Convert from S3 to S3 while requests fail (one in ``--every``: by turns 503, 500 and half of a body), then read every
row back through ``open_dataset("s3://…")``, with as many failing. What lies there in the end has to be what the same
conversion gives on a disk, byte for byte, and every image that is read the one that the disk has.

    python stress/s3_weather.py [--source FOLDER] [--every 20] [--max-shard-size 100MB] [--num-proc 2] [--scratch DIR]

The S3 is moto's, in a process of its own on 127.0.0.1, and holds all in memory. Needs the extra ``test``. Without
--source a small one is made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from builder import open_dataset
from stress.common import ROOT, LostError, arguments, close
from tests.outputs import make_large_source, output_bytes
from tests.servers import REGION, s3

BUCKET = "weather"
SLICE = 64
"""Rows asked for together: neighbours share requests, as they do in training."""


def serve() -> int:
    """An S3 until standard input ends. Prints what s3fs takes to reach it. A number on standard input: from here on one
    in so many requests fails (0: none); it answers with the requests and failures since the last."""
    with s3(BUCKET) as server:
        print(json.dumps(server.options), flush=True)
        for line in sys.stdin:
            weather = server.weather
            weather.every = int(line)
            methods = Counter(method for method, _, _ in weather.requests)
            print(json.dumps({"failed": weather.failed, "requests": methods.total(), **methods}), flush=True)
            weather.failed = 0
            weather.requests.clear()
    return 0


class Server:
    """The S3 as a process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.options: dict[str, Any] = json.loads(self._line())

    def weather(self, every: int) -> dict[str, int]:
        """Change it; what there was before."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{every}\n")
        self.process.stdin.flush()
        counts: dict[str, int] = json.loads(self._line())
        return counts

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise LostError("crash: the S3 ended")
        return line

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def convert(source: str, out: str, size: str, num_proc: int, options: dict[str, Any]) -> dict[str, Any]:
    """The command; its document."""
    command = [
        sys.executable,
        "-m",
        "builder",
        "convert",
        source,
        out,
        "--json",
        "--max-reject-ratio",
        "1",
    ]
    command += ["--max-shard-size", size, "--num-proc", str(num_proc), "--storage-options", json.dumps(options)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    if done.returncode or "Traceback" in done.stderr:
        raise LostError(f"convert {source} {out}: exit {done.returncode}, said {done.stderr[-2000:]!r}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def run(server: Server, source: Path, scratch: Path, size: str, num_proc: int, every: int) -> dict[str, int]:
    """The figures. Raises LostError."""
    import s3fs

    local = scratch / "local"
    rows = convert(str(source), str(local), size, num_proc, {})["rows"]
    expected = output_bytes(local)
    system = s3fs.S3FileSystem(**server.options, skip_instance_cache=True)
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        system.put_file(str(path), f"{BUCKET}/src/{path.relative_to(source).as_posix()}")

    server.weather(every)
    started = time.monotonic()
    convert(f"s3://{BUCKET}/src", f"s3://{BUCKET}/out", size, num_proc, server.options)
    written = server.weather(0)
    print(f"converted in {time.monotonic() - started:.0f} s: {written}", flush=True)
    found = {
        name.removeprefix(f"{BUCKET}/out/"): hashlib.sha256(system.cat_file(name)).hexdigest()
        for name in system.find(f"{BUCKET}/out")
        if "/.laion6m/" not in name
    }
    if wrong := sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)):
        raise LostError(f"other bytes: {wrong}")

    server.weather(every)
    started = time.monotonic()
    near, far = open_dataset(local), open_dataset(f"s3://{BUCKET}/out", storage_options=server.options)
    if len(far) != len(near) or len(near) != rows:
        raise LostError(f"{len(far)} rows there, {len(near)} here, {rows} said")
    for first in range(0, rows, SLICE):
        for here, there in zip(near[first : first + SLICE], far[first : first + SLICE], strict=True):
            if (here.key, here.image, here.annotation) != (there.key, there.image, there.annotation):
                raise LostError(f"{here.key} reads otherwise from S3")
    read = server.weather(0)
    print(f"read back in {time.monotonic() - started:.0f} s: {read}", flush=True)
    return {
        "rows": rows,
        "files": len(expected),
        "requests of convert": written["requests"],
        "of them failed": written["failed"],
        "requests of reading": read["requests"],
        "failed of these": read["failed"],
    }


def main() -> int:
    if sys.argv[1:] == ["serve"]:
        return serve()
    options = arguments(
        __doc__ or "",
        900,
        1,
        source=("", "a folder in a layout that convert takes (one is made)"),
        every=(20, "one in so many requests fails (20)"),
        max_shard_size=("100MB", "of the shards (100MB; of the made source 1MB)"),
        num_proc=(2, "processes (2)"),
        scratch=("/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir(), "where the local output goes"),
    )
    os.environ.update(REGION)
    figures: Counter[str] = Counter(dict.fromkeys(("trials", "crashes", "hangs", "lost"), 0))
    deadline = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory(prefix="s3-weather-", dir=options.scratch) as name:
        os.environ["LAION6M_CACHE"] = os.path.join(name, "cache")
        source, size = Path(options.source), options.max_shard_size
        if not options.source:
            source, size = Path(name, "source"), "1MB"
            make_large_source(source, tars=4, per_tar=24)
        while figures["trials"] < options.trials and time.monotonic() < deadline:
            server = Server()
            try:
                figures.update(run(server, source, Path(name), size, options.num_proc, options.every))
            except LostError as error:
                figures["crashes" if str(error).startswith("crash") else "lost"] += 1
                print(f"LOST: {error}", flush=True)
            finally:
                server.stop()
            figures["trials"] += 1
            shutil.rmtree(Path(name, "local"), ignore_errors=True)
            shutil.rmtree(Path(name, "cache"), ignore_errors=True)
    bad = {word: figures.pop(word) for word in ("crashes", "hangs", "lost")}
    return close("s3_weather", {**figures, **bad})


if __name__ == "__main__":
    sys.exit(main())
