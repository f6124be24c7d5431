"""Verify what spans all shards: which files exist, the index, the rejects, and that the counts add up."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from builder.base import schema
from builder.base.errors import DamagedFileError, Laion6mError, refuse_denied
from builder.base.records import Reason
from builder.base.words import counted, printable
from builder.engines.contract import Report
from builder.read.columns import columns_of, open_any, read_checksums
from builder.read.index import Index
from builder.store.manifest import Manifest
from builder.store.pushed import PushedMark, PushRecords
from builder.store.rejects import read_rejects
from builder.store.seals import file_digest
from builder.verification.findings import Finding, Findings, Remedy, told
from builder.verification.index_rows import key_of, opened_index, rows_not_utf8

Int64s = npt.NDArray[np.int64]

_KINDS = (*schema.SUFFIXES, "index")
_ABSENT = "Run the same laion6m convert again. It makes only what is missing."
_ELSEWHERE = "Move it elsewhere: it is not part of the dataset."
_ADD_AGAIN = "Add it again with laion6m add-column, or remove it from columns/ and meta/columns/."
_READ = ("position", "size", "file", "annotation_file", "find_hash", "find_row")


@dataclass(slots=True)
class Accounts:
    """What the index says: its files, and columns of 8 bytes for each row. ``usable``: the other checks may look up
    rows in the index."""

    usable: bool = False
    files: tuple[schema.IndexedFile, ...] = ()
    positions: Int64s = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    sizes: Int64s = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class FileCheck:
    """A file to read whole. ``digest``: its xxh3-128 in the manifest, hex. ``touched``: what the file holds, in
    words."""

    out: str
    name: str
    digest: str
    touched: str = ""
    remedy: str = Remedy.META


def is_shard(name: str) -> bool:
    """Whether a path in the manifest is a shard's."""
    return name.startswith(f"{schema.DATA}/")


def check_file(task: FileCheck, report: Report) -> list[Finding]:
    """Compare a whole file's checksum with the manifest's. Raises AccessError if this user may not read it."""
    path = os.path.join(task.out, *task.name.split("/"))
    try:
        size, digest = os.path.getsize(path), file_digest(path)
    except OSError as error:
        refuse_denied(path, error)
        return [Finding(task.name, f"cannot be read: {error.strerror}", task.remedy)]
    report(0, size)
    if digest == task.digest:
        return []
    touched = "rows that differ from their shards are named" if task.name == schema.INDEX else task.touched
    problem = f"its checksum is not the recorded one{'; ' if touched else ''}{touched}"
    return [Finding(task.name, problem, task.remedy)]


def check_columns(out: str, problems: list[Finding]) -> list[FileCheck]:
    """Files of the added columns to read whole. Adds to ``problems``: columns made for another index, and columns
    without checksums."""
    checks: list[FileCheck] = []
    for name in sorted({*columns_of(out), *columns_of(out, ".json")}):
        place = f"{schema.META}/columns/{name}"
        try:
            column = open_any(out, name)
        except (Laion6mError, OSError, ValueError) as error:
            problems.append(Finding(f"{place}.arrow", printable(str(error)), _ADD_AGAIN))
            continue
        try:
            digests = read_checksums(out, name)
        except DamagedFileError as error:
            problems.append(Finding(f"{place}.json", printable(f"no checksums: {error.args[2]}"), _ADD_AGAIN))
            continue
        first = 0
        rows = {}
        for file in column.header.files:
            rows[file.path] = f"rows {first:,} to {first + file.rows - 1:,} lie in it"
            first += file.rows
        wanted = {*rows, f"{place}.arrow"}
        if wanted != digests.keys():
            problems.append(Finding(f"{place}.json", "it has the checksums of other files", _ADD_AGAIN))
        checks += [
            FileCheck(out, path, digests[path], rows.get(path, "it says where all rows lie"), _ADD_AGAIN)
            for path in sorted(wanted & digests.keys())
        ]
    return checks


def check_presence(out: str, manifest: Manifest, problems: list[Finding]) -> tuple[set[str], list[PushedMark]]:
    """(files of the manifest that exist, marks of the shards removed after a push).

    Adds to ``problems``: missing files, files of another size, and files in data/ or meta/ that the manifest does not
    name.
    """
    present, away = set(), []
    marks = PushRecords(out).marks()
    for name, facts in manifest.files.items():
        path = os.path.join(out, *name.split("/"))
        remedy = _ABSENT if is_shard(name) else Remedy.META
        mark = marks.get(name)
        if os.path.isfile(path):
            present.add(name)
            size = os.path.getsize(path)
            if size != facts["size"] and name != schema.CARD:  # the owner may edit it
                problems.append(
                    Finding(name, f"it has {counted(size, 'byte')}; the manifest says {facts['size']:,}", remedy)
                )
        elif mark is not None and (mark.size, mark.digest) == (facts["size"], facts["xxh3_128"]):
            away.append(mark)
        else:
            problems.append(Finding(name, "is missing", remedy))
    known = {*manifest.files, schema.MANIFEST}
    for folder in (schema.DATA, schema.META):
        for parent, _, names in os.walk(os.path.join(out, folder)):
            inside = os.path.relpath(parent, out).replace(os.sep, "/")
            if inside == f"{schema.META}/columns":
                continue  # check_columns looks at those
            mine = (name for name in names if not (inside == schema.DATA and schema.CACHE_OF_DATASETS.fullmatch(name)))
            strange = sorted({f"{inside}/{name}" for name in mine} - known)
            problems += [Finding(name, "is not in the manifest", _ELSEWHERE) for name in strange]
    return present, away


def check_manifest(out: str, manifest: Manifest) -> list[Finding]:
    """Check that the manifest has exactly the bytes that this tool writes for its content, and that its counts add up.

    Raises DamagedFileError if it has not the structure that the other checks need. Its checksum does not prove that:
    anybody can write one.
    """
    _check_shape(os.path.join(out, schema.MANIFEST), manifest)
    findings = Findings(schema.MANIFEST, Remedy.META)
    with open(os.path.join(out, schema.MANIFEST), "rb") as handle:
        if handle.read() != manifest.to_json():
            findings.add("it was edited, or another tool wrote it")
    totals = manifest.totals
    rejected = totals["rejected"]
    lost = sum(rejected.values())
    if totals["listed"] != totals["rows"] + lost:
        both = f"{counted(totals['rows'], 'row')} and {counted(lost, 'reject')}"
        findings.add(f"its counts do not add up: {totals['listed']:,} listed, {both}")
    if unknown := sorted(rejected.keys() - {reason.value for reason in Reason}):
        findings.add(f"it counts rejects with unknown reasons: {', '.join(unknown)}")
    named = sum(map(is_shard, manifest.files))
    if manifest.kind in schema.SUFFIXES and totals["shards"] != named:
        findings.add(f"it counts {counted(totals['shards'], 'shard')}, but names {named} in data/")
    return findings.found


def check_index(out: str, manifest: Manifest, problems: list[Finding]) -> Accounts:
    """Read the index once, batch by batch, and check everything that concerns more than one shard. Adds to
    ``problems``."""
    path = os.path.join(out, schema.INDEX)
    accounts = Accounts()
    findings = Findings(schema.INDEX, Remedy.META, 0, lambda row: key_of(out, row))
    totals = manifest.totals
    try:
        header = Index(path, out).header
        accounts.files = header.files
        columns, key_hashes = _read_index(path, header.rows)
    except DamagedFileError as error:
        findings.add(told(error))
        findings.rows("text is not UTF-8", rows_not_utf8(out))
        problems += findings.found
        return accounts
    accounts.positions, accounts.sizes, accounts.usable = columns["position"], columns["size"], True
    if header.rows != totals["rows"]:
        findings.add(f"it has {counted(header.rows, 'row')}; the manifest says {totals['rows']:,}")
    if int(accounts.sizes.sum()) != totals["image_bytes"]:
        size = counted(int(accounts.sizes.sum()), "byte")
        findings.add(f"it has {size} of images; the manifest says {totals['image_bytes']:,}")
    if manifest.kind in schema.SUFFIXES:
        counts = [file.rows for file in header.files]
        if sorted(file.path for file in header.files) != sorted(filter(is_shard, manifest.files)):
            findings.add("it names other shards than the manifest")
            accounts.usable = False
        elif min(counts, default=0) < 0 or sum(counts) != header.rows:
            findings.add(f"its shards have {counted(sum(counts), 'row')} together, but it has {header.rows:,}")
            accounts.usable = False
        else:
            wrong = columns["file"] != np.repeat(np.arange(len(counts)), counts)
            findings.rows("column file does not name the row's shard", np.flatnonzero(wrong))
        place = columns["file"] if manifest.kind == "webdataset" else schema.IN_SHARD
        elsewhere = np.flatnonzero(columns["annotation_file"] != place)
        findings.rows("column annotation_file does not name the row's shard", elsewhere)
    find_hash, find_row = columns["find_hash"], columns["find_row"]
    if np.any(find_hash[1:] < find_hash[:-1]):
        findings.add("column find_hash is not sorted, so find() may miss keys")
    inside = (find_row >= 0) & (find_row < header.rows)
    found = np.bincount(find_row[inside], minlength=header.rows) == 1
    found[find_row[inside][key_hashes[find_row[inside]] != find_hash[inside]]] = False
    findings.rows("find() does not find the key", np.flatnonzero(~found))
    problems += findings.found
    return accounts


def check_rejects(out: str, manifest: Manifest, accounts: Accounts, problems: list[Finding]) -> pa.Table | None:
    """The table of rejects; None if it cannot be trusted. Adds to ``problems``. Checks its counts, and that each
    position in the listing belongs to exactly one row or reject."""
    path = os.path.join(out, schema.REJECTS)
    try:
        rejects = read_rejects(path)
    except DamagedFileError as error:
        if isinstance(error.__cause__, OSError):
            refuse_denied(path, error.__cause__)
        problems.append(Finding(schema.REJECTS, f"cannot be read: {error.args[2]}", Remedy.META))
        return None
    findings = Findings(schema.REJECTS, Remedy.META)
    noted = manifest.totals["rejected"]
    counts = rejects.column("reason").value_counts().to_pylist()
    reasons = {str(item["values"]): item["counts"] for item in counts}
    if reasons != noted:
        findings.add(f"its rejects by reason: {_in_words(reasons)}; the manifest says {_in_words(noted)}")
    positions = rejects.column("position").to_numpy()
    ascending = bool(np.all(positions[1:] > positions[:-1]))
    if not ascending:
        findings.add("its rows are not in the order of the listing")
    problems += findings.found
    if accounts.usable:
        problems += _check_positions(out, accounts.positions, positions, some="limit" in manifest.options)
    return rejects if ascending else None


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items())) or "none"


def _check_shape(path: str, manifest: Manifest) -> None:
    try:
        totals = manifest.totals
        numbers = [totals[name] for name in ("rows", "listed", "unlisted", "shards", "image_bytes")]
        numbers += [*totals["rejected"].values(), *(facts["size"] for facts in manifest.files.values())]
        digests = [facts["xxh3_128"] for facts in manifest.files.values()]
        sound = all(type(number) is int and number >= 0 for number in numbers)
        sound = sound and all(isinstance(digest, str) for digest in digests) and manifest.kind in _KINDS
        sound = sound and not any(".." in name.split("/") or os.path.isabs(name) for name in manifest.files)
    except (KeyError, TypeError, AttributeError) as error:
        missing = f": no {error.args[0]}" if isinstance(error, KeyError) else ""
        raise DamagedFileError(path, "content", f"it is not the manifest of a dataset{missing}") from None
    if not sound:
        raise DamagedFileError(path, "content", "it has counts, names or checksums that cannot be right")


def _check_positions(out: str, rows: Int64s, rejects: Int64s, *, some: bool) -> list[Finding]:
    """Check that each position occurs once. ``some``: rows and rejects are only some entries of the listing (--limit);
    else they are all of it."""
    findings = Findings(schema.INDEX, Remedy.META, 0, lambda row: key_of(out, row))
    if some:
        both = np.concatenate([rows, rejects])
        ranks = np.where(both < 0, -1, np.unique(both, return_inverse=True)[1])
        rows, rejects = ranks[: len(rows)], ranks[len(rows) :]
    count = len(rows) + len(rejects)
    inside, among = (rows >= 0) & (rows < count), (rejects >= 0) & (rejects < count)
    times = np.bincount(rows[inside], minlength=count) + np.bincount(rejects[among], minlength=count)
    good = inside.copy()
    good[inside] = times[rows[inside]] == 1
    findings.rows("another sample has the same position, or the position is not in the listing", np.flatnonzero(~good))
    if good.all() and not np.all(times == 1):
        findings.add("some listed samples are neither rows nor rejects")
    return findings.found


def _read_index(path: str, rows: int) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.uint64]]:
    """(the columns in _READ, xxh3-64 of the keys). Raises DamagedFileError, AccessError."""
    columns = {name: [np.zeros(0, schema.INDEX_TABLE.field(name).type.to_pandas_dtype())] for name in _READ}
    hashes = [np.zeros(0, np.uint64)]
    with opened_index(path, "batches") as reader:
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            batch.validate(full=True)
            for name in _READ:
                columns[name].append(batch.column(name).to_numpy())
            keys = batch.column("key").cast(pa.binary()).to_pylist()
            hashes.append(np.fromiter(map(xxhash.xxh3_64_intdigest, keys), np.uint64, len(keys)))
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    if len(joined["position"]) != rows:
        raise DamagedFileError(
            path, "batches", f"it has {counted(len(joined['position']), 'row')}; its header says {rows:,}"
        )
    return joined, np.concatenate(hashes)
