"""Damaged tars by the thousand: through the walk over headers, and a share of them through the whole conversion.

    python stress/fuzz_tar.py [--trials 20000] [--seconds 900] [--seed 6] [--every 40]

A trial is a small tar with known members (GNU, pax and ustar, long names, links, concatenated ones) that is damaged in
one to four ways: bits flipped, blocks wiped, moved, taken out or put in, cut short, headers that lie. What has to hold:
the walk ends in time, members lie inside the archive, nothing raises; those in front of all damage are found with their
names and bytes (as Python's tarfile read them before); and those behind it whose headers and bytes nobody touched are
found too, or hidden by a size that lies, or lost to damage that is noted (each is counted). Every ``--every``-th
trial's tar becomes the raw tar of a source, its listing naming all members that there were, those that are found and
some that never were: convert accounts for each entry, twice with the same outcome, what was lost has the reason that
the damage calls for, ``verify --source`` agrees, extract gives the rows' files. Odd tars of other projects' test
suites, where they are at hand, go through all of it first.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from builder.base.errors import Laion6mError
from builder.base.options import ConvertOptions
from builder.base.records import WHOLE, TarScan
from builder.conversion.convert import convert
from builder.jobs.extract import extract
from builder.source.compressed import compression_of
from builder.source.tar_headers import normal_name
from builder.source.tars import scan_tar
from builder.verification.verify import verify
from stress.common import (
    CORPUS,
    LostError,
    MemoryFile,
    account,
    arguments,
    batches,
    check_scan,
    close,
    in_process,
    write_tar,
)
from tests.outputs import output_bytes, read_rejects, read_rows
from tests.sources import picture

BATCH = 250
PATIENCE = 120.0  # seconds for a batch
BLOCK = 512
Damage = Callable[[random.Random, bytearray], None]


@dataclass(frozen=True)
class Sound:
    """A member as tarfile reads it: its headers begin at byte ``start``, its ``size`` bytes at ``offset``."""

    name: str
    start: int
    offset: int
    size: int


def make_tar(rng: random.Random) -> tuple[bytes, list[Sound]]:
    """A small tar, and its regular members."""
    sink = io.BytesIO()
    form = rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT))
    names: list[str] = []
    with tarfile.open(fileobj=sink, mode="w", format=form) as tar:
        for number in range(rng.randint(1, 8)):
            name = f"00000/{number:04d}.jpg"
            if rng.random() < 0.15:
                name = "/".join(rng.choices(("long", "é", "x" * 60, "..", "b c"), k=3)) + f"/{number}.jpg"
            targets = [each for each in names if len(each) < 100]  # as much as ustar has room for
            if rng.random() < 0.1 and targets:
                link = tarfile.TarInfo(name)
                link.type, link.linkname = rng.choice((tarfile.LNKTYPE, tarfile.SYMTYPE)), rng.choice(targets)
                tar.addfile(link)
                continue
            size = rng.choice((0, 1, 100, 511, 512, 513, 1500, 5000))
            data = picture(rng.randint(0, 30)) if rng.random() < 0.5 else rng.randbytes(size)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            names.append(name)
    data = sink.getvalue()
    if rng.random() < 0.7:
        data = data.rstrip(b"\0") + b"\0" * (1024 + -len(data.rstrip(b"\0")) % 512)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = [Sound(m.name, m.offset, m.offset_data, m.size) for m in tar if m.isreg()]
    return data, members


def flip(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 3, 20))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def wipe(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data)) // BLOCK * BLOCK
    size = rng.choice((1, BLOCK, 2 * BLOCK, 5 * BLOCK))
    data[at : at + size] = rng.choice((bytes(size), rng.randbytes(size), b"\xff" * size))[: len(data) - at]


def cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.choice((rng.randrange(len(data)), rng.randrange(len(data)) // BLOCK * BLOCK)) :]


def take_out(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 7, BLOCK, 3 * BLOCK))]


def put_in(rng: random.Random, data: bytearray) -> None:
    at = rng.choice((rng.randrange(len(data)), rng.randrange(len(data)) // BLOCK * BLOCK))
    data[at:at] = rng.choice((rng.randbytes(rng.choice((1, 100, BLOCK))), bytes(rng.choice((BLOCK, 3 * BLOCK)))))


def move(rng: random.Random, data: bytearray) -> None:
    blocks = max(1, len(data) // BLOCK)
    a, b = rng.randrange(blocks) * BLOCK, rng.randrange(blocks) * BLOCK
    data[a : a + BLOCK], data[b : b + BLOCK] = data[b : b + BLOCK], data[a : a + BLOCK]


def lie(rng: random.Random, data: bytearray) -> None:
    """A header's field is changed, its checksum made to fit."""
    heads = [at for at in range(0, len(data) - BLOCK + 1, BLOCK) if data[at + 257 : at + 262] == b"ustar"]
    if not heads:
        return
    at = rng.choice(heads)
    field, size = rng.choice(((124, 12), (124, 12), (156, 1), (0, 100), (157, 100), (345, 155), (257, 8), (482, 13)))
    sizes = (
        b"77777777777\0",
        b"\x80" + b"\xff" * 11,
        b"\xff" * 12,
        b"00000000001\0",
        b"            ",
        b"00000177777\0",
    )
    value = rng.choice(sizes) if size == 12 else rng.randbytes(size) if rng.random() < 0.5 else b"\0" * size
    if size == 1:
        value = rng.choice((b"0", b"1", b"2", b"5", b"S", b"M", b"x", b"g", b"L", b"K", b"V", b"\xff"))
    data[at + field : at + field + size] = value[:size].ljust(size, b"\0")
    head = data[at : at + 148] + b" " * 8 + data[at + 156 : at + BLOCK]
    data[at + 148 : at + 156] = b"%06o\0 " % sum(head)


DAMAGES: tuple[Damage, ...] = (flip, wipe, cut, take_out, put_in, move, lie, lie)


@dataclass(frozen=True)
class Damaged:
    """``before``: the tar as it was, with its ``members``; up to byte ``common`` it is the same in ``data``."""

    data: bytes
    before: bytes
    members: list[Sound]
    common: int

    def must_be_found(self) -> list[tuple[str, bytes]]:
        """Name and bytes of members in front of all damage."""
        return [
            (member.name, self.before[member.offset : member.offset + member.size])
            for member in self.members
            if member.offset + member.size + BLOCK <= self.common
        ]

    def untouched(self) -> Iterator[tuple[int, int, int]]:
        """(where the headers begin, where the bytes do, how many) of all members whose headers and bytes are there."""
        for member in self.members:
            at = self.data.find(self.before[member.start : member.offset + member.size])
            if at >= 0:
                yield at, at + member.offset - member.start, member.size


def damaged(rng: random.Random) -> Damaged:
    """A tar, damaged."""
    data, members = make_tar(rng)
    if rng.random() < 0.1:
        more, others = make_tar(rng)
        members += [Sound(o.name, o.start + len(data), o.offset + len(data), o.size) for o in others]
        data += more
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if changed:
            rng.choice(DAMAGES)(rng, changed)
    common = next(
        (at for at, (a, b) in enumerate(zip(data, changed, strict=False)) if a != b), min(len(data), len(changed))
    )
    return Damaged(bytes(changed), data, members, common)


def walk(trial: Damaged) -> Counter[str]:
    """Both ways of reading; what was found of what had to be."""
    data = trial.data
    file = MemoryFile(data)
    scan = scan_tar(file)
    check_scan(scan, data)
    if file.taken > 60 * len(data) + (4 << 20):
        raise LostError(f"{file.taken} bytes read of {len(data)}")
    check_scan(scan_tar(MemoryFile(data, known=False)), data)
    if scan != scan_tar(MemoryFile(data)):
        raise LostError("the same bytes give other members")
    found = {(member.name, data[member.offset : member.offset + member.size]) for member in scan.members}
    wanted = trial.must_be_found()
    lost = [name for name, content in wanted if (name, content) not in found]
    if lost:
        raise LostError(f"in front of all damage, and not found: {lost}")
    figures = Counter({"members": len(scan.members), "must be found": len(wanted)})
    places = {(member.offset, member.size) for member in scan.members if member.state == WHOLE}
    for start, offset, size in trial.untouched():
        figures["untouched"] += 1
        if (offset, size) in places:
            figures["untouched, found"] += 1
        elif any(member.offset <= start < member.offset + max(member.size, 1) for member in scan.members):
            figures["hidden by a size that lies"] += 1
        elif any(damage.offset <= start < damage.end for damage in scan.damage):
            figures["noted as damaged"] += 1
        elif scan.damage:  # right in front of the damage: what is not found of this tar is tar_damaged
            figures["beside the damage"] += 1
        else:
            raise LostError(f"the member at byte {start} is untouched, not found, and nothing is said of damage")
    return figures


def through_convert(data: bytes, folder: Path, rng: random.Random, more: Iterable[str] = ()) -> Counter[str]:
    """The tar as raw/00000.tar of a source. Twice, with one process and with two; both have to come to the same.
    ``more``: names to be listed besides those that are found."""
    (folder / "raw").mkdir(parents=True)
    (folder / "captions").mkdir()
    (folder / "raw" / "00000.tar").write_bytes(data)
    scan = None if compression_of(data[:16]) else scan_tar(MemoryFile(data))
    there = {member.name for member in scan.members} if scan else {f"{number}.jpg" for number in range(3)}
    names = [name for name in sorted({*there, *more}) if name] + ["00000/not-there.jpg", "99999/nor-this.jpg"]
    rng.shuffle(names)
    documents = {f"{number}.json": b'{"caption": "A caption."}' for number in range(len(names))}
    write_tar(folder / "captions" / "00000.tar", documents)
    entries = [{"image": name, "annotation": f"{number}.json"} for number, name in enumerate(names)]
    (folder / "data.json").write_text(json.dumps(entries))
    contents = {}
    if scan:
        last = {member.name: data[member.offset : member.offset + member.size] for member in scan.members}
        contents = {number: last.get(normal_name(name), b"") for number, name in enumerate(names)}
    digests = []
    for number in (1, 2):
        out = folder.parent / f"{folder.name}-out{number}"
        try:
            convert(str(folder), str(out), ConvertOptions(), num_proc=number, quiet=True)
        except Laion6mError as error:  # a tar compressed in a way that is not read: said, not lost
            digests.append({"refused": str(error)})
        else:
            account_of = account(out, len(names), contents if scan else None)
            digests.append(output_bytes(out))
            if number == 1:
                _agree(folder, out, scan, names)
        shutil.rmtree(out, ignore_errors=True)
    if digests[0] != digests[1]:
        raise LostError("two runs over the same tar differ")
    if "refused" in digests[0]:
        return Counter(refused=1)
    return Counter(rows=account_of.rows, rejects=account_of.rejects)


def _agree(folder: Path, out: Path, scan: TarScan | None, names: list[str]) -> None:
    """What was not found has the reason that there is; verify and extract see what convert saw."""
    if scan:
        there = {member.name for member in scan.members}
        reason = "tar_damaged" if scan.damage else "image_missing"
        for reject in read_rejects(out):
            name = normal_name(names[reject["position"]])
            gone = name not in there and name.startswith("00000/")
            if gone and reject["reason"] not in (reason, "duplicate"):
                raise LostError(f"{name} is gone, by the rejects as {reject['reason']}")
    if problems := verify(str(out), source=str(folder), num_proc=1, quiet=True).problems:
        raise LostError(f"verify: {problems[:3]}")
    files = out.parent / f"{out.name}-files"
    extract(str(folder), str(files), num_proc=1, quiet=True)
    for row in read_rows(out):
        path = files / "raw" / row.path
        plain = ".." not in row.path.split("/") and len(row.path) < 200
        if plain and not path.is_dir() and (path.read_bytes() if path.is_file() else None) != row.image:
            raise LostError(f"{row.path} was extracted otherwise than it was converted")
    shutil.rmtree(files)


def batch(seed: int, first: int, count: int, every: int, scratch: str) -> Counter[str]:
    """Trials ``first`` to ``first + count``. Which one was at work is in a file, for when the process dies of it."""
    figures: Counter[str] = Counter()
    place = Path(scratch)
    for number in range(first, first + count):
        rng = random.Random(seed * 1_000_003 + number)
        tar = damaged(rng)
        data = tar.data
        (place / "at-work").write_bytes(data)
        figures["trials"] += 1
        try:
            figures += walk(tar)
            if number % every == 0:
                more = [member.name for member in tar.members]
                figures += through_convert(data, place / f"source-{number}", rng, more)
                figures["converted"] += 1
                shutil.rmtree(place / f"source-{number}")
        except LostError as error:
            figures["lost"] += 1
            keep(data, f"trial {number}: {error}")
        except Exception as error:  # noqa: BLE001 - the promise is that there is none
            figures["crashes"] += 1
            keep(data, f"trial {number}: {type(error).__name__}: {error}")
    return figures


def corpus(scratch: str) -> Counter[str]:
    """Tars of other projects' test suites."""
    figures: Counter[str] = Counter()
    for path in sorted((CORPUS / "tars").iterdir()):
        data = path.read_bytes()
        figures["corpus"] += 1
        try:
            if not compression_of(data[:16]):
                walk(Damaged(data, data, [], 0))
            figures += through_convert(data, Path(scratch) / path.name, random.Random(0))
            shutil.rmtree(Path(scratch) / path.name)
        except LostError as error:
            figures["lost"] += 1
            keep(data, f"{path.name}: {error}")
        except Exception as error:  # noqa: BLE001 - the promise is that there is none
            figures["crashes"] += 1
            keep(data, f"{path.name}: {type(error).__name__}: {error}")
    return figures


def keep(data: bytes, problem: str) -> None:
    name = Path(tempfile.gettempdir()) / f"fuzz-tar-{hashlib.sha256(data).hexdigest()[:12]}.tar"
    name.write_bytes(data)
    print(f"{problem} ({name})", flush=True)


def main() -> int:
    options = arguments(
        __doc__ or "",
        900,
        20_000,
        every=(40, "every so many trials goes through convert (40)"),
        corpus=(1, "0: without the tars of other projects' test suites, where they lie beside the repository (1)"),
    )
    figures: Counter[str] = Counter(
        dict.fromkeys(("trials", "corpus", "converted", "members", "must be found", "untouched", "rows", "rejects"), 0)
    )
    with tempfile.TemporaryDirectory(prefix="fuzz-tar-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        work: list[Callable[[], Counter[str]]] = (
            [lambda: corpus(name)] if options.corpus and (CORPUS / "tars").is_dir() else []
        )
        jobs = [*work]
        for first, count in batches(options.trials, BATCH, float("inf")):
            jobs.append(lambda first=first, count=count: batch(options.seed, first, count, options.every, name))
        for _, job in zip(batches(len(jobs), 1, options.seconds), jobs, strict=False):
            ending = in_process(job, PATIENCE)
            if ending.value is not None:
                figures += ending.value
                continue
            figures["hangs" if ending.hung else "crashes"] += 1
            keep((Path(name) / "at-work").read_bytes(), f"{ending}")
    return close("fuzz_tar", dict(figures) | {name: figures[name] for name in ("crashes", "hangs", "lost")})


if __name__ == "__main__":
    sys.exit(main())
