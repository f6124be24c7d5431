"""Convert a source with this project and with its peers, in turn, and print medians, ratios and peak memory.

    python benchmarks/convert.py SOURCE [--gigabytes 1.7] [--cold] [--peers cp convert …] [--rounds 3] [--num-proc 2]
                                 [--scratch DIR] [--json FILE]

The source that is converted is made in DIR: SOURCE's photographs in the card layout, 1,000 to a tar, again and again
until there are enough. Each conversion is a process of its own. Peak memory is the largest resident size of any process
of the run, mapped pages included (``ru_maxrss``). The first round warms caches and is not counted. Put DIR on tmpfs to
leave the disk out (it takes up to three times the size). ``--cold``, for a DIR on a disk: the page cache is emptied of
the source before each run, and a run ends when what it wrote is on the disk.

Peers:
    cp             the tars, copied: the floor
    convert        laion6m convert
    index          laion6m index: the same rows without copying an image
    verify         laion6m verify of what convert made
    verify-source  the same with --source: every byte against the tars
    tarfile        tarfile + pyarrow, one tar at a time in memory: what people write themselves
    generator      datasets.Dataset.from_generator → to_parquet
    wds-arrow      datasets' webdataset builder → Arrow, of tars with the JSON beside the images: it cannot pair others
    wds-parquet    the same → Parquet
    mds, lance, litdata   mosaicml-streaming, pylance, litdata: a process for each share of the tars
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from glob import glob
from importlib.util import find_spec
from multiprocessing import Pool, get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cold import empty_cache
from benchmarks.corpus import make
from benchmarks.peers import import_streaming
from benchmarks.results import Results, add_json

Work = tuple[list[tuple[str, str]], str]
"""Tars of one process, and the folder it writes."""


def tar_pairs(source: str) -> list[tuple[str, str]]:
    """(raw tar, the tar with its captions)."""
    return [(raw, raw.replace("/raw/", "/captions/")) for raw in sorted(glob(f"{source}/raw/*.tar"))]


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
            if member.isfile() and key in texts:
                image = {"bytes": tar.extractfile(member).read(), "path": member.name}
                yield {"key": key, "image": image, "caption": texts[key]}


def flat(pairs: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Rows whose image is its bytes."""
    for pair in pairs:
        for row in rows(pair):
            yield {**row, "image": row["image"]["bytes"]}


def cp(source: str, out: str, num_proc: int) -> None:
    for side in ("raw", "captions"):
        os.makedirs(f"{out}/{side}")
        subprocess.run(["cp", *sorted(glob(f"{source}/{side}/*.tar")), f"{out}/{side}/"], check=True)


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

    tars = sorted(glob(f"{source}-beside/raw/*.tar"))
    builder = datasets.load_dataset_builder("webdataset", data_files={"train": tars}, cache_dir=f"{out}/cache")
    builder.download_and_prepare(f"{out}/rows", file_format=file_format, num_proc=num_proc)


def in_shares(write: Callable[[Work], Any], source: str, out: str, num_proc: int) -> list[Any]:
    """``write`` in each of the processes, for its share of the tars."""
    tars = tar_pairs(source)
    # Not forked: Lance's threads do not survive a fork, and its processes would wait for ever.
    with get_context("spawn").Pool(num_proc) as pool:
        shares = [(tars[first::num_proc], f"{out}/{first}") for first in range(num_proc)]
        return pool.map(write, shares, chunksize=1)


def write_mds(work: Work) -> None:
    columns = {"key": "str", "image": "bytes", "caption": "str"}
    with import_streaming().MDSWriter(out=work[1], columns=columns) as writer:
        for row in flat(work[0]):
            writer.write(row)


def mds(source: str, out: str, num_proc: int) -> None:
    in_shares(write_mds, source, out, num_proc)
    import_streaming()
    from streaming.base.util import merge_index

    merge_index(out, keep_local=True)


def write_litdata(work: Work) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(work[1], chunk_bytes="64MB")
    for number, row in enumerate(flat(work[0])):
        writer[number] = row
    writer.done()


def litdata(source: str, out: str, num_proc: int) -> None:
    in_shares(write_litdata, source, out, num_proc)


def write_lance(work: Work) -> Any:
    import pyarrow as pa
    from lance.fragment import write_fragments

    schema = pa.schema([("key", pa.string()), ("image", pa.large_binary()), ("caption", pa.string())])

    def batches() -> Iterator[Any]:
        some: list[dict[str, Any]] = []
        for row in flat(work[0]):
            some.append(row)
            if len(some) == 256:
                yield pa.RecordBatch.from_pylist(some, schema=schema)
                some = []
        yield pa.RecordBatch.from_pylist(some, schema=schema)

    reader = pa.RecordBatchReader.from_batches(schema, batches())
    return schema, write_fragments(reader, os.path.dirname(work[1]), schema=schema)


def lance(source: str, out: str, num_proc: int) -> None:
    import lance as library

    written = in_shares(write_lance, source, out, num_proc)
    fragments = [fragment for _, several in written for fragment in several]
    library.LanceDataset.commit(out, library.LanceOperation.Overwrite(written[0][0], fragments))


def laion6m(verb: str, *words: str) -> None:
    """What the installed ``laion6m`` does."""
    from builder.cli.commands import command

    sys.argv = ["laion6m", verb, *words, "--json"]
    command()


PEERS: dict[str, Callable[[str, str, int], None]] = {
    "cp": cp,
    "convert": lambda source, out, n: laion6m("convert", source, out, "--num-proc", str(n)),
    "index": lambda source, out, n: laion6m("index", source, out, "--num-proc", str(n)),
    "verify": lambda source, out, n: laion6m("verify", kept(out), "--num-proc", str(n)),
    "verify-source": lambda source, out, n: laion6m("verify", kept(out), "--source", source, "--num-proc", str(n)),
    "tarfile": tarfile_pyarrow,
    "generator": generator,
    "wds-arrow": partial(webdataset, file_format="arrow"),
    "wds-parquet": partial(webdataset, file_format="parquet"),
    "mds": mds,
    "lance": lance,
    "litdata": litdata,
}
PATIENCE = 120.0
"""Seconds after which a run counts as hung: it is ended, and its peer has no figure."""
NEEDS = {"mds": "streaming", "lance": "lance", "litdata": "litdata", "generator": "datasets"}


def kept(out: str) -> str:
    """Where convert's output stays until the end of the round, for verify."""
    return os.path.join(os.path.dirname(out), "kept")


def timed(peer: str, source: str, out: str, num_proc: int, cold: bool) -> tuple[float, int]:
    """Seconds and peak resident bytes of one run in a process of its own."""
    work = os.path.dirname(out)
    if cold:
        empty_cache(source)
        if peer.startswith("verify"):
            empty_cache(kept(out))
    if peer not in ("convert", "index"):
        os.makedirs(out)
    command = [sys.executable, __file__, source, "--run", peer, out, str(num_proc)]
    # Compiled as what pip installs is, by the first round, also where the environment says that nothing be kept.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = f"{work}/compiled"
    started = time.perf_counter()
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=messages, env=environment, start_new_session=True
        )
        alarm = threading.Timer(PATIENCE, os.killpg, (process.pid, signal.SIGKILL))
        alarm.start()
        _, status, usage = os.wait4(process.pid, 0)
        alarm.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        if cold:
            write_out(out)
        seconds = time.perf_counter() - started
        if process.returncode:
            messages.seek(0)
            print(f"{peer} failed: {messages.read().decode(errors='replace')[-600:]}", file=sys.stderr)
            seconds = float("nan")
    if peer == "convert" and os.path.isdir(out):
        os.rename(out, kept(out))
    shutil.rmtree(out, ignore_errors=True)
    return seconds, usage.ru_maxrss * 1024


def write_out(folder: str) -> None:
    """Wait until a folder's files are on the disk."""
    for path in Path(folder).rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--gigabytes", type=float, default=1.7, help="of images")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-proc", type=int, default=2)
    parser.add_argument("--scratch", default=tempfile.gettempdir())
    parser.add_argument("--run", nargs=3, metavar=("PEER", "OUT", "N"), help=argparse.SUPPRESS)
    add_json(parser)
    arguments = parser.parse_args()
    if arguments.run:
        peer, out, count = arguments.run
        PEERS[peer](arguments.source, out, int(count))
        return
    peers = arguments.peers or [name for name in PEERS if find_spec(NEEDS.get(name, "builder"))]
    if any(name.startswith("verify") for name in peers) and "convert" not in peers:
        parser.error("verify is of what convert made: add convert to --peers, before it")
    work = tempfile.mkdtemp(prefix="laion6m-convert-", dir=arguments.scratch)
    source, out = os.path.join(work, "source"), os.path.join(work, "out")
    seconds: dict[str, list[float]] = {peer: [] for peer in peers}
    peak = dict.fromkeys(peers, 0)
    try:
        made = make(arguments.source, source, arguments.gigabytes * 1e9)
        print(f"{made:,} pairs, {arguments.gigabytes} GB of images")
        if any(name.startswith("wds") for name in peers):
            make(arguments.source, f"{source}-beside", arguments.gigabytes * 1e9, beside=True)
        for number in range(arguments.rounds + 1):
            for peer in peers:
                taken, memory = timed(peer, source, out, arguments.num_proc, arguments.cold)
                if number:
                    seconds[peer].append(taken)
                peak[peer] = max(peak[peer], memory)
            shutil.rmtree(kept(out), ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    results = Results()
    for peer, each in seconds.items():
        results.add(peer, {"s, median": statistics.median(each), "s, least": min(each), "MB, peak": peak[peer] / 1e6})
    results.compare("s, median", peers[0])
    results.finish(arguments.json)


if __name__ == "__main__":
    main()
