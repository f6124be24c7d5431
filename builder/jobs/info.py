"""info: what a folder is, what it holds and what to do next. Uses names, sizes and the manifest; reads no image."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from builder.base import schema
from builder.base.errors import SourceError
from builder.base.names import SELECTION
from builder.base.paths import StrPath, path_of, require_folder
from builder.base.urls import StorageOptions, is_url
from builder.base.words import counted, printable
from builder.conversion.report import with_storage
from builder.curate.selection import dataset_of, read_selection
from builder.source.layouts import recognise
from builder.store.ledger import Ledger
from builder.store.manifest import read_manifest
from builder.store.mirror import Mirror


@dataclass(frozen=True, slots=True)
class Info:
    """``kind``: source, parquet, arrow, index, selection, or unfinished. ``facts``: what ``--json`` prints. ``lines``:
    the same for people. ``next``: commands to type."""

    path: str
    kind: str
    facts: dict[str, Any]
    lines: tuple[str, ...]
    next: tuple[str, ...] = ()

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
    from builder.jobs.info_made import made, unfinished
    from builder.jobs.info_source import source_info

    path = path_of(path)
    if is_url(path):
        return _far(path, storage_options)
    require_folder(path)
    if os.path.exists(os.path.join(path, SELECTION)):
        return _selection(path)
    if os.path.exists(os.path.join(path, schema.MANIFEST)):
        return made(path, read_manifest(path))
    if Ledger(path).job is not None:
        return unfinished(path)
    return source_info(path, recognise(path))


def _selection(path: str) -> Info:
    """A selection: its dataset, and how many rows each step of choosing left."""
    selection = read_selection(path)
    try:
        dataset = dataset_of(path, selection)
        lines = [f"{shlex.quote(path)} is a selection of {shlex.quote(dataset)}"]
    except SourceError as error:  # info reports it
        dataset = ""
        lines = [str(error)]
    lines += [counted(selection.of, "row", width=13)] + [
        f"{step.rows:>13,} {step.condition}" for step in selection.steps
    ]
    funnel = [{"condition": step.condition, "rows": step.rows} for step in selection.steps]
    facts = {"dataset": dataset, "rows": selection.rows, "of": selection.of, "funnel": funnel}
    at = shlex.quote(path)
    following = (f"laion6m verify {at}", f"laion6m convert {at} OUT")
    return Info(path, "selection", facts, tuple(lines), following if dataset else ())


def _far(url: str, storage_options: Mapping[str, Any] | None) -> Info:
    """Look behind a URL: a converted folder, by copies of its small files, or a source."""
    from builder.jobs.info_made import made
    from builder.jobs.info_source import far_source_info

    options, more = StorageOptions.of(storage_options), with_storage(url, storage_options)
    with tempfile.TemporaryDirectory(prefix="laion6m-") as folder:
        try:
            mirror = Mirror.of(url, folder, options)
        except SourceError as error:
            try:
                layout = recognise(url, (), options)
            except SourceError:
                raise error from None
            return far_source_info(url, layout, more)
        found = made(folder, mirror.manifest(), url, storage_options)
    return replace(found, lines=tuple(line.replace(folder, url) for line in found.lines))
