"""What ``benchmarks/read.py --cold`` measures: batches from a disk whose page cache is empty.

Before each round the files that a peer reads leave the page cache (``POSIX_FADV_DONTNEED``, which needs no root), so
SOURCE's scratch folder must lie on a disk. Two orders: ``random``, 256 rows from anywhere; ``windowed``, rows in a
random order within windows of 1,024, as the samplers give them, 2,048 in all, 256 at a time. A peer without batches
reads row by row; webdataset reads its tars from the start, with a shuffle buffer of the window's length.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from glob import glob
from pathlib import Path

Batch = Callable[[list[int]], int]
"""Read rows; gives the bytes of their images."""
Get = Callable[[int], tuple[int, str]]

BATCH, WINDOW, WINDOWED = 256, 1024, 2048
ORDERS = ("random", "windowed")


def ours(folder: str) -> tuple[int, Batch]:
    from builder import open_dataset

    reader = open_dataset(folder)
    return len(reader), lambda rows: sum(len(sample.image) for sample in reader[rows])


def lance(folder: str) -> tuple[int, Batch]:
    import lance as library

    dataset = library.dataset(folder)

    def batch(rows: list[int]) -> int:
        table = dataset.take(rows, columns=["image", "caption"])
        return sum(len(image.as_py()) for image in table["image"])

    return dataset.count_rows(), batch


def litdata(folder: str) -> tuple[int, Batch]:
    from litdata import StreamingDataset

    dataset = StreamingDataset(folder, shuffle=False)
    return len(dataset), lambda rows: sum(len(dataset[row]["image"]) for row in rows)


def each_row(opened: tuple[int, Get]) -> tuple[int, Batch]:
    """A peer that reads a row at a time."""
    total, get = opened
    return total, lambda rows: sum(get(row)[0] for row in rows)


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


def measure(folder: str, opened: tuple[int, Batch], rounds: int) -> dict[str, float]:
    """ms for a batch of random rows, and MB/s in the windowed order; medians."""
    total, batch = opened
    batch([0, total - 1])
    numbers = random.Random(7)
    taken, speeds = [], []
    for _ in range(rounds):
        rows = numbers.sample(range(total), BATCH)
        empty_cache(folder)
        started = time.perf_counter()
        batch(rows)
        taken.append(time.perf_counter() - started)
        first = numbers.randrange(max(1, total - WINDOWED))
        order: list[int] = []
        for start in range(first, min(first + WINDOWED, total), WINDOW):
            window = list(range(start, min(start + WINDOW, total)))
            numbers.shuffle(window)
            order += window
        empty_cache(folder)
        started = time.perf_counter()
        size = sum(batch(order[start : start + BATCH]) for start in range(0, len(order), BATCH))
        speeds.append(size / (time.perf_counter() - started) / 1e6)
    return {"ms": statistics.median(taken) * 1e3, "mb_s": statistics.median(speeds)}


def measure_webdataset(folder: str, rounds: int) -> dict[str, float]:
    speeds = []
    for _ in range(rounds):
        empty_cache(folder)
        rows, started = webdataset(folder), time.perf_counter()
        size = sum(next(rows) for _ in range(WINDOWED))
        speeds.append(size / (time.perf_counter() - started) / 1e6)
    return {"ms": float("nan"), "mb_s": statistics.median(speeds)}
