"""A small converted dataset for tests of choosing rows: 24 of them in 3 shards' worth of tars."""

from __future__ import annotations

import json
from pathlib import Path

from builder import convert, index
from builder.read.opening import open_dataset
from builder.read.view import Rows
from tests.sources import make_source

KINDS = ("parquet", "arrow", "index")


def make(folder: Path, kind: str = "parquet", shard: int = 500_000_000) -> Path:
    """A dataset below ``folder`` (which is made); returns where. The same rows whatever the kind."""
    source = make_source(folder / "src")
    out = folder / "out"
    if kind == "index":
        index(source.path, out, quiet=True)
    else:
        convert(source.path, out, format=kind, max_shard_size=shard, num_proc=1, quiet=True)
    return out


def keys_of(rows: Rows) -> list[str]:
    return [str(key) for key in rows.column("key").to_pylist()]


def write_lines(path: Path, entries: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def opened(folder: Path, kind: str = "parquet") -> Rows:
    return open_dataset(make(folder, kind))
