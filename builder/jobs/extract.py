"""extract: write raw/, captions/ and data.json as files, from a source's tars or from a converted or indexed folder.

    archives → scan → later members win → pieces of equal weight → files
    index → rows → pieces → files

A tar is cut into pieces of members, so one large tar keeps all processes busy. No two pieces write the same file. An
existing file is never overwritten, unless ``overwrite`` is set; then it is written again, not skipped. A file of the
right size may still be damaged or from another source. To find out costs a read, and that is most of the work. Use
``--start`` to continue after a stop.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, pairwise
from typing import Any

import numpy as np

from builder.base import schema
from builder.base.errors import LayoutError, OptionError, SourceChangedError, SourceError
from builder.base.names import SELECTION
from builder.base.options import Slice, default_num_proc
from builder.base.paths import StrPath, path_of
from builder.base.records import CUT, WHOLE
from builder.base.urls import NO_OPTIONS, refuse_url
from builder.base.words import counted, duration, size
from builder.engines.contract import Engine, EngineChoice, Report
from builder.engines.local import make_engine
from builder.jobs.extract_files import (
    CAPTION,
    FORMS,
    IMAGE,
    LISTED,
    OTHER,
    PER_FILE,
    Listing,
    Place,
    Run,
    Tally,
    write,
)
from builder.plan.implied import names_repeat, under_tars
from builder.plan.pairs import IdLookup
from builder.source.files import ByteFile
from builder.source.layout import Archive, Layout
from builder.source.layouts import recognise
from builder.source.scan import ScanRequest, open_archive, open_bytes, scan_archive
from builder.source.tables import ArchiveTable

_BLOCK = 8 << 20  # bytes of a member in memory at once


@dataclass(frozen=True, slots=True)
class Extraction:
    """What was written. ``files`` = images + captions + others (img2dataset's .txt). ``replaced``: members of which a
    later one has the same name; the later one was written. ``failed``: number of files that were not written, and of
    places where a tar is damaged. ``failures``: the first of them, in words. ``notes``: sentences on the names."""

    out: str
    files: int = 0
    images: int = 0
    captions: int = 0
    bytes: int = 0
    replaced: int = 0
    failed: int = 0
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        facts = asdict(self)
        del facts["notes"]
        return facts | {"failures": list(self.failures), "seconds": round(self.seconds, 3)}


@dataclass(frozen=True, slots=True)
class _Members:
    """Members of one archive to write into ``side`` (raw or captions), by ascending offset."""

    place: Place
    side: str
    root: str
    archive: Archive
    members: list[tuple[str, int, int, int, int]]
    """(name, offset, size, state, kind) of each."""


def extract(
    path: StrPath,
    out: StrPath,
    *,
    form: str = "card",
    num_proc: int | None = None,
    engine: str = "local",
    address: str | None = None,
    start: int = 0,
    end: int = -1,
    overwrite: bool = False,
    quiet: bool = False,
) -> Extraction:
    """Write a source's or a dataset's samples as files.

    ``form`` "card" writes OUT/raw, OUT/captions and, last, OUT/data.json. From a source: the members of raw tars
    ``start`` to ``end`` (exclusive; -1: all) in name order, and of the captions tars that belong to them (captions_of);
    data.json is copied unchanged. On duplicate names the last member wins, and the others are counted. In a source
    without a listing, names may begin anew in every tar; then each file goes into a folder named like its tar, as in
    ``convert``'s keys. Links become files. From a folder made by
    ``convert`` or ``index``, or from a selection: the images and annotations of its rows in shards ``start`` to
    ``end``, byte for byte, and a data.json of all rows in listing order.

    Other forms need a dataset, an index or a selection, and name files by the rows' keys. "imagefolder": KEY.jpg, and
    metadata.jsonl with key, caption, width, height and the added columns of values. "captions": KEY.jpg and KEY.txt,
    the caption in one line.

    Nothing in OUT is overwritten unless ``overwrite`` is set. Existing files, a different listing, or a source of its
    own in OUT raise OutputError before anything is written. Names that would leave OUT, and members that are
    not whole, are left out, counted and named. Raises SourceError, OptionError, OutputError.
    """
    started = time.monotonic()
    path, out = path_of(path), path_of(out)
    for place in (path, out):
        refuse_url(place, "extract")
    part = Slice(start, end)
    if form not in FORMS:
        raise OptionError("as", form, f"one of {', '.join(FORMS)}")
    layout = _layout(path, form)
    if layout is not None:
        part.require(len(layout.raw))
    _refuse_overlap(path, out)
    with make_engine(EngineChoice(engine, num_proc, address)) as crew:
        run = Run(Place(out, overwrite), part, crew, num_proc or default_num_proc(), quiet)
        if layout is None:
            from builder.jobs.extract_rows import extract_rows  # takes 40 ms; tars do not need it
            from builder.read.opening import open_dataset

            tally = extract_rows(open_dataset(path), form, run)
        else:
            tally = _extract_archives(layout, run)
    counted = asdict(tally)
    counts = counted.pop("counts")
    seconds = time.monotonic() - started
    return Extraction(out, sum(counts), counts[IMAGE], counts[CAPTION], **counted, seconds=seconds)


def describe_extraction(result: Extraction) -> str:
    """The result as text for people."""
    seconds = max(result.seconds, 1e-9)
    images, captions = counted(result.images, "image"), counted(result.captions, "caption")
    lines = [
        f"{images} and {captions}, {size(result.bytes)}, in {duration(result.seconds)} "
        f"({result.files / seconds:,.0f} files/s, {result.bytes / seconds / 1e6:,.0f} MB/s)"
    ]
    lines += result.notes
    if result.replaced:
        replaced = counted(result.replaced, "member was", "members were")
        lines.append(f"{replaced} replaced by a later one of the same name, as tar does")
    if result.failed:
        lines.append(f"{counted(result.failed, 'file')} not written, or damaged in the source:")
        lines += [f"  {failure}" for failure in result.failures[:20]]
        if result.failed > 20:
            lines.append(f"  and {result.failed - 20:,} more; --json lists the first {LISTED}")
    return "\n".join(lines)


def _layout(path: str, form: str) -> Layout | None:
    """The source's layout; None for a folder of rows. A source with an index beside its tars counts as a source, unless
    only rows have the wanted ``form``."""
    if os.path.exists(os.path.join(path, SELECTION)):
        return None
    indexed = os.path.exists(os.path.join(path, *schema.INDEX.split("/")))
    if indexed and (form != "card" or os.path.isdir(os.path.join(path, schema.DATA))):
        return None
    try:
        layout = recognise(path)
        if form == "card":
            return layout
        at = shlex.quote(path)
        raise SourceError(f"{at} is a source, but --as {form} needs rows. Convert it, or run laion6m index {at} first.")
    except LayoutError:
        if indexed:
            return None
        raise


def _refuse_overlap(path: str, out: str) -> None:
    """Raise SourceError if OUT is a folder that is read, or lies in one: raw/ or captions/; data/ or meta/, where
    ``verify`` knows every file."""
    inside = os.path.relpath(os.path.realpath(out), os.path.realpath(path))
    if inside == "." or inside.split(os.sep)[0] in ("raw", "captions", "data.json", schema.DATA, schema.META):
        inside = f"{shlex.quote(out)} lies in {shlex.quote(path)}"
        raise SourceError(f"{inside}, which is read. Choose an OUT outside of it.")


def _extract_archives(layout: Layout, run: Run) -> Tally:
    whole = Tally([0, 0, 0])
    raw = [layout.raw[number] for number in run.part.of(len(layout.raw))]
    captions = [layout.captions[number] for number in captions_of(run.part, len(layout.raw), len(layout.captions))]
    tables = _scan([*raw, *captions] if layout.listing else [*layout.raw, *layout.captions], run.crew)
    # Without a listing names may begin anew in every tar. Only all raw tars together show that.
    if not layout.listing and names_repeat([tables[archive.path] for archive in layout.raw], layout.raw):
        for archives in (layout.raw, layout.captions):
            under = under_tars([tables[archive.path] for archive in archives], archives)
            tables |= zip((archive.path for archive in archives), under, strict=True)
        whole.notes = ("names begin anew in every tar: files lie in folders named like their tars, as in 00002/000003",)
    sides = [
        _Side(run, "raw", layout.raw_root, raw, tables),
        _Side(run, "captions", layout.captions_root, captions, tables),
    ]
    for side in sides:
        whole.replaced += side.replaced
        for failure in side.damage():
            whole.fail(failure)
    files, size = sum(side.files for side in sides), sum(side.bytes for side in sides)
    tasks = chain.from_iterable(side.pieces() for side in sides)
    paths = chain.from_iterable(side.paths() for side in sides)
    run.write(_write_members, tasks, whole, paths, partial(_listing_files, layout), files, size)
    return whole


def captions_of(part: Slice, raws: int, captions: int) -> range:
    """Numbers of the captions archives that belong to a slice of ``raws`` raw archives. Captions archive i belongs to
    raw archive ⌊i · raws / captions⌋. So each belongs to one; with equal counts, to the one of its own number."""
    if not raws:
        return part.of(captions)
    taken = part.of(raws)
    return range(-(-taken.start * captions // raws), -(-taken.stop * captions // raws))


def _scan(archives: list[Archive], crew: Engine) -> dict[str, ArchiveTable]:
    """The members of archives, by the archive's path."""
    return dict(crew.run(_scan_one, sorted(archives, key=lambda archive: -archive.size)))  # largest first


def _scan_one(archive: Archive, report: Report) -> tuple[str, ArchiveTable]:
    return archive.path, scan_archive(ScanRequest(archive, names=True))


class _Side:
    """All members of raw/ or captions/. Names stay Arrow strings until their piece is sent to a worker."""

    def __init__(
        self, run: Run, side: str, root: str, archives: list[Archive], scanned: dict[str, ArchiveTable]
    ) -> None:
        self._run, self._side, self._root, self._archives = run, side, root, archives
        self._tables = tables = [scanned[archive.path] for archive in archives]
        last = IdLookup(*(table.ids for table in tables)).effective()
        edges = np.cumsum([0, *(len(table.sizes) for table in tables)])
        self._taken = [np.flatnonzero(last[lo:hi]) for lo, hi in pairwise(edges)]
        self.files = sum(map(len, self._taken))
        self.replaced = int(edges[-1]) - self.files
        self.bytes = sum(int(table.sizes[mine].sum()) for table, mine in zip(tables, self._taken, strict=True))

    def damage(self) -> Iterator[str]:
        """What is wrong with the archives, in words."""
        for archive, table in zip(self._archives, self._tables, strict=True):
            for place in table.damage:
                yield f"{self._side}/{archive.name}, bytes {place.offset:,} to {place.end:,}: {place.problem}"

    def paths(self) -> Iterator[str]:
        """The paths of all files to write, below OUT."""
        for table, taken in zip(self._tables, self._taken, strict=True):
            names = [] if table.names is None else table.names.to_pylist()
            yield from (f"{self._side}/{names[row]}" for row in taken.tolist())

    def pieces(self) -> Iterator[_Members]:
        """The pieces of work, archive by archive."""
        for archive, table, taken in zip(self._archives, self._tables, self._taken, strict=True):
            mine = taken[np.argsort(table.offsets[taken], kind="stable")]
            names = [] if table.names is None else table.names.to_pylist()  # .take loads pyarrow.compute: 30 ms
            kinds = np.where(table.is_image, IMAGE, np.where(table.is_json, CAPTION, OTHER))
            columns = (table.offsets, table.sizes, table.states, kinds)
            weights = table.sizes[mine].astype(np.int64) + PER_FILE
            # A compressed tar is read from its beginning each time, so it stays in one piece.
            total = self.bytes + PER_FILE * self.files
            for lo, hi in [(0, len(mine))] if table.compression else self._run.cut(weights, total):
                rows = mine[lo:hi]
                lists = (column[rows].tolist() for column in columns)
                members = list(zip((names[row] for row in rows.tolist()), *lists, strict=True))
                yield _Members(self._run.place, self._side, self._root, archive, members)


def _write_members(task: _Members, report: Report) -> Tally:
    """Write a piece. Raises SourceError if the archive is missing or changed, WriteError."""
    tally = Tally([0, 0, 0])
    opened: AbstractContextManager[ByteFile | None] = nullcontext()
    if not task.archive.is_folder:
        opened = closing(open_archive(task.archive))
    with opened as file, task.place.tree() as tree:
        for name, offset, size, state, kind in task.members:
            report(1, size)
            if state != WHOLE:
                how = "cut off" if state == CUT else "stored sparse"
                tally.fail(f"{task.side}/{task.archive.name}: {name} is {how} in it")
                continue
            blocks = _blocks(file, offset, size) if file else _file_blocks(os.path.join(task.root, name), size)
            write(tree, f"{task.side}/{name}", blocks, kind, tally)
    return tally


def _blocks(file: ByteFile, offset: int, size: int) -> Iterator[bytes]:
    for at in range(0, size, _BLOCK):
        length = min(_BLOCK, size - at)
        block = file.read_at(offset + at, length)
        if len(block) != length:
            raise SourceChangedError(file.name, f"it ends at byte {offset + at + len(block):,}")
        yield block


def _file_blocks(path: str, size: int) -> Iterator[bytes]:
    with closing(open_bytes(path, NO_OPTIONS)) as file:
        yield from _blocks(file, 0, size)


def _listing_files(layout: Layout) -> Iterator[Listing]:
    """The source's own listing files, one by one."""
    folder = os.path.isdir(os.path.join(layout.root, "data.json"))
    for path in layout.listing:
        name = f"data.json/{os.path.basename(path)}" if folder else os.path.basename(path)
        yield name, _file_blocks(path, os.path.getsize(path))
