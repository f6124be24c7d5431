"""Flip single bits in every file of finished folders, and see ``verify`` find each.

    python stress/flip.py [--trials 6000] [--seconds 900] [--seed 6]

Folders: Parquet and Arrow of several shards, an index over tars with digests, Parquet with an added column. A trial
flips one bit anywhere in one file (files take turns) and runs ``verify`` by itself, without the source. What has to
hold: it is not ok (README.md, which its owner may edit, may have a note), a problem names that file, a shard's problems
name rows; where the bit lies in an image, exactly that row; where it lies in a row's value in the index, that row among
others (but for annotation_path, annotation_offset, and the path in an index over tars, which nothing else in the folder
repeats). Every tenth trial flips a bit of the bookkeeping (.laion6m) instead and runs ``convert`` again: the same bytes
as before, or an error that names the file.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from builder.base import schema
from builder.base.errors import Laion6mError
from builder.base.options import ConvertOptions
from builder.conversion.convert import convert
from builder.conversion.index import index
from builder.curate.add_column import add_column
from builder.read.opening import open_dataset
from builder.verification.verify import verify
from stress.common import LostError, arguments, batches, close, in_process, shard_source
from tests.outputs import output_bytes

BATCH = 100
PATIENCE = 300.0  # seconds for a batch
NAMED = re.compile(r"row (\d+) \(")
OPTIONS = {"max_shard_size": 1_000_000}


@dataclass(frozen=True)
class Folder:
    """A finished folder; ``images``: of each shard, (first byte, end, row)."""

    path: Path
    source: Path
    files: tuple[str, ...]
    images: dict[str, list[tuple[int, int, int]]]
    values: list[tuple[int, int, int]]
    whole: dict[str, str]
    form: str


def folders(scratch: Path) -> list[Folder]:
    """One of each kind."""
    source = shard_source(scratch / "source", shards=3)
    for form in ("parquet", "arrow"):
        options = ConvertOptions(format=form, **OPTIONS)
        convert(str(source), str(scratch / form), options, num_proc=1, quiet=True)
    index(str(source), str(scratch / "index"), digest=True, num_proc=1, quiet=True)
    convert(str(source), str(scratch / "column"), ConvertOptions(**OPTIONS), num_proc=1, quiet=True)
    arrays = scratch / "arrays"
    for sample in open_dataset(scratch / "column"):
        file = arrays / f"{sample.path}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.full((3, 40), sample.row, dtype=np.float32))
    add_column(str(scratch / "column"), "latents", str(arrays), num_proc=1, quiet=True)
    return [look(scratch / name, source) for name in ("parquet", "arrow", "index", "column")]


def look(path: Path, source: Path) -> Folder:
    """Where a folder's images and the values of its index lie."""
    whole = output_bytes(path)
    content = (path / schema.INDEX).read_bytes()
    with pa.ipc.open_file(pa.py_buffer(content)) as file:
        header = json.loads(file.schema.metadata[schema.INDEX_METADATA_KEY])
        base = pa.py_buffer(content)
    with pa.ipc.open_file(base) as file:
        table = file.read_all()
    images: dict[str, list[tuple[int, int, int]]] = {}
    for row, (number, offset, size) in enumerate(
        zip(*(table.column(name).to_pylist() for name in ("file", "offset", "size")), strict=True)
    ):
        images.setdefault(header["files"][number]["path"], []).append((offset, offset + size, row))
    nowhere_else = {"annotation_path", "path" if path.name == "index" else "annotation_offset"}
    told = [name for name in schema.INDEX_ROW.names if name not in nowhere_else]
    values = [span for name in told for span in spans(table, name, base)]
    return Folder(path, source, tuple(whole), images, values, whole, path.name)


def spans(table: pa.Table, name: str, base: pa.Buffer) -> list[tuple[int, int, int]]:
    """Where each row's value of a column lies in the index: numbers, digests and text."""
    found = []
    row = 0
    for chunk in table.column(name).chunks:
        kind, buffers = chunk.type, chunk.buffers()
        if chunk.null_count == len(chunk) or pa.types.is_boolean(kind):
            row += len(chunk)
            continue
        data = buffers[-1]
        start = data.address - base.address
        if pa.types.is_string(kind):
            ends = np.frombuffer(buffers[1], np.int32)[: len(chunk) + 1].tolist()
        else:
            ends = [number * kind.bit_width // 8 for number in range(len(chunk) + 1)]
        found += [(start + ends[at], start + ends[at + 1], row + at) for at in range(len(chunk))]
        row += len(chunk)
    return found


def flip(rng: random.Random, path: Path) -> int:
    """Flip one bit of a file; where."""
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)
    path.unlink()  # an earlier one may be mapped still
    path.write_bytes(data)
    return at


def row_at(found: list[tuple[int, int, int]], place: int) -> int | None:
    return next((row for start, end, row in found if start <= place < end), None)


def trial(folder: Folder, name: str, rng: random.Random, work: Path) -> Counter[str]:
    """One bit of ``name``, and what ``verify`` says."""
    shutil.copytree(folder.path, work, ignore=shutil.ignore_patterns(schema.WORK))
    at = flip(rng, work / name)
    result = verify(str(work), num_proc=1, quiet=True)
    told = " | ".join((*result.problems, *result.notes))
    if result.ok and not (name == schema.CARD and result.notes):  # the owner may edit the card: that is a note
        raise LostError(f"{folder.form}, {name}, byte {at}: verify finds nothing")
    if name not in told:
        raise LostError(f"{folder.form}, {name}, byte {at}: not named in {told}")
    named = {int(row) for row in NAMED.findall(told)}
    figures = Counter({"found": 1})
    image = row_at(folder.images.get(name, []), at)
    if image is not None:
        if named != {image}:
            raise LostError(f"{folder.form}, {name}, byte {at} of row {image}: rows {sorted(named)} are named")
        figures["in images"] += 1
    elif name.startswith(f"{schema.DATA}/") and not named:
        raise LostError(f"{folder.form}, {name}, byte {at}: no row is named in {told}")
    elif name == schema.INDEX and (row := row_at(folder.values, at)) is not None:
        figures["in rows of the index"] += 1
        if row not in named:
            raise LostError(f"{folder.form}, {name}, byte {at} of row {row}: not named in {told}")
    return figures


def bookkeeping(folder: Folder, rng: random.Random, work: Path) -> Counter[str]:
    """One bit of .laion6m, and another run."""
    shutil.copytree(folder.path, work)
    names = sorted(path for path in (work / schema.WORK).rglob("*") if path.is_file() and path.stat().st_size)
    victim = rng.choice(names)
    at = flip(rng, victim)
    try:
        options: dict[str, Any] = {"format": "arrow" if folder.form == "arrow" else "parquet", **OPTIONS}
        convert(str(folder.source), str(work), ConvertOptions(**options), num_proc=1, quiet=True)
    except Laion6mError as error:
        if schema.WORK not in str(error) and "job" not in type(error).__name__.lower():
            raise LostError(f"{victim.name}, byte {at}: {error}") from None
        return Counter({"bookkeeping refused": 1})
    if output_bytes(work) != folder.whole:
        differs = [name for name, digest in output_bytes(work).items() if folder.whole.get(name) != digest]
        raise LostError(f"{folder.form}, {victim.name}, byte {at}: another run gives other {differs}")
    return Counter({"bookkeeping the same": 1})


def batch(found: list[Folder], seed: int, first: int, count: int, scratch: str) -> Counter[str]:
    """Trials ``first`` to ``first + count``."""
    # .gitignore is bookkeeping, which verify takes no notice of
    kinds = [(folder, name) for folder in found for name in folder.files if name != ".gitignore"]
    jobs = [folder for folder in found if folder.form in ("parquet", "arrow")]
    figures: Counter[str] = Counter()
    for number in range(first, first + count):
        rng = random.Random(seed * 1_000_003 + number)
        work = Path(scratch) / "work"
        figures["trials"] += 1
        try:
            if number % 10 == 9:
                figures += bookkeeping(jobs[number // 10 % len(jobs)], rng, work)
            else:
                figures += trial(*kinds[number % len(kinds)], rng, work)
        except LostError as error:
            figures["lost"] += 1
            print(f"LOST in trial {number}: {error}"[:600], flush=True)
        except Exception as error:  # noqa: BLE001 - the promise is that there is none
            figures["crashes"] += 1
            print(f"CRASH in trial {number}: {type(error).__name__}: {error}"[:600], flush=True)
        shutil.rmtree(work, ignore_errors=True)
    return figures


def main() -> int:
    options = arguments(__doc__ or "", 900, 6000)
    figures: Counter[str] = Counter(dict.fromkeys(("trials", "found", "in images", "in rows of the index"), 0))
    with tempfile.TemporaryDirectory(prefix="flip-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        found = folders(Path(scratch))
        deadline = time.monotonic() + options.seconds
        for first, count in batches(options.trials, BATCH, deadline - time.monotonic()):
            ending = in_process(partial(batch, found, options.seed, first, count, scratch), PATIENCE)
            if ending.value is not None:
                figures += ending.value
                continue
            figures["hangs" if ending.hung else "crashes"] += 1
            print(f"trials {first} to {first + count}: {ending}", flush=True)
    return close("flip", dict(figures) | {name: figures[name] for name in ("crashes", "hangs", "lost")})


if __name__ == "__main__":
    sys.exit(main())
