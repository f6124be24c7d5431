"""Choose rows of a large dataset through this project and its peers; print milliseconds and ratios.

    python benchmarks/choose.py [--rows 1000000] [--rounds 5] [--scratch DIR]

The dataset is made on the spot: ROWS index rows with captions of the usual length over one file of random bytes
(64 MB), a typed column of scores, and the same columns as Parquet (zstd) for the peers. All find the rows with
``width >= 1024 and length(caption) > 200``. The first round of each peer is told apart: it imports and opens.

Peers:
    ours        ds.where(…) over the mapped index
    duckdb      DuckDB over the Parquet file, the keys of the rows
    polars      polars.scan_parquet(…).filter(…).collect(), the keys
    datasets    datasets' filter over an Arrow table of the same columns, batched, without a cache
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks.results import Results, add_json

WORDS = "a the photo of painting dog cat house mountain sunset vibrant with person near blue large wooden table".split()  # noqa: SIM905
FILE = 64 << 20  # bytes that rows' images lie in
BATCH = 50_000


def make(folder: str, count: int) -> None:
    """An index of ``count`` rows, their scores, and the same as Parquet."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from builder.base import schema
    from builder.curate.columns import write_column
    from builder.read.opening import open_dataset
    from builder.store.index import write_index
    from builder.store.manifest import Manifest
    from builder.store.output import OutputFile, write_file

    os.makedirs(f"{folder}/raw")
    os.makedirs(f"{folder}/meta")
    with open(f"{folder}/raw/00000.tar", "wb") as file:
        file.write(np.random.default_rng(0).bytes(FILE))
    state = os.stat(f"{folder}/raw/00000.tar")
    tar = schema.IndexedFile("raw/00000.tar", "tar", 0, {"size": state.st_size, "mtime_ns": state.st_mtime_ns})
    new = OutputFile(f"{folder}/meta/index.tmp", f"{folder}/{schema.INDEX}")
    digest = write_index(new, ".", [tar], lambda: parts(count), count)
    noted = {schema.INDEX: {"size": new.position, "xxh3_128": digest}}
    write_file(f"{folder}/{schema.MANIFEST}", [Manifest("index", {}, {}, {}, {"rows": count}, noted).to_json()])
    scores = np.random.default_rng(1).random(count) * 10
    write_column(folder, "score", pa.array(scores))
    table = open_dataset(folder).columns("key", "caption", "width", "height")
    pq.write_table(table, f"{folder}/peers.parquet", compression="zstd")


def parts(count: int) -> Iterator[Any]:
    """Index rows, some at a time; the same whenever asked for."""
    import numpy as np
    import pyarrow as pa
    import xxhash

    from builder.base import schema
    from builder.base.arrays import number_array, string_array

    draw = np.random.default_rng(2)
    captions = [" ".join(WORDS[i] for i in draw.integers(0, len(WORDS), draw.integers(10, 90))) for _ in range(5000)]
    for first in range(0, count, BATCH):
        keys = [f"{row // 10_000:05d}/{row:09d}" for row in range(first, min(first + BATCH, count))]
        size = len(keys)
        draw = np.random.default_rng(first)
        numbers = {
            "offset": draw.integers(0, FILE - 120_000, size),
            "size": draw.integers(20_000, 120_000, size),
            "width": draw.integers(300, 2000, size).astype(np.int32),
            "height": draw.integers(300, 2000, size).astype(np.int32),
            "position": np.arange(first, first + size),
            "annotation_file": np.full(size, schema.IN_INDEX, dtype=np.int32),
            "key_hash": np.array([xxhash.xxh3_64_intdigest(key.encode()) for key in keys], dtype=np.uint64),
        }
        texts = {
            "key": keys,
            "path": [f"{key}.jpg" for key in keys],
            "annotation_path": [f"{key}.json" for key in keys],
            "caption": [captions[i] for i in draw.integers(0, len(captions), size)],
            "annotation": ["{}"] * size,
        }
        arrays = []
        for field in schema.INDEX_PART:
            if field.name in texts:
                arrays.append(string_array(texts[field.name]))
            elif field.name in numbers:
                arrays.append(number_array(numbers[field.name]))
            elif pa.types.is_integer(field.type):
                arrays.append(number_array(np.zeros(size, dtype=field.type.to_pandas_dtype())))
            elif pa.types.is_boolean(field.type):
                arrays.append(pa.array([False] * size))
            else:
                arrays.append(pa.nulls(size, field.type))
        yield pa.Table.from_arrays(arrays, schema=schema.INDEX_PART)


def ours(folder: str) -> int:
    from builder import open_dataset

    return len(open_dataset(folder).where("width >= 1024 and length(caption) > 200"))


def with_duckdb(folder: str) -> int:
    import duckdb

    query = f"SELECT key FROM '{folder}/peers.parquet' WHERE width >= 1024 AND length(caption) > 200"
    return len(duckdb.connect().execute(query).fetchnumpy()["key"])


def with_polars(folder: str) -> int:
    import polars as pl

    wanted = (pl.col("width") >= 1024) & (pl.col("caption").str.len_chars() > 200)
    return len(pl.scan_parquet(f"{folder}/peers.parquet").filter(wanted).select("key").collect())


def with_datasets(folder: str) -> int:
    import datasets
    import pyarrow.parquet as pq

    datasets.disable_progress_bars()
    table = datasets.Dataset(datasets.table.InMemoryTable(pq.read_table(f"{folder}/peers.parquet")))
    found = table.filter(
        lambda widths, captions: [w >= 1024 and len(c) > 200 for w, c in zip(widths, captions, strict=True)],
        input_columns=["width", "caption"], batched=True, batch_size=100_000, keep_in_memory=True,
        load_from_cache_file=False,
    )  # fmt: skip
    return len(found)


PEERS: dict[str, Callable[[str], int]] = {
    "ours": ours,
    "duckdb": with_duckdb,
    "polars": with_polars,
    "datasets": with_datasets,
}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return (time.perf_counter() - started) * 1e3, result


def conditions(folder: str, rounds: int, results: Results) -> None:
    """All peers in turn, round by round."""
    taken: dict[str, list[float]] = {peer: [] for peer in PEERS}
    found = set()
    for _ in range(rounds):
        for peer, work in PEERS.items():
            took, rows = timed(lambda work=work: work(folder))  # type: ignore[misc]
            taken[peer].append(took)
            found.add(rows)
    assert len(found) == 1, f"the peers disagree: {found}"
    print(f"{found.pop():,} rows are found")
    for peer, each in taken.items():
        results.add(peer, {"ms, the first time": each[0], "ms": statistics.median(each[1:])})
    results.compare("ms", "ours")


def columns_and_selections(folder: str, rounds: int, results: Results) -> None:
    from builder import open_dataset

    whole = open_dataset(folder)
    whole.where("width >= 1024").save(f"{folder}/sub")
    times = {
        "a typed column, opened": lambda: open_dataset(folder).column("score").null_count,
        "a selection, opened": lambda: open_dataset(f"{folder}/sub"),
        "a sample of 10,000": lambda: whole.sample(10_000),
        "a split in two": lambda: whole.split({"train": 0.99, "val": 0.01}),
    }
    for name, work in times.items():
        took = [timed(work)[0] for _ in range(rounds)]
        results.add(name, {"ms": statistics.median(took)})
    some = open_dataset(f"{folder}/sub")
    draw = random.Random(0)
    places = [draw.randrange(len(some)) for _ in range(2000)]
    rows = [int(some.rows[place]) for place in places]

    def pace(dataset: Any, numbers: list[int]) -> float:
        return timed(lambda: [(dataset[n].image, dataset[n].caption) for n in numbers])[0] / len(numbers) * 1e3

    pace(some, places)
    pairs = [(pace(some, places), pace(whole, rows)) for _ in range(rounds)]
    mine, all_of = (statistics.median(each) for each in zip(*pairs, strict=True))
    results.add("a random row of the selection", {"µs a row": mine})
    results.add("the same row of the whole", {"µs a row": all_of})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", help="a folder to make the dataset in (0.8 GB for a million rows)")
    add_json(parser)
    arguments = parser.parse_args()
    results = Results()
    folder = tempfile.mkdtemp(dir=arguments.scratch)
    try:
        print(f"making {arguments.rows:,} rows: {timed(lambda: make(folder, arguments.rows))[0] / 1e3:.0f} s")
        conditions(folder, arguments.rounds, results)
        columns_and_selections(folder, arguments.rounds, results)
        results.finish(arguments.json)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
