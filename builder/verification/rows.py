"""Verify rows one by one: those of a selection, and those of an index over tars, where no shard has a checksum."""

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
from builder.read.sample import Sample
from builder.read.view import Rows
from builder.source.captions import read_annotation
from builder.source.images import probe
from builder.verification.findings import Finding, Findings, Remedy, in_file_order
from builder.verification.shards import undecodable

_SELECT_AGAIN = "Select again, or restore the folder and its dataset from copies."
_ROWS_AT_ONCE = 2048  # of one unit of work: some 200 MB of images


@dataclass(frozen=True, slots=True)
class RowsCheck:
    """Rows to verify. The first one is row ``first`` of the folder ``out``. ``caption_key``: where the index found the
    captions; "" if the annotations are only to be read."""

    out: str
    rows: Rows
    first: int
    decode: bool
    caption_key: str
    remedy: str

    @property
    def name(self) -> str:
        """For messages."""
        return f"rows {self.first} to {self.first + len(self.rows)}"


def rows_checks(out: str, rows: Rows, decode: bool, caption_key: str = "", remedy: str = "") -> Iterator[RowsCheck]:
    """Units of work for all ``rows`` of ``out``."""
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        yield RowsCheck(out, rows[first : first + _ROWS_AT_ONCE], first, decode, caption_key, remedy)


def check_rows(task: RowsCheck, report: Report) -> list[Finding]:
    """Everything wrong with these rows: bytes, size in pixels, annotation, caption. Damage of any kind is a finding,
    not an error."""
    findings = Findings(task.out, task.remedy, task.first, lambda row: _key_of(task.rows, row))
    for row in range(len(task.rows)):
        try:
            sample = task.rows[row]
            image, document = sample.image, sample.annotation.encode()
            for problem in _problems(sample, image, document, task.caption_key):
                findings.rows(problem, [row])
        except (Laion6mError, UnicodeDecodeError) as error:
            findings.rows(str(error), [row])
            continue
        except SampleProblem as problem:
            findings.rows(f"would be rejected now ({problem.reason}: {problem.detail})", [row])
        else:
            if task.decode and (why := undecodable(image, (sample.width, sample.height))):
                findings.rows(why, [row], Remedy.IMAGE)
        report(1, len(image))
    return findings.found


def _problems(sample: Sample, image: bytes, document: bytes, caption_key: str) -> Iterator[str]:
    """How image and annotation differ from the index. Raises SampleProblem if they would not make a row any more."""
    if sample.digest is not None and xxhash.xxh3_128_digest(image) != sample.digest:
        yield "the image's checksum is not the recorded one"
    if caption_key and len(document) != sample._batch.annotation_size[sample._at]:
        yield "the annotation's length differs from the index"
    info = probe(image)
    if (info.width, info.height) != (sample.width, sample.height):
        yield "the image's width or height is not the recorded one"
    if caption_key and read_annotation(document, caption_key).caption != sample.caption:
        yield "the annotation's caption differs from the index"


def _key_of(rows: Rows, row: int) -> str:
    try:
        return rows[row].key
    except Laion6mError:
        return "?"  # the key is what is damaged


def check_selection(out: str, *, decode: bool, crew: Engine, quiet: bool) -> tuple[int, list[Finding], int]:
    """Verify a selection: its own files, the dataset it names, and the image and annotation of every row. Returns
    (number of rows, findings, bytes read). Raises WorkerDiedError."""
    known = set(map(os.path.basename, (SELECTION, ROWS)))
    strange = sorted(set(os.listdir(os.path.join(out, META))) - known)
    found = [Finding(f"{META}/{name}", "does not belong to a selection", "Remove it.") for name in strange]
    count, place = 0, SELECTION
    try:
        count, place = read_selection(out).rows, out
        rows = open_dataset(out, missing="ignore")
    except Laion6mError as error:
        return count, [*found, Finding(place, str(error), _SELECT_AGAIN)], 0
    with Progress("verifying", len(rows), quiet=quiet) as progress:
        for findings in crew.run(check_rows, rows_checks(out, rows, decode), progress.update):
            found += findings
    return count, in_file_order(found), progress.bytes
