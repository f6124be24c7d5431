"""convert --dry-run: the rows, disk space and time that a conversion would take. Writes nothing."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from builder.base.arrays import numbers_of
from builder.base.errors import OptionError
from builder.base.options import ConvertOptions, SamplePolicy, Slice, default_num_proc
from builder.base.paths import StrPath, path_of
from builder.base.urls import StorageOptions, is_url
from builder.base.words import counted, duration
from builder.base.words import size as in_words
from builder.conversion.before import bytes_of, free_bytes, refuse_caption_key, refuse_overlap, rows_of
from builder.conversion.build import find, is_dataset, shards_of
from builder.conversion.finish import tally
from builder.conversion.report import damaged, notes_of
from builder.conversion.summary import Summary
from builder.engines.contract import EngineChoice, RunOptions
from builder.engines.local import make_engine
from builder.engines.progress import Progress
from builder.plan.survey import Survey, stock_of, survey
from builder.source.samples import read_samples
from builder.store.ledger import Receipt

_READ_BYTES = 64 << 20
"""Read to measure the speed: 0.1 s from a fast disk, a second from a slow one."""
_READ_ROWS = 2000


@dataclass(frozen=True, slots=True)
class Preview:
    """``summary``: as the conversion would give it. Its rows are expected ones: samples whose image and annotation are
    there. Some may turn out bad when they are read. ``needed``, ``free``: bytes on OUT's disk; ``free`` is None if it
    is not known. ``rate``: bytes of images that one process reads in a second."""

    source: str
    layout: str
    archives: int
    summary: Summary
    needed: int
    free: int | None
    rate: float
    processes: int

    def to_json(self) -> dict[str, Any]:
        """The keys of the conversion's own object, and four more. ``seconds``: an estimate."""
        more = {"layout": self.layout, "needed_bytes": self.needed, "free_bytes": self.free, "dry_run": True}
        return self.summary.to_json() | more


def preview(
    source: StrPath,
    out: StrPath,
    options: ConvertOptions,
    *,
    start: int = 0,
    end: int = -1,
    num_proc: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Preview:
    """What ``convert`` with the same arguments would do. Raises what ``convert`` raises. Raises OptionError for a
    dataset, and for a source behind a URL: a conversion reads that only once."""
    source, out = path_of(source), path_of(out)
    at = shlex.quote(source)
    if is_dataset(source):
        raise OptionError("dry_run", None, f"all rows of {at} are copied. To count them: laion6m info {at}")
    refuse_overlap(source, out)
    how = RunOptions(Slice(start, end), EngineChoice("local", num_proc), StorageOptions.of(storage_options), quiet)
    if is_url(source):
        raise OptionError("dry_run", None, f"{at} is a URL. A plan would read all of it. Download a part and try that")
    processes = num_proc or default_num_proc()
    with make_engine(how.engine) as crew:
        began = time.monotonic()
        layout, taken = find(source, options, how)
        found = survey(layout, options, crew, quiet=quiet)
        planned = time.monotonic() - began
    refuse_caption_key(found, options)
    plan = found.plan
    mine = shards_of(found, how.part, taken)
    with Progress("measuring", quiet=quiet):
        rate, lost = _read_a_little(found, options.policy)
    images = bytes_of(plan, mine, ("size",))
    whole = len(mine) == plan.shards
    expected = Receipt(0, rows_of(plan, mine) - sum(lost.values()), images, 0, "", {}, rejected=lost)
    summary = Summary(
        out=out,
        totals=replace(tally(found, [expected], planned_rejects=whole), shards=len(mine)),
        damage=found.damage,
        complete=whole,
        did=0,
        missing=len(mine),
        seconds=planned + 2 * images / max(rate * processes, 1.0),  # writing takes about as long as reading
        unread=found.unread,
        examples_unread={each.kind: each.example for each in layout.unread},
        replaced=found.replaced,
        notes=found.notes,
    )
    free = None if is_url(out) else free_bytes(out)
    archives = len(layout.raw) + len(layout.captions)
    return Preview(source, layout.kind, archives, summary, bytes_of(plan, mine), free, rate, processes)


def _read_a_little(found: Survey, policy: SamplePolicy) -> tuple[float, Counter[str]]:
    """How many bytes of images one process reads in a second, and the rejects among what it read, by reason."""
    plan = found.plan
    rows = plan.rows.slice(0, _READ_ROWS).combine_chunks()
    ends = np.cumsum(numbers_of(rows.column("size")))
    most = int(np.searchsorted(ends, _READ_BYTES)) + 1
    read = int(ends[:most].max(initial=0))
    lost: Counter[str] = Counter()
    began = time.monotonic()
    for batch in rows.slice(0, most).to_batches():
        for chunk in read_samples(batch, stock_of(found, batch), policy):
            lost.update(str(reject.reason) for reject in chunk.rejects)
    return read / max(time.monotonic() - began, 1e-3), lost


def describe_preview(preview: Preview) -> str:
    """A preview in words."""
    totals, summary = preview.summary.totals, preview.summary
    lines = [
        f"{shlex.quote(preview.source)}: {preview.layout} layout, {counted(preview.archives, 'archive')}",
        f"rows      {totals.rows:,} expected of {counted(totals.listed, 'listed sample')}, in "
        + counted(totals.shards, "shard"),
        f"rejects   {sum(totals.rejected.values()):,} known"
        + "".join(f", {count:,} {reason}" for reason, count in totals.rejected.items())
        + "; more may turn up when images are read",
        f"unlisted  {counted(totals.unlisted, 'image')} that no entry names",
        f"room      {in_words(preview.needed)} needed"
        + ("" if preview.free is None else f", {in_words(preview.free)} free"),
        f"time      about {duration(summary.seconds)} with {counted(preview.processes, 'process', 'processes')} "
        f"(one process reads {in_words(round(preview.rate))}/s here)",
        *notes_of(summary),
        *damaged(summary.damage, 5),
    ]
    if preview.free is not None and preview.needed > preview.free:
        lines.append("There is not enough room: the conversion would not begin. Make room, or choose another OUT.")
    return "\n".join([*lines, "nothing was written. To convert, run the same command without --dry-run."])
