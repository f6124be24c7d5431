"""How a dataset was made: its kind, and what became of the listed samples. For the page and the report."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from builder.base import schema
from builder.base.errors import DamagedFileError
from builder.base.paths import path_of, require_folder
from builder.base.urls import is_url
from builder.read.view import Rows
from builder.store.manifest import Manifest, read_manifest
from builder.view.rejects import Rejects

_KINDS = {"parquet": "Parquet", "arrow": "Arrow", "index": "index over tars"}


def facts_of(dataset: Rows) -> dict[str, Any]:
    """How a dataset was made, as a dict:

    * ``kind``: in words. "" for files of another tool.
    * ``image_bytes``: None if unknown. ``rejects``: 0 if unknown.
    * ``formats``: {format: rows}, for a converted dataset.
    * ``funnel``: [{name, rows, kind}], from the listing to these rows. ``kind`` is "kept" for rows that are left and
      "lost" for rows that were dropped.
    * ``made``: options and versions.
    """
    manifest = manifest_of(dataset)
    totals = manifest.totals if manifest else {}
    rejected = totals.get("rejected", {})
    funnel = []
    if totals:
        lost = sorted(rejected.items(), key=lambda item: (-item[1], item[0]))
        funnel = [
            {"name": "listed", "rows": totals["listed"], "kind": "kept"},
            *({"name": reason, "rows": count, "kind": "lost"} for reason, count in lost),
            {"name": "rows", "rows": totals["rows"], "kind": "kept"},
        ]
    funnel += [{"name": step.condition, "rows": step.rows, "kind": "kept"} for step in dataset.steps]
    whole = dataset is dataset.reader
    return {
        "kind": (_KINDS.get(manifest.kind, manifest.kind) if manifest else "") if whole else "selection",
        "image_bytes": totals.get("image_bytes") if whole else None,
        "formats": totals.get("formats", {}) if whole else {},
        "rejects": sum(rejected.values()),
        "funnel": funnel,
        "made": {"options": manifest.options, "versions": manifest.versions} if manifest else None,
    }


def manifest_of(dataset: Rows) -> Manifest | None:
    """The manifest in the dataset's folder. None for a URL, for files of another tool, and if it cannot be read."""
    folder = dataset.folder
    if is_url(folder) or not os.path.exists(os.path.join(folder, *schema.MANIFEST.split("/"))):
        return None
    with suppress(DamagedFileError):
        return read_manifest(folder)
    return None


def rejects_of(dataset: Rows, source: str | None = None) -> Rejects:
    """The dataset's rejects. ``source``: the folder of tars that the dataset was made from. An index over tars names
    it itself. Raises SourceError if the folder is missing."""
    sources = [path_of(source)] if source else []
    for folder in sources:
        require_folder(folder)
    if any(file.kind == "tar" for file in dataset.shards):
        sources.append(dataset.reader._index.root)
    return Rejects(None if is_url(dataset.folder) else dataset.folder, sources)
