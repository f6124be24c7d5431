"""info for a URL."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import replace
from typing import Any

from builder.base.errors import SourceError
from builder.base.urls import StorageOptions
from builder.jobs.info import Info, made, side_facts, side_line
from builder.source.layout import Layout
from builder.source.layouts import recognise
from builder.store.manifest import read_manifest
from builder.store.mirror import Mirror


def info_far(url: str, options: StorageOptions) -> Info:
    """Look behind a URL: a converted folder, by copies of its small files, or a source."""
    with tempfile.TemporaryDirectory(prefix="laion6m-") as folder:
        try:
            Mirror.of(url, folder, options)
        except SourceError as error:
            try:
                layout = recognise(url, (), options)
            except SourceError:
                raise error from None
            return _source(url, layout)
        found = made(folder, read_manifest(folder))

    def renamed(text: str) -> str:
        return text.replace(folder, url)

    following = tuple(renamed(line) for line in found.next if not line.startswith("laion6m push"))
    return replace(found, path=url, lines=tuple(map(renamed, found.lines)), next=following)


def _source(url: str, layout: Layout) -> Info:
    raw, captions = layout.raw, layout.captions
    facts: dict[str, Any] = {
        "layout": layout.kind,
        "raw": side_facts(raw),
        "captions": side_facts(captions),
        "listing": [name.rpartition("/")[2] for name in layout.listing],
    }
    lines = (
        f"{url} is a source in the {layout.kind} layout",
        f"raw       {side_line(raw)}",
        f"captions  {side_line(captions) if captions else 'beside the images'}",
        f"listing   {', '.join(facts['listing']) or 'none: every annotation is a listed sample'}",
    )
    return Info(url, "source", facts, lines, (f"laion6m convert {shlex.quote(url)} OUT",))
