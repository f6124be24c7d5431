"""verify: prove that a folder is whole, that its parts agree, and (with the source) that it holds what the source does.

manifest → files → index, rejects, counts → every shard, or every row in the tars → the source again
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from builder import schema
from builder.errors import DamagedFileError, SourceError, WorkerDiedError
from builder.run.engines import Engine, EngineChoice, make_engine
from builder.run.findings import MAKE_META, OTHER_SOURCE, Finding, Findings
from builder.run.progress import Progress, duration
from builder.run.report import size as in_words
from builder.run.verify_meta import (
    Accounts,
    FileCheck,
    check_columns,
    check_file,
    check_index,
    check_manifest,
    check_presence,
    check_rejects,
    is_shard,
    key_of,
)
from builder.run.verify_shard import ShardCheck, check_shard
from builder.run.verify_source import (
    check_source,
    compare_planned_rejects,
    match_rows,
    options_of,
    source_checks,
    survey_again,
)
from builder.run.verify_tars import RowsCheck, check_rows
from builder.store.manifest import Manifest, read_manifest

_SLICE_BYTES = 256 << 20  # of images, about, that one unit of work over tars reads
_SHOWN = 20  # problems printed for people


@dataclass(frozen=True, slots=True)
class Verification:
    """``problems``: sentences with file, place, rows and the way out; none where ``ok``. ``rows``: by the manifest.
    ``bytes``: that were read of images and shards."""

    ok: bool
    rows: int
    problems: tuple[str, ...]
    against_source: bool = False
    decoded: bool = False
    bytes: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The contract of ``--json``."""
        return {"ok": self.ok, "rows": self.rows, "problems": list(self.problems)}


def verify(
    out: str,
    *,
    source: str | None = None,
    decode: bool = False,
    recaptions: tuple[str, ...] = (),
    num_proc: int | None = None,
    engine: str = "local",
    address: str | None = None,
    quiet: bool = False,
) -> Verification:
    """Check a folder that ``convert`` or ``index`` made. Damage of any kind is a problem in the answer, not an error.

    Every file against the manifest (presence, size, xxh3-128; nothing unknown in data/ and meta/); the counts against
    each other; every shard against the index: schema, rows, text columns, where the images lie; every image's checksum.
    ``source``: survey it again with OUT's options and compare rows, order, rejects, image bytes and annotations.
    ``recaptions``: Parquet files of that source, where they are not found by their names. ``decode``: decode every
    image.

    Raises SourceError where OUT is no folder.
    """
    started = time.monotonic()
    if not os.path.isdir(out):
        raise SourceError(f"{out} is not a folder" if os.path.exists(out) else f"{out} is not there")
    try:
        manifest = read_manifest(out)
        first = check_manifest(out, manifest)
    except DamagedFileError as error:
        problem = Finding(schema.MANIFEST, error.args[2], MAKE_META)
        return Verification(False, 0, (str(problem),), source is not None, decode)
    run = _Run(out, manifest, decode, quiet)
    run.findings += first
    with make_engine(EngineChoice(engine, num_proc, address)) as crew:
        try:
            run.check(crew)
            if source is not None:
                run.check_against(source, recaptions, crew)
        except WorkerDiedError as error:
            run.findings.append(Finding(out, f"not all was verified: {error}".rstrip(".")))
    problems = tuple(map(str, run.findings))
    return Verification(
        ok=not problems,
        rows=manifest.totals["rows"],
        problems=problems,
        against_source=source is not None,
        decoded=decode,
        bytes=run.bytes,
        seconds=time.monotonic() - started,
    )


def describe_verification(result: Verification) -> str:
    """For people: what was shown, or what is wrong."""
    pace = f"{in_words(result.bytes)} read in {duration(result.seconds)}"
    if result.ok:
        shown = ["every file is there and has its checksum", "every row is as the index has it"]
        shown += ["every row equals its source members"] if result.against_source else []
        shown += ["every image decodes"] if result.decoded else []
        return f"{result.rows:,} rows are sound: {', '.join(shown)} ({pace})"
    count = len(result.problems)
    lines = [f"{count:,} problem{'s' if count > 1 else ''} ({pace}):"]
    lines += [f"  {problem}" for problem in result.problems[:_SHOWN]]
    if count > _SHOWN:
        lines.append(f"  and {count - _SHOWN:,} more; --json lists all")
    return "\n".join(lines)


class _Run:
    """One verification: what has been found out so far."""

    def __init__(self, out: str, manifest: Manifest, decode: bool, quiet: bool) -> None:
        self.out, self.manifest, self.decode, self.quiet = out, manifest, decode, quiet
        self.findings: list[Finding] = []
        self.bytes = 0
        self.accounts = Accounts()
        self.rejects: pa.Table | None = None
        policy = manifest.options.get("policy")
        self.caption_key = str(policy.get("caption_key", "auto")) if isinstance(policy, dict) else "auto"

    def check(self, crew: Engine) -> None:
        """OUT by itself."""
        out, manifest = self.out, self.manifest
        present, found = check_presence(out, manifest)
        self.findings += found
        columns, found = check_columns(out)
        self.findings += found
        small = [name for name in sorted(present) if not is_shard(name)]
        checks = chain((FileCheck(out, name, manifest.files[name]["xxh3_128"]) for name in small), columns)
        found = [finding for findings in crew.run(check_file, checks, self._count) for finding in findings]
        self.findings += sorted(found, key=lambda finding: finding.place)
        damaged = {finding.place for finding in found}
        if schema.INDEX in present:
            self.accounts, found = check_index(out, manifest)
            self.findings += found
        if schema.REJECTS in present - damaged:
            self.rejects, found = check_rejects(out, manifest, self.accounts)
            self.findings += found
        if manifest.kind in schema.SUFFIXES:
            size = sum(manifest.files[name]["size"] for name in present if is_shard(name))
            self._work(crew, check_shard, self._shard_checks(present), size)
        elif self.accounts.usable:
            self._work(crew, check_rows, self._row_checks(), int(self.accounts.sizes.sum()))

    def check_against(self, source: str, recaptions: tuple[str, ...], crew: Engine) -> None:
        """OUT against its source."""
        findings = Findings(f"source {source}", OTHER_SOURCE)
        kept = None
        try:
            options = options_of(self.manifest, source, recaptions)
            again, differences = survey_again(self.manifest, source, options, crew)
        except (SourceError, DamagedFileError) as error:
            findings.add(f"nothing to compare with: {error}".rstrip("."))
            self.findings += findings.found
            return
        if differences:
            findings.add(f"it is not the one OUT was made from: {'; '.join(differences)}")
        if not self.accounts.usable or self.rejects is None:
            findings.add("not compared row by row, as the index or the rejects of OUT are damaged", MAKE_META)
        else:
            self.findings += compare_planned_rejects(again, self.rejects)
            kept = match_rows(again, self.accounts.positions)
            if kept is None:
                findings.add("its samples are others, or in another order")
        self.findings += findings.found
        if kept is not None and self.rejects is not None:
            tasks = source_checks(again, options, self.out, kept, self.rejects)
            self._work(crew, check_source, tasks, int(self.accounts.sizes.sum()))

    def _work(self, crew: Engine, work: Callable[..., list[Finding]], tasks: Iterator[Any], size: int) -> None:
        progress = Progress("verify", self.manifest.totals["rows"], size, quiet=self.quiet)
        found: list[Finding] = []
        try:
            for findings in crew.run(work, tasks, progress.update):
                found += findings
        finally:
            progress.finish()
        self.bytes += progress.bytes
        self.findings += sorted(found, key=lambda finding: (finding.place, finding.named, finding.problem))

    def _count(self, images: int, size: int) -> None:
        self.bytes += size

    def _shard_checks(self, present: set[str]) -> Iterator[ShardCheck]:
        files = self.manifest.files
        if self.accounts.header is None or not self.accounts.usable:
            for name in sorted(filter(is_shard, present)):
                file = schema.IndexedFile(name, self.manifest.kind, 0, {})
                yield ShardCheck(self.out, file, files[name]["xxh3_128"], 0, False, False, "")
            return
        first = 0
        for file in self.accounts.header.files:
            if file.path in present:
                digest = files[file.path]["xxh3_128"]
                yield ShardCheck(self.out, file, digest, first, True, self.decode, self.caption_key)
            else:
                self._lost(file, first)
            first += file.rows

    def _lost(self, file: schema.IndexedFile, first: int) -> None:
        findings = Findings(file.path, "", first, lambda row: key_of(self.out, first + row))
        findings.rows("lost with it are", range(file.rows))
        self.findings += findings.found

    def _row_checks(self) -> Iterator[RowsCheck]:
        ends = np.cumsum(self.accounts.sizes)
        first = 0
        while first < len(ends):
            begin = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, begin + _SLICE_BYTES, side="right")))
            yield RowsCheck(self.out, first, last - first, self.caption_key, self.decode)
            first = last
