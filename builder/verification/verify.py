"""verify: prove that a folder is whole and that its parts agree. With the source: that both hold the same rows.

manifest → files → index, rejects, counts → every shard, or every row in the tars → the source again
"""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import pyarrow as pa

from builder.base import schema
from builder.base.errors import DamagedFileError, Laion6mError, OptionError, SourceError, WorkerDiedError
from builder.base.names import SELECTION
from builder.base.paths import StrPath, path_of, path_or_none, paths_of, require_folder
from builder.base.urls import StorageOptions, is_url, refuse_url
from builder.base.words import counted, duration
from builder.base.words import size as in_words
from builder.engines.contract import Engine, EngineChoice, Report, Work
from builder.engines.local import make_engine
from builder.engines.progress import Progress
from builder.read.opening import open_dataset
from builder.source.layouts import recognise
from builder.store.manifest import Manifest, read_manifest, require_made
from builder.store.mirror import Mirror
from builder.store.pushed import PushedMark
from builder.verification.card import check_card
from builder.verification.findings import MOST_NAMED, Finding, Remedy, in_file_order
from builder.verification.index_rows import key_of
from builder.verification.meta import (
    Accounts,
    FileCheck,
    check_columns,
    check_file,
    check_index,
    check_manifest,
    check_presence,
    check_rejects,
    is_shard,
)
from builder.verification.rows import check_rows, check_selection, rows_checks
from builder.verification.shards import ShardCheck, check_shard
from builder.verification.source import (
    check_source,
    compare_planned_rejects,
    match_rows,
    options_of,
    source_checks,
    survey_again,
)
from builder.verification.splits import splits_note

_SHOWN = 20  # problems printed for people


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a verification.

    ``ok``: there are no problems. ``rows``: the count in the manifest.
    ``problems``: sentences that name the file, the place, the rows and what to do.
    ``notes``: sentences about facts that are no problem: an edited card, shards that only the Hub has, rows that Spark
    would miss.
    ``away``: rows of shards that only the Hub has. ``bytes``: how much was read of images and shards.
    """

    ok: bool
    rows: int
    problems: tuple[str, ...]
    against_source: bool = False
    decoded: bool = False
    bytes: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    away: int = 0

    def to_json(self) -> dict[str, Any]:
        """The document that ``--json`` prints. ``notes`` is left out if there are none."""
        facts: dict[str, Any] = {"ok": self.ok, "rows": self.rows, "problems": list(self.problems)}
        return facts | ({"notes": list(self.notes)} if self.notes else {})


def verify(
    out: StrPath,
    *,
    source: StrPath | None = None,
    decode: bool = False,
    recaptions: StrPath | Iterable[StrPath] = (),
    num_proc: int | None = None,
    engine: str = "local",
    address: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Verification:
    """Check a folder that ``convert`` or ``index`` made, or a selection. Damage of any kind is a problem in the result,
    not an error.

    These are checked:

    - every file against the manifest: presence, size, xxh3-128. data/ and meta/ hold no unknown files.
    - README.md: the part that the tool made.
    - the counts against each other.
    - every shard against the index: schema, rows, text columns, where the images lie.
    - every image's checksum.

    Shards that were removed after a push are not checked: ``push(…, verify_only=True)`` checks them.

    ``source``: survey the source again with OUT's options. Compare rows, order, rejects, image bytes and annotations.
    ``recaptions``: the recaption files of that source. Give them if they are not found by their names.
    ``decode``: decode every image.

    In a selection, verify checks its own files, that the dataset it names is unchanged, and the images of its rows.

    ``out`` may be a URL; ``storage_options`` open it. Each shard is downloaded into a temporary folder, checked and
    deleted. There, added columns are not checked and ``source`` cannot be given.

    Raises SourceError if OUT is no converted folder. Raises OptionError for ``source`` with a URL or a selection.
    """
    out, source = path_of(out), path_or_none(source)
    choice = EngineChoice(engine, num_proc, address)
    if is_url(out):
        if source is not None:
            raise OptionError("source", source, "works only for a dataset on this machine: download the dataset")
        with tempfile.TemporaryDirectory(prefix="laion6m-") as folder:
            mirror = Mirror.of(out, folder, StorageOptions.of(storage_options))
            with make_engine(choice) as crew:
                return _Run(folder, decode, quiet, crew, mirror).verify()
    refuse_url(source or "", "verify")
    require_folder(out)
    if os.path.exists(os.path.join(out, SELECTION)):
        if source is not None:
            allowed = f"{shlex.quote(out)} is a selection. Give the dataset it was selected from"
            raise OptionError("source", source, allowed)
        started = time.monotonic()
        with make_engine(choice) as crew:
            rows, wrong, size = check_selection(out, decode=decode, crew=crew, quiet=quiet)
        took = time.monotonic() - started
        return Verification(not wrong, rows, tuple(map(str, wrong)), decoded=decode, bytes=size, seconds=took)
    require_made(out)
    if source is not None:
        recognise(source)  # fail before anything is read, if it is no source
    with make_engine(choice) as crew:
        return _Run(out, decode, quiet, crew, source=source, recaptions=paths_of(recaptions)).verify()


def check_far(mirror: Mirror, check: Work[Any, list[Finding]], task: Any, report: Report) -> list[Finding]:
    """Download a shard, check it and delete it."""
    try:
        mirror.fetch(task.name)
        return check(task, report)
    except (FileNotFoundError, SourceError) as error:
        return [Finding(task.name, f"cannot be read: {error}")]
    finally:
        mirror.release(task.name, 0)


def describe_verification(result: Verification) -> str:
    """The result as text for people: what was proved, or what is wrong."""
    pace = f"{in_words(result.bytes)} read in {duration(result.seconds)}"
    if result.ok:
        return "\n".join([f"{_shown(result)} ({pace})", *result.notes])
    count = len(result.problems)
    lines = [f"{counted(count, 'problem')} ({pace}):"]
    lines += [f"  {problem}" for problem in result.problems[:_SHOWN]]
    if count > _SHOWN:
        lines.append(f"  and {count - _SHOWN:,} more; --json lists all")
    return "\n".join([*lines, *result.notes])


def _shown(result: Verification) -> str:
    here = " that is here" if result.away else ""
    shown = [f"every file{here or ' is there and'} has its checksum", f"every row{here} is as the index has it"]
    if result.against_source:
        shown.append("every row equals its source members" + (", by the index where it is not here" if here else ""))
    if result.decoded:
        shown.append(f"every image{here} decodes")
    rows = counted(result.rows, "row is", "rows are") + " sound"
    if result.away:
        rows = f"{result.rows - result.away:,} of {counted(result.rows, 'row')} are here, and sound"
    if 0 < result.away == result.rows:
        rows, shown[1:2] = f"none of {counted(result.rows, 'row')} is here, the rest is sound", []
    return f"{rows}: {', '.join(shown)}"


@dataclass(slots=True)
class _Run:
    """The verification of a folder, and its findings so far. ``mirror``: downloads the shards of ``out`` if the folder
    is behind a URL. ``away``: shards removed here after the Hub had them."""

    out: str
    decode: bool
    quiet: bool
    crew: Engine
    mirror: Mirror | None = None
    source: str | None = None
    recaptions: tuple[str, ...] = ()
    manifest: Manifest = field(init=False)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    away: set[str] = field(default_factory=set)
    bytes: int = 0
    accounts: Accounts = field(default_factory=Accounts)
    rejects: pa.Table | None = None

    def verify(self) -> Verification:
        """Check everything."""
        started = time.monotonic()
        against = self.source is not None
        try:
            self.manifest = read_manifest(self.out)
            self.findings += check_manifest(self.out, self.manifest)
        except DamagedFileError as error:
            problem = Finding(schema.MANIFEST, error.args[2], Remedy.META)
            return Verification(False, 0, (str(problem),), against, self.decode)
        try:
            self.check()
            if self.source is not None:
                self.check_against(self.source)
        except WorkerDiedError as error:
            self.add(self.out, f"verify could not finish: {error}")
        return Verification(
            ok=not self.findings,
            rows=self.manifest.totals["rows"],
            problems=tuple(map(str, self.findings)),
            against_source=against,
            decoded=self.decode,
            bytes=self.bytes,
            seconds=time.monotonic() - started,
            notes=tuple(self.notes),
            away=sum(file.rows for file in self.accounts.files if file.path in self.away),
        )

    @property
    def caption_key(self) -> str:
        policy = self.manifest.options.get("policy")
        return str(policy.get("caption_key", "auto")) if isinstance(policy, dict) else "auto"

    def add(self, place: str, problem: str, remedy: str = "") -> None:
        """Add a problem that affects no row."""
        self.findings.append(Finding(place, problem, remedy))

    def check(self) -> None:
        """Check OUT without its source."""
        out, manifest = self.out, self.manifest
        present, marks = check_presence(out, manifest, self.findings)
        self.away = {mark.path for mark in marks}
        self.notes += _away_notes(out, marks, sum(map(is_shard, manifest.files)))
        if schema.CARD in present and self.mirror is None:  # the card of a repository holds the repository's name
            self.notes += check_card(out, manifest, self.findings)
        columns = check_columns(out, self.findings)
        small = [name for name in sorted(present) if not is_shard(name) and name != schema.CARD]
        checks = chain((FileCheck(out, name, manifest.files[name]["xxh3_128"]) for name in small), columns)
        damaged = {finding.place for finding in self._work("verifying meta/", check_file, checks)}
        if schema.INDEX in present:
            self.accounts = check_index(out, manifest, self.findings)
        if schema.REJECTS in present - damaged:
            self.rejects = check_rejects(out, manifest, self.accounts, self.findings)
        if manifest.kind in schema.SUFFIXES:
            self._check_shards(present)
        elif self.accounts.usable:
            self._check_rows()
        if manifest.kind == "parquet" and not self.findings:  # a damaged footer cannot tell
            note = splits_note(out, sorted(filter(is_shard, present)))
            self.notes += [note] if note else []

    def check_against(self, source: str) -> None:
        """Compare OUT with its source."""
        place = f"source {source}"
        try:
            options = options_of(self.manifest, source, self.recaptions)
            again, differences = survey_again(self.manifest, source, options, self.crew, quiet=self.quiet)
        except (SourceError, DamagedFileError) as error:
            if isinstance(error.__cause__, PermissionError):
                raise  # a missing permission is no difference
            self.add(place, f"it cannot be compared: {error}", Remedy.SOURCE)
            return
        if differences:
            self.add(place, f"it is not the one OUT was made from: {'; '.join(differences)}", Remedy.SOURCE)
        if not self.accounts.usable or self.rejects is None:
            self.add(place, "its rows were not compared: the index or the rejects of OUT are damaged", Remedy.META)
            return
        self.findings += compare_planned_rejects(again, self.rejects)
        kept = match_rows(again, self.accounts.positions)
        if kept is None:
            self.add(place, "it has other samples, or another order", Remedy.SOURCE)
            return
        tasks = source_checks(again, options, self.out, kept, self.rejects, self.away)
        self._work("comparing", check_source, tasks, self.manifest.totals["rows"], int(self.accounts.sizes.sum()))

    def _work(
        self, stage: str, work: Work[Any, list[Finding]], tasks: Iterator[Any], rows: int | None = None, size: int = 0
    ) -> list[Finding]:
        """Do the work of one stage. Adds what it finds, and returns it. ``rows``, ``size`` in bytes: of all tasks."""
        with Progress(stage, rows, size, quiet=self.quiet) as progress:
            found = in_file_order(chain.from_iterable(self.crew.run(work, tasks, progress.update)))
        self.bytes += progress.bytes
        self.findings += found
        return found

    def _check_shards(self, present: set[str]) -> None:
        files = {name: facts for name, facts in self.manifest.files.items() if is_shard(name) and name in present}
        tasks: Iterator[Any] = self._shard_checks(files)
        work: Work[Any, list[Finding]] = check_shard
        if not self.accounts.usable:  # then only the checksum of the whole file can be compared
            tasks = (FileCheck(self.out, name, files[name]["xxh3_128"], remedy=Remedy.SHARD) for name in sorted(files))
            work = check_file
        if self.mirror is not None:
            work = partial(check_far, self.mirror, work)
        size = sum(facts["size"] for facts in files.values())
        self._work("verifying", work, tasks, self.manifest.totals["rows"], size)

    def _shard_checks(self, files: Mapping[str, Mapping[str, Any]]) -> Iterator[ShardCheck]:
        first = 0
        for file in self.accounts.files:
            if file.path in files:
                digest = files[file.path]["xxh3_128"]
                yield ShardCheck(self.out, file, digest, first, self.decode, self.caption_key)
            elif file.rows and file.path not in self.away:
                named = tuple((row, key_of(self.out, row)) for row in range(first, first + file.rows)[:MOST_NAMED])
                self.findings.append(Finding(file.path, "these rows are lost with it", "", named, file.rows))
            first += file.rows

    def _check_rows(self) -> None:
        """An index over tars: no shard has a checksum, so each row is read."""
        try:
            rows = open_dataset(self.out, missing="ignore")
        except Laion6mError as error:
            self.add(schema.INDEX, str(error), Remedy.INDEX)
            return
        tasks = rows_checks(self.out, rows, self.decode, self.caption_key, Remedy.INDEX)
        self._work("verifying", check_rows, tasks, len(rows), int(self.accounts.sizes.sum()))


def _away_notes(out: str, marks: list[PushedMark], shards: int) -> list[str]:
    """Notes on the shards that are not here: which repository has them, and which command checks them."""
    return [
        f"{count:,} of {shards:,} shards are not here, only in {url}. They were not checked. To check them: "
        f"`laion6m push {shlex.quote(out)} {command} --verify-only`"
        for (url, command), count in Counter((mark.url, mark.command) for mark in marks).items()
    ]
