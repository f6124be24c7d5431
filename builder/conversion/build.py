"""Run a job: survey → plan → units of work → receipts → finish. The caller says what kind of output it makes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import builder
from builder.base import schema
from builder.base.arrays import to_ipc
from builder.base.errors import InterruptedRunError, Laion6mError, OptionError, SourceChangedError, SourceError
from builder.base.names import SELECTION
from builder.base.options import ConvertOptions, Slice
from builder.base.records import Totals
from builder.base.urls import is_url, join
from builder.conversion.before import bytes_of, refuse_caption_key, refuse_full_disk, rows_of
from builder.conversion.finish import examples_of, tally
from builder.conversion.kind import Kind
from builder.conversion.report import no_rows
from builder.conversion.shard import Unit
from builder.conversion.summary import Summary, slice_notes
from builder.engines.contract import Engine, RunOptions
from builder.engines.local import make_engine
from builder.engines.progress import Progress, announce
from builder.plan.copies import adopt_copies
from builder.plan.identity import describe_folders, describe_jobs, describe_source
from builder.plan.kept import load_survey, save_survey
from builder.plan.plan import cuts_of
from builder.plan.survey import Survey, shard_rows, survey
from builder.source.layout import Layout
from builder.source.layouts import recognise
from builder.store.folders import LocalFolder, open_folder
from builder.store.ledger import Ledger, Receipt
from builder.store.output import make_folder

_FEW = 100_000
"""A plan of at most this many rows (20 MB) stays in memory if no later run needs it."""


def build(kind: Kind, source: str, out: str, options: ConvertOptions, how: RunOptions) -> Summary:
    """Do a job, or go on where an earlier run stopped. The bytes of OUT depend only on the source and ``options``.

    Raises SourceError, OutputError, OptionError, WorkerDiedError, InterruptedRunError.
    """
    started = time.monotonic()
    folder = open_folder(out, how.storage)
    if isinstance(folder, LocalFolder) and not kind.lasting:
        folder = LocalFolder(out, work_lasts=False)
    with make_engine(how.engine) as crew:  # comes first: connections to a source do not survive a fork
        layout, taken = find(source, options, how)
        if layout.is_remote and options.limit is not None:
            raise OptionError("limit", options.limit, "needs a source on this machine. Download a part of this one")
        fresh = isinstance(folder, LocalFolder) and not os.path.lexists(out)
        if isinstance(folder, LocalFolder):
            make_folder(out)
        make_job = Job
        if layout.is_remote:
            from builder.conversion.passes import FarJob

            make_job = FarJob
        job = make_job(kind, layout, options, how, taken, Ledger(folder), crew, started)
        try:
            with job.ledger.locked(taken.start, max(taken.start + 1, taken.stop)):
                return job.run()
        except InterruptedRunError:
            raise
        except Laion6mError:
            if fresh:
                job.ledger.discard()
            raise


def find(source: str, options: ConvertOptions, how: RunOptions) -> tuple[Layout, range]:
    """What a source is made of, and the raw tars that the run takes. Raises SourceError, and OptionError if the slice
    begins behind the last tar."""
    with Progress("finding", quiet=how.quiet):
        layout = recognise(source, options.recaptions, how.storage, listing=options.listing)
    how.part.require(len(layout.raw))
    return layout, how.part.of(len(layout.raw))


def shards_of(survey: Survey, part: Slice, taken: range) -> list[int]:
    """Numbers of the shards that a run makes. Each begins in a tar of its slice."""
    return [number for number, owner in enumerate(survey.plan.owners) if part == Slice() or owner in taken]


@dataclass
class Job:
    """One job; its slice is locked. ``taken``: the raw tars of this run. FarJob (passes.py) is the same for a source
    behind a URL."""

    kind: Kind
    layout: Layout
    options: ConvertOptions
    how: RunOptions
    taken: range
    ledger: Ledger
    crew: Engine
    started: float

    def __post_init__(self) -> None:
        self.quiet = self.how.quiet
        self.cuts = cuts_of(self.layout, self.options)
        """The shards, as the archives' sizes give them. Only compressed tars can lead to others."""
        # Only for conversions. An index is made anew each time, and holds each file's modification time itself.
        self.folders = describe_folders(self.layout, self.crew, quiet=self.quiet) if self.kind.lasting else {}
        self.readings: list[Progress] = []  # of the stages in which this run read images
        self.put: set[int] = set()  # shards that the outlet has received

    def run(self) -> Summary:
        """Raises what ``build`` raises."""
        with self.ledger.guarded():
            self.begin()
            plan = load_survey(self.layout, self.ledger) or self._plan()
        return self.finish(plan)

    def begin(self) -> None:
        """Write down what the job is."""
        ledger = self.ledger
        if not self.kind.lasting:
            ledger.clear()
        source = describe_source(self.layout)
        job = job_of(source | {"files": self.folders} if self.folders else source, self.options)
        adopt_copies(ledger, job, self.layout, self.options, self.crew)
        ledger.begin(job, describe_jobs)
        if self.kind.lasting:
            ledger.keep_apart()

    def _plan(self) -> Survey:
        """Plan a source on this machine."""
        plan = survey(self.layout, self.options, self.crew, shapes=self.kind.shapes, quiet=self.quiet)
        if self.kind.accept is not None:
            self.kind.accept(plan)
        if not len(plan.plan.rows):
            self._refuse_no_rows(plan, {})
        refuse_caption_key(plan, self.options)
        if self.layout.recaptions or plan.read_as:
            announce(plan.notes, quiet=self.quiet)
        if not self.kind.lasting and len(plan.plan.rows) <= _FEW:
            return plan
        with Progress("saving the plan", quiet=self.quiet):
            return self.kept(plan)

    def kept(self, plan: Survey) -> Survey:
        """Save a plan. Returns it memory-mapped: 6 million rows do not stay in memory."""
        save_survey(plan, self.ledger)
        return load_survey(self.layout, self.ledger) or plan

    def finish(self, plan: Survey, did: int = 0) -> Summary:
        """Make the shards without a receipt, then write the files that span all shards. ``did``: how many shards this
        run has made before."""
        kind, ledger = self.kind, self.ledger
        shards, everything = plan.plan.shards, self.how.part == Slice()
        mine = shards_of(plan, self.how.part, self.taken)
        receipts = self.receipts(plan)
        pending = [number for number in mine if number not in receipts]
        if kind.lasting and not kind.outlet.removes and isinstance(ledger.folder, LocalFolder):
            refuse_full_disk(ledger.out, bytes_of(plan.plan, pending))
        images, left = rows_of(plan.plan, mine), rows_of(plan.plan, pending)
        with Progress(kind.stage, images, done=images - left, quiet=self.quiet) as progress:
            self.readings.append(progress)
            try:
                for number in mine:
                    if number in receipts:
                        self.hand_on(receipts[number], shards)
                for receipt in self.crew.run(kind.work, self._units(plan, pending), progress.update):
                    receipts[receipt.number] = receipt
                    self.put.discard(receipt.number)  # the outlet got this shard with other rows before
                    self.hand_on(receipt, shards)
                if pending:
                    self._check_folders()
                self.crew.dismiss()
            except KeyboardInterrupt:
                raise InterruptedRunError(sum(number in receipts for number in mine), len(mine)) from None
        with ledger.guarded():
            if not everything:  # other slices may have finished meanwhile
                receipts = self.receipts(plan)
            complete = len(receipts) == shards
            lost = [plan.plan.rejects] if complete and everything else []
            examples = examples_of([*lost, *(ledger.rejects_part(receipts[n]) for n in mine if receipts[n].rejected)])
            if complete:
                if not any(receipt.rows for receipt in receipts.values()):
                    self._refuse_no_rows(plan, receipts)
                self.remove_strays(shards)
                with Progress("finishing", quiet=self.quiet):
                    kind.finish(ledger, plan, receipts, self.options)
                if not kind.lasting:
                    ledger.clear()
        totals = tally(plan, [receipts[number] for number in mine], planned_rejects=bool(lost))
        summary = self.summary(totals, examples, plan.plan.owners, did + len(pending), shards - len(receipts))
        notes = (*plan.notes, *summary.notes)
        return replace(summary, damage=plan.damage, unread=plan.unread, replaced=plan.replaced, notes=notes)

    def _refuse_no_rows(self, plan: Survey, receipts: dict[int, Receipt]) -> NoReturn:
        """Raises SourceError: no sample became a row. Deletes all that the job wrote first. OUT is then free for the
        next try."""
        totals = tally(plan, receipts.values(), planned_rejects=True)
        lost = [plan.plan.rejects, *map(self.ledger.rejects_part, receipts.values())]
        words = no_rows(self.layout.root, totals, examples_of(lost), plan)
        self.remove_shards(receipts, plan.plan.shards)
        self.ledger.clear()
        raise SourceError(words)

    def _check_folders(self) -> None:
        """Raises SourceChangedError if a file changed since the job began. Some rows may hold the old content, others
        the new."""
        now = describe_folders(self.layout, self.crew, quiet=self.quiet) if self.folders else {}
        for name, state in self.folders.items():
            if now.get(name) != state:
                raise SourceChangedError(join(self.layout.root, name), "a file in it was changed, added or removed")

    def receipts(self, plan: Survey) -> dict[int, Receipt]:
        """Receipts of the shards that are done and still exist."""
        return self.standing(self.ledger.receipts().values(), plan.plan.shards)

    def standing(self, receipts: Iterable[Receipt], shards: int) -> dict[int, Receipt]:
        return self.kind.outlet.standing(self.ledger, receipts, shards, self.options)

    def hand_on(self, receipt: Receipt, shards: int) -> None:
        if receipt.number not in self.put:
            self.put.add(receipt.number)
            self.kind.outlet.put(receipt, shards)

    def _units(self, plan: Survey, numbers: list[int]) -> Iterator[Unit]:
        """The work on these shards, as there is room for them."""
        first_annotations = len(self.layout.raw) if self.layout.captions else 0
        for number in numbers:
            self.kind.outlet.room()
            rows, stock = shard_rows(plan, number)
            task = (self.ledger.folder, number, plan.plan.shards, self.options)
            yield Unit(*task, to_ipc(rows), stock, first_annotations)

    def summary(
        self, totals: Totals, examples: dict[str, str], owners: Sequence[int], did: int, missing: int
    ) -> Summary:
        """The summary without what only a plan knows. ``owners``: for each shard, the raw tar where it begins."""
        unread = self.layout.unread
        return Summary(
            out=self.ledger.out,
            totals=totals,
            examples=examples,
            complete=not missing,
            did=did,
            missing=missing,
            seconds=time.monotonic() - self.started,
            unread={each.kind: each.count for each in unread},
            examples_unread={each.kind: each.example for each in unread},
            notes=slice_notes(self.how.part, [archive.name for archive in self.layout.raw], owners),
            read_images=sum(reading.images for reading in self.readings),
            read_bytes=sum(reading.bytes for reading in self.readings),
        )

    def remove_strays(self, shards: int) -> None:
        """Delete shards that are none of the plan's."""

    def remove_shards(self, numbers: Iterable[int], shards: int) -> None:
        for number in numbers:
            self.ledger.folder.remove(schema.ShardName(number, shards, schema.SUFFIXES[self.options.format]).path)


def is_dataset(source: str) -> bool:
    """Whether a folder is a selection or a converted folder. A source of tars is neither, though it may have an
    index."""
    if is_url(source) or os.path.isdir(os.path.join(source, "raw")):
        return False
    there = [os.path.exists(os.path.join(source, name)) for name in (SELECTION, schema.INDEX)]
    return there[0] or (there[1] and os.path.isdir(os.path.join(source, schema.DATA)))


def job_of(source: dict[str, Any], options: ConvertOptions) -> dict[str, Any]:
    """The facts that must be equal before a run may continue another's work."""
    versions = schema.versions() | {"laion6m": builder.__version__.rsplit(".", 1)[0]}
    return {"source": source, "options": options.to_json(), "versions": versions, "columns": schema.ROW.names}
