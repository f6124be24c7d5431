"""Choosing what to train on, through this project and its peers, side by side.

    python benchmarks/curate.py SOURCE [--only fingerprints pairs tenth] [--hashes 1000000] [--scratch DIR]

SOURCE is of the card layout. Each measurement is taken in turn, ``--rounds`` times, and the least counts, in
processor time: each works in one process, with its modules imported. DIR needs as much space as SOURCE.

Measurements:
    fingerprints     ms of processor time an image: decode and hash, against imagehash and imagededup (where installed)
    pairs            all pairs of random hashes at most 10 bits apart, also mirrored ones, against faiss' flat index for
                     some of them, times as many; recall of planted pairs of just 10 bits, memory
    tenth            a random tenth as tars, against reading every tar and writing that tenth with tarfile, and against
                     webdataset's reader alone
"""

from __future__ import annotations

import argparse
import glob
import importlib.util
import io
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.results import Results, add_json

LAION6M = [sys.executable, "-m", "builder"]


def least(rounds: int, works: dict[str, Callable[[], Any]], clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of each, the least of ``rounds``, done in turn."""
    seconds: dict[str, float] = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            before = clock()
            work()
            seconds[name] = min(seconds[name], clock() - before)
    return seconds


def show(results: Results, seconds: dict[str, float], unit: str, scale: float = 1.0) -> None:
    """The first is ours; ratios are to it."""
    for name, value in seconds.items():
        results.add(name, {unit: value * scale})
    results.compare(unit, next(iter(seconds)))


def images_of(source: Path, most: int) -> list[bytes]:
    """The first images of a card-layout source."""
    found: list[bytes] = []
    for path in sorted(source.glob("raw/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isreg() and len(found) < most:
                    found.append(tar.extractfile(member).read())  # type: ignore[union-attr]
    return found


def fingerprints(source: Path, arguments: argparse.Namespace, results: Results) -> None:
    from PIL import Image

    from builder.curate.fingerprints import _fingerprints

    images = images_of(source, 1000)
    pixels = sum(width * height for width, height in (Image.open(io.BytesIO(image)).size for image in images))
    works: dict[str, Callable[[], Any]] = {
        "ours": lambda: [_fingerprints(images[first : first + 64]) for first in range(0, len(images), 64)]
    }
    if importlib.util.find_spec("imagehash"):
        import imagehash

        works["imagehash phash"] = lambda: [imagehash.phash(Image.open(io.BytesIO(image))) for image in images]
    if importlib.util.find_spec("imagededup"):
        from imagededup.methods import PHash

        hasher = PHash(verbose=False)
        works["imagededup PHash"] = lambda: [
            hasher.encode_image(image_array=np.asarray(Image.open(io.BytesIO(image)).convert("RGB")))
            for image in images
        ]
    print(f"{len(images):,} images of {pixels / len(images) / 1e6:.2f} megapixels")
    show(results, least(arguments.rounds, works, time.process_time), "ms an image", 1e3 / len(images))


def planted(count: int, distance: int, mirror: int) -> tuple[Any, int]:
    """Random hashes, the last of which are just ``distance`` bits from the first, every other one of them mirrored."""
    rng, chosen = np.random.default_rng(0), min(20_000, count // 2)
    hashes = rng.integers(0, 1 << 64, count, dtype=np.uint64)
    for at in range(chosen):
        flips = sum(1 << int(bit) for bit in rng.choice(64, distance, replace=False))
        hashes[count - chosen + at] = int(hashes[at]) ^ flips ^ (mirror if at % 2 else 0)
    return hashes, chosen


def pairs(source: Path, arguments: argparse.Namespace, results: Results) -> None:
    from builder.curate.fingerprints import MIRROR
    from builder.curate.pairs import joined, pairs_by_round, plan_rounds

    count, mirror = arguments.hashes, int(MIRROR[0])
    hashes, chosen = planted(count, 10, mirror)
    started = time.process_time()
    rounds = plan_rounds(count, 10, mirror)
    found = joined(some for number in range(rounds.count) for some in pairs_by_round(hashes, rounds, number))
    seconds = {"ours, mirrored too": time.process_time() - started}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    codes = set((found.first * count + found.second).tolist())
    recall = sum(at * count + count - chosen + at in codes for at in range(chosen)) / chosen
    print(f"{count:,} hashes: {len(found):,} pairs, recall at 10 bits {recall:.4f}, peak {peak:,.0f} MB")
    if importlib.util.find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(1)
        index = faiss.IndexBinaryFlat(64)
        index.add(hashes.view(np.uint8).reshape(-1, 8))
        some = min(count, 2000)
        started = time.process_time()
        index.range_search(hashes[:some].view(np.uint8).reshape(-1, 8), 11)
        seconds[f"faiss flat ({some:,} of them)"] = (time.process_time() - started) * count / some
    show(results, seconds, "s, all pairs")
    results.add("ours, mirrored too", {"recall at 10 bits": f"{recall:.4f}", "MB, peak": peak})


def tenth(source: Path, arguments: argparse.Namespace, results: Results) -> None:
    scratch = Path(tempfile.mkdtemp(dir=arguments.scratch))
    try:
        whole, chosen, again = scratch / "whole", scratch / "chosen", scratch / "again"
        run("convert", source, whole, "--format", "webdataset")
        from builder import ConvertOptions, convert, open_dataset

        count = len(open_dataset(whole)) // 10
        run("select", whole, chosen, "--sample", str(count))
        keys = set(open_dataset(chosen).columns("key")["key"].to_pylist())
        tars = sorted(glob.glob(f"{whole}/data/*.tar"))

        def ours() -> None:
            shutil.rmtree(again, ignore_errors=True)
            convert(chosen, again, ConvertOptions(format="webdataset"), num_proc=1, quiet=True)

        def through_tarfile() -> None:
            with tarfile.open(scratch / "tenth.tar", "w") as out:
                for path in tars:
                    with tarfile.open(path) as tar:
                        for member in tar:
                            data = tar.extractfile(member).read()  # type: ignore[union-attr]
                            if member.name.rsplit(".", 1)[0] in keys:
                                out.addfile(member, io.BytesIO(data))

        works: dict[str, Callable[[], Any]] = {"ours": ours, "tarfile, all tars": through_tarfile}
        if importlib.util.find_spec("webdataset"):
            import webdataset

            works["webdataset, reading alone"] = lambda: sum(1 for _ in webdataset.WebDataset(tars, shardshuffle=False))
        show(results, least(arguments.rounds, works, time.process_time), "s, a tenth as tars")
    finally:
        shutil.rmtree(scratch)


def run(*arguments: object) -> None:
    subprocess.run([*LAION6M, *map(str, arguments)], check=True, capture_output=True)


MEASUREMENTS = {"fingerprints": fingerprints, "pairs": pairs, "tenth": tenth}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--hashes", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", default=None)
    add_json(parser)
    arguments = parser.parse_args()
    results = Results()
    for name in arguments.only:
        MEASUREMENTS[name](arguments.source, arguments, results)
    results.finish(arguments.json)


if __name__ == "__main__":
    main()
