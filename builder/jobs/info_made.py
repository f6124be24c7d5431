"""info of what convert or index made, whole or not."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from builder.base import schema
from builder.base.errors import DamagedFileError, IndexMismatchError, SourceError
from builder.base.paths import size_of
from builder.base.records import Reason
from builder.base.words import counted
from builder.base.words import size as in_words
from builder.conversion.finish import examples_of
from builder.conversion.report import reading, with_storage
from builder.jobs.info import Info
from builder.read.columns import Column, columns_of, open_any
from builder.read.handles import Handles
from builder.read.index import Index
from builder.read.opening import missing_files
from builder.store.ledger import Ledger
from builder.store.manifest import Manifest
from builder.store.pushed import PushRecords
from builder.store.rejects import read_rejects
from builder.verification.splits import splits_note

_NAMED = 20  # missing files named one by one

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


def made(path: str, manifest: Manifest, url: str = "", storage_options: Mapping[str, Any] | None = None) -> Info:
    """A folder with a manifest. ``url``: it mirrors the small files of a folder there."""
    home = url or path
    totals, rejected, examples = manifest.totals, manifest.totals["rejected"], _examples(path)
    shards = {name: facts["size"] for name, facts in manifest.files.items() if name.startswith(f"{schema.DATA}/")}
    sizes = {name: size_of(os.path.join(path, *name.split("/"))) for name in manifest.files}
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
        f"{shlex.quote(home)} is {what}, made by laion6m {manifest.versions.get('laion6m', '?')}",
        f"rows      {totals['rows']:>13,} of {totals['listed']:,} listed, {in_words(totals['image_bytes'])} of images",
    ]
    if shards:
        least, most = in_words(min(shards.values())), in_words(max(shards.values()))
        lines.append(f"shards    {len(shards):>13,} of {least}" + (f" to {most}" if most != least else ""))
    if columns:
        lines.append(f"columns   {', '.join(f'{name} ({kind})' for name, kind in columns.items())}")
    if formats := totals.get("formats"):
        counts = ", ".join(f"{name} {count:,}" for name, count in sorted(formats.items(), key=lambda item: -item[1]))
        lines.append(f"formats   {counts}" + (f"; {totals['animated']:,} animated" if totals.get("animated") else ""))
    lines.append(f"unlisted  {counted(totals['unlisted'], 'image', width=13)} of the source that no entry names")
    lines.append(f"rejected  {sum(rejected.values()):>13,}" + (", most frequent first:" if rejected else ""))
    for reason, count in sorted(rejected.items(), key=lambda item: (-item[1], item[0])):
        lines.append(f"  {reason:<17}{count:>10,}  e.g. {examples.get(reason, '(see meta/rejects.parquet)')}")
        lines.append(f"  {'':<29}{_FIRST_LOOK.get(Reason(reason), '') if reason in set(Reason) else ''}".rstrip())
    for name, places in sorted(manifest.source.get("damaged", {}).items())[:5]:
        lines.append(f"damaged   {name}: {places[0]}" + (f", and {len(places) - 1} more" if len(places) > 1 else ""))
    policy = (f"{name.replace('_', '-')} {_shown(value)}" for name, value in sorted(manifest.options["policy"].items()))
    lines.append(f"options   {', '.join(policy)}")
    if note:
        lines.append(f"note      {note}")
    homes = sorted(set(away.values()))
    if away:
        lines.append(f"removed   {counted(len(away), 'shard', width=13)}; {', '.join(homes)} has them")
    lines += _named(home, "missing", missing, ("file is", "files are"), "not here")
    lines += _named(home, "cut", cut, ("file has", "files have"), "another size than the manifest says")
    at = shlex.quote(home)
    open_it = reading(homes[0]) if homes else reading(home, storage_options)
    following = [f"laion6m verify {at}{with_storage(home, storage_options)}", open_it]
    sharded = manifest.kind in schema.SUFFIXES
    if (missing or cut) and sharded:
        following += [
            f"hf download USER/NAME --repo-type dataset --local-dir {at}   (fetches what is missing from the Hub)",
            f"laion6m convert SOURCE {at}   (makes what is missing again, if it was made here)",
        ]
    elif missing or cut:
        following.append("fetch these files, then give their folder: open_dataset(PATH, source=FOLDER)")
    elif sharded and not away and not url:
        following.append(f"laion6m push {at} USER/NAME")
    return Info(home, manifest.kind, facts, tuple(lines), tuple(following))


def unfinished(path: str) -> Info:
    """A folder in which a conversion was stopped."""
    ledger = Ledger(path)
    receipts = ledger.receipts().values()
    planned, rows = _planned(ledger), sum(receipt.rows for receipt in receipts)
    rejected = sum((Counter(receipt.rejected) for receipt in receipts), Counter[str]())
    job = ledger.job or {}
    facts = {
        "shards_done": len(receipts),
        "shards_planned": planned,
        "rows": rows,
        "image_bytes": sum(receipt.image_bytes for receipt in receipts),
        "rejected": dict(rejected),
        "options": job.get("options", {}),
        "source": {"layout": job.get("source", {}).get("layout")},
    }
    shards = "an unknown number of shards" if planned is None else counted(planned, "shard")
    done = f"{len(receipts):,} of {shards} done, with {counted(rows, 'row')}"
    lines = [
        f"{shlex.quote(path)} is an unfinished conversion: {done}",
        *(f"  {reason:<17}{count:>10,} rejected so far" for reason, count in sorted(rejected.items())),
    ]
    following = f"laion6m convert SOURCE {shlex.quote(path)}   (with the same options it goes on from there)"
    return Info(path, "unfinished", facts, tuple(lines), (following,))


def _named(path: str, title: str, names: list[str], what: tuple[str, str], meaning: str) -> list[str]:
    """Lines that name the first of some files."""
    if not names:
        return []
    lines = [f"{title:<10}{counted(len(names), *what, width=13)} {meaning}:", *(f"  {name}" for name in names[:_NAMED])]
    if len(names) > _NAMED:
        lines.append(f"  … and {len(names) - _NAMED:,} more: laion6m info {shlex.quote(path)} --json names all")
    return lines


def _shown(value: object) -> str:
    return "off" if value is None else str(value)


def _column_kind(path: str, name: str) -> str:
    """What an added column's rows hold, or why it cannot be read."""
    try:
        column = open_any(path, name)
    except IndexMismatchError:
        return "made for another conversion"
    except (SourceError, DamagedFileError):
        return "damaged"
    return "array" if isinstance(column, Column) else str(column.column.type)


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
        return examples_of([read_rejects(os.path.join(path, *schema.REJECTS.split("/")))])
    except (DamagedFileError, KeyError):
        return {}


def _planned(ledger: Ledger) -> int | None:
    """Number of planned shards; None if the run stopped before it had a plan."""
    try:
        with pa.memory_map(ledger.path("plan.arrow")) as source:
            facts = json.loads((pa.ipc.open_stream(source).schema.metadata or {})[b"plan"])
        return len(facts["owners"])
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError):
        return None
