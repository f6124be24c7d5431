"""What a push sends of a selection: its row numbers, keys, captions and annotations, but no images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa

from builder.base import schema
from builder.base.names import ROWS, SELECTION
from builder.base.options import ConvertOptions
from builder.base.urls import is_url
from builder.curate.documents import documents
from builder.curate.selection import Selection, read_selection
from builder.engines.progress import Progress
from builder.hub.captions_only import FILE_ROWS, captions_facts, write_captions
from builder.hub.items import local_item
from builder.hub.parcel import Parcel
from builder.read.opening import open_dataset
from builder.read.view import Rows
from builder.store.output import make_folder, write_file
from builder.store.pushed import PushRecords

_AT_ONCE = 10_000


def selection_parcel(out: str, *, quiet: bool) -> Parcel:
    """Write the rows' keys and texts into OUT/.laion6m/selection, and list the files to send.

    They hold no path of this machine. They name the dataset by the repository that it was pushed to, if any. Raises
    SourceError, IndexMismatchError, DamagedFileError, WriteError.
    """
    selection, rows = read_selection(out), open_dataset(out)
    work = os.path.join(out, schema.WORK, "selection")
    shutil.rmtree(os.path.join(work, schema.DATA), ignore_errors=True)
    make_folder(os.path.join(work, schema.DATA))
    shards = max(1, -(-len(rows) // FILE_ROWS))
    items = {}
    with Progress("taking captions", len(rows), quiet=quiet) as progress:
        for number in range(shards):
            path = schema.ShardName(number, shards).path
            file = os.path.join(work, path)
            batches = _batches(rows[number * FILE_ROWS : (number + 1) * FILE_ROWS])
            digest = write_captions(file, batches, lambda count: progress.update(count, 0))
            items[path] = local_item(path, file, digest)
    portable = os.path.join(work, SELECTION)
    digest = write_file(portable, [_portable(selection, rows).to_json()])
    items[SELECTION] = local_item(SELECTION, portable, digest)
    items[ROWS] = local_item(ROWS, os.path.join(out, ROWS), selection.digest, checked=True)
    totals = {"rows": len(rows), "listed": len(rows), "rejected": {}, "unlisted": 0, "shards": shards, "image_bytes": 0}
    chosen = tuple(f"{step.condition} → {step.rows:,}" for step in selection.steps)
    facts = captions_facts(items, totals, ConvertOptions().to_json(), schema.versions(), (f"{selection.of:,}", *chosen))
    return Parcel(items, facts, os.path.join(work, schema.CARD))


def _batches(rows: Rows) -> Iterator[pa.RecordBatch]:
    for first in range(0, len(rows), _AT_ONCE):
        some = rows[first : first + _AT_ONCE]
        table = some.columns("key", "caption", "width", "height")
        table = table.append_column("annotation", documents(some.reader, some.rows))
        yield from table.combine_chunks().to_batches()


def _portable(selection: Selection, rows: Rows) -> Selection:
    """The same without paths of this machine: the dataset is where it was pushed to, or a URL, or unknown ("")."""
    place = selection.dataset
    if not is_url(place):
        repositories = sorted(PushRecords(rows.folder).cards(schema.CARD))
        place = f"hf://datasets/{repositories[0]}" if repositories else ""
    return replace(selection, dataset=place, beside="")
