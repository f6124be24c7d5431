"""Hostile datasets by the thousand: indexes, Parquet and Arrow files changed in ways that no accident would.

    python stress/fuzz_parquet.py [--trials 26000] [--seconds 1500] [--seed 6]

Downloaded shards are strangers' data. A trial changes one file of a small dataset (bytes anywhere, numbers where the
formats have them, values inside thrift structures, the index's own JSON) and opens it as users do: ``open_dataset``,
rows by number, by key and in stretches, columns, sides; now and then ``info`` and ``verify`` too, also with checksums
made to fit. What has to hold: rows whose bytes lie in the file, or a project error; nothing else raised, no hang, no
memory beyond the bound. Trials run in processes of their own: where a library ends the process, that is a crash, and
the input is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from builder.base import schema
from builder.base.errors import Laion6mError
from builder.base.options import ConvertOptions
from builder.conversion.convert import convert
from builder.conversion.index import index
from builder.jobs.info import info
from builder.store.manifest import read_manifest
from builder.store.thrift import BINARY, I8, I16, I32, I64, Items, ThriftError, Value, read_struct, write_struct
from builder.verification.verify import verify
from stress.common import LostError, arguments, close, in_process, look_at, seed_index
from tests.sources import make_source, picture

BATCH = 100
PATIENCE = 60.0  # seconds for a batch
MOST_MEMORY = 400 << 20
EDGES = (
    0,
    1,
    -1,
    2,
    7,
    127,
    128,
    255,
    2**15 - 1,
    2**16,
    2**31 - 1,
    -(2**31),
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
    -(2**63),
)


@dataclass(frozen=True)
class Base:
    """A sound dataset and the file in it that is changed. ``indexed``: it has meta/, so ``verify`` can be asked."""

    name: str
    folder: Path
    victim: str
    indexed: bool


def bases(scratch: Path) -> list[Base]:
    """Datasets of all kinds that are opened."""
    source = make_source(scratch / "source", "card", 2, 6, ("blank_caption", "too_wide", "not_an_image"))
    found = []
    for form in ("parquet", "arrow"):
        out = scratch / form
        convert(str(source.path), str(out), ConvertOptions(format=form), num_proc=1, quiet=True)
        shard = f"data/train-00000-of-00001.{form}"
        found += [
            Base(f"index over {form}", out, "meta/index.arrow", True),
            Base(f"indexed {form}", out, shard, True),
            Base(
                "rejects" if form == "parquet" else "manifest",
                out,
                "meta/rejects.parquet" if form == "parquet" else "meta/manifest.json",
                True,
            ),
        ]
        alone = scratch / f"{form}-alone"
        (alone / "data").mkdir(parents=True)
        shutil.copy(out / shard, alone / shard)
        found.append(Base(f"{form} alone", alone, shard, False))
    out = scratch / "over-tars"
    index(str(source.path), str(out), num_proc=1, quiet=True)
    found.append(Base("index over tars", out, "meta/index.arrow", True))
    seed_index(scratch / "seeded")
    found.append(Base("seeded index", scratch / "seeded", "meta/index.arrow", False))
    images = [picture(number) for number in range(12)]
    tables = {
        "struct": pa.table(
            {
                "image": pa.array([{"bytes": image, "path": f"{number}.jpg"} for number, image in enumerate(images)]),
                "caption": [f"caption {number}" for number in range(12)],
                "width": pa.array(range(12), pa.int32()),
                "height": pa.array(range(12), pa.int32()),
            }
        ),
        "plain": pa.table({"jpg": pa.array([*images[:9], None, b"", b"x"], pa.binary()), "text": ["t"] * 12}),
    }
    writings: dict[str, dict[str, Any]] = {
        "plain": {"compression": "none", "use_dictionary": False, "write_page_index": True},
        "v2": {"compression": "none", "use_dictionary": False, "data_page_version": "2.0", "row_group_size": 5},
        "dictionary": {"compression": "none", "use_dictionary": True},
        "snappy": {"compression": "snappy", "use_dictionary": False, "row_group_size": 4},
        "zstd": {"compression": "zstd", "data_page_size": 100, "write_batch_size": 2},
    }
    for columns, table in tables.items():
        for writing, options in writings.items():
            folder = scratch / f"{columns}-{writing}"
            folder.mkdir()
            pq.write_table(table, folder / "a.parquet", **options)
            found.append(Base(f"others' Parquet, {writing}", folder, "a.parquet", False))
        folder = scratch / f"{columns}-ipc"
        folder.mkdir()
        with pa.ipc.new_stream(folder / "a.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=5)
        found.append(Base("others' Arrow", folder, "a.arrow", False))
    return found


def change(rng: random.Random, data: bytes, suffix: str) -> bytes:
    """One to four changes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        ways = [_flip, _number, _number, _cut]
        if suffix == ".parquet":
            ways += [_footer] * 5 + [_page] * 3
        if suffix == ".json" or b"laion6m" in changed[-8192:]:
            ways += [_text] * 2
        rng.choice(ways)(rng, changed)
    return bytes(changed)


def _place(rng: random.Random, data: bytearray) -> int:
    """Anywhere, but mostly near the ends, where formats say what they hold."""
    size = len(data)
    return rng.choice((rng.randrange(size), rng.randrange(min(size, 2000)), size - 1 - rng.randrange(min(size, 3000))))


def _flip(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 2, 10))):
        if data:
            data[_place(rng, data)] = rng.choice((rng.randrange(256), 0, 255, 128))


def _number(rng: random.Random, data: bytearray) -> None:
    width = rng.choice((2, 4, 4, 8, 8))
    if len(data) < 16:
        return
    at = _place(rng, data)
    at = min(at - at % rng.choice((1, width)), len(data) - width)
    value = rng.choice((*EDGES, int.from_bytes(data[at : at + width], "little") + rng.choice((-1, 1, 8, -8))))
    data[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")


def _cut(rng: random.Random, data: bytearray) -> None:
    if len(data) > 16:
        at = _place(rng, data)
        rng.choice(
            (
                lambda: data.__delitem__(slice(at, at + rng.choice((1, 8, 500)))),
                lambda: data.__delitem__(slice(at, None)),
            )
        )()


def _text(rng: random.Random, data: bytearray) -> None:
    """A number or a string in JSON."""
    digits = [at for at in range(max(0, len(data) - 9000), len(data)) if 48 <= data[at] <= 57]
    if digits:
        at = rng.choice(digits)
        data[at : at + 1] = rng.choice((b"-1", b"99999999999", b"1e9", b"null", b"9", b"0", b"true", b'"', b"[", b"{"))


def _footer(rng: random.Random, data: bytearray) -> None:
    if len(data) < 12:
        return
    length = int.from_bytes(data[-8:-4], "little")
    if not 0 < length <= len(data) - 12:
        return
    try:
        fields, _ = read_struct(bytes(data[-8 - length : -8]))
        for _ in range(rng.choice((1, 1, 3))):
            _change_value(rng, fields)
        footer = write_struct(fields)
    except (ThriftError, ValueError):
        return
    data[-8 - length :] = footer + struct.pack("<I", len(footer)) + b"PAR1"


def _page(rng: random.Random, data: bytearray) -> None:
    """A page header, found by trying. Its size stays, or the page would only move."""
    for _ in range(200):
        at = rng.randrange(4, max(5, len(data) - 8))
        try:
            fields, after = read_struct(memoryview(data)[at : at + 200], max_values=100)
            if not {1, 2, 3} <= fields.keys() or not fields.keys() & {5, 7, 8}:
                continue
            _change_value(rng, fields)
            header = write_struct(fields)
        except (ThriftError, ValueError, IndexError):
            continue
        data[at : at + after] = header if rng.random() < 0.5 else header[:after].ljust(after, b"\0")
        return


def _change_value(rng: random.Random, fields: dict[int, Value]) -> None:
    """One value somewhere in a struct."""
    here: Any = fields
    while True:
        if isinstance(here, dict):
            if not here:
                return
            number = rng.choice(list(here))
            value = here[number]
            if isinstance(value.data, (dict, Items)) and rng.random() < 0.93:
                here = value.data
                continue
            if rng.random() < 0.1:
                del here[number]
                return
            here[number] = Value(value.kind, _other(rng, value.kind, value.data))
            return
        items: list[Any] = here.values
        if not items:
            return
        if rng.random() < 0.08:
            items[:] = rng.choice((items[:-1], [*items, items[0]]))
            return
        number = rng.randrange(len(items))
        if isinstance(items[number], (dict, Items)):
            here = items[number]
            continue
        items[number] = _other(rng, here.kind, items[number])
        return


def _other(rng: random.Random, kind: int, data: Any) -> Any:
    bits = {I16: 16, I32: 32, I64: 64, I8: 8}.get(kind)
    if bits:
        value = rng.choice((*EDGES, data + 1, data - 1, data * 2, rng.randrange(-10, 300)))
        return (value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)
    if kind == BINARY:
        return rng.choice((b"", data[:-1], data + b"x", b"\xff\xfe", rng.randbytes(len(data)), b"bytes", b"image"))
    return data


def forge(out: Path, victim: str) -> bool:
    """Make checksums fit what was changed, as an author of hostile files would: the index's of a shard, the manifest's
    of all. False where that file has none to forge."""
    try:
        manifest = read_manifest(str(out))
        path = out / victim
        if victim.startswith("data/"):
            _forge_index(out / "meta" / "index.arrow", path)
        for name in manifest.files:
            content = (out / name).read_bytes()
            manifest.files[name].update(size=len(content), xxh3_128=xxhash.xxh3_128_hexdigest(content))
    except (Laion6mError, AttributeError, TypeError, KeyError, OSError):
        return False
    (out / "meta" / "manifest.json").write_bytes(manifest.to_json())
    return True


def _forge_index(path: Path, shard: Path) -> None:
    with pa.ipc.open_file(pa.BufferReader(path.read_bytes())) as file:
        table, header = file.read_all(), json.loads(file.schema.metadata[schema.INDEX_METADATA_KEY])
    content = shard.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    check = header["files"][0]["check"]
    check["size"] = len(content)
    if "footer" in check:
        check["footer"] = xxhash.xxh3_128_hexdigest(content[max(0, len(content) - 8 - length) :])
    noted = table.schema.with_metadata({schema.INDEX_METADATA_KEY: json.dumps(header).encode()})
    with pa.ipc.new_file(path, noted) as writer:
        for each in table.to_batches():
            writer.write_batch(pa.RecordBatch.from_arrays(each.columns, schema=noted))


def batch(found: list[Base], seed: int, first: int, count: int, scratch: str) -> Counter[str]:
    """Trials ``first`` to ``first + count``; stops behind one that crashes."""
    warnings.simplefilter("ignore")
    resource.setrlimit(
        resource.RLIMIT_AS, (8 << 30, 8 << 30)
    )  # so that what is claimed cannot take the machine with it
    os.environ["LAION6M_CACHE"] = str(Path(scratch) / "cache")
    figures: Counter[str] = Counter()
    for number in range(first, first + count):
        rng = random.Random(seed * 1_000_003 + number)
        base = found[number % len(found)]
        place = Path(scratch) / "work"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(base.folder, place, ignore=shutil.ignore_patterns(".laion6m"))
        victim = place / base.victim
        data = change(rng, victim.read_bytes(), victim.suffix)
        victim.write_bytes(data)
        (Path(scratch) / "at-work").write_text(json.dumps([number, base.name, str(victim)]))
        figures["trials"] += 1
        figures["indexes and Parquet files"] += base.victim.endswith((".parquet", "index.arrow"))
        try:
            outcome = look_at(str(place))
            figures[outcome] += 1
            if number % 10 == 0:
                try:
                    info(str(place))
                except Laion6mError:
                    figures["refused by info"] += 1
            if base.indexed and number % 3 == 0:
                # What was changed is found, whatever it was: every file has its checksum in the manifest.
                sound = data == (base.folder / base.victim).read_bytes()
                if verify(str(place), num_proc=1, quiet=True).ok != sound:
                    raise LostError("verify finds nothing wrong")
                figures["verified"] += 1
                if forge(place, base.victim):
                    verify(str(place), num_proc=1, quiet=True)
                    figures["forged"] += 1
                    figures[f"forged, {look_at(str(place))}"] += 1
        except Exception as error:  # noqa: BLE001 - the promise is that there is none
            figures["lost" if isinstance(error, LostError) else "crashes"] += 1
            keep(data, f"trial {number}, {base.name}: {type(error).__name__}: {error}", victim.suffix)
    return figures


def keep(data: bytes, problem: str, suffix: str) -> None:
    name = Path(tempfile.gettempdir()) / f"fuzz-parquet-{hashlib.sha256(data).hexdigest()[:12]}{suffix}"
    name.write_bytes(data)
    print(f"{problem} ({name})", flush=True)


def main() -> int:
    options = arguments(__doc__ or "", 1500, 26_000)
    figures: Counter[str] = Counter(
        dict.fromkeys(
            (
                "trials",
                "indexes and Parquet files",
                "read",
                "empty",
                "refused",
                "verified",
                "forged",
                "refused by info",
            ),
            0,
        )
    )
    peak = 0
    with tempfile.TemporaryDirectory(
        prefix="fuzz-pq-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None
    ) as scratch:
        found = bases(Path(scratch))
        deadline = time.monotonic() + options.seconds
        first = 0
        while first < options.trials and time.monotonic() < deadline:
            count = min(BATCH, options.trials - first)
            ending = in_process(partial(batch, found, options.seed, first, count, scratch), PATIENCE)
            peak = max(peak, ending.peak)
            if ending.value is not None:
                figures += ending.value
                first += count
                if ending.peak > MOST_MEMORY:
                    figures["lost"] += 1
                    print(f"trials {first - count} to {first}: {ending.peak >> 20} MiB", flush=True)
                continue
            number, name, victim = json.loads((Path(scratch) / "at-work").read_text())
            figures["trials"] += number + 1 - first
            figures["hangs" if ending.hung else "crashes"] += 1
            keep(Path(victim).read_bytes(), f"trial {number}, {name}: {ending.crashed or 'hung'}", Path(victim).suffix)
            first = number + 1
    return close("fuzz_parquet", dict(figures) | {name: figures[name] for name in ("crashes", "hangs", "lost")})


if __name__ == "__main__":
    sys.exit(main())
