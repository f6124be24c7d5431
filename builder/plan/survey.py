"""Survey a whole source and plan it: recognise, scan every archive, read the listing, join."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace

import pyarrow as pa

from builder.base.arrays import Pool, numbers_of
from builder.base.options import ConvertOptions
from builder.base.records import Damage
from builder.base.words import counted
from builder.engines.contract import Engine, Report
from builder.engines.local import SerialEngine
from builder.engines.progress import Progress
from builder.plan.evidence import refuse_contradicted
from builder.plan.implied import listing_of_annotations, names_repeat, refuse_unpaired, under_tars
from builder.plan.pairs import join
from builder.plan.plan import Plan, first_samples, plan_joined, rows_digests
from builder.plan.spelling import respelled
from builder.source.endings import HIDDEN
from builder.source.files import refuse_pointer
from builder.source.layout import Layout
from builder.source.listing import Listing, read_listing
from builder.source.samples import Stock
from builder.source.scan import ScanRequest, open_bytes, scan_archive
from builder.source.tables import ArchiveTable, content_digest


@dataclass(frozen=True, slots=True)
class Survey:
    """A planned source. ``damage``: archive name → what is wrong, for damaged archives. ``digests``: of each shard's
    planned rows (conversion/one_pass.py), for a source behind a URL. ``replaced``: members that a later one of the same
    name replaces. ``hidden``: desktop companion files among the members. ``notes``: sentences on how the source was
    read. ``read_as``: the same for the manifest. ``contents``: archive → digest of its members, which recognises a copy
    (plan/identity.py)."""

    layout: Layout
    plan: Plan
    damage: dict[str, list[str]]
    compressed: tuple[str, ...]
    digests: tuple[str, ...] = ()
    replaced: int = 0
    hidden: int = 0
    notes: tuple[str, ...] = ()
    read_as: dict[str, str] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)

    @property
    def unread(self) -> dict[str, int]:
        """How many files and folders of the source were not read, by kind. Companion files inside tars are included."""
        counts = {each.kind: each.count for each in self.layout.unread}
        if self.hidden:
            counts[HIDDEN] = counts.get(HIDDEN, 0) + self.hidden
        return counts


def survey(
    layout: Layout, options: ConvertOptions, engine: Engine, *, shapes: bool = False, quiet: bool = True
) -> Survey:
    """Scan and plan. Meanwhile a thread reads data.json, as this process only waits for the scans. Problems of the
    archives are raised first. ``shapes``: note what the scan shows of images. ``quiet``: show no progress. Raises
    SourceError, ListingError."""
    with ThreadPoolExecutor(1) as thread:
        listing = thread.submit(listed, layout, options.policy.caption_key) if layout.listing else None
        scanned = scan_all(layout, options, engine, shapes=shapes, quiet=quiet)
        with Progress("planning", quiet=quiet):
            return plan_survey(layout, options, scanned, listing.result if listing else None, engine)


def plan_survey(
    layout: Layout,
    options: ConvertOptions,
    scanned: list[ArchiveTable],
    listing_read: Callable[[], Listing] | None = None,
    engine: Engine | None = None,
) -> Survey:
    """Plan. ``scanned``: tables of all raw archives, then of all captions archives. The list is emptied: names and ids
    are half of its memory. ``listing_read``: returns the entries of data.json, if something reads it already.
    ``engine``: scans again if the listing spells paths differently. Raises SourceError, ListingError."""
    contents = {} if layout.is_remote else {name: content_digest(each) for name, each in labelled(layout, scanned)}
    notes = [_subfolders(layout)] if _subfolders(layout) else []
    read_as: dict[str, str] = {}
    if not layout.listing and names_repeat(scanned[: len(layout.raw)], layout.raw):
        raw, captions = _sides(layout, scanned)
        raw = under_tars(raw, layout.raw)
        scanned = raw + (under_tars(captions, layout.captions) if layout.captions else [])
        notes.append("names begin anew in every tar: each key begins with its tar's name, such as 00002/000003")
        read_as["keys"] = "tar/name"
    if layout.recaptions:
        from builder.plan.recaptions import listing_of_recaptions  # imports pyarrow's Parquet reader: 20 ms

        found = listing_of_recaptions(
            layout.recaptions, scanned[: len(layout.raw)], options.policy.caption_key, options.on
        )
        if not any(table.damage for table in scanned):
            found.refuse_unmatched()
        listing = found.listing
        notes.append(
            f"{found.matched:,} of {counted(len(listing), 'recaption')} belong to an image, joined {found.words}"
        )
    elif layout.listing:
        listing = listing_read() if listing_read is not None else listed(layout, options.policy.caption_key)
    else:
        refuse_unpaired(layout, *_sides(layout, scanned))
        listing = listing_of_annotations(*_sides(layout, scanned))
        notes.append("there is no listing: every annotation is a listed sample")
    raw, captions = _sides(layout, scanned)
    scanned.clear()
    joined = join(listing, raw, captions)

    def rescan() -> tuple[Sequence[ArchiveTable], Sequence[ArchiveTable]]:
        nonlocal raw, captions
        again = [ScanRequest(archive, names=True) for archive in (*layout.raw, *layout.captions)]
        raw, captions = _sides(layout, _scanned(again, len(layout.raw), engine or SerialEngine()))
        return raw, captions

    if layout.listing and (spelled := respelled(listing, joined, raw, captions, rescan)):
        listing, words = spelled
        joined = join(listing, raw, captions)
        notes.append(f"the listing spells paths differently from the archives: they are read {words}")
        read_as["listed_paths"] = words
    plan = plan_joined(layout, listing, joined, raw, captions, options.max_shard_size)
    if options.limit is not None:
        plan = first_samples(plan, options.limit)
    if listing.recaptions is not None:
        refuse_contradicted(layout, plan)
    tables = labelled(layout, raw + captions if layout.captions else raw)
    return Survey(
        layout=layout,
        plan=plan,
        damage={name: list(map(_place, table.damage)) for name, table in tables if table.damage},
        compressed=tuple(name for name, table in tables if table.compression),
        digests=rows_digests(plan.rows, plan.bounds) if layout.is_remote else (),
        replaced=joined.replaced,
        hidden=sum(table.hidden for _, table in tables),
        notes=tuple(notes),
        read_as=read_as,
        contents=contents,
    )


def scan_all(
    layout: Layout, options: ConvertOptions, engine: Engine, *, shapes: bool = False, quiet: bool = True
) -> list[ArchiveTable]:
    """The tables of all archives: those of raw/, then those of captions/. Raises SourceError."""
    requests = scan_requests(layout, options, shapes=shapes)
    return _scanned(requests, len(layout.raw), engine, quiet=quiet)


def _scanned(requests: list[ScanRequest], raw: int, engine: Engine, *, quiet: bool = True) -> list[ArchiveTable]:
    """The tables of all requests, in their order. ``raw``: how many of the first ones are of raw/."""
    pools = Pool(), Pool()  # each is freed when its side has been looked up
    pool_of = {request: pools[number < raw] for number, request in enumerate(requests)}
    tables: dict[ScanRequest, ArchiveTable] = {}
    largest_first = sorted(requests, key=lambda request: -request.archive.size)
    unit = "folders" if all(request.archive.is_folder for request in requests) else "tars"
    with Progress("scanning", len(requests), unit=unit, quiet=quiet) as progress:
        for request, table in engine.run(_scan, largest_first):
            tables[request] = replace(table, ids=pool_of[request].keep(table.ids))
            progress.update(1)
    return [tables[request] for request in requests]


def scan_requests(layout: Layout, options: ConvertOptions, *, shapes: bool) -> list[ScanRequest]:
    """What to scan: the archives of raw/, then those of captions/. ``shapes``: note what the scan shows of images.
    Raises ListingError."""
    names, field_name = scans_wanted(layout, options)
    requests = [ScanRequest(archive, names, field_name, shapes) for archive in layout.raw]
    return requests + [ScanRequest(archive, names, field_name) for archive in layout.captions]


def scans_wanted(layout: Layout, options: ConvertOptions) -> tuple[bool, str]:
    """Whether scans must note the members' names, and which field of JSON members ("" for none). Raises
    ListingError."""
    if not layout.recaptions:
        return not layout.listing, ""
    from builder.plan.recaptions import wanted_field  # imports pyarrow's Parquet reader: 20 ms

    return True, wanted_field(layout.recaptions, options.on)


def shard_rows(survey: Survey, number: int) -> tuple[pa.Table, Stock]:
    """The planned rows of one shard, and the archives they lie in."""
    plan = survey.plan
    rows = plan.rows.slice(plan.bounds[number], plan.bounds[number + 1] - plan.bounds[number]).combine_chunks()
    return rows, stock_of(survey, rows)


def stock_of(survey: Survey, rows: pa.Table | pa.RecordBatch) -> Stock:
    """The archives that planned rows lie in."""
    layout = survey.layout
    used = {
        name: set(numbers_of(rows.column(name)).tolist()) - {-1}  # np.unique imports numpy.ma, 15 ms
        for name in ("archive", "annotation_archive")
    }
    return Stock(
        layout.raw_root,
        layout.captions_root,
        {number: layout.raw[number] for number in sorted(used["archive"])},
        {number: layout.annotations[number] for number in sorted(used["annotation_archive"])},
    )


def _scan(request: ScanRequest, report: Report) -> tuple[ScanRequest, ArchiveTable]:
    return request, scan_archive(request)


def listed(layout: Layout, caption_key: str = "auto") -> Listing:
    """The entries of data.json. Raises ListingError, SourceError."""
    with ExitStack() as files:
        opened = [files.enter_context(closing(open_bytes(path, layout.storage))) for path in layout.listing]
        for file in opened:
            refuse_pointer(file.name, file.read_at(0, 64))
        return read_listing(opened, caption_key)


def _sides(layout: Layout, tables: list[ArchiveTable]) -> tuple[list[ArchiveTable], list[ArchiveTable]]:
    """The tables of the raw archives, and of the archives that hold annotations. One list if they are the same."""
    raw = tables[: len(layout.raw)]
    return raw, tables[len(layout.raw) :] if layout.captions else raw


def _subfolders(layout: Layout) -> str:
    """A sentence that tars were found in subfolders of raw/ or captions/; "" if there are none."""
    inside = [archive.name for archive in (*layout.raw, *layout.captions) if "/" in archive.name]
    return f"tars in subfolders are read: {len(inside):,}, such as {inside[0]}" if inside else ""


def labelled(layout: Layout, tables: Sequence[ArchiveTable]) -> list[tuple[str, ArchiveTable]]:
    """Each archive's table under its name below SOURCE."""
    names = [f"raw/{archive.name}" for archive in layout.raw]
    names += [f"captions/{archive.name}" for archive in layout.captions]
    return list(zip(names, tables, strict=True))


def _place(damage: Damage) -> str:
    return f"bytes {damage.offset:,} to {damage.end:,}: {damage.problem}"
