"""Verify a selection: its own files, the dataset it names, and the image and annotation of every row."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

from builder.base.errors import Laion6mError
from builder.base.names import META, ROWS, SELECTION
from builder.base.records import SampleProblem
from builder.curate.selection import read_selection
from builder.engines.contract import Engine, Report
from builder.engines.progress import Progress
from builder.read.opening import open_dataset
from builder.read.view import Rows
from builder.source.images import probe
from builder.verification.findings import UNDECODABLE, Finding, Findings
from builder.verification.shards import undecodable

SELECT_AGAIN = "Select again, or restore the folder and its dataset from copies."
_ROWS_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class _Check:
    """Rows of the selection ``out``. Their first row is row ``first`` of the selection."""

    out: str
    rows: Rows
    first: int
    decode: bool

    @property
    def name(self) -> str:
        """For messages."""
        return f"rows {self.first} to {self.first + len(self.rows)}"


def check_selection(out: str, *, decode: bool, crew: Engine, quiet: bool) -> tuple[int, list[Finding], int]:
    """(number of rows, findings, bytes read). Raises WorkerDiedError."""
    known = {os.path.basename(name) for name in (SELECTION, ROWS)}
    strange = sorted(set(os.listdir(os.path.join(out, META))) - known)
    found = [Finding(f"{META}/{name}", "is no part of a selection", "Remove it.") for name in strange]
    try:
        count = read_selection(out).rows
    except Laion6mError as error:
        return 0, [*found, Finding(SELECTION, str(error).rstrip("."), SELECT_AGAIN)], 0
    try:
        rows = open_dataset(out, missing="ignore")
    except Laion6mError as error:
        return count, [*found, Finding(out, str(error).rstrip("."), SELECT_AGAIN)], 0
    with Progress("verifying", len(rows), quiet=quiet) as progress:
        for findings in crew.run(_check_rows, _checks(out, rows, decode), progress.update):
            found += findings
    return count, sorted(found, key=lambda finding: (finding.place, finding.named, finding.problem)), progress.bytes


def _checks(out: str, rows: Rows, decode: bool) -> Iterator[_Check]:
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        yield _Check(out, rows[first : first + _ROWS_AT_ONCE], first, decode)


def _check_rows(task: _Check, report: Report) -> list[Finding]:
    """Everything wrong with these rows. Damage of any kind is a finding, not an error."""
    findings = Findings(task.out, "", task.first, lambda row: task.rows[row].key)
    for row in range(len(task.rows)):
        try:
            sample = task.rows[row]
            image, _ = sample.image, sample.annotation
        except (Laion6mError, UnicodeDecodeError) as error:
            findings.note(str(error).rstrip("."), row)
            continue
        size = (sample.width, sample.height)
        if sample.digest is not None and xxhash.xxh3_128_digest(image) != sample.digest:
            findings.note("the image's bytes do not have the recorded checksum", row)
        try:
            info = probe(image)
        except SampleProblem as problem:
            findings.note(f"no longer a row ({problem.reason}: {problem.detail})", row)
        else:
            if (info.width, info.height) != size:
                findings.note("the image has another size in pixels than recorded", row)
            if task.decode and (problem_text := undecodable(image, size)):
                findings.note(f"does not decode, {problem_text}", row, UNDECODABLE)
        report(1, len(image))
    return findings.result()
