"""What ``benchmarks/read.py --cold`` measures: batches from a disk whose page cache is empty.

Before each round the files that a peer reads leave the page cache (``POSIX_FADV_DONTNEED``, which needs no root), so
SOURCE's scratch folder must lie on a disk. Two orders: ``random``, 256 rows from anywhere; ``windowed``, rows in a
random order within windows of 1,024, as ``EpochSampler(window=1024)`` gives them, 4,096 in all, 256 at a time. For this
project the sampler announces the rows to come. A peer without batches reads row by row; webdataset reads its tars from
the start, with a shuffle buffer of the window's length. Disks and neighbours are not steady: so the peers take turns,
one round each in a process of its own, and the best and the median round are printed.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.results import Results

Batch = Callable[[list[int]], int]
"""Read rows; gives the bytes of their images."""
Get = Callable[[int], tuple[int, str]]
Opened = tuple[Sequence[Any], Batch]
"""The rows, of which a slice can be given to a sampler, and how to read some of them."""

BATCH, WINDOW, WINDOWED = 256, 1024, 4096


def ours(folder: str) -> Opened:
    from builder import open_dataset

    reader = open_dataset(folder)
    return reader, lambda rows: sum(len(sample.image) for sample in reader[rows])


def disk(folder: str) -> Opened:
    """The same ranges of the same files, by 16 threads that do nothing else: what the disk gives."""
    from builder.read.index import Index

    index = Index(os.path.join(folder, "meta", "index.arrow"), folder)
    files = [os.open(os.path.join(index.root, file.path), os.O_RDONLY) for file in index.header.files]
    owners, offsets, sizes = (index.column(name).tolist() for name in ("file", "offset", "size"))
    threads = ThreadPoolExecutor(16)

    def batch(rows: list[int]) -> int:
        work = sorted((owners[row], offsets[row], sizes[row]) for row in rows)
        return sum(threads.map(lambda each: len(os.pread(files[each[0]], each[2], each[1])), work))

    return range(len(index)), batch


def lance(folder: str) -> Opened:
    import lance as library

    dataset = library.dataset(folder)

    def batch(rows: list[int]) -> int:
        table = dataset.take(rows, columns=["image", "caption"])
        return sum(len(image.as_py()) for image in table["image"])

    return range(dataset.count_rows()), batch


def litdata(folder: str) -> Opened:
    from litdata import StreamingDataset

    dataset = StreamingDataset(folder, shuffle=False)
    return range(len(dataset)), lambda rows: sum(len(dataset[row]["image"]) for row in rows)


def each_row(opened: tuple[int, Get]) -> Opened:
    """A peer that reads a row at a time."""
    total, get = opened
    return range(total), lambda rows: sum(get(row)[0] for row in rows)


def webdataset(folder: str) -> Iterator[int]:
    import webdataset as library

    pairs = library.WebDataset(sorted(glob(f"{folder}/*.tar")), shardshuffle=False, empty_check=False)
    for sample in pairs.shuffle(WINDOW):
        yield len(next(sample[name] for name in ("jpg", "png", "webp") if name in sample))


def write_litdata(rows: Iterator[dict[str, object]], folder: str) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(folder, chunk_bytes="64MB")
    for number, row in enumerate(rows):
        writer[number] = row
    writer.done()
    writer.merge()


def write_webdataset(rows: Iterator[dict[str, object]], folder: str) -> None:
    import webdataset as library

    os.makedirs(folder)
    with library.ShardWriter(f"{folder}/%05d.tar", maxsize=500e6, verbose=0) as writer:
        for number, row in enumerate(rows):
            writer.write({"__key__": f"{number:09d}", "jpg": row["image"], "txt": row["caption"]})


def empty_cache(folder: str) -> None:
    for path in Path(folder).rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)  # pages that are not written yet stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def sequential(folder: str) -> float:
    """MB/s of reading the files from end to end."""
    empty_cache(folder)
    size, started = 0, time.perf_counter()
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                while data := file.read(1 << 20):
                    size += len(data)
    return size / (time.perf_counter() - started) / 1e6


def windows(rows: Sized, seed: int) -> Iterator[int]:
    """Numbers of ``rows`` in the samplers' windowed order."""
    from builder.mm import EpochSampler

    return iter(EpochSampler(rows, seed=seed, window=WINDOW, run=WINDOW, rank=0, world_size=1))


def measure(folder: str, opened: Opened, seed: int) -> dict[str, float]:
    """ms for a batch of random rows, and MB/s in the windowed order."""
    rows, batch = opened
    numbers = random.Random(seed)
    batch(numbers.sample(range(len(rows)), min(BATCH, len(rows))))  # opens files, starts threads, takes memory
    list(windows(range(WINDOW), seed))  # imports
    chosen = numbers.sample(range(len(rows)), min(BATCH, len(rows)))
    empty_cache(folder)
    started = time.perf_counter()
    batch(chosen)
    taken = time.perf_counter() - started
    first = numbers.randrange(max(1, len(rows) - WINDOWED))
    order = windows(rows[first : first + WINDOWED], seed)
    empty_cache(folder)
    size, started = 0, time.perf_counter()
    while some := [first + row for row in islice(order, BATCH)]:
        size += batch(some)
    return {"ms": taken * 1e3, "mb_s": size / (time.perf_counter() - started) / 1e6}


def measure_webdataset(folder: str) -> dict[str, float]:
    empty_cache(folder)
    rows, started = webdataset(folder), time.perf_counter()
    size = sum(islice(rows, WINDOWED))
    return {"ms": float("nan"), "mb_s": size / (time.perf_counter() - started) / 1e6}


def add_results(table: Results, results: dict[str, list[dict[str, float]]]) -> None:
    """The median and the best round of each peer; ratios of the same."""

    def both(peer: str, name: str) -> tuple[float, float]:
        values = [result[name] for result in results[peer]]
        return statistics.median(values), (min(values) if name == "ms" else max(values))

    names = [name for name in results if name != "sequential"]
    own, whole = both(names[0], "ms"), both("sequential", "mb_s")
    for peer in names:
        ms, speed = both(peer, "ms"), both(peer, "mb_s")
        figures: dict[str, Any] = {}
        if peer != "webdataset":  # it has no random rows
            figures |= {"ms for 256 random rows": ms[0], "best": ms[1]}
            figures[f"× {names[0]} (best)"] = f"{ms[0] / own[0]:.1f} ({ms[1] / own[1]:.1f})"
        figures |= {"MB/s, windowed order": speed[0], "best, MB/s": speed[1]}
        figures["of sequential (best)"] = f"{speed[0] / whole[0]:.0%} ({speed[1] / whole[1]:.0%})"
        table.add(peer, figures)
    table.add("the shards, read from end to end", {"MB/s, windowed order": whole[0], "best, MB/s": whole[1]})
