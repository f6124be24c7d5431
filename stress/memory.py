"""Peak memory of what was made to exhaust it, each in a process of its own.

    python stress/memory.py [--only WORDS] [--bound 400] [--large FOLDER]

Sources: a member of 300 MB, an image of 256 MiB (the most that is read), annotations of 31 and 33 MiB (text, an emoji
that makes Python keep 4 bytes a character, millions of values, deep nesting), PNGs that unfold to 400 and 169 million
pixels, a tar of a million members, listings without an end. Datasets: 600 MB of compressed images in Parquet, Parquet
that claims a trillion rows.
Conversions stay under ``--bound`` MiB (ru_maxrss). ``verify --decode`` is measured too: it holds an image's pixels.
``--large``: also a tar of 4 GB, converted, indexed and verified in that folder (9 GB of disk for a minute or two).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import struct
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.results import Results, add_json
from builder.base.errors import Laion6mError
from builder.base.options import ConvertOptions
from builder.conversion.convert import convert
from builder.conversion.index import index
from builder.store.thrift import get, i64, read_struct, write_struct
from builder.verification.verify import verify
from stress.common import close, in_process, look_at, write_tar
from tests.sources import picture

MIB = 1 << 20
GOOD = b'{"caption": "A caption."}'
PATIENCE = 300.0


def png(width: int, height: int) -> bytes:
    """A black PNG, one bit a pixel: some kilobytes for any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(width // 8 + 2)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg(size: int) -> bytes:
    """A sound JPEG of that many bytes, most of them in its scan."""
    small = picture(0)
    return small[:-2] + bytes(size - len(small)) + small[-2:]


def source(folder: Path, images: dict[str, bytes], document: bytes, listing: bytes | None = None) -> Path:
    """A card-layout source, every image with the same annotation."""
    (folder / "raw").mkdir(parents=True)
    (folder / "captions").mkdir()
    write_tar(folder / "raw" / "00000.tar", images)
    write_tar(folder / "captions" / "00000.tar", {"a.json": document})
    entries = [{"image": name, "annotation": "a.json"} for name in images]
    (folder / "data.json").write_bytes(json.dumps(entries).encode() if listing is None else listing)
    return folder


def million(folder: Path) -> Path:
    """A raw tar of a million empty members."""
    source(folder, {"00000/00000000.jpg": b""}, GOOD)
    head = bytearray(tarfile.TarInfo("00000/00000000.jpg").tobuf(tarfile.GNU_FORMAT))
    with (folder / "raw" / "00000.tar").open("wb") as handle:
        for number in range(1_000_000):
            head[6:14] = b"%08d" % number
            head[148:156] = b" " * 8
            head[148:156] = b"%06o\0 " % sum(head)
            handle.write(head)
        handle.write(bytes(1024))
    return folder


def claiming(folder: Path, rows: int) -> Path:
    """Parquet of three rows whose footer says that they are more."""
    folder.mkdir()
    sink = io.BytesIO()
    table = pa.table({"image": pa.array([b"a", b"b", b"c"]), "caption": ["x", "y", "z"]})
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)
    data = sink.getvalue()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer, _ = read_struct(data[start:-8])
    footer[3] = i64(rows)
    get(footer, 4, 0)[3] = i64(rows)
    for column in get(footer, 4, 0, 1):
        get(column, 3)[5] = i64(rows)
    changed = write_struct(footer)
    (folder / "a.parquet").write_bytes(data[:start] + changed + struct.pack("<I", len(changed)) + b"PAR1")
    return folder


def compressed(folder: Path) -> Path:
    """Parquet of another tool: 600 MB of compressed images in 30 row groups."""
    folder.mkdir()
    small = picture(0)
    schema = pa.schema({"image": pa.binary(), "caption": pa.string()})
    with pq.ParquetWriter(folder / "a.parquet", schema, compression="zstd", use_dictionary=False) as writer:
        for _ in range(30):
            images = [small[:-2] + os.urandom(200_000) + small[-2:] for _ in range(100)]
            writer.write_table(pa.table({"image": images, "caption": ["A caption."] * 100}, schema))
    return folder


def large(folder: Path) -> Path:
    """A raw tar of 4 GB: images of 1 MB."""
    count = 4000
    names = [f"00000/{number:08d}" for number in range(count)]
    source(folder, {}, GOOD, json.dumps([{"image": f"{name}.jpg", "annotation": "a.json"} for name in names]).encode())
    image = jpeg(1_000_000)
    with tarfile.open(folder / "raw" / "00000.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name in names:
            info = tarfile.TarInfo(f"{name}.jpg")
            info.size = len(image)
            tar.addfile(info, io.BytesIO(image))
    return folder


Make = Callable[[Path], Any]
Work = Callable[[Path, Path], Any]


def run(work: Any, form: str = "parquet") -> Work:
    """convert or index of SOURCE into OUT; what came of it, or what it says."""

    def do(place: Path, out: Path) -> Any:
        try:
            return work(str(place), str(out), ConvertOptions(format=form), num_proc=1, quiet=True).totals
        except Laion6mError as error:
            return f"{type(error).__name__}: {error}"

    return do


def decode(place: Path, out: Path) -> Any:
    run(convert)(place, out)
    return verify(str(out), decode=True, num_proc=1, quiet=True).ok


def verified(place: Path, out: Path) -> Any:
    totals = run(convert)(place, out)
    return verify(str(out), source=str(place), num_proc=1, quiet=True).ok and totals


def opened(place: Path, out: Path) -> Any:
    return look_at(str(place))


def cases() -> dict[str, tuple[Make, Work]]:
    """What is made, and what is then done with it, each in a process of its own."""
    converted, arrow, indexed = run(convert), run(convert, "arrow"), run(index)

    def images(*sizes: int) -> Make:
        return lambda folder: source(folder, {f"00000/{size}.jpg": jpeg(size) for size in sizes}, GOOD)

    def document(make: Callable[[], bytes]) -> Make:
        return lambda folder: source(folder, {"00000/a.jpg": picture(0)}, make())

    def listing(make: Callable[[], bytes]) -> Make:
        return lambda folder: source(folder, {"00000/a.jpg": picture(0)}, GOOD, make())

    def bomb(side: int) -> Make:
        return lambda folder: source(folder, {"00000/a.jpg": png(side, side)}, GOOD)

    def values(text: bytes) -> Make:
        return document(lambda: b'{"caption": "x", "y": [' + text * (31 * MIB // len(text)) + b"1]}")

    def keys() -> bytes:
        return b'{"caption": "x"' + b"".join(b',"%x":1' % number for number in range(2_800_000)) + b"}"

    entry = b'[{"image":"a","annotation":"b","x":['
    return {
        "nothing odd": (images(5000), converted),
        "300 MB member": (images(300_000_000, 5000), converted),
        "256 MiB image": (images(256 * MIB), converted),
        "256 MiB image, Arrow": (images(256 * MIB), arrow),
        "256 MiB image, index": (images(256 * MIB), indexed),
        "33 MiB annotation": (document(lambda: b'{"caption": "' + b"x" * 33 * MIB + b'"}'), converted),
        "31 MiB caption": (document(lambda: b'{"caption": "' + b"x" * 31 * MIB + b'"}'), converted),
        "31 MiB caption, emoji": (
            document(lambda: '{"caption": "😀'.encode() + b"x" * 31 * MIB + b'"}'),
            converted,
        ),
        "31 MiB of lists": (values(b"[],"), converted),
        "31 MiB of objects": (values(b"{},"), converted),
        "31 MiB of keys": (document(keys), converted),
        "31 MiB of brackets": (document(lambda: b"[" * 31 * MIB), converted),
        "31 MiB of quotes": (document(lambda: b'{"caption": [' + b"[" * 600 + b'\\"' * 15 * MIB), converted),
        "PNG of 400 megapixels": (bomb(20_000), converted),
        "PNG of 169 megapixels": (bomb(13_000), converted),
        "verify --decode of it": (bomb(13_000), decode),
        "million members": (million, converted),
        "listing of lists": (listing(lambda: b"[" + b"[]," * 80 * MIB + b"1]"), converted),
        "listing, one entry": (listing(lambda: entry + b"{}," * 80 * MIB + b"1]}]"), converted),
        "Parquet, 600 MB compressed": (compressed, opened),
        "Parquet, 10^9 rows": (lambda folder: claiming(folder, 10**9), opened),
        "Parquet, 10^12 rows": (lambda folder: claiming(folder, 10**12), opened),
    }


UNBOUND = ("verify --decode of it",)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="", help="cases with this in their names")
    parser.add_argument("--bound", type=int, default=400, help="MiB (400)")
    add_json(parser)
    parser.add_argument("--large", type=Path, help="a folder on a disk, for a tar of 4 GB")
    options = parser.parse_args()
    figures = {"trials": 0, "highest bounded MiB": 0, "crashes": 0, "hangs": 0, "lost": 0}
    os.environ["LAION6M_CACHE"] = tempfile.mkdtemp(prefix="memory-cache-")
    memory = Path("/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir())
    work = {title: (memory, *case) for title, case in cases().items()}
    if options.large:
        work["4 GB tar"] = (options.large, large, verified)
        work["4 GB tar, Arrow"] = (options.large, large, run(convert, "arrow"))
        work["4 GB tar, index"] = (options.large, large, run(index))
    results = Results()
    for title, (place, make, do) in work.items():
        if options.only not in title:
            continue
        with tempfile.TemporaryDirectory(prefix="memory-", dir=place) as name:
            scratch = Path(name)
            in_process(partial(make, scratch / "source"), PATIENCE)
            ending = in_process(partial(do, scratch / "source", scratch / "out"), PATIENCE)
        peak = ending.peak >> 20
        figures["trials"] += 1
        figures["crashes"] += bool(ending.crashed)
        figures["hangs"] += ending.hung
        if title not in UNBOUND:  # the closing line's peak is of making the cases, too
            figures["lost"] += peak > options.bound
            figures["highest bounded MiB"] = max(peak, figures["highest bounded MiB"])
        results.add(title, {"MiB": peak, "bound": "none" if title in UNBOUND else f"{options.bound}"})
        print(f"{title:<27}{peak:>6} MiB  {ending.value or ending}"[:150], flush=True)
    shutil.rmtree(os.environ["LAION6M_CACHE"])
    results.finish(options.json)
    return close("memory", figures)


if __name__ == "__main__":
    sys.exit(main())
