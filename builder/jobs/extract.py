"""extract: raw/, captions/ and data.json as files again, from a source's tars or from a converted or indexed folder.

    archives → scan → later members win → pieces of equal weight → files
    index → rows → pieces → files

A tar is cut into pieces of members, so that one large tar keeps all processes busy, and no two pieces write the same
file. What is there already is written again, not skipped: a file of the right size may still be cut inside or be of
another source, and telling that costs a read, which is most of the work. ``--start`` is how to go on after a stop.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.base import schema
from builder.base.arrays import number_array
from builder.base.errors import LayoutError, SourceChangedError, SourceError
from builder.base.names import SELECTION
from builder.base.options import Slice, default_num_proc
from builder.base.paths import StrPath, path_of
from builder.base.records import CUT, WHOLE
from builder.base.urls import refuse_url
from builder.base.words import duration, printable
from builder.engines.choose import make_engine
from builder.engines.contract import Engine, EngineChoice, Report
from builder.engines.progress import Progress
from builder.read.view import Rows, View
from builder.source.files import ByteFile, LocalFile
from builder.source.layout import Archive, Layout
from builder.source.layouts import recognise
from builder.source.listing import path_ids
from builder.source.pairs import IdLookup
from builder.source.scan import ScanRequest, open_archive
from builder.source.tables import ArchiveTable, scan_archive
from builder.store.tree import NameRefusedError, Tree

_BLOCK = 8 << 20  # bytes of a member in memory at a time
_PER_FILE = 32 << 10  # bytes of writing that making a file is worth, about
_PIECE = (4 << 20, 256 << 20)  # least and most weight of a piece of work
_LISTED = 100  # failures that are kept in words
_BOM = b"\xef\xbb\xbf"
_IMAGE, _CAPTION, _OTHER = 0, 1, 2

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Extraction:
    """What was written. ``files`` = images + captions + others (img2dataset's .txt). ``failures``: the first of
    ``failed`` files that were not written, and of places where a tar is damaged, in words."""

    out: str
    files: int = 0
    images: int = 0
    captions: int = 0
    bytes: int = 0
    failed: int = 0
    failures: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The contract of ``--json``."""
        return {
            "files": self.files,
            "images": self.images,
            "captions": self.captions,
            "bytes": self.bytes,
            "failed": self.failed,
            "failures": list(self.failures),
            "seconds": round(self.seconds, 3),
            "out": self.out,
        }


@dataclass(slots=True)
class _Tally:
    """What one piece of work came to."""

    counts: list[int]
    bytes: int = 0
    failed: int = 0
    failures: tuple[str, ...] = ()

    def fail(self, text: str) -> None:
        self.failed += 1
        if self.failed <= _LISTED:
            self.failures += (printable(text),)


@dataclass(frozen=True, slots=True)
class _Members:
    """Members of one archive to be written into ``side`` (raw or captions), by ascending offset."""

    out: str
    side: str
    root: str
    archive: Archive
    names: list[str]
    offsets: list[int]
    sizes: list[int]
    states: list[int]
    kinds: list[int]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a dataset to be written. ``first``: of them, the number of the first among all. ``repeated``: those whose
    annotation a later row writes."""

    out: str
    rows: Rows
    first: int
    repeated: frozenset[int]

    @property
    def name(self) -> str:
        """For messages."""
        return f"rows {self.first} to {self.first + len(self.rows)}"


def extract(
    path: StrPath,
    out: StrPath,
    *,
    num_proc: int | None = None,
    engine: str = "local",
    address: str | None = None,
    start: int = 0,
    end: int = -1,
    quiet: bool = False,
) -> Extraction:
    """Write OUT/raw, OUT/captions and, last, OUT/data.json.

    From a source: every member of raw tars ``start`` to ``end`` (exclusive; -1 means all) in the order of their names,
    and of the captions tars that go with them (captions_of); its data.json as it is. Where names repeat the last member
    counts, and links become files. From a folder that ``convert`` or ``index`` made, or a selection: the images and
    annotations of its rows, of shards ``start`` to ``end``, byte for byte, and a data.json of all rows in the order of
    the listing.

    Names that would leave OUT, and members that are not whole, are counted, named and left out. Raises SourceError,
    OptionError, WriteError.
    """
    started = time.monotonic()
    path, out = path_of(path), path_of(out)
    for place in (path, out):
        refuse_url(place, "extract")
    part = Slice(start, end)
    layout = _layout(path)
    _refuse_overlap(path, out)
    with make_engine(EngineChoice(engine, num_proc, address)) as crew, Tree(out) as tree:
        workers = num_proc or default_num_proc()
        if layout is None:
            from builder.read.opening import open_dataset  # 40 ms that a source's tars do without

            rows = open_dataset(path)
            tally = _extract_rows(rows, out, part, crew, workers, quiet)
            _write_listing(tree, "data.json", _listing_of(rows), tally)
        else:
            tally = _extract_archives(layout, out, part, crew, workers, quiet)
            _copy_listing(layout, tree, tally)
    return Extraction(
        out=out,
        files=sum(tally.counts),
        images=tally.counts[_IMAGE],
        captions=tally.counts[_CAPTION],
        bytes=tally.bytes,
        failed=tally.failed,
        failures=tally.failures,
        seconds=time.monotonic() - started,
    )


def describe_extraction(result: Extraction) -> str:
    """For people."""
    seconds = max(result.seconds, 1e-9)
    lines = [
        f"{result.images:,} images and {result.captions:,} captions, {result.bytes / 1e6:,.1f} MB, in "
        f"{duration(result.seconds)} ({result.files / seconds:,.0f} files/s, {result.bytes / seconds / 1e6:,.0f} MB/s)"
    ]
    if result.failed:
        lines.append(f"{result.failed:,} files not written, or places in the source that are damaged:")
        lines += [f"  {failure}" for failure in result.failures[:20]]
        if result.failed > 20:
            lines.append(f"  and {result.failed - 20:,} more; --json lists the first {_LISTED}")
    return "\n".join(lines)


def _layout(path: str) -> Layout | None:
    """The source's layout; None for a folder of rows. A source with an index beside its tars is a source."""
    if os.path.exists(os.path.join(path, SELECTION)):
        return None
    indexed = os.path.exists(os.path.join(path, *schema.INDEX.split("/")))
    if indexed and os.path.isdir(os.path.join(path, schema.DATA)):
        return None
    try:
        return recognise(path)
    except LayoutError:
        if indexed:
            return None
        raise


def _refuse_overlap(path: str, out: str) -> None:
    """OUT must be apart from all that is read, and from what ``verify`` knows every file of."""
    inside = os.path.relpath(os.path.realpath(out), os.path.realpath(path))
    if inside == "." or inside.split(os.sep)[0] in ("raw", "captions", "data.json", schema.DATA, schema.META):
        raise SourceError(f"{out} lies in {path}, which is read from. Choose an OUT outside of it.")


def _extract_archives(layout: Layout, out: str, part: Slice, crew: Engine, workers: int, quiet: bool) -> _Tally:
    whole = _Tally([0, 0, 0])
    raw = [layout.raw[number] for number in part.of(len(layout.raw))]
    captions = [layout.captions[number] for number in captions_of(part, len(layout.raw), len(layout.captions))]
    tables = _scan([*raw, *captions], crew)
    sides = [
        _Side(out, "raw", layout.raw_root, raw, tables[: len(raw)]),
        _Side(out, "captions", layout.captions_root, captions, tables[len(raw) :]),
    ]
    for side in sides:
        for failure in side.damage():
            whole.fail(failure)
    files, size = sum(side.files for side in sides), sum(side.bytes for side in sides)
    tasks = (piece for side in sides for piece in side.pieces(workers))
    return _work(crew, _write_members, tasks, whole, files, size, quiet)


def captions_of(part: Slice, raws: int, captions: int) -> range:
    """Numbers of the captions archives that go with a slice of ``raws`` raw ones: number i with raw archive
    ⌊i · raws / captions⌋, so that each goes with one, and with its own number where there are as many of both."""
    if not raws:
        return part.of(captions)
    taken = part.of(raws)
    return range(-(-taken.start * captions // raws), -(-taken.stop * captions // raws))


def _scan(archives: list[Archive], crew: Engine) -> list[ArchiveTable]:
    largest_first = sorted(archives, key=lambda archive: -archive.size)
    tables = dict(crew.run(_scan_one, largest_first, _unheard))
    return [tables[archive.path] for archive in archives]


def _scan_one(archive: Archive, report: Report) -> tuple[str, ArchiveTable]:
    return archive.path, scan_archive(ScanRequest(archive, names=True))


def _unheard(files: int, size: int) -> None:
    """Scanning is quick and has no progress of its own."""


class _Side:
    """All members of raw/ or captions/, names as Arrow strings until a piece of them is on its way."""

    def __init__(self, out: str, side: str, root: str, archives: list[Archive], tables: list[ArchiveTable]) -> None:
        self._out, self._side, self._root, self._archives, self._tables = out, side, root, archives, tables
        last = IdLookup(*(table.ids for table in tables)).effective()
        edges = np.cumsum([0, *(len(table.sizes) for table in tables)])
        self._taken = [np.flatnonzero(last[lo:hi]) for lo, hi in pairwise(edges)]
        self.files = sum(map(len, self._taken))
        self.bytes = sum(int(table.sizes[mine].sum()) for table, mine in zip(tables, self._taken, strict=True))

    def damage(self) -> Iterator[str]:
        """What is wrong with the archives, in words."""
        for archive, table in zip(self._archives, self._tables, strict=True):
            for place in table.damage:
                yield f"{self._side}/{archive.name}, bytes {place.offset:,} to {place.end:,}: {place.problem}"

    def pieces(self, workers: int) -> Iterator[_Members]:
        """The work, an archive at a time."""
        target = _target(self.bytes + _PER_FILE * self.files, workers)
        for archive, table, taken in zip(self._archives, self._tables, self._taken, strict=True):
            mine = taken[np.argsort(table.offsets[taken], kind="stable")]
            names = [] if table.names is None else table.names.to_pylist()  # .take would load pyarrow.compute: 30 ms
            kinds = np.where(table.is_image, _IMAGE, np.where(table.is_json, _CAPTION, _OTHER))
            columns = (table.offsets, table.sizes, table.states, kinds)
            weights = table.sizes[mine].astype(np.int64) + _PER_FILE
            # A compressed tar is read from its beginning each time, so it stays whole.
            for lo, hi in cut_evenly(weights, int(weights.sum()) if table.compression else target):
                rows = mine[lo:hi]
                lists = (column[rows].tolist() for column in columns)
                piece = [names[row] for row in rows.tolist()]
                yield _Members(self._out, self._side, self._root, archive, piece, *lists)


def cut_evenly(weights: Int64s, most: int) -> list[tuple[int, int]]:
    """Ranges (end exclusive) that cover all weights in order, each of about ``most`` or less, or of one weight."""
    ends = np.cumsum(weights)
    pieces = max(1, -(-int(ends[-1]) // max(1, most))) if len(ends) else 0
    cuts = [int(np.searchsorted(ends, ends[-1] * number / pieces)) for number in range(1, pieces)]
    edges = sorted({0, *cuts, len(ends)})
    return list(pairwise(edges))


def _target(total: int, workers: int) -> int:
    return min(max(total // (workers * 4), _PIECE[0]), _PIECE[1])


def _write_members(task: _Members, report: Report) -> _Tally:
    """Write a piece. Raises SourceError where the archive is gone or changed, WriteError."""
    tally = _Tally([0, 0, 0])
    file = None if task.archive.is_folder else open_archive(task.archive)
    try:
        with Tree(task.out) as tree:
            members = zip(task.names, task.offsets, task.sizes, task.states, task.kinds, strict=True)
            for name, offset, size, state, kind in members:
                report(1, size)
                if state != WHOLE:
                    how = "cut off" if state == CUT else "stored sparse"
                    tally.fail(f"{task.side}/{task.archive.name}: {name} is {how} in it")
                    continue
                blocks = _blocks(file, offset, size) if file else _file_blocks(os.path.join(task.root, name), size)
                _write(tree, f"{task.side}/{name}", blocks, kind, tally)
    finally:
        if file is not None:
            file.close()
    return tally


def _write(tree: Tree, name: str, blocks: Iterable[bytes], kind: int, tally: _Tally) -> None:
    try:
        tally.bytes += tree.write(name, blocks)
        tally.counts[kind] += 1
    except NameRefusedError as error:
        tally.fail(f"{error.args[0]}: {error.args[1]}")


def _write_listing(tree: Tree, name: str, blocks: Iterable[bytes], tally: _Tally) -> None:
    """Neither image nor caption, so it counts only where it cannot be written."""
    try:
        tree.write(name, blocks, whole=True)
    except NameRefusedError as error:
        tally.fail(f"{error.args[0]}: {error.args[1]}")


def _blocks(file: ByteFile, offset: int, size: int) -> Iterator[bytes]:
    for at in range(0, size, _BLOCK):
        length = min(_BLOCK, size - at)
        block = file.read_at(offset + at, length)
        if len(block) != length:
            raise SourceChangedError(file.name, f"it ends at byte {offset + at + len(block):,}")
        yield block


def _file_blocks(path: str, size: int) -> Iterator[bytes]:
    try:
        file = LocalFile(path)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    try:
        yield from _blocks(file, 0, size)
    finally:
        file.close()


def _copy_listing(layout: Layout, tree: Tree, tally: _Tally) -> None:
    folder = os.path.join(layout.root, "data.json")
    for path in layout.listing:
        name = f"data.json/{os.path.basename(path)}" if os.path.isdir(folder) else "data.json"
        _write_listing(tree, name, _file_blocks(path, os.path.getsize(path)), tally)


def _extract_rows(whole: Rows, out: str, part: Slice, crew: Engine, workers: int, quiet: bool) -> _Tally:
    """The rows of a Reader or View, of its shards ``part``."""
    index = whole.reader._index
    numbers = np.asarray(whole.rows, dtype=np.int64)
    if part != Slice():
        taken, files = part.of(len(whole.shards)), index.column("file")[numbers]
        numbers = numbers[(files >= taken.start) & (files < taken.stop)]
    rows = View(whole.reader, numbers)
    paths = rows.columns("annotation_path").column(0)
    last = IdLookup(
        np.concatenate([path_ids([]), *(path_ids(chunk.to_pylist()) for chunk in paths.chunks)])
    ).effective()
    sizes = np.maximum(index.column("size")[numbers], 0) + index.column("annotation_size")[numbers]
    repeated = np.flatnonzero(~last)
    tasks = [
        _Rows(out, rows[lo:hi], lo, frozenset((repeated[(repeated >= lo) & (repeated < hi)] - lo).tolist()))
        for lo, hi in cut_evenly(sizes + 2 * _PER_FILE, _target(int(sizes.sum()), workers))
    ]
    return _work(crew, _write_rows, tasks, _Tally([0, 0, 0]), len(rows), int(sizes.sum()), quiet)


def _write_rows(task: _Rows, report: Report) -> _Tally:
    """Write a piece. Raises IndexMismatchError, DamagedFileError, WriteError."""
    tally = _Tally([0, 0, 0])
    with Tree(task.out) as tree:
        for number, sample in enumerate(task.rows):
            image = sample.image
            _write(tree, f"raw/{sample.path}", [image], _IMAGE, tally)
            if number not in task.repeated:
                document = sample.annotation.encode()
                blocks = [_BOM, document] if sample.bom else [document]
                _write(tree, f"captions/{sample.annotation_path}", blocks, _CAPTION, tally)
            report(1, len(image))
    return tally


def _listing_of(rows: Rows) -> Iterator[bytes]:
    """data.json of all rows, in the order of the listing they came from."""
    table = rows.columns("path", "annotation_path", "position")
    order = np.argsort(table.column("position").to_numpy(), kind="stable")
    yield b"["
    for first in range(0, len(order), schema.INDEX_BATCH_ROWS):
        some = table.take(number_array(order[first : first + schema.INDEX_BATCH_ROWS]))
        pairs = zip(some.column("path").to_pylist(), some.column("annotation_path").to_pylist(), strict=True)
        entries = [json.dumps({"image": image, "annotation": annotation}) for image, annotation in pairs]
        yield ((", " if first else "") + ", ".join(entries)).encode()
    yield b"]"


def _work(crew: Engine, work: Any, tasks: Iterable[Any], whole: _Tally, files: int, size: int, quiet: bool) -> _Tally:
    progress = Progress("extracting", files, size, quiet=quiet)
    try:
        for tally in crew.run(work, tasks, progress.update):
            whole.counts = [a + b for a, b in zip(whole.counts, tally.counts, strict=True)]
            whole.bytes += tally.bytes
            whole.failed += tally.failed
            whole.failures = tuple(sorted({*whole.failures, *tally.failures})[:_LISTED])
    finally:
        progress.finish()
    return whole
