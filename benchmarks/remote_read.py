"""Read random rows of a dataset over S3 and over the Hub with latency, and print the seconds a batch takes.

    python benchmarks/remote_read.py DATASET [--delay 0.05] [--batch 256] [--rounds 3] [--cache DIR]
    python benchmarks/remote_read.py DATASET --train [--workers 8] [--rate 200] [--batch 32]

DATASET, a folder that ``laion6m convert`` made, is served by a small S3 (plain_s3.py) and the tests' Hub. Each runs in
a process of its own on 127.0.0.1 and waits ``--delay`` seconds before each answer. A Reader opens the dataset there.
"first" is the first batch, for which the shards are opened. "batch" is the median of those after it, of other rows.
"one row": as many rows, one after the other, as fit into 2 s. ``--train``: a DataLoader with ``--workers`` processes, a
consumer that takes ``--rate`` samples a second, and the share of its time that it waits.

``--kinds moto``: moto as the S3. It takes most of the processor time of such a measurement. Needs the extra ``test``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks.results import Results, add_json  # noqa: E402


def serve(kind: str, folder: str, delay: float) -> None:
    """Serve the folder until standard input ends. Prints its URL, and what opens it."""
    if kind == "s3":
        from benchmarks.plain_s3 import serve_folder

        with serve_folder(folder, delay) as port:
            options = {"client_kwargs": {"endpoint_url": f"http://127.0.0.1:{port}"}}
            print(json.dumps(["s3://bucket", options, {}]), flush=True)
            sys.stdin.read()
        return
    if kind == "moto":
        import s3fs

        from tests.servers import s3

        with s3("bucket", in_memory=True) as server:
            system = s3fs.S3FileSystem(**server.options, skip_instance_cache=True)
            for name in ("data", "meta"):
                system.put(os.path.join(folder, name), "bucket/set/", recursive=True)
            for path in system.find("bucket/set/data"):
                system.cat_file(path, start=0, end=1)  # moto is slow with an object that it has not served yet
            server.weather.delay = delay
            print(json.dumps(["s3://bucket/set", server.options, {}]), flush=True)
            sys.stdin.read()
        return
    from pathlib import Path

    from tests.hub.server import WRITE_TOKEN, HubServer

    with tempfile.TemporaryDirectory() as scratch, HubServer(Path(scratch)) as hub:
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": WRITE_TOKEN, "HF_HUB_DISABLE_XET": "1"}
        push = [sys.executable, "-m", "builder", "push", folder, "user/set", "-q"]
        subprocess.run(push, check=True, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
        hub.faults.add("*", "delay", times=10**9, seconds=delay)
        print(json.dumps(["hf://datasets/user/set", {}, environment]), flush=True)
        sys.stdin.read()


def measure(url: str, options: dict[str, Any], batch: int, rounds: int, cache: str | None) -> None:
    """Runs in a process of its own, whose environment names the Hub."""
    from builder import open_dataset

    more = {"cache_dir": cache, "cache_bytes": 1 << 40} if cache else {}
    started = time.perf_counter()
    rows = open_dataset(url, storage_options=options, **more)
    opened = time.perf_counter() - started
    chosen = random.Random(7).sample(range(len(rows)), batch * (rounds + 1))
    taken = []
    for first in range(0, len(chosen), batch):
        started = time.perf_counter()
        size = sum(len(sample.image) for sample in rows[chosen[first : first + batch]])
        taken.append(time.perf_counter() - started)
    started, single = time.perf_counter(), 0
    while time.perf_counter() - started < 2:
        rows[chosen[-single - 1] - 1].image  # noqa: B018
        single += 1
    one = (time.perf_counter() - started) / single
    middle = statistics.median(taken[1:])
    figures = {"s to open": opened, "s, the first batch": taken[0], "s, a batch": middle, "rows/s": batch / middle}
    print(json.dumps(figures | {"MB/s": size / taken[-1] / 1e6, "ms, one row": one * 1e3}))


def train(url: str, options: dict[str, Any], batch: int, workers: int, rate: float) -> None:
    """Runs in a process of its own."""
    from torch.utils.data import DataLoader

    from builder import open_dataset

    rows = open_dataset(url, storage_options=options)
    order = random.Random(7).sample(range(len(rows)), len(rows))
    loader = DataLoader(
        rows,  # type: ignore[arg-type]
        batch_size=batch,
        sampler=order,
        num_workers=workers,
        prefetch_factor=4,
        collate_fn=lambda samples: sum(len(sample.image) for sample in samples),
    )
    batches = iter(loader)
    next(batches)  # the workers start, and open the shards
    waited = worked = 0.0
    for _ in range(min(100, len(rows) // batch - workers)):
        started = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - started
        time.sleep(batch / rate)
        worked += batch / rate
    share = waited / (waited + worked)
    print(json.dumps({f"waiting, with {workers} workers at {rate:.0f} samples/s": f"{share:.1%}"}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", help="folder of a local cache, which is read too")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--rate", type=float, default=200, help="samples a second")
    parser.add_argument("--kinds", nargs="+", default=["s3", "hf"])
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    add_json(parser)
    arguments = parser.parse_args()
    batch = arguments.batch or (32 if arguments.train else 256)
    if arguments.serve:
        serve(arguments.serve, arguments.dataset, arguments.delay)
        return
    if arguments.run:
        url, options = arguments.run[0], json.loads(arguments.run[1])
        if arguments.train:
            train(url, options, batch, arguments.workers, arguments.rate)
        else:
            measure(url, options, batch, arguments.rounds, arguments.cache)
        return
    own = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "PYTHONPATH": ROOT, "NO_PROXY": "127.0.0.1"}
    results = Results()
    for kind in arguments.kinds:
        with tempfile.TemporaryDirectory() as home:
            environment = {**os.environ, **own, "HF_HOME": home, "LAION6M_CACHE": home}
            line = [sys.executable, __file__, *sys.argv[1:]]
            server = subprocess.Popen(
                [*line, "--serve", kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
            assert server.stdin is not None
            assert server.stdout is not None
            url, options, more = json.loads(server.stdout.readline())
            try:
                work = [*line, "--run", url, json.dumps(options)]
                done = subprocess.run(work, check=True, env={**environment, **more}, stdout=subprocess.PIPE)
                results.add(url.partition(":")[0], json.loads(done.stdout.splitlines()[-1]))
            finally:
                server.stdin.close()
                server.wait()
    results.finish(arguments.json)


if __name__ == "__main__":
    main()
