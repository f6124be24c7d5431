"""Time and peak memory of what is done once for a whole source, by number of samples, and how either grows.

    python benchmarks/scale.py --samples 10000 100000 1000000 6000000 [--stages plan open …] [--scratch DIR] [--keep]

Each stage is a process of its own; memory is its ``ru_maxrss``, mapped pages included. ``growth`` is the slope of
seconds over samples on logarithmic axes between the two largest numbers of samples (1: linear), ``over all`` that of
the line through all of them. With ``--keep`` the inputs stay in DIR, so that stages can be run one by one.

Inputs (2 KB of disk for each sample, and 1.3 KB for the receipts): a source of real tars with tiny images
(``scale_source.py``), one tar for a shard. Synthetic are the receipts, written by code as ``convert`` writes them with
captions of 360 bytes and one reject in a hundred, and the shards themselves: holes of the right size.

Stages:
    scan      the headers of all tars, by two processes (memory: of the one that collects)
    listing   data.json alone
    plan      listing + join + cut: all there is between the scan and a plan
    save      the plan to disk and back (memory: with the planning before it)
    receipts  all receipts read back and their shards looked for
    resume    convert one shard more of an OUT in which all others but one are done
    finish    index, rejects, card and manifest from all receipts
    open      open_dataset
    find      a key, of 2,000 (seconds are of one)
    sampler   the first row of a shuffled order
    info      laion6m info
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks.results import Results, add_json

SHARD = 3_000_000  # bytes: a tar of 1,000 tiny samples and its captions, and not two
CAPTION = 360
REJECTS = 10  # of the 1,000 samples of a tar


class Clock:
    """Time of the ``with`` block."""

    seconds = 0.0

    def __enter__(self) -> Clock:
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._started


class Recorded:
    """An engine that gives what the scan gave."""

    def __init__(self, path: str) -> None:
        self._path = path

    def run(self, work: Any, tasks: Any, report: Any = None) -> Iterator[Any]:
        in_order = sorted(tasks, key=lambda request: ("/captions/" in request.archive.path, request.archive.name))
        with open(self._path, "rb") as file:
            for request in in_order:
                yield request, pickle.load(file)  # noqa: S301 - written by the stage before

    def __enter__(self) -> Recorded:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def scan(folder: str, samples: int) -> float:
    from builder.base.options import ConvertOptions
    from builder.engines.contract import EngineChoice
    from builder.engines.local import make_engine
    from builder.plan.survey import scan_all
    from builder.source.layouts import recognise

    layout = recognise(f"{folder}/source")
    with make_engine(EngineChoice(num_proc=2)) as crew, Clock() as clock:
        tables = scan_all(layout, ConvertOptions(), crew)
    with open(f"{folder}/tables", "wb") as file:
        for table in tables:
            pickle.dump(table, file)
    return clock.seconds


def listing(folder: str, samples: int) -> float:
    from builder.source.files import LocalFile
    from builder.source.listing import read_listing

    with Clock() as clock:
        found = read_listing([LocalFile(f"{folder}/source/data.json")])
    assert len(found) == samples
    return clock.seconds


def plan(folder: str, samples: int) -> float:
    return _planned(folder)[1]


def _planned(folder: str) -> tuple[Any, float]:
    """The planned source, and the seconds of reading the listing and of planning. Reading back what the scan gave is
    not in them: a conversion has it when the scan ends."""
    from builder.base.options import ConvertOptions
    from builder.plan.survey import listed, plan_survey, scan_all
    from builder.source.layouts import recognise

    layout, options = recognise(f"{folder}/source"), ConvertOptions(max_shard_size=SHARD)
    with Clock() as reading:
        entries = listed(layout)
    tables = scan_all(layout, options, Recorded(f"{folder}/tables"))
    with Clock() as planning:
        found = plan_survey(layout, options, tables, lambda: entries)
    return found, reading.seconds + planning.seconds


def save(folder: str, samples: int) -> float:
    from builder.plan.kept import load_survey, save_survey
    from builder.store.ledger import Ledger

    found, _ = _planned(folder)
    ledger = Ledger(f"{folder}/out")
    with Clock() as clock:
        save_survey(found, ledger)
        loaded = load_survey(found.layout, ledger)
    assert loaded is not None
    assert (loaded.plan.shards, len(loaded.plan.rows)) == (samples // 1000, samples)
    return clock.seconds


def make_receipts(folder: str, samples: int) -> None:
    """What a conversion leaves of all its shards, but for the samples in them."""
    import numpy as np
    import pyarrow as pa
    import xxhash

    from builder.base import schema
    from builder.base.arrays import number_array, string_array
    from builder.base.options import ConvertOptions
    from builder.base.records import Reason, Reject
    from builder.conversion.build import job_of
    from builder.conversion.shard import reject_batch
    from builder.plan.identity import describe_source
    from builder.plan.kept import load_survey
    from builder.plan.survey import shard_rows
    from builder.source.layouts import recognise
    from builder.store.ledger import Ledger, Receipt

    ledger = Ledger(f"{folder}/out")
    layout = recognise(f"{folder}/source")
    os.makedirs(ledger.path("receipts"), exist_ok=True)
    with open(ledger.path("job.json"), "w") as file:
        json.dump(job_of(describe_source(layout), ConvertOptions(max_shard_size=SHARD)), file)
    found = load_survey(layout, ledger)
    assert found is not None
    os.makedirs(f"{folder}/out/data", exist_ok=True)
    text = os.urandom(1 << 16).hex()
    for number in range(found.plan.shards):
        rows, _ = shard_rows(found, number)
        count = len(rows) - REJECTS
        kept = rows.slice(0, count)
        keys = [path.removesuffix(".gif") for path in rows.column("path").to_pylist()]
        digests = pa.Array.from_buffers(pa.binary(16), count, [None, pa.py_buffer(os.urandom(16 * count))])
        ones, shards = np.ones(count, np.int32), np.full(count, number, np.int32)
        captions = string_array([text[at * 97 : at * 97 + CAPTION] for at in range(count)])
        hashes = np.array([xxhash.xxh3_64_intdigest(key.encode()) for key in keys[:count]], dtype=np.uint64)
        columns = {
            "file": number_array(shards),
            "width": number_array(ones),
            "height": number_array(ones),
            "annotation_file": number_array(np.full(count, schema.IN_SHARD, np.int32)),
            "bom": pa.array(np.zeros(count, np.bool_)),
            "digest": digests,
            "key": string_array(keys[:count]),
            "caption": captions,
            "annotation": pa.nulls(count, pa.string()),
            "key_hash": number_array(hashes),
        }
        part = [columns[name] if name in columns else kept.column(name) for name in schema.INDEX_PART.names]
        lost = [
            Reject(int(position), key, Reason.IMAGE_UNREADABLE, "no known image format", f"{number:05d}.tar")
            for position, key in zip(rows.column("position").to_pylist()[count:], keys[count:], strict=True)
        ]
        name = schema.ShardName(number, found.plan.shards)
        os.truncate(os.open(f"{folder}/out/{name.path}", os.O_CREAT | os.O_WRONLY), SHARD)
        receipt = Receipt(
            number,
            count,
            count * 35,
            SHARD,
            "0" * 32,
            {"size": SHARD, "footer": "0" * 32},
            {"image_unreadable": REJECTS},
        )
        index = pa.Table.from_arrays(part, schema=schema.INDEX_PART).combine_chunks().to_batches()[0]
        ledger.write_receipt(receipt, index, reject_batch(lost))


def receipts(folder: str, samples: int) -> float:
    from builder.base import schema
    from builder.conversion.convert import CONVERT
    from builder.store.ledger import Ledger

    ledger, shards = Ledger(f"{folder}/out"), samples // 1000
    with Clock() as clock:
        found = ledger.receipts()
        sizes = ledger.folder.sizes(schema.DATA)
        names = {number: str(schema.ShardName(number, shards)) for number in found}
        there = [CONVERT.outlet.stands(ledger, receipt, names[number], sizes) for number, receipt in found.items()]
    assert all(there)
    assert len(there) == shards
    return clock.seconds


def resume(folder: str, samples: int) -> float:
    from builder import convert
    from builder.base.options import ConvertOptions
    from builder.store.ledger import Ledger

    ledger, shards = Ledger(f"{folder}/out"), samples // 1000
    away = [ledger.path("receipts", f"{number:05d}.json") for number in (0, shards // 2)]
    for path in away:
        os.rename(path, f"{path}.away")
    options = ConvertOptions(max_shard_size=SHARD)
    with Clock() as clock:
        summary = convert(f"{folder}/source", f"{folder}/out", options, start=0, end=1, num_proc=1, quiet=True)
    assert (summary.did, summary.missing) == (1, 1)
    for path in away[1:]:  # the first has a real shard now
        os.rename(f"{path}.away", path)
    os.unlink(f"{away[0]}.away")
    return clock.seconds


def finish(folder: str, samples: int) -> float:
    from builder.base import schema
    from builder.base.options import ConvertOptions
    from builder.conversion.finish import finish_dataset
    from builder.plan.kept import load_survey
    from builder.source.layouts import recognise
    from builder.store.ledger import Ledger

    ledger, layout = Ledger(f"{folder}/out"), recognise(f"{folder}/source")
    found = load_survey(layout, ledger)
    assert found is not None
    done = ledger.receipts()
    with Clock() as clock:
        finish_dataset(ledger, found, done, ConvertOptions(max_shard_size=SHARD))
    with open(f"{folder}/out/{schema.MANIFEST}") as manifest:
        assert json.load(manifest)["totals"]["listed"] == samples
    return clock.seconds


def open_(folder: str, samples: int) -> float:
    from builder import open_dataset

    with Clock() as clock:
        reader = open_dataset(f"{folder}/out")
        count = len(reader)
    assert 0.98 * samples < count <= samples
    return clock.seconds


def find(folder: str, samples: int) -> float:
    import random

    from builder import open_dataset

    reader = open_dataset(f"{folder}/out")
    draw, taken = random.Random(0), []
    keys = [reader[draw.randrange(len(reader))].key for _ in range(2000)]
    for key in keys:
        with Clock() as clock:
            row = reader.find(key)
        assert row is not None
        taken.append(clock.seconds)
    return statistics.median(taken)


def sampler(folder: str, samples: int) -> float:
    from builder.mm.order import ShuffledOrder, walk

    with Clock() as clock:
        row = next(walk(ShuffledOrder(samples, 1), 0, 1))
    assert 0 <= row < samples
    return clock.seconds


def info(folder: str, samples: int) -> float:
    from builder.jobs.info import info as look

    with Clock() as clock:
        found = look(f"{folder}/out")
    assert found.kind == "parquet"
    return clock.seconds


STAGES: dict[str, Callable[[str, int], float]] = {
    "scan": scan,
    "listing": listing,
    "plan": plan,
    "save": save,
    "receipts": receipts,
    "resume": resume,
    "finish": finish,
    "open": open_,
    "find": find,
    "sampler": sampler,
    "info": info,
}


def make_inputs(stage: str, folder: str, samples: int) -> None:
    """What a stage needs and is not there yet."""
    if stage == "sampler":
        return
    if not os.path.exists(f"{folder}/source/data.json"):
        from benchmarks.scale_source import make_source

        make_source(f"{folder}/source", samples)
    if stage in ("plan", "save") and not os.path.exists(f"{folder}/tables"):
        scan(folder, samples)
    later = list(STAGES).index(stage)
    if later > list(STAGES).index("save"):
        if not os.path.exists(f"{folder}/out/.laion6m/plan.arrow"):
            if not os.path.exists(f"{folder}/tables"):
                scan(folder, samples)
            save(folder, samples)
        if not os.path.exists(f"{folder}/out/.laion6m/receipts/{samples // 1000 - 1:05d}.json"):
            make_receipts(folder, samples)
    if later > list(STAGES).index("finish") and not os.path.exists(f"{folder}/out/meta/manifest.json"):
        finish(folder, samples)


def run(*arguments: str) -> dict[str, Any]:
    """This script in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--run", *arguments], stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout))


def growth(sizes: list[int], seconds: list[float]) -> float:
    """The slope of the line through all points, on logarithmic axes."""
    return statistics.linear_regression([math.log(n) for n in sizes], [math.log(s) for s in seconds]).slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--scratch", default=tempfile.gettempdir())
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--make", action="store_true", help="only make the inputs, and keep them")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    add_json(parser)
    arguments = parser.parse_args()
    if arguments.run:
        what, stage, folder, samples = arguments.run
        if what == "make":
            make_inputs(stage, folder, int(samples))
            print("{}")
        else:
            seconds = STAGES[stage](folder, int(samples))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(json.dumps({"seconds": seconds, "peak": peak}))
        return
    found: dict[str, list[tuple[int, float, int]]] = {stage: [] for stage in arguments.stages}
    for samples in sorted(arguments.samples):
        folder = os.path.join(arguments.scratch, f"laion6m-scale-{samples}")
        os.makedirs(folder, exist_ok=True)
        try:
            for stage in arguments.stages:
                run("make", stage, folder, str(samples))
                if not arguments.make:
                    result = run("measure", stage, folder, str(samples))
                    found[stage].append((samples, result["seconds"], result["peak"]))
                    print(
                        f"{stage:9} {samples:>11,} {result['seconds']:12.6f} s {result['peak'] / 1e6:7.0f} MB",
                        flush=True,
                    )
        finally:
            if not (arguments.keep or arguments.make):
                shutil.rmtree(folder, ignore_errors=True)
    if arguments.make:
        return
    results = Results()
    for stage, points in found.items():
        for samples, taken, peak in points:
            results.add(stage, {f"s, {samples:,}": taken, f"MB, {samples:,}": peak / 1e6})
    results.finish(arguments.json)
    if len(arguments.samples) < 2:
        return
    print(f"\n{'stage':9}" + "".join(f"{samples:>20,}" for samples in sorted(arguments.samples)) + "  growth over all")
    for stage, points in found.items():
        sizes, seconds = [point[0] for point in points], [point[1] for point in points]
        cells = "".join(f"{taken:11.5f} s {peak / 1e6:4.0f} MB" for _, taken, peak in points)
        print(f"{stage:9}{cells}  {growth(sizes[-2:], seconds[-2:]):6.2f} {growth(sizes, seconds):8.2f}")


if __name__ == "__main__":
    main()
