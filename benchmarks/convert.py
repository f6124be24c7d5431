"""Convert a source with this project and with its peers, in turn, and print medians, ratios and peak memory.

    python benchmarks/convert.py SOURCE [--peers cp tarfile …] [--rounds 5] [--num-proc 2] [--scratch DIR]

Each conversion is a process of its own. Peak memory is the largest resident size of any process of the run, mapped
pages included (``ru_maxrss``). The first round warms caches and is not counted. Put SOURCE and DIR on tmpfs to leave
the disk out.

Peers:
    cp           the tars, copied: the floor
    tarfile      tarfile + pyarrow, one tar at a time in memory: what people write themselves
    generator    datasets.Dataset.from_generator → to_parquet
    wds-arrow    datasets' webdataset builder → Arrow (needs the JSON beside the images: it cannot pair separate tars)
    wds-parquet  the same → Parquet
    index        laion6m index: the same rows without copying an image
    ours         laion6m convert
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from glob import glob
from multiprocessing import Pool
from typing import Any


def tar_pairs(source: str) -> list[tuple[str, str]]:
    """(raw tar, the tar with its captions), which is the raw tar itself where the JSON lies beside the images."""
    pairs = []
    for raw in sorted(glob(f"{source}/raw/*.tar")):
        captions = raw.replace("/raw/", "/captions/")
        pairs.append((raw, captions if os.path.exists(captions) else raw))
    return pairs


def rows(pair: tuple[str, str]) -> Iterator[dict[str, Any]]:
    raw, captions = pair
    texts = {}
    with tarfile.open(captions) as tar:
        for member in tar:
            if member.name.endswith(".json"):
                document = json.load(tar.extractfile(member))
                texts[member.name[:-5]] = document.get("re_caption", document.get("caption"))
    with tarfile.open(raw) as tar:
        for member in tar:
            key = member.name.rpartition(".")[0]
            if member.isfile() and key in texts and not member.name.endswith(".json"):
                image = {"bytes": tar.extractfile(member).read(), "path": member.name}
                yield {"key": key, "image": image, "caption": texts[key]}


def cp(source: str, out: str, num_proc: int) -> None:
    for side in ("raw", "captions"):
        if tars := sorted(glob(f"{source}/{side}/*.tar")):
            os.makedirs(f"{out}/{side}")
            subprocess.run(["cp", *tars, f"{out}/{side}/"], check=True)


def write_naively(work: tuple[tuple[str, str], str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pair, out = work
    pq.write_table(pa.Table.from_pylist(list(rows(pair))), f"{out}/{os.path.basename(pair[0])[:-4]}.parquet")


def tarfile_pyarrow(source: str, out: str, num_proc: int) -> None:
    with Pool(num_proc) as pool:
        pool.map(write_naively, [(pair, out) for pair in tar_pairs(source)], chunksize=1)


def generate(pairs: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    for pair in pairs:
        yield from rows(pair)


def generator(source: str, out: str, num_proc: int) -> None:
    import datasets

    features = datasets.Features(
        {"key": datasets.Value("string"), "image": datasets.Image(), "caption": datasets.Value("string")}
    )
    dataset = datasets.Dataset.from_generator(
        generate,
        gen_kwargs={"pairs": tar_pairs(source)},
        features=features,
        num_proc=num_proc,
        cache_dir=f"{out}/cache",
    )
    dataset.to_parquet(f"{out}/rows.parquet")


def webdataset(source: str, out: str, num_proc: int, file_format: str) -> None:
    import datasets

    tars = sorted(glob(f"{source}/raw/*.tar"))
    builder = datasets.load_dataset_builder("webdataset", data_files={"train": tars}, cache_dir=f"{out}/cache")
    builder.download_and_prepare(f"{out}/rows", file_format=file_format, num_proc=num_proc)


def as_command(verb: str, source: str, out: str, num_proc: int) -> None:
    """What the installed ``laion6m`` does."""
    from builder.cli.commands import command

    sys.argv = ["laion6m", verb, source, out, "--num-proc", str(num_proc), "--json"]
    command()


def ours(source: str, out: str, num_proc: int) -> None:
    as_command("convert", source, out, num_proc)


def index(source: str, out: str, num_proc: int) -> None:
    as_command("index", source, out, num_proc)


PEERS: dict[str, Callable[[str, str, int], None]] = {
    "cp": cp,
    "ours": ours,
    "index": index,
    "tarfile": tarfile_pyarrow,
    "generator": generator,
    "wds-arrow": lambda source, out, num_proc: webdataset(source, out, num_proc, "arrow"),
    "wds-parquet": lambda source, out, num_proc: webdataset(source, out, num_proc, "parquet"),
}


def timed(peer: str, source: str, out: str, num_proc: int) -> tuple[float, int]:
    """Seconds and peak resident bytes of one run in a process of its own."""
    shutil.rmtree(out, ignore_errors=True)
    os.makedirs(os.path.dirname(out), exist_ok=True)
    if peer not in ("ours", "index"):
        os.makedirs(out)
    command = [sys.executable, __file__, source, "--run", peer, out, str(num_proc)]
    started = time.perf_counter()
    # Compiled as what pip installs is, by the first round, also where the environment says that nothing be kept.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = f"{os.path.dirname(out)}/compiled"
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=messages, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        if process.returncode:
            messages.seek(0)
            sys.exit(f"{peer} failed: {messages.read().decode(errors='replace')[-600:]}")
    shutil.rmtree(out, ignore_errors=True)
    return seconds, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-proc", type=int, default=2)
    parser.add_argument("--scratch", default=tempfile.gettempdir())
    parser.add_argument("--run", nargs=3, metavar=("PEER", "OUT", "N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        peer, out, count = arguments.run
        PEERS[peer](arguments.source, out, int(count))
        return
    separate = os.path.isdir(f"{arguments.source}/captions")
    peers = arguments.peers or [name for name in PEERS if not (separate and name.startswith("wds"))]
    seconds: dict[str, list[float]] = {peer: [] for peer in peers}
    peak = dict.fromkeys(peers, 0)
    out = os.path.join(arguments.scratch, f"laion6m-benchmark-{os.getpid()}", "out")
    try:
        for number in range(arguments.rounds + 1):
            for peer in peers:
                taken, memory = timed(peer, arguments.source, out, arguments.num_proc)
                if number:
                    seconds[peer].append(taken)
                peak[peer] = max(peak[peer], memory)
    finally:
        shutil.rmtree(os.path.dirname(out), ignore_errors=True)
    floor = statistics.median(seconds[peers[0]])
    print(f"{'':12} {'median s':>9} {'min s':>7} {'× ' + peers[0]:>7} {'peak MB':>8}")
    for peer in peers:
        median = statistics.median(seconds[peer])
        print(f"{peer:12} {median:9.2f} {min(seconds[peer]):7.2f} {median / floor:7.2f} {peak[peer] / 1e6:8.0f}")


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    main()
