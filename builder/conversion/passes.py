"""A job on a source behind a URL: the stretches in which it is read, what each is expected to hold, and the results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from builder.base import schema
from builder.base.arrays import chunks_of, number_array, numbers_of, take_text, to_ipc
from builder.base.errors import InterruptedRunError
from builder.base.ids import column_ids
from builder.base.urls import join
from builder.conversion.build import Job
from builder.conversion.finish import add_up, examples_of
from builder.conversion.one_pass import EXPECTED, Pass, run_pass
from builder.conversion.summary import Summary
from builder.engines.contract import Report
from builder.engines.progress import Progress
from builder.plan.kept import load_survey
from builder.plan.pairs import Int64s, repeated
from builder.plan.plan import Cut, endings_kept
from builder.plan.survey import Survey, listed, plan_survey, scans_wanted
from builder.source.endings import without_ending
from builder.source.layout import Archive
from builder.source.listing import Listing
from builder.source.scan import ScanRequest, scan_archive
from builder.source.tables import table_from_ipc, table_to_ipc
from builder.store.folders import Folder
from builder.store.ledger import Ledger, Passed, Receipt


@dataclass(frozen=True, slots=True)
class Stretch:
    """Shards ``first`` to ``first + len(cuts)`` (exclusive): one shard of whole archives, or all shards of one
    archive."""

    first: int
    cuts: tuple[Cut, ...]

    @property
    def archives(self) -> range:
        """Numbers of the raw archives in it."""
        return range(self.cuts[0].first, self.cuts[-1].last + 1)


def stretches(cuts: tuple[Cut, ...]) -> list[Stretch]:
    """Group cuts that share an archive, which is read once from front to back."""
    found: list[Stretch] = []
    for number, cut in enumerate(cuts):
        if found and found[-1].cuts[-1].last == cut.first:
            found[-1] = Stretch(found[-1].first, (*found[-1].cuts, cut))
        else:
            found.append(Stretch(number, (cut,)))
    return found


@dataclass
class FarJob(Job):
    """A job on a source behind a URL. Its raw tars are read once, in stretches."""

    passed: dict[int, Passed] = field(default_factory=dict)
    """Stretches that were read, by this run or another."""

    def run(self) -> Summary:
        with self.ledger.guarded():
            self.begin()
            plan = load_survey(self.layout, self.ledger)
        self.passed = self._done()
        before = len(self.passed)
        if plan is None:
            self._read()
            if len(self.passed) < len(stretches(self.cuts)):
                return self._partial(len(self.passed) - before)
            with self.ledger.guarded():  # another slice may have come first
                plan = load_survey(self.layout, self.ledger) or self.kept(self._survey())
        return self.finish(plan, len(self.passed) - before)

    def _done(self) -> dict[int, Passed]:
        """Stretches that were read and whose shards still exist."""
        passed = self.ledger.passed()
        there = self.standing((r for each in passed.values() for r in each.receipts), len(self.cuts))
        return {first: each for first, each in passed.items() if all(r.number in there for r in each.receipts)}

    def _read(self) -> None:
        """Read the stretches that begin with a raw tar of this slice and were not read before. Raises SourceError,
        ListingError, WriteError."""
        mine = [stretch for stretch in stretches(self.cuts) if stretch.archives.start in self.taken]
        before = [self.passed[stretch.first] for stretch in mine if stretch.first in self.passed]
        pending = [stretch for stretch in mine if stretch.first not in self.passed]
        size = sum(self.layout.raw[number].size for number in self.taken)
        with Progress(self.kind.stage, None, size, quiet=self.quiet) as progress:
            self.readings.append(progress)
            try:
                tasks = self._work(pending) if pending else ()
                for passed in chain(before, self.crew.run(run_pass, tasks, progress.update)):
                    self.passed[passed.first] = passed
                    for receipt in passed.receipts:
                        self.hand_on(receipt, len(self.cuts))
            except KeyboardInterrupt:
                raise InterruptedRunError(len(self.put), len(self.cuts)) from None

    def _partial(self, did: int) -> Summary:
        """The summary of one slice, while other slices are still unread. Which samples are missing or duplicates is not
        known yet."""
        there = [receipt for each in self.passed.values() for receipt in each.receipts]
        mine = [receipt for receipt in there if self.cuts[receipt.number].first in self.taken]
        examples = examples_of(self.ledger.rejects_part(receipt) for receipt in mine if receipt.rejected)
        owners = [cut.first for cut in self.cuts]
        return self.summary(add_up(mine), examples, owners, did, len(self.cuts) - len(there))

    def receipts(self, plan: Survey) -> dict[int, Receipt]:
        made = confirmed(plan, self.passed, len(self.cuts)) | self.ledger.receipts()
        return self.standing(made.values(), plan.plan.shards)

    def remove_strays(self, shards: int) -> None:
        """The number of shards is in each name. Before the plan it was only a guess."""
        if len(self.cuts) != shards:
            for each in self.passed.values():
                self.remove_shards((receipt.number for receipt in each.receipts), len(self.cuts))

    def _work(self, pending: list[Stretch]) -> Iterator[Pass]:
        layout = self.layout
        names, json_field = scans_wanted(layout, self.options)
        nothing = pa.nulls(0, pa.string())
        listing = listed(layout, self.options.policy.caption_key) if layout.listing else Listing(nothing, nothing)
        rows_of, ids = _by_folder(listing), column_ids(listing.images, 1 << 16)
        duplicate = repeated(np.concatenate([np.zeros((0, 2), dtype="<u8"), *ids]))
        keeps = endings_kept(listing, duplicate)
        captions: dict[str, list[int]] = {}
        for number, archive in enumerate(layout.captions):
            captions.setdefault(without_ending(archive.name), []).append(number)
        for stretch in pending:
            self.kind.outlet.room()
            raw = {number: layout.raw[number] for number in stretch.archives}
            stems = [without_ending(archive.name) for archive in raw.values()]
            rows = np.concatenate([np.zeros(0, np.int64), *(rows_of[stem] for stem in stems if stem in rows_of)])
            yield Pass(
                out=self.ledger.folder,
                number=stretch.first,
                cuts=stretch.cuts,
                shards=len(self.cuts),
                raw=raw,
                annotations={number: layout.captions[number] for stem in stems for number in captions.get(stem, ())},
                captions=bool(layout.captions),
                expected=to_ipc(_expected(listing, np.sort(rows[~duplicate[rows]]), keeps)),
                options=self.options,
                names=names,
                field=json_field,
            )

    def _survey(self) -> Survey:
        """Scan the archives that belong to no stretch (captions tars with other names), and plan with all scans."""
        layout, ledger = self.layout, self.ledger
        names, json_field = scans_wanted(layout, self.options)
        sides = (("raw", layout.raw), ("captions", layout.captions))
        missing = []
        for side, archives in sides:
            kept = ledger.scans(side)
            requests = enumerate(ScanRequest(archive, names, json_field) for archive in archives)
            missing += [KeptScan(ledger.folder, side, number, each) for number, each in requests if number not in kept]
        for _ in self.crew.run(keep_scan, missing):
            pass
        tables = []
        for side, archives in sides:
            for archive, data in zip(archives, ledger.read_scans(side, range(len(archives))), strict=True):
                tables.append(table_from_ipc(data, join(ledger.out, f"{schema.WORK}/scans ({side}/{archive.name})")))
        return plan_survey(layout, self.options, tables, engine=self.crew)


def confirmed(survey: Survey, passed: Mapping[int, Passed], shards: int) -> dict[int, Receipt]:
    """Receipts of guessed shards that have exactly the rows of the plan. ``shards``: the number of shards in their
    names."""
    if survey.plan.shards != shards:
        return {}
    pairs = [pair for each in passed.values() for pair in zip(each.receipts, each.digests, strict=True)]
    return {receipt.number: receipt for receipt, digest in pairs if survey.digests[receipt.number] == digest}


@dataclass(frozen=True, slots=True)
class KeptScan:
    """A scan of one archive to put into the ledger."""

    out: Folder
    side: str
    number: int
    request: ScanRequest

    @property
    def archive(self) -> Archive:
        return self.request.archive


def keep_scan(task: KeptScan, report: Report) -> int:
    """Scan an archive, and keep the result."""
    Ledger(task.out).write_scan(task.side, task.number, table_to_ipc(scan_archive(task.request)))
    return task.number


def _by_folder(listing: Listing) -> dict[str, Int64s]:
    """Positions of the listed samples by the first part of their image's path."""
    found: dict[str, Int64s] = {}
    if not len(listing):
        return found
    parts = [_first_part(chunk) for chunk in chunks_of(listing.images) if len(chunk)]
    folders = pa.chunked_array(parts).dictionary_encode().unify_dictionaries()
    codes = np.concatenate([numbers_of(chunk.indices) for chunk in folders.chunks])
    order = np.argsort(codes, kind="stable")
    edges = np.searchsorted(codes[order], np.arange(len(folders.chunk(0).dictionary) + 1))
    for code, name in enumerate(folders.chunk(0).dictionary.to_pylist()):
        found[name] = order[edges[code] : edges[code + 1]].astype(np.int64)
    return found


def _first_part(paths: pa.Array) -> pa.Array:
    """The part of each path before its first slash. By name: the wrappers in pyarrow.compute import pandas."""
    parts = pc.call_function("split_pattern", [paths], pc.SplitPatternOptions("/", max_splits=1))
    return parts.values.take(number_array(numbers_of(parts.offsets)[:-1]))


def _expected(listing: Listing, rows: Int64s, keeps: npt.NDArray[np.bool_]) -> pa.Table:
    columns = [
        number_array(rows),
        number_array(keeps[rows].astype(np.uint8)).cast(pa.bool_()),
        take_text(listing.images, rows),
        take_text(listing.annotations, rows),
    ]
    return pa.Table.from_arrays(columns, schema=EXPECTED)
