"""Verify against the source: survey it again, read its members again, and compare both with the index and shards."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from builder.base import schema
from builder.base.arrays import bool_array, from_ipc, number_array, to_ipc
from builder.base.errors import DamagedFileError, Laion6mError, OptionError, SourceError
from builder.base.options import ConvertOptions, SamplePolicy
from builder.base.records import Reject
from builder.conversion.finish import describe
from builder.engines.contract import Engine, Report
from builder.plan.survey import Survey, shard_rows, survey
from builder.read.opening import open_dataset
from builder.source.layouts import recognise
from builder.source.samples import Sample, Stock, read_samples
from builder.store.ledger import describe_differences
from builder.store.manifest import Manifest
from builder.verification.findings import Finding, Findings, Remedy
from builder.verification.index_rows import index_rows

Int64s = npt.NDArray[np.int64]

_SHOWN = 5  # rejects that a finding names
_COMPARED = (
    *("position", "size", "width", "height", "digest", "key", "path", "caption"),
    *("annotation_path", "annotation_size", "bom"),
)


@dataclass(frozen=True, slots=True)
class SourceCheck:
    """The planned rows of one shard, to compare with their index rows: ``count`` rows from ``first`` on. ``rejects``:
    position → (key, reason) of the planned rows that were rejected. ``away``: the shard is not here, so only the sizes
    of its annotations are known."""

    out: str
    plan: bytes
    stock: Stock
    policy: SamplePolicy
    first: int
    count: int
    rejects: dict[int, tuple[str, str]]
    away: bool = False
    keeps_bom: bool = True  # whether the index notes which documents had a BOM

    @property
    def name(self) -> str:
        """For messages."""
        return ", ".join(archive.name for archive in self.stock.raw.values())


def options_of(manifest: Manifest, source: str, recaptions: tuple[str, ...] = ()) -> ConvertOptions:
    """The options OUT was made with. The manifest has only the names of recaption files. If ``recaptions`` does not
    give them, they are looked for in SOURCE and beside it. Raises SourceError for a missing file, and
    DamagedFileError."""
    try:
        noted = manifest.options
        names = [str(name) for name in noted["recaptions"]]
        policy = SamplePolicy(**noted["policy"])
        options = ConvertOptions(noted["format"], policy, int(noted["max_shard_size"]), limit=noted.get("limit"))
        on, listing = noted.get("on"), noted.get("listing")
    except (KeyError, TypeError, ValueError, OptionError) as error:
        raise DamagedFileError(schema.MANIFEST, "options", "this version of laion6m does not know them") from error
    if recaptions and sorted(map(os.path.basename, recaptions)) != sorted(names):
        made = ", ".join(names) or "none"
        raise SourceError(f"OUT was made with the recaptions {made}, but you gave {', '.join(recaptions)}")
    found = recaptions or tuple(_find(name, source, "Name it with --recaptions.") for name in names)
    if isinstance(listing, str):
        listing = _find(listing, source, "Put it there.")
    return replace(options, recaptions=found, on=on, listing=listing)


def survey_again(
    manifest: Manifest, source: str, options: ConvertOptions, crew: Engine, *, quiet: bool = True
) -> tuple[Survey, list[str]]:
    """A new survey of the source, and how it differs from the manifest, in words. Raises SourceError."""
    again = survey(recognise(source, options.recaptions, listing=options.listing), options, crew, quiet=quiet)
    now = {"listed": again.plan.listed, "unlisted": again.plan.unlisted, "shards": again.plan.shards}
    before = {name: manifest.totals.get(name) for name in now}
    facts = json.loads(json.dumps(describe(again)))
    return again, describe_differences(manifest.source, facts) + describe_differences(before, now)


def match_rows(again: Survey, positions: Int64s) -> npt.NDArray[np.bool_] | None:
    """Which planned rows are in the index, as bools. ``positions``: of the index's rows. None if the index has a row
    that is not planned, or another order."""
    planned = again.plan.rows.column("position").to_numpy()
    marks = np.zeros(int(planned.max(initial=-1)) + 1, dtype=np.bool_)
    if len(positions) and not 0 <= positions.min() <= positions.max() < len(marks):
        return None
    marks[positions] = True
    kept: npt.NDArray[np.bool_] = marks[planned]
    return kept if np.array_equal(planned[kept], positions) else None


def source_checks(
    again: Survey,
    options: ConvertOptions,
    out: str,
    kept: npt.NDArray[np.bool_],
    rejects: pa.Table,
    away: Set[str] = frozenset(),
) -> Iterator[SourceCheck]:
    """One task for each shard. ``rejects``: the table in meta/. ``away``: paths of shards that are not here."""
    suffix = schema.SUFFIXES[options.format]
    firsts = np.concatenate([[0], np.cumsum(kept)]).tolist()
    positions = again.plan.rows.column("position").to_numpy()
    for number, (lo, hi) in enumerate(pairwise(again.plan.bounds)):
        rows, stock = shard_rows(again, number)
        lost = positions[lo:hi][~kept[lo:hi]]
        noted, where = _look_up(rejects, lost)
        named = zip(noted.column("key").to_pylist(), noted.column("reason").to_pylist(), strict=True)
        mine = dict(zip(lost[where].tolist(), named, strict=True))
        first, count = firsts[lo], firsts[hi] - firsts[lo]
        gone = schema.ShardName(number, again.plan.shards, suffix).path in away
        keeps_bom = options.format != "webdataset"
        yield SourceCheck(out, to_ipc(rows), stock, options.policy, first, count, mine, gone, keeps_bom)


def compare_planned_rejects(again: Survey, rejects: pa.Table) -> list[Finding]:
    """Compare the rejects that planning finds without reading samples. Position, key and reason must be equal."""
    planned = again.plan.rejects
    noted, found = _look_up(rejects, planned.column("position").to_numpy())
    same = found.copy()
    for name in ("key", "reason"):
        mine = planned.column(name).filter(bool_array(found))
        same[found] &= pc.fill_null(pc.equal(mine, noted.column(name)), False).to_numpy()
    wrong = planned.take(number_array(np.flatnonzero(~same)[:_SHOWN])).select(["key", "reason"]).to_pylist()
    named = [f"{row['key']} ({row['reason']})" for row in wrong]
    return _reject_findings(
        "rejects of the source are missing in OUT, or have another reason there", named, int((~same).sum())
    )


def _look_up(rejects: pa.Table, positions: Int64s) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
    """(rejects at these positions, which positions have one). ``rejects`` must be sorted by position."""
    noted = rejects.column("position").to_numpy()
    if not len(noted):
        return rejects, np.zeros(len(positions), dtype=np.bool_)
    at = np.minimum(np.searchsorted(noted, positions), len(noted) - 1)
    found = np.asarray(noted[at] == positions)
    return rejects.take(number_array(at[found].astype(np.int64))), found


def check_source(task: SourceCheck, report: Report) -> list[Finding]:
    """Read a shard's samples from the source again, and return each difference from OUT. Damage is a finding, not an
    error."""
    try:
        rows = index_rows(task.out, task.first, task.count)
        comparison = _Comparison(task, rows)
    except Laion6mError as error:
        return [Finding(schema.INDEX, str(error))]
    try:
        for batch in from_ipc(task.plan).to_batches():
            for chunk in read_samples(batch, task.stock, task.policy):
                view = memoryview(chunk.buffer)
                for sample in chunk.samples:
                    comparison.sample(sample, view[sample.start : sample.end])
                for reject in chunk.rejects:
                    comparison.reject(reject)
                report(len(chunk.samples) + len(chunk.rejects), sum(s.end - s.start for s in chunk.samples))
    except Laion6mError as error:
        comparison.findings.add(str(error))
        return comparison.findings.found
    return comparison.result()


class _Comparison:
    def __init__(self, task: SourceCheck, rows: pa.RecordBatch) -> None:
        self._first = task.first
        self._columns: dict[str, list[Any]] = {name: rows.column(name).to_pylist() for name in _COMPARED}
        keys = self._columns["key"]
        self.findings = Findings(f"source ({task.name})", Remedy.SOURCE, task.first, lambda row: str(keys[row]))
        self._left = {position: row for row, position in enumerate(self._columns["position"])}
        self._wrong_rejects: list[str] = []
        self._rejects = dict(task.rejects)
        self._reader = open_dataset(task.out, missing="ignore")
        self._away = task.away
        self._keeps_bom = task.keeps_bom

    def sample(self, sample: Sample, image: memoryview) -> None:
        """A sample of the source must be a row, equal in all columns. ``match_rows`` has compared the order."""
        row = self._left.pop(sample.position, None)
        if row is None:
            self._wrong_rejects.append(f"{sample.key} (a row in the source, none in OUT)")
            return
        now = {
            "size": sample.end - sample.start,
            "width": sample.info.width,
            "height": sample.info.height,
            "annotation_size": len(sample.annotation),
            "key": sample.key,
            "path": sample.path,
            "annotation_path": sample.annotation_path,
            "caption": sample.caption,
            "bom": sample.bom and self._keeps_bom,
        }
        for name, value in now.items():
            if self._columns[name][row] != value:
                self.findings.rows(f"{name} differs from the source", [row])
        mine, digest = self._reader[self._first + row], self._columns["digest"][row]
        try:
            # An index made without reading images has no checksums of them. Then the bytes are compared.
            same = mine.image == image if digest is None else xxhash.xxh3_128_digest(image) == digest
            document = None if self._away else mine.annotation.encode()
        except Laion6mError as error:
            self.findings.rows(f"cannot be read in OUT ({error.args[-1]})", [row])
        else:
            if not same:
                self.findings.rows("the image's bytes differ from the source", [row])
            if document is not None and document != sample.annotation:
                self.findings.rows("the annotation differs from the source", [row])

    def reject(self, reject: Reject) -> None:
        """A reject of the source must be in OUT's rejects, with the same key and reason."""
        noted = self._rejects.pop(reject.position, None)
        if noted != (reject.key, reject.reason.value):
            was = f"{noted[1]} in OUT" if noted else "not in OUT"
            self._wrong_rejects.append(f"{reject.key} ({reject.reason}, {was})")

    def result(self) -> list[Finding]:
        self.findings.rows("these rows are not in the source", self._left.values())
        wrong = self._wrong_rejects + [f"{key} ({reason} in OUT only)" for key, reason in self._rejects.values()]
        return self.findings.found + _reject_findings("rejects differ from the source's", wrong[:_SHOWN], len(wrong))


def _reject_findings(problem: str, named: list[str], count: int) -> list[Finding]:
    if not count:
        return []
    more = f" and {count - len(named):,} more" if count > len(named) else ""
    return [Finding(schema.REJECTS, f"{problem}: {', '.join(named)}{more}", Remedy.SOURCE)]


def _find(name: str, source: str, way_out: str) -> str:
    for folder in (source, os.path.dirname(os.path.abspath(source))):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return path
    raise SourceError(f"{shlex.quote(name)} is neither in {shlex.quote(source)} nor beside it. {way_out}")
