"""Look over a whole source and plan: recognise, scan every archive, read the listing, join."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from builder.base.arrays import Pool, numbers_of
from builder.base.errors import DamagedFileError
from builder.base.names import PLAN
from builder.base.options import ConvertOptions
from builder.base.records import Damage
from builder.base.storage import state_of
from builder.engines.contract import Engine, Report
from builder.engines.progress import Progress
from builder.plan.plan import BATCH_ROWS, Plan, plan_joined, rows_digests
from builder.source.implied import listing_of_annotations, refuse_unpaired
from builder.source.layout import Archive, Layout
from builder.source.listing import Listing, read_listing
from builder.source.pairs import join
from builder.source.samples import Stock
from builder.source.scan import ScanRequest, folder_state, open_bytes
from builder.source.tables import ArchiveTable, scan_archive
from builder.store.ledger import Ledger
from builder.store.output import ArrowSink, write_whole
from builder.store.seals import file_digest, seal, unseal


@dataclass(frozen=True, slots=True)
class Survey:
    """A planned source. ``damage``: archive name → what is wrong with it, for archives that are not sound.
    ``digests``: of each shard's planned rows (conversion/one_pass.py), for a source behind a URL."""

    layout: Layout
    plan: Plan
    damage: dict[str, list[str]]
    compressed: tuple[str, ...]
    digests: tuple[str, ...] = ()


def survey(
    layout: Layout, options: ConvertOptions, engine: Engine, *, shapes: bool = False, quiet: bool = True
) -> Survey:
    """Scan and plan. data.json is read in a thread meanwhile: this process only waits for the scans. What is wrong with
    the archives is raised first. ``shapes``: note what the scan shows of images in passing. ``quiet``: show no
    progress. Raises SourceError, ListingError."""
    with ThreadPoolExecutor(1) as thread:
        listing = thread.submit(listed, layout) if layout.listing and not layout.recaptions else None
        scanned = scan_all(layout, engine, shapes=shapes, quiet=quiet)
        with Progress("planning", quiet=quiet):
            return plan_survey(layout, options, scanned, listing.result if listing else None)


def plan_survey(
    layout: Layout,
    options: ConvertOptions,
    scanned: list[ArchiveTable],
    listing_read: Callable[[], Listing] | None = None,
) -> Survey:
    """Plan with the tables of all raw archives, then all captions archives. ``listing_read``: gives what data.json
    lists, where somebody has read it. Raises SourceError, ListingError."""
    listing = listing_read() if listing_read is not None else _listing(layout, *_sides(layout, scanned), options)
    joined = join(listing, *_sides(layout, scanned))
    scanned = [table.without_names() for table in scanned]  # of 6 million samples 0.2 GB, and more without a listing
    plan = plan_joined(layout, listing, joined, *_sides(layout, scanned), options.max_shard_size)
    damage = {
        f"{side}/{archive.name}": [_place(place) for place in table.damage]
        for side, archive, table in _labelled(layout, scanned)
        if table.damage
    }
    compressed = tuple(
        f"{side}/{archive.name}" for side, archive, table in _labelled(layout, scanned) if table.compression
    )
    digests = rows_digests(plan.rows, plan.bounds) if layout.is_remote else ()
    return Survey(layout, plan, damage, compressed, digests)


def scan_all(layout: Layout, engine: Engine, *, shapes: bool = False, quiet: bool = True) -> list[ArchiveTable]:
    """The tables of all archives, those of captions/ behind those of raw/. Raises SourceError."""
    requests = scan_requests(layout, shapes=shapes)
    ids = Pool()
    tables: dict[ScanRequest, ArchiveTable] = {}
    largest_first = sorted(requests, key=lambda request: -request.archive.size)
    unit = "folders" if all(request.archive.is_folder for request in requests) else "tars"
    with Progress("scanning", len(requests), unit=unit, quiet=quiet) as progress:
        for request, table in engine.run(_scan, largest_first, _unheard):
            tables[request] = replace(table, ids=ids.keep(table.ids))
            progress.update(1)
    return [tables[request] for request in requests]


def scan_requests(layout: Layout, *, shapes: bool) -> list[ScanRequest]:
    """What to scan: the archives of raw/, then those of captions/. ``shapes``: note what the scan shows of images in
    passing. Raises ListingError."""
    names, urls = scans_wanted(layout)
    requests = [ScanRequest(archive, names, urls, shapes) for archive in layout.raw]
    return requests + [ScanRequest(archive, names, urls) for archive in layout.captions]


def scans_wanted(layout: Layout) -> tuple[bool, bool]:
    """Whether scans must note the members' names, and the urls in JSON members. Raises ListingError."""
    if not layout.recaptions:
        return not layout.listing, False
    from builder.source.recaptions import wants_urls  # with pyarrow's Parquet reader, 20 ms

    return not layout.listing, wants_urls(layout.recaptions)


def describe_source(layout: Layout) -> dict[str, Any]:
    """What identifies a source: names, sizes and modification times of its archives and listings."""

    def files(paths: Sequence[str]) -> list[list[str | int]]:
        return [[os.path.basename(path), *state_of(path, layout.storage)] for path in paths]

    return {
        "layout": layout.kind,
        "raw": {archive.name: [archive.size, archive.version] for archive in layout.raw},
        "captions": {archive.name: [archive.size, archive.version] for archive in layout.captions},
        "listing": files(layout.listing),
        "recaptions": files(layout.recaptions),
    }


def describe_folders(layout: Layout, engine: Engine, *, quiet: bool = True) -> dict[str, str]:
    """What identifies the files of an extracted source, each of which can change by itself: the state of each folder.
    Looks at every file (some 3 us each when the system has them in memory). Raises SourceError."""
    sides = (("raw", layout.raw), ("captions", layout.captions))
    folders = [(f"{side}/{each.name}", each) for side, archives in sides for each in archives if each.is_folder]
    states: dict[str, str] = {}
    if folders:
        with Progress("looking at files", len(folders), unit="folders", quiet=quiet) as progress:
            for name, state in engine.run(_folder_state, folders, _unheard):
                states[name] = state
                progress.update(1)
    return dict(sorted(states.items()))


def save_survey(survey: Survey, ledger: Ledger) -> None:
    """Keep the plan beside the output, so that a rerun starts where this one got to."""
    plan = survey.plan
    digests = {"plan-rejects.arrow": _save_table(ledger, "plan-rejects.arrow", plan.rejects.schema, [plan.rejects])}
    facts = {
        "bounds": plan.bounds,
        "owners": plan.owners,
        "unlisted": plan.unlisted,
        "listed": plan.listed,
        "damage": survey.damage,
        "compressed": survey.compressed,
        "digests": survey.digests,
    }
    schema = plan.rows.slice(0, 0).schema.with_metadata({b"plan": json.dumps(facts).encode()})
    stretches = (plan.rows.slice(first, BATCH_ROWS) for first in range(0, len(plan.rows), BATCH_ROWS))
    whole = (rows.replace_schema_metadata(schema.metadata) for rows in stretches)
    digests["plan.arrow"] = _save_table(ledger, "plan.arrow", schema, whole)
    write_whole(ledger.create(PLAN), [seal(digests)])  # last: with it there is a plan


def _save_table(ledger: Ledger, name: str, schema: pa.Schema, stretches: Iterable[pa.Table]) -> str:
    """Write an Arrow IPC stream, a stretch of the table at a time; returns the file's xxh3-128, hex."""
    file = ledger.create(name)
    try:
        with pa.ipc.new_stream(ArrowSink(file), schema) as writer:
            for table in stretches:
                writer.write_table(table)
        return file.close()
    except BaseException:
        file.abort()
        raise


def load_survey(layout: Layout, ledger: Ledger) -> Survey | None:
    """What :func:`save_survey` kept; None where there is none. The rows stay on disk, memory-mapped. Raises
    DamagedFileError."""
    text = ledger.read(PLAN)
    if text is None:
        return None
    try:
        path, rejects_path = ledger.local("plan.arrow"), ledger.local("plan-rejects.arrow")
        digests = unseal(text)
        if wrong := [name for name, digest in digests.items() if file_digest(ledger.local(name)) != digest]:
            raise ValueError(f"{', '.join(wrong)}: another checksum than {PLAN} has")
        with pa.memory_map(path) as source:
            rows = pa.ipc.open_stream(source).read_all()
        with pa.memory_map(rejects_path) as source:
            rejects = pa.ipc.open_stream(source).read_all()
        facts = json.loads((rows.schema.metadata or {})[b"plan"])
    except FileNotFoundError:
        return None  # somebody tidied up: it is made again
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DamagedFileError(ledger.place(PLAN), "plan", f"{error}; remove it to have it made again") from None
    plan = Plan(
        rows=rows.replace_schema_metadata(None),
        bounds=tuple(facts["bounds"]),
        owners=tuple(facts["owners"]),
        rejects=rejects,
        unlisted=facts["unlisted"],
        listed=facts["listed"],
    )
    return Survey(layout, plan, facts["damage"], tuple(facts["compressed"]), tuple(facts["digests"]))


def shard_rows(survey: Survey, number: int) -> tuple[pa.Table, Stock]:
    """The planned rows of one shard, and the archives they lie in."""
    plan, layout = survey.plan, survey.layout
    rows = plan.rows.slice(plan.bounds[number], plan.bounds[number + 1] - plan.bounds[number]).combine_chunks()
    used = {
        name: set(numbers_of(rows.column(name)).tolist()) - {-1}  # np.unique imports numpy.ma, 15 ms
        for name in ("archive", "annotation_archive")
    }
    stock = Stock(
        layout.raw_root,
        layout.captions_root,
        {number: layout.raw[number] for number in sorted(used["archive"])},
        {number: layout.annotations[number] for number in sorted(used["annotation_archive"])},
    )
    return rows, stock


def _scan(request: ScanRequest, report: Report) -> tuple[ScanRequest, ArchiveTable]:
    return request, scan_archive(request)


def _folder_state(task: tuple[str, Archive], report: Report) -> tuple[str, str]:
    name, archive = task
    return name, folder_state(archive)


def _unheard(images: int, size: int) -> None:
    """The progress of a scan is counted in archives."""


def _listing(
    layout: Layout, raw: Sequence[ArchiveTable], captions: Sequence[ArchiveTable], options: ConvertOptions
) -> Listing:
    if layout.recaptions:
        from builder.source.recaptions import listing_of_recaptions  # with pyarrow's Parquet reader, 20 ms

        return listing_of_recaptions(layout.recaptions, raw, options.policy.caption_key)
    if not layout.listing:
        refuse_unpaired(layout, raw, captions)
        return listing_of_annotations(raw, captions)
    return listed(layout)


def listed(layout: Layout) -> Listing:
    """What data.json lists. Raises ListingError, SourceError."""
    files = [open_bytes(path, layout.storage) for path in layout.listing]
    try:
        return read_listing(files)
    finally:
        for file in files:
            file.close()


def _sides(layout: Layout, tables: list[ArchiveTable]) -> tuple[list[ArchiveTable], list[ArchiveTable]]:
    """The tables of raw archives, and those of the archives that hold annotations: the same list where they do."""
    raw = tables[: len(layout.raw)]
    return raw, tables[len(layout.raw) :] if layout.captions else raw


def _labelled(layout: Layout, tables: Sequence[ArchiveTable]) -> list[tuple[str, Archive, ArchiveTable]]:
    labels = [("raw", archive) for archive in layout.raw] + [("captions", archive) for archive in layout.captions]
    return [(side, archive, table) for (side, archive), table in zip(labels, tables, strict=True)]


def _place(damage: Damage) -> str:
    return f"bytes {damage.offset:,} to {damage.end:,}: {damage.problem}"
