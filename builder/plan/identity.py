"""What identifies a source. A run compares it to decide if it may continue another run's work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from builder.base.storage import state_of
from builder.base.urls import is_url
from builder.base.words import counted
from builder.engines.contract import Engine, Report
from builder.engines.progress import Progress
from builder.source.layout import Archive, Layout
from builder.source.scan import folder_state
from builder.store.ledger import describe_differences
from builder.store.seals import file_digest


def describe_source(layout: Layout) -> dict[str, Any]:
    """The source's identity: names, sizes and modification times of its archives and listings."""

    def files(paths: Sequence[str]) -> list[list[str | int]]:
        return [[os.path.basename(path), *state_of(path, layout.storage)] for path in paths]

    return {
        "layout": layout.kind,
        "raw": {archive.name: [archive.size, archive.version] for archive in layout.raw},
        "captions": {archive.name: [archive.size, archive.version] for archive in layout.captions},
        "listing": files(layout.listing),
        "recaptions": files(layout.recaptions),
    }


def describe_folders(layout: Layout, engine: Engine, *, quiet: bool = True) -> dict[str, str]:
    """The identity of an extracted source's files: the state of each folder. Each file can change alone, so every file
    is looked at (about 3 µs each, if the system has them in memory). Raises SourceError."""
    sides = (("raw", layout.raw), ("captions", layout.captions))
    folders = [(f"{side}/{each.name}", each) for side, archives in sides for each in archives if each.is_folder]
    states: dict[str, str] = {}
    if folders:
        with Progress("looking at files", len(folders), unit="folders", quiet=quiet) as progress:
            for name, state in engine.run(_folder_state, folders):
                states[name] = state
                progress.update(1)
    return dict(sorted(states.items()))


def listing_digests(layout: Layout) -> dict[str, str]:
    """xxh3-128 (hex) of the files of the listing and the recaptions; none behind URLs."""
    files = [path for path in (*layout.listing, *layout.recaptions) if not is_url(path)]
    return {os.path.basename(path): file_digest(path) for path in files}


def times_alone_differ(noted: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two jobs differ only in the modification times of source files, as after a copy that did not keep
    times."""
    before, after = (job.get("source", {}).get("files", {}) for job in (noted, now))
    some_kept = any(before.get(name) == state for name, state in after.items())
    if before != after and some_kept:
        return False  # a copy changes all times; here one file was written to
    return noted != now and _timeless(noted) == _timeless(now)


def _timeless(job: dict[str, Any]) -> dict[str, Any]:
    source = dict(job.get("source", {}))
    for side in ("raw", "captions"):
        source[side] = {name: facts[:1] for name, facts in source.get(side, {}).items()}
    for kind in ("listing", "recaptions"):
        source[kind] = [facts[:2] for facts in source.get(kind, [])]
    source["files"] = sorted(source.get("files", {}))
    return {**job, "source": source}


def differing_archives(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """How many archives and listings have other contents, in words; empty if none."""
    other = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return [f"{counted(len(other), 'file')} of the source with other contents, such as {other[0]}"] if other else []


def describe_jobs(noted: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two jobs, in words. Of a source: which files are gone, new or changed; not their times."""
    before, after = noted.get("source", {}), now.get("source", {})
    found: list[str] = []
    for side in ("raw", "captions"):
        old, new = before.get(side, {}), after.get(side, {})
        gone, added = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
        other = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
        for names, words in ((gone, "gone"), (added, "new"), (other, "changed")):
            if names:
                archives = counted(len(names), f"archive of {side}/ is", f"archives of {side}/ are")
                found.append(f"{archives} {words}, such as {names[0]}")
    for kind in ("listing", "recaptions"):
        if before.get(kind) != after.get(kind):
            names = [[each[0] for each in facts.get(kind, [])] for facts in (before, after)]
            was, is_now = (", ".join(each) or "none" for each in names)
            found.append(f"the {kind} was {was}, is {is_now}" if was != is_now else f"the {kind} was changed: {was}")
    old, new = before.get("files", {}), after.get("files", {})
    folders = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if folders:
        found.append(f"files in {counted(len(folders), 'folder')} were changed, added or removed, such as {folders[0]}")
    if before.get("layout") != after.get("layout"):
        found.append(f"the source's layout was {before.get('layout')}, is {after.get('layout')}")
    rest = [{**job, "source": None} for job in (noted, now)]
    return found + describe_differences(*rest)


def _folder_state(task: tuple[str, Archive], report: Report) -> tuple[str, str]:
    name, archive = task
    return name, folder_state(archive)
