"""What identifies a source: by which a run knows whether it may go on with another's work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from builder.base.storage import state_of
from builder.engines.contract import Engine, Report
from builder.engines.progress import Progress
from builder.source.layout import Archive, Layout
from builder.source.scan import folder_state


def describe_source(layout: Layout) -> dict[str, Any]:
    """What identifies a source: names, sizes and modification times of its archives and listings."""

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
    """What identifies the files of an extracted source, each of which can change by itself: the state of each folder.
    Looks at every file (some 3 us each when the system has them in memory). Raises SourceError."""
    sides = (("raw", layout.raw), ("captions", layout.captions))
    folders = [(f"{side}/{each.name}", each) for side, archives in sides for each in archives if each.is_folder]
    states: dict[str, str] = {}
    if folders:
        with Progress("looking at files", len(folders), unit="folders", quiet=quiet) as progress:
            for name, state in engine.run(_folder_state, folders, _unheard):
                states[name] = state
                progress.update(1)
    return dict(sorted(states.items()))


def _folder_state(task: tuple[str, Archive], report: Report) -> tuple[str, str]:
    name, archive = task
    return name, folder_state(archive)


def _unheard(images: int, size: int) -> None:
    """The progress is counted in folders."""
