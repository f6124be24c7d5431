"""info of a source: a folder, or behind a URL."""

from __future__ import annotations

import os
import shlex
from contextlib import closing
from typing import Any

from builder.base import schema
from builder.base.errors import SourceError
from builder.base.records import Member
from builder.base.urls import NO_OPTIONS
from builder.base.words import counted
from builder.base.words import size as in_words
from builder.conversion.report import reading
from builder.jobs.info import Info
from builder.source.compressed import compression_of
from builder.source.endings import WAYS_OUT
from builder.source.files import LocalFile
from builder.source.layout import Archive, Layout
from builder.source.layouts import meant_instead
from builder.source.listing import check_listing
from builder.source.scan import open_bytes
from builder.source.tars import walk_tar

_HEAD = 1 << 20  # bytes read: of a listing to guess its length, of a tar for names
_LISTING = 32 << 20
"""Bytes of a listing read to check it: 0.3 s. A longer listing is checked at both ends only (check_listing)."""
_SAMPLES = 3  # members shown as samples
_NO_LISTING = "none: every annotation is a listed sample"


def source_info(path: str, layout: Layout) -> Info:
    """A source on this machine."""
    raw, captions = layout.raw, layout.captions
    facts, lines = _sides(path, layout)
    listings = {os.path.relpath(name, path): os.path.getsize(name) for name in layout.listing}
    entries = _entries(layout.listing)
    problems = list(filter(None, map(_problem, layout.listing)))
    sample = _samples(raw[0]) if raw else []
    facts |= {
        "listing": listings,
        "listed_about": entries,
        "samples": sample,
        "problems": problems,
        "unread": {each.kind: each.count for each in layout.unread},
    }
    size = f"{in_words(sum(listings.values()))}, about {counted(entries or 0, 'entry', 'entries')}" if listings else ""
    lines.append(f"listing   {', '.join([*list(listings)[:3], size]) if listings else _NO_LISTING}")
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
    at = shlex.quote(path)
    following = [f"laion6m convert {at} OUT", f"laion6m index {at}   (no copy: reads straight from the tars)"]
    if layout.kind == "img2dataset":
        following = [f"laion6m convert {at} OUT --recaptions FILE.parquet"]
    if problems:
        following = [f"laion6m convert {at} OUT   (after you have mended that)"]
    if os.path.exists(os.path.join(path, schema.INDEX)):
        following = [reading(path)]
    return Info(path, "source", facts, tuple(lines), tuple(following))


def far_source_info(url: str, layout: Layout, more: str) -> Info:
    """A source behind a URL. ``more``: options for the next command."""
    facts, lines = _sides(url, layout)
    facts["listing"] = [name.rpartition("/")[2] for name in layout.listing]
    lines.append(f"listing   {', '.join(facts['listing']) or _NO_LISTING}")
    return Info(url, "source", facts, tuple(lines), (f"laion6m convert {shlex.quote(url)} OUT{more}",))


def _sides(path: str, layout: Layout) -> tuple[dict[str, Any], list[str]]:
    """What raw/ and captions/ hold: facts and lines."""
    raw, captions = layout.raw, layout.captions
    facts = {"layout": layout.kind, "raw": _side_facts(raw), "captions": _side_facts(captions)}
    lines = [
        f"{shlex.quote(path)} is a source in the {layout.kind} layout",
        f"raw       {_side_line(raw)}",
        f"captions  {_side_line(captions) if captions else 'beside the images'}",
    ]
    return facts, lines


def _side_facts(archives: tuple[Archive, ...]) -> dict[str, Any]:
    tars = [archive for archive in archives if not archive.is_folder]
    return {"tars": len(tars), "folders": len(archives) - len(tars), "bytes": sum(archive.size for archive in tars)}


def _side_line(archives: tuple[Archive, ...]) -> str:
    side = _side_facts(archives)
    parts = []
    if side["tars"]:
        parts.append(f"{counted(side['tars'], 'tar')}, {in_words(side['bytes'])}")
    if side["folders"]:
        parts.append(f"{counted(side['folders'], 'folder')} of files")
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
