"""Convert from S3 with latency, beside plain parallel GETs of the same objects, and print MB/s and the ratio.

    python benchmarks/remote.py SOURCE [--delay 0.05] [--num-proc 4] [--rounds 3] [--scratch DIR] [--to-s3]

SOURCE (card layout) is put into moto's S3 in a process of its own on 127.0.0.1, which waits ``--delay`` seconds before
each answer. Then, in turn: as many processes as ``--num-proc`` fetch its tars whole, one GET each, and throw them
away; ``laion6m convert s3://… DIR`` with the same number of processes. ``--to-s3``: OUT is on that S3 too, and the
plain processes put what they got under another name, in parts of 16 MiB as ``convert`` does. Needs the extra ``test``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks.results import Results, add_json  # noqa: E402

BUCKET = "remote"
PART = 16 << 20  # bytes


def serve(delay: float) -> None:
    """An S3 until standard input ends. Prints what s3fs takes to reach it."""
    from tests.servers import s3

    with s3(BUCKET, in_memory=True) as server:
        print(json.dumps(server.options), flush=True)
        for line in sys.stdin:  # "slow": from here on answers wait
            server.weather.delay = delay if line.strip() == "slow" else 0.0
            print("ok", flush=True)


def fetch(options: dict[str, Any], paths: list[str], back: str | None) -> int:
    """GET objects, whole, one after the other, and PUT them into the folder ``back`` if there is one; bytes in all.
    Runs in a process of its own."""
    import s3fs

    system = s3fs.S3FileSystem(**options, skip_instance_cache=True)
    size = 0
    for path in paths:
        data = system.cat_file(path)
        size += len(data)
        if back:
            system.pipe_file(f"{back}/{path.replace('/', '-')}", data, chunksize=PART)
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds")
    parser.add_argument("--num-proc", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", default=tempfile.gettempdir())
    parser.add_argument("--to-s3", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    add_json(parser)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.delay)
        return
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "PYTHONPATH": ROOT}
    os.environ.update(environment)
    line = [sys.executable, __file__, arguments.source, "--serve", "--delay", str(arguments.delay)]
    server = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdin is not None
    assert server.stdout is not None
    options: dict[str, Any] = json.loads(server.stdout.readline())
    scratch = tempfile.mkdtemp(dir=arguments.scratch, prefix="laion6m-remote-")
    try:
        import s3fs

        system = s3fs.S3FileSystem(**options, skip_instance_cache=True)
        source = Path(arguments.source)
        files = sorted(path for path in source.rglob("*") if path.is_file())
        for path in files:
            system.put_file(str(path), f"{BUCKET}/src/{path.relative_to(source).as_posix()}")
        tars = [f"{BUCKET}/src/{path.relative_to(source).as_posix()}" for path in files if path.suffix == ".tar"]
        size = sum(path.stat().st_size for path in files if path.suffix == ".tar")
        server.stdin.write("slow\n")
        server.stdin.flush()
        server.stdout.readline()
        plain = "GET+PUT" if arguments.to_s3 else "GET"
        taken: dict[str, list[float]] = {plain: [], "convert": []}
        for number in range(arguments.rounds):
            started = time.perf_counter()
            with multiprocessing.get_context("spawn").Pool(arguments.num_proc) as pool:
                back = f"{BUCKET}/back" if arguments.to_s3 else None
                shares = [(options, tars[first :: arguments.num_proc], back) for first in range(arguments.num_proc)]
                assert sum(pool.starmap(fetch, shares)) == size
            taken[plain].append(time.perf_counter() - started)
            out = f"s3://{BUCKET}/out{number}" if arguments.to_s3 else os.path.join(scratch, "out")
            command = [sys.executable, "-m", "builder", "convert", f"s3://{BUCKET}/src", out, "--json"]
            command += ["--num-proc", str(arguments.num_proc), "--max-shard-size", "200MB"]
            started = time.perf_counter()
            subprocess.run(
                [*command, "--storage-options", json.dumps(options)],
                check=True,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            taken["convert"].append(time.perf_counter() - started)
            if arguments.to_s3:
                system.rm([out, f"{BUCKET}/back"], recursive=True)
            else:
                shutil.rmtree(out)
    finally:
        server.stdin.close()
        server.wait()
        shutil.rmtree(scratch, ignore_errors=True)
    middle = {name: statistics.median(seconds) for name, seconds in taken.items()}
    results = Results()
    for name, seconds in middle.items():
        share = f"{middle[plain] / seconds:.0%}"
        results.add(name, {"s": seconds, "MB/s": size / seconds / 1e6, f"of the bandwidth of plain {plain}": share})
    results.finish(arguments.json)


if __name__ == "__main__":
    main()
