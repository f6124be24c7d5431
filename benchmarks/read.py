"""Read random samples (encoded bytes and caption) through this project and its peers, and print µs a sample and ratios.

    python benchmarks/read.py SOURCE [--peers ours index …] [--samples 2000] [--rounds 5] [--scratch DIR]
    python benchmarks/read.py SOURCE --cold [--peers ours files …] [--rounds 5] --scratch DIR_ON_A_DISK

Everything is prepared from SOURCE (card layout) in DIR, which needs several times its size; put both on tmpfs to
leave the disk out. Each peer reads in a process of its own: opens, reads one sample, then ``--rounds`` rounds of random
samples, of which the median counts. All see the same numbers.

Peers:
    ours             open_dataset over converted Parquet, a row at a time
    ours-256         the same, 256 random rows at a time
    ours-arrow       open_dataset over --format arrow
    index            open_dataset over an index into the tars
    files            extracted files, as the card's extract.py leaves them
    hf-arrow         datasets' own table over --format arrow, memory-mapped
    parquet          pyarrow, the row group that holds the row
    lance, mds       where pylance and mosaicml-streaming are installed
    eight            eight forked readers of ours at once: µs a sample in each, proportional set size of each
    open             opening 6 million rows (a synthetic index): ms, MB resident, µs for find

``--cold``: batches of 256 from a disk whose page cache is empty, as benchmarks/cold.py says. Peers are ours, disk,
index, files; lance, mds, litdata and webdataset where they are installed.
"""

from __future__ import annotations

import argparse
import bisect
import importlib.util
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from glob import glob
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import cold
from benchmarks.peers import import_streaming
from benchmarks.results import Results, add_json

Get = Callable[[int], Any]


def ours(folder: str) -> tuple[int, Get]:
    from builder import open_dataset

    reader = open_dataset(folder)

    def get(row: int) -> tuple[int, str]:
        sample = reader[row]
        return len(sample.image), sample.caption

    return len(reader), get


def files(folder: str) -> tuple[int, Get]:
    with open(f"{folder}/data.json") as handle:
        listing = json.load(handle)

    def get(row: int) -> tuple[int, str]:
        entry = listing[row]
        with open(f"{folder}/raw/{entry['image']}", "rb") as image:
            data = image.read()
        with open(f"{folder}/captions/{entry['annotation']}") as annotation:
            return len(data), json.load(annotation)["caption"]

    return len(listing), get


def hf_arrow(folder: str) -> tuple[int, Get]:
    import datasets

    table = datasets.load_from_disk(folder).cast_column("image", datasets.Image(decode=False))

    def get(row: int) -> tuple[int, str]:
        sample = table[row]
        return len(sample["image"]["bytes"]), sample["caption"]

    return len(table), get


def parquet(folder: str) -> tuple[int, Get]:
    import pyarrow.parquet as pq

    starts: list[int] = []
    groups: list[tuple[Any, int]] = []
    total = 0
    for path in sorted(glob(f"{folder}/data/*.parquet")):
        file = pq.ParquetFile(path, memory_map=True)
        for group in range(file.num_row_groups):
            starts.append(total)
            groups.append((file, group))
            total += file.metadata.row_group(group).num_rows

    def get(row: int) -> tuple[int, str]:
        place = bisect.bisect_right(starts, row) - 1
        file, group = groups[place]
        table = file.read_row_group(group, columns=["image", "caption"]).slice(row - starts[place], 1)
        sample = table.to_pylist()[0]
        return len(sample["image"]["bytes"]), sample["caption"]

    return total, get


def lance(folder: str) -> tuple[int, Get]:
    import lance as library

    dataset = library.dataset(folder)

    def get(row: int) -> tuple[int, str]:
        table = dataset.take([row], columns=["image", "caption"])
        return len(table["image"][0].as_py()), table["caption"][0].as_py()

    return dataset.count_rows(), get


def mds(folder: str) -> tuple[int, Get]:
    dataset = import_streaming().StreamingDataset(local=folder, batch_size=1)

    def get(row: int) -> tuple[int, str]:
        sample = dataset[row]
        return len(sample["image"]), sample["caption"]

    return len(dataset), get


READERS: dict[str, tuple[str, Callable[[str], tuple[int, Get]]]] = {
    "ours": ("parquet", ours),
    "ours-arrow": ("arrow", ours),
    "index": ("index", ours),
    "files": ("files", files),
    "hf-arrow": ("arrow", hf_arrow),
    "parquet": ("parquet", parquet),
    "lance": ("lance", lance),
    "mds": ("mds", mds),
}
OTHERS = {"ours-256": "parquet", "eight": "parquet", "open": "big"}
OPTIONAL = {"lance": "lance", "mds": "streaming", "litdata": "litdata", "webdataset": "webdataset"}
COLD = {"ours": "parquet", "disk": "parquet", "index": "index", "files": "files"} | {name: name for name in OPTIONAL}
"""Peers of ``--cold``, and what they read."""


def prepare(kind: str, source: str, folder: str) -> None:
    """Make what a reader of that kind reads, unless it is there."""
    if os.path.exists(folder):
        return
    from builder import open_dataset
    from builder.cli.commands import main

    if kind in ("parquet", "arrow"):
        main(["convert", source, folder, "--format", kind, "--json"])
    elif kind == "index":
        main(["index", source, folder, "--json"])
    elif kind == "files":
        main(["extract", source, folder, "--json"])
    elif kind == "big":
        synthetic_index(folder, 6_000_000)
    elif kind == "lance":
        import lance as library
        import pyarrow as pa

        names = pa.schema([("key", pa.string()), ("image", pa.large_binary()), ("caption", pa.string())])
        reader = open_dataset(f"{os.path.dirname(folder)}/parquet")
        batches = (
            pa.RecordBatch.from_pylist(
                [{"key": s.key, "image": s.image, "caption": s.caption} for s in reader[first : first + 256]], names
            )
            for first in range(0, len(reader), 256)
        )
        library.write_dataset(pa.RecordBatchReader.from_batches(names, batches), folder)
    elif kind in ("litdata", "webdataset"):
        rows = ({"image": s.image, "caption": s.caption} for s in open_dataset(f"{os.path.dirname(folder)}/parquet"))
        (cold.write_litdata if kind == "litdata" else cold.write_webdataset)(rows, folder)
    elif kind == "mds":
        with import_streaming().MDSWriter(
            out=folder, columns={"key": "str", "image": "bytes", "caption": "str"}
        ) as writer:
            for sample in open_dataset(f"{os.path.dirname(folder)}/parquet"):
                writer.write({"key": sample.key, "image": sample.image, "caption": sample.caption})


def synthetic_index(folder: str, count: int) -> None:
    """An index of ``count`` rows with keys and captions of the usual length, over a file that is not there."""
    import numpy as np
    import pyarrow as pa
    import xxhash

    from builder.base import schema
    from builder.base.arrays import number_array, string_array
    from builder.store.index import write_index
    from builder.store.output import OutputFile

    step = 100_000
    text = "A photo of a thing in a place, " * 15

    def parts() -> Any:
        for first in range(0, count, step):
            keys = [f"{row // 10_000:05d}/{row:09d}" for row in range(first, min(first + step, count))]
            size = len(keys)
            columns = {
                "file": np.zeros(size, dtype=np.int32),
                "annotation_file": np.full(size, schema.IN_SHARD, dtype=np.int32),
                "offset": np.arange(size, dtype=np.int64),
                "size": np.full(size, 100_000, dtype=np.int64),
                "position": np.arange(first, first + size, dtype=np.int64),
                "annotation_offset": np.zeros(size, dtype=np.int64),
                "annotation_size": np.zeros(size, dtype=np.int64),
                "key_hash": np.array([xxhash.xxh3_64_intdigest(key.encode()) for key in keys], dtype=np.uint64),
            }
            arrays = []
            for field in [*schema.INDEX_ROW, pa.field("key_hash", pa.uint64())]:
                if field.name in columns:
                    arrays.append(number_array(columns[field.name]))
                elif field.name == "annotation":
                    arrays.append(pa.nulls(size, pa.string()))
                elif field.name == "caption":
                    arrays.append(string_array([text] * size))
                elif pa.types.is_string(field.type):
                    ending = {"path": ".jpg", "annotation_path": ".json"}.get(field.name, "")
                    arrays.append(string_array([key + ending for key in keys]))
                elif pa.types.is_integer(field.type):
                    arrays.append(number_array(np.full(size, 500, dtype=np.int32)))
                else:
                    arrays.append(pa.nulls(size, field.type))
            names = [*schema.INDEX_ROW.names, "key_hash"]
            yield pa.Table.from_arrays(arrays, names=names)

    os.makedirs(f"{folder}/meta")
    files = [schema.IndexedFile("data/none.parquet", "parquet", count, {})]
    write_index(OutputFile(f"{folder}/meta/index.arrow"), "", files, parts)


def measure(peer: str, folder: str, samples: int, rounds: int) -> dict[str, float]:
    """Runs in a process of its own."""
    if peer == "open":
        return measure_open(folder)
    started = time.perf_counter()
    if peer in ("ours-256", "eight"):
        from builder import open_dataset

        reader = open_dataset(folder)
        total, get = len(reader), reader.__getitem__
    else:
        total, get = READERS[peer][1](folder)
    opened = time.perf_counter() - started
    get(0)
    numbers = random.Random(7)
    taken = []
    for _ in range(rounds):
        rows = [numbers.randrange(total) for _ in range(samples)]
        started = time.perf_counter()
        if peer == "ours-256":
            for first in range(0, samples, 256):
                for sample in reader[rows[first : first + 256]]:
                    len(sample.image), sample.caption
        elif peer == "eight":
            eight(reader, rows)
        else:
            for row in rows:
                get(row)
        taken.append((time.perf_counter() - started) / samples * 1e6)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"us": statistics.median(taken), "open_ms": opened * 1e3, "peak_mb": peak}


def measure_cold(peer: str, folder: str, seed: int) -> dict[str, float]:
    """Runs in a process of its own."""
    if peer == "sequential":
        return {"ms": float("nan"), "mb_s": cold.sequential(folder)}
    if peer == "webdataset":
        return cold.measure_webdataset(folder)
    batches = {"ours": cold.ours, "disk": cold.disk, "index": cold.ours, "lance": cold.lance, "litdata": cold.litdata}
    opened = batches[peer](folder) if peer in batches else cold.each_row(READERS[peer][1](folder))
    if peer == "index":  # what is read are the source's tars
        folder = opened_source(folder)
    return cold.measure(folder, opened, seed)


def opened_source(folder: str) -> str:
    from builder import open_dataset

    return os.path.join(open_dataset(folder).reader._files.root, "raw")


def eight(reader: Any, rows: list[int]) -> None:
    """Eight forked processes read the same rows; each prints its proportional set size."""
    children = []
    for _ in range(8):
        child = os.fork()
        if not child:
            for row in rows:
                sample = reader[row]
                len(sample.image), sample.caption
            with open("/proc/self/smaps_rollup") as handle:
                sizes = {line.split()[0]: int(line.split()[1]) for line in handle if line.split()[-1] == "kB"}
            sys.stderr.write(f"  reader: Pss {sizes['Pss:'] / 1024:.0f} MB, Rss {sizes['Rss:'] / 1024:.0f} MB\n")
            sys.stderr.flush()
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


def measure_open(folder: str) -> dict[str, float]:
    from builder import open_dataset

    started = time.perf_counter()
    reader = open_dataset(folder)
    first = reader[len(reader) // 2].caption
    opened = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    numbers = random.Random(7)
    keys = [f"{row // 10_000:05d}/{row:09d}" for row in (numbers.randrange(len(reader)) for _ in range(2000))]
    for key in keys[:1000]:
        reader.find(key)
    started = time.perf_counter()
    for key in keys[1000:]:
        reader.find(key)
    found = (time.perf_counter() - started) / 1000 * 1e6
    return {"us": found, "open_ms": opened * 1e3, "peak_mb": peak, "first": len(first)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--peers", nargs="+", choices=[*READERS, *OTHERS, "disk", "litdata", "webdataset"])
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", default=tempfile.gettempdir())
    parser.add_argument("--seed", type=int, default=7, help=argparse.SUPPRESS)
    parser.add_argument("--run", nargs=2, metavar=("PEER", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--prepare", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    add_json(parser)
    arguments = parser.parse_args()
    if arguments.run and arguments.cold:
        print(json.dumps(measure_cold(*arguments.run, arguments.seed)))
        return
    if arguments.run:
        print(json.dumps(measure(*arguments.run, arguments.samples, arguments.rounds)))
        return
    if arguments.prepare:
        prepare(arguments.prepare[0], arguments.source, arguments.prepare[1])
        return
    installed = {name for name, module in OPTIONAL.items() if importlib.util.find_spec(module)}
    known = [*COLD] if arguments.cold else [*READERS, *OTHERS]
    peers = [name for name in arguments.peers or known if name not in OPTIONAL or name in installed]
    kinds = COLD if arguments.cold else {**{name: kind for name, (kind, _) in READERS.items()}, **OTHERS}
    if arguments.cold:
        peers, kinds = ["sequential", *peers], {**kinds, "sequential": "parquet"}
    scratch = os.path.join(arguments.scratch, "laion6m-benchmark-read")
    os.makedirs(scratch, exist_ok=True)
    results: dict[str, Any] = {}
    counts = ["--samples", str(arguments.samples), "--rounds", str(arguments.rounds)]
    this = [sys.executable, __file__, arguments.source, *counts, *(["--cold"] if arguments.cold else [])]

    def run(peer: str, *options: str) -> dict[str, float]:
        command = [*this, *options, "--run", peer, os.path.join(scratch, kinds[peer])]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return result

    try:
        for peer in peers:
            kind = kinds[peer]
            for needed in ("parquet", kind) if kind in OPTIONAL else (kind,):
                subprocess.run(
                    [*this, "--prepare", needed, os.path.join(scratch, needed)], check=True, stdout=subprocess.DEVNULL
                )
            if not arguments.cold:
                results[peer] = run(peer)
        if arguments.cold:
            for seed in range(arguments.rounds):
                for peer in peers:
                    results.setdefault(peer, []).append(run(peer, "--seed", str(seed)))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    table = Results()
    if arguments.cold:
        cold.add_results(table, results)
    else:
        for peer, result in results.items():
            name = "find, of 6 million rows" if peer == "open" else peer
            table.add(name, {"µs a row": result["us"], "ms to open": result["open_ms"], "MB, peak": result["peak_mb"]})
        table.compare("µs a row", next(iter(results)))
    table.finish(arguments.json)


if __name__ == "__main__":
    main()
