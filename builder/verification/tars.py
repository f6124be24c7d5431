"""Verify an index over tars. No shard has a checksum here, so each row is read and checked."""

from __future__ import annotations

import os
from dataclasses import dataclass

import xxhash

from builder.base import schema
from builder.base.errors import Laion6mError
from builder.base.records import SampleProblem
from builder.engines.contract import Report
from builder.read.opening import open_dataset
from builder.source.captions import read_annotation
from builder.source.images import probe
from builder.verification.findings import UNDECODABLE, Finding, Findings
from builder.verification.index_rows import index_rows
from builder.verification.shards import undecodable

_REMEDY = "Restore the source's files, or run laion6m index again."


@dataclass(frozen=True, slots=True)
class RowsCheck:
    """Rows ``first`` to ``first + count`` of an index over tars or folders of files."""

    out: str
    first: int
    count: int
    caption_key: str
    decode: bool

    @property
    def name(self) -> str:
        """For messages."""
        return f"rows {self.first} to {self.first + self.count}"


def check_rows(task: RowsCheck, report: Report) -> list[Finding]:
    """Everything wrong with these rows: bytes, size in pixels, caption. Damage of any kind is a finding, not an
    error."""
    try:
        rows = index_rows(os.path.join(task.out, schema.INDEX), task.first, task.count)
        reader = open_dataset(task.out, missing="ignore")
    except Laion6mError as error:
        return [Finding(schema.INDEX, str(error).rstrip("."), _REMEDY)]
    columns = {name: rows.column(name).to_pylist() for name in ("key", "digest", "width", "height", "annotation_size")}
    findings = Findings(task.out, _REMEDY, task.first, lambda row: str(columns["key"][row]))
    for row in range(task.count):
        try:
            sample = reader[task.first + row]
            image, document, caption = sample.image, sample.annotation.encode(), sample.caption
        except (Laion6mError, UnicodeDecodeError) as error:
            findings.note(str(error).rstrip("."), row)
            continue
        digest, size = columns["digest"][row], (columns["width"][row], columns["height"][row])
        if digest is not None and xxhash.xxh3_128_digest(image) != digest:
            findings.note("the image's bytes do not have the recorded checksum", row)
        if len(document) != columns["annotation_size"][row]:
            findings.note("annotation has another length than the index says", row)
        try:
            info = probe(image)
            if (info.width, info.height) != size:
                findings.note("the image has another size in pixels than recorded", row)
            if read_annotation(document, task.caption_key).caption != caption:
                findings.note("the annotation has another caption than the index", row)
        except SampleProblem as problem:
            findings.note(f"no longer a row ({problem.reason}: {problem.detail})", row)
        else:
            if task.decode and (problem_text := undecodable(image, size)):
                findings.note(f"does not decode, {problem_text}", row, UNDECODABLE)
        report(1, len(image))
    return findings.result()
