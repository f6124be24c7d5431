"""info: what a folder is, what it holds and what to do next. Uses names, sizes and the manifest; reads no image."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builder.base import schema
from builder.base.errors import DamagedFileError, IndexMismatchError, SourceError
from builder.base.names import SELECTION
from builder.base.paths import StrPath, path_of, require_folder
from builder.base.records import Member, Reason
from builder.base.urls import NO_OPTIONS, StorageOptions, is_url
from builder.base.words import printable
from builder.base.words import size as in_words
from builder.conversion.finish import examples_of
from builder.curate.selection import dataset_of, read_selection
from builder.read.columns import Column, columns_of, open_any
from builder.read.handles import Handles
from builder.read.index import Index
from builder.read.missing import missing_files
from builder.source.compressed import compression_of
from builder.source.endings import WAYS_OUT
from builder.source.files import LocalFile
from builder.source.layout import Archive, Layout
from builder.source.layouts import meant_instead, recognise
from builder.source.listing import check_listing
from builder.source.scan import open_bytes
from builder.source.tars import walk_tar
from builder.store.footers import check_claims
from builder.store.ledger import Ledger
from builder.store.manifest import Manifest, read_manifest
from builder.store.pushed import PushRecords
from builder.verification.splits import splits_note

_HEAD = 1 << 20  # bytes read: of a listing to guess its length, of a tar for names
_NAMED = 20  # missing files named one by one
_LISTING = 32 << 20
"""Bytes of a listing read to check it: 0.3 s. A longer listing is checked at both ends only (check_listing)."""
_SAMPLES = 3  # members shown as samples

_FIRST_LOOK = {
    Reason.IMAGE_MISSING: "are all raw tars there? Their folders in data.json tell which are not",
    Reason.CAPTION_MISSING: "are all captions tars there?",
    Reason.CAPTION_INVALID: "is the caption under another field? See --caption-key",
    Reason.IMAGE_UNREADABLE: "most often error pages saved as images; the source is as it is",
    Reason.IMAGE_TRUNCATED: "cut downloads; if many are of one tar, download that tar again",
    Reason.IMAGE_TOO_LARGE: "raise --max-pixels if these are wanted",
    Reason.IMAGE_TOO_SMALL: "lower --min-side if these are wanted",
    Reason.ASPECT_RATIO: "the source was made with 3; --max-aspect-ratio 0 keeps all",
    Reason.DUPLICATE: "entries that name an image a second time; nothing is lost",
    Reason.TAR_DAMAGED: "download the damaged tars again, then convert into a fresh OUT",
}


@dataclass(frozen=True, slots=True)
class Info:
    """``kind``: source, parquet, arrow, index, selection, or unfinished. ``facts``: what ``--json`` prints. ``lines``:
    the same for people. ``next``: commands to type."""

    path: str
    kind: str
    facts: dict[str, Any]
    lines: tuple[str, ...]
    next: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {"path": self.path, "kind": self.kind, **self.facts, "next": list(self.next)}


def describe_info(info: Info) -> str:
    """The result as text for people."""
    following = [f"{'     ' if number else 'next:'} {each}" for number, each in enumerate(info.next)]
    return "\n".join([*map(printable, info.lines), *following])


def info(path: StrPath, *, storage_options: Mapping[str, Any] | None = None) -> Info:
    """Look at a folder: a source, an output of ``convert`` or ``index``, a selection, or what a stopped run left.
    ``path`` may be the URL of a source or a converted folder, opened with ``storage_options``.

    Raises SourceError if it is none of these or cannot be read, DamagedFileError if the manifest cannot be read. A
    problem inside data.json is reported, not raised.
    """
    path = path_of(path)
    if is_url(path):
        from builder.jobs.info_far import info_far

        return info_far(path, StorageOptions.of(storage_options))
    require_folder(path)
    if os.path.exists(os.path.join(path, SELECTION)):
        return _selection(path)
    if os.path.exists(os.path.join(path, schema.MANIFEST)):
        return made(path, read_manifest(path))
    if Ledger(path).job is not None:
        return _unfinished(path)
    return _source(path, recognise(path))


def _selection(path: str) -> Info:
    """A selection: its dataset, and how many rows each step of choosing left."""
    selection = read_selection(path)
    try:
        dataset = dataset_of(path, selection)
        lines = [f"{path} is a selection of {dataset}"]
    except SourceError as error:  # info reports it
        dataset = ""
        lines = [str(error)]
    lines += [f"{selection.of:>13,} rows"] + [f"{step.rows:>13,} {step.condition}" for step in selection.steps]
    funnel = [{"condition": step.condition, "rows": step.rows} for step in selection.steps]
    facts = {"dataset": dataset, "rows": selection.rows, "of": selection.of, "funnel": funnel}
    following = tuple(f"laion6m {what.format(shlex.quote(path))}" for what in ("verify {}", "convert {} OUT"))
    return Info(path, "selection", facts, tuple(lines), following if dataset else ())


def made(path: str, manifest: Manifest) -> Info:
    totals = manifest.totals
    shards = {name: facts["size"] for name, facts in manifest.files.items() if name.startswith(f"{schema.DATA}/")}
    rejected = totals["rejected"]
    examples = _examples(path)
    sizes = {name: _size_of(os.path.join(path, *name.split("/"))) for name in manifest.files}
    absent = [name for name, size in sizes.items() if size is None]
    cut = [name for name, size in sizes.items() if size not in (None, manifest.files[name]["size"])]
    marks = PushRecords(path).marks() if absent else {}
    away = {name: marks[name].url for name in absent if name in marks}
    missing = [name for name in absent if name not in away]
    if manifest.kind == "index":
        missing += _missing_tars(path)
    present = [name for name in shards if sizes[name] is not None and name not in cut]
    columns = {name: _column_kind(path, name) for name in columns_of(path)}
    note = None
    if manifest.kind == "parquet" and splits_note(path, present[:1]):  # all shards are alike
        note = splits_note(path, present)
    facts = {
        "totals": totals,
        "examples": examples,
        "options": manifest.options,
        "versions": manifest.versions,
        "source": manifest.source,
        "shards": shards,
        "missing": missing,
        "cut": cut,
        "away": away,
        "columns": columns,
    } | ({"note": note} if note else {})
    what = "an index over tars" if manifest.kind == "index" else f"a dataset in {manifest.kind.capitalize()} shards"
    lines = [
        f"{path} is {what}, made by laion6m {manifest.versions.get('laion6m', '?')}",
        f"rows      {totals['rows']:>13,} of {totals['listed']:,} listed, {in_words(totals['image_bytes'])} of images",
    ]
    if shards:
        lines.append(
            f"shards    {len(shards):>13,} of {in_words(min(shards.values()))} to {in_words(max(shards.values()))}"
        )
    if columns:
        lines.append(f"columns   {', '.join(f'{name} ({kind})' for name, kind in columns.items())}")
    if formats := totals.get("formats"):
        counts = ", ".join(f"{name} {count:,}" for name, count in sorted(formats.items(), key=lambda item: -item[1]))
        lines.append(f"formats   {counts}" + (f"; {totals['animated']:,} animated" if totals.get("animated") else ""))
    lines.append(f"unlisted  {totals['unlisted']:>13,} images of the source that no entry names")
    lines.append(f"rejected  {sum(rejected.values()):>13,}" + (", most frequent first:" if rejected else ""))
    for reason, count in sorted(rejected.items(), key=lambda item: (-item[1], item[0])):
        lines.append(f"  {reason:<17}{count:>10,}  e.g. {examples.get(reason, '(see meta/rejects.parquet)')}")
        lines.append(f"  {'':<29}{_FIRST_LOOK.get(Reason(reason), '') if reason in set(Reason) else ''}".rstrip())
    for name, places in sorted(manifest.source.get("damaged", {}).items())[:5]:
        lines.append(f"damaged   {name}: {places[0]}" + (f", and {len(places) - 1} more" if len(places) > 1 else ""))
    policy = ", ".join(
        f"{name.replace('_', '-')} {value}" for name, value in sorted(manifest.options["policy"].items())
    )
    lines.append(f"options   {policy}")
    if note:
        lines.append(f"note      {note}")
    if away:
        lines.append(f"removed   {len(away):>13,} shards, once {', '.join(sorted(set(away.values())))} had them")
        place = sorted(set(away.values()))[0]
        following = [f"laion6m verify {path}", _python(place)]
    else:
        following = [f"laion6m verify {path}", _python(path)]
    for title, names, meaning in (
        ("missing", missing, "files are not here"),
        ("cut", cut, "files have another size than they had when they were made"),
    ):
        if names:
            lines.append(f"{title:<10}{len(names):>13,} {meaning}:")
            lines += [f"  {name}" for name in names[:_NAMED]]
        if len(names) > _NAMED:
            lines.append(f"  … and {len(names) - _NAMED:,} more: laion6m info {shlex.quote(path)} --json names all")
    if missing or cut:
        if manifest.kind in schema.SUFFIXES:
            download = f"hf download USER/NAME --repo-type dataset --local-dir {shlex.quote(path)}"
            following.append(f"{download}   (fetches what is missing, if it came from the Hub)")
            following.append(
                f"laion6m convert SOURCE {shlex.quote(path)}   (makes what is missing, if it was made here)"
            )
        else:
            following.append("fetch these files, then give their folder: open_dataset(PATH, source=FOLDER)")
    elif manifest.kind in schema.SUFFIXES and not away:
        following.append(f"laion6m push {path} USER/NAME")
    return Info(path, manifest.kind, facts, tuple(lines), tuple(following))


def _column_kind(path: str, name: str) -> str:
    """What an added column's rows hold, or why it cannot be read."""
    try:
        column = open_any(path, name)
    except IndexMismatchError:
        return "made for another conversion"
    except (SourceError, DamagedFileError):
        return "damaged"
    return "array" if isinstance(column, Column) else str(column.column.type)


def _size_of(path: str) -> int | None:
    """Bytes; None if the file is missing."""
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _missing_tars(path: str) -> list[str]:
    """Of an index: the indexed files that are not where the index says."""
    try:
        index = Index(os.path.join(path, *schema.INDEX.split("/")), path)
    except (DamagedFileError, SourceError):
        return []  # verify reports what is wrong
    files = Handles(index.root, index.header.files)
    return [files.path(number) for number in missing_files(files)]


def _examples(path: str) -> dict[str, str]:
    """One reject of each reason; none if the table cannot be read (verify reports what is wrong)."""
    try:
        file = os.path.join(path, schema.REJECTS)
        check_claims(file, pq.read_metadata(file), os.path.getsize(file))
        with pq.ParquetFile(file) as parquet:  # pq.read_table imports pandas: 0.4 s
            rejects = parquet.read()
        if not rejects.schema.remove_metadata().equals(schema.REJECT_ROW):
            return {}
        rejects.validate(full=True)
        return examples_of([rejects])
    except (pa.ArrowException, DamagedFileError, UnicodeDecodeError, OSError, KeyError):
        return {}


def _unfinished(path: str) -> Info:
    ledger = Ledger(path)
    receipts = ledger.receipts()
    planned = _planned(ledger)
    done = sum(receipt.rows for receipt in receipts.values())
    rejected: dict[str, int] = {}
    for receipt in receipts.values():
        for reason, count in receipt.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + count
    job = ledger.job or {}
    facts = {
        "shards_done": len(receipts),
        "shards_planned": planned,
        "rows": done,
        "image_bytes": sum(receipt.image_bytes for receipt in receipts.values()),
        "rejected": rejected,
        "options": job.get("options", {}),
        "source": {"layout": job.get("source", {}).get("layout")},
    }
    of = "an unknown number of" if planned is None else f"{planned:,}"
    lines = [
        f"{path} is an unfinished conversion: {len(receipts):,} of {of} shards are done, with {done:,} rows",
        *(f"  {reason:<17}{count:>10,} rejected so far" for reason, count in sorted(rejected.items())),
    ]
    following = f"laion6m convert SOURCE {path}   (with the same options: it goes on from there)"
    return Info(path, "unfinished", facts, tuple(lines), (following,))


def _planned(ledger: Ledger) -> int | None:
    """Number of planned shards; None if the run stopped before it had a plan."""
    try:
        with pa.memory_map(ledger.path("plan.arrow")) as source:
            facts = json.loads((pa.ipc.open_stream(source).schema.metadata or {})[b"plan"])
        return len(facts["owners"])
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError):
        return None


def _source(path: str, layout: Layout) -> Info:
    raw, captions = layout.raw, layout.captions
    listings = {os.path.relpath(name, path): os.path.getsize(name) for name in layout.listing}
    entries = _entries(layout.listing)
    problems = list(filter(None, map(_problem, layout.listing)))
    sample = next((_samples(archive) for archive in raw[:1]), [])
    facts = {
        "layout": layout.kind,
        "raw": side_facts(raw),
        "captions": side_facts(captions),
        "listing": listings,
        "listed_about": entries,
        "samples": sample,
        "problems": problems,
        "unread": {each.kind: each.count for each in layout.unread},
    }
    lines = [
        f"{path} is a source in the {layout.kind} layout",
        f"raw       {side_line(raw)}",
        f"captions  {side_line(captions) if captions else 'beside the images'}",
        "listing   "
        + (
            f"{', '.join(list(listings)[:3])}, {in_words(sum(listings.values()))}, about {entries:,} entries"
            if listings
            else "none: every annotation is a listed sample"
        ),
    ]
    lines += [f"problem   {problem}" for problem in problems]
    for each in layout.unread:
        words = f"{each.count:,} × {each.kind}, such as {each.example}. {WAYS_OUT.get(each.kind, '')}".rstrip()
        lines.append(f"not read  {words}")
    if sample:
        lines.append(f"samples   {', '.join(sample)} …")
    unmatched = sorted({a.name for a in raw} ^ {a.name for a in captions}) if captions else []
    if unmatched:
        facts["unmatched"] = unmatched
        shown = ", ".join(unmatched[:5]) + (f" and {len(unmatched) - 5:,} more" if len(unmatched) > 5 else "")
        lines.append(f"note      on one side only: {shown}. Samples are joined by path, so this may be meant")
    meant = meant_instead(path) if layout.raw_root == path else ""
    if meant:
        facts["note"] = meant
        lines.append(f"note      {meant}")
    indexed = os.path.exists(os.path.join(path, schema.INDEX))
    following = [f"laion6m convert {path} OUT", f"laion6m index {path}   (no copy: reads straight from the tars)"]
    if layout.kind == "img2dataset":
        following = [f"laion6m convert {path} OUT --recaptions FILE.parquet"]
    if problems:
        following = [f"laion6m convert {path} OUT   (once that is mended)"]
    return Info(path, "source", facts, tuple(lines), (_python(path),) if indexed else tuple(following))


def side_facts(archives: tuple[Archive, ...]) -> dict[str, Any]:
    tars = [archive for archive in archives if not archive.is_folder]
    return {"tars": len(tars), "folders": len(archives) - len(tars), "bytes": sum(archive.size for archive in tars)}


def side_line(archives: tuple[Archive, ...]) -> str:
    side = side_facts(archives)
    parts = []
    if side["tars"]:
        parts.append(f"{side['tars']:,} tars, {in_words(side['bytes'])}")
    if side["folders"]:
        parts.append(f"{side['folders']:,} folders of files")
    first, last = (archive.name or "the files in it" for archive in (archives[0], archives[-1]))
    names = f"{first} … {last}" if len(archives) > 1 else first
    return f"{' and '.join(parts)}: {names}"


def _entries(listing: tuple[str, ...]) -> int | None:
    """About how many entries: counts the first MiB and scales by size. Exact if the listing is no longer."""
    total = 0
    for path in listing:
        with closing(open_bytes(path, NO_OPTIONS)) as file:
            head = file.read_at(0, _HEAD)
        count, size = head.count(b'"image"'), os.path.getsize(path)
        total += count if size <= _HEAD else round(count * size / _HEAD)
    return total if listing else None


def _problem(listing: str) -> str:
    """What is wrong with a file of the listing, in convert's words; empty if sound."""
    try:
        with closing(open_bytes(listing, NO_OPTIONS)) as file:
            check_listing(file, _LISTING)
    except SourceError as error:  # ListingError is one
        return str(error)
    return ""


def _samples(archive: Archive) -> list[str]:
    """Names of the first few files of an archive. Reads only a few headers."""
    if archive.is_folder:
        with os.scandir(archive.path) as entries:
            files = (entry.name for entry in entries if archive.name or entry.is_file())
            names = sorted(name for name, _ in zip(files, range(_SAMPLES), strict=False))
        return [f"{archive.name}/{name}" if archive.name else name for name in names]
    file = LocalFile(archive.path)
    try:
        if compression_of(file.read_at(0, 16)) is not None:
            return []
        file.size = min(file.size or 0, _HEAD)  # in a file that is no tar the walk would search to the end
        found = (item.name for item in walk_tar(file) if isinstance(item, Member))
        return [name for name, _ in zip(found, range(_SAMPLES), strict=False)]
    finally:
        file.close()


def _python(path: str) -> str:
    return f"python -c 'from builder import open_dataset; print(open_dataset({json.dumps(path)})[0])'"
