"""Extract the rows of a dataset or a selection, in the file layouts of other tools.

card           raw/…, captions/…, data.json    as the source had them
imagefolder    KEY.jpg, metadata.jsonl         what datasets.load_dataset("imagefolder", data_dir=OUT) reads
captions       KEY.jpg, KEY.txt                what kohya's scripts and ai-toolkit train from
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.base import schema
from builder.base.arrays import number_array
from builder.base.ids import path_ids
from builder.base.options import Slice
from builder.engines.contract import Report
from builder.jobs.extract_files import CAPTION, IMAGE, PER_FILE, Listing, Place, Run, Tally, write
from builder.plan.pairs import IdLookup
from builder.read.columns import Values
from builder.read.sample import Sample
from builder.read.view import Rows, View

_BOM = b"\xef\xbb\xbf"
_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
"""Endings that all readers of such folders accept as images. Others are written as .jpg: readers check the bytes."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows to write. ``first``: the number of the first among all rows. ``repeated``: of each row, whether a later row
    writes its annotation."""

    place: Place
    form: str
    rows: Rows
    first: int
    repeated: npt.NDArray[np.bool_]

    @property
    def name(self) -> str:
        """The name for messages."""
        return f"rows {self.first} to {self.first + len(self.rows)}"


def extract_rows(whole: Rows, form: str, run: Run) -> Tally:
    """Write the rows of a Reader or View in the run's slice of its shards, then the listing of all rows."""
    index = whole.reader._index
    numbers = np.asarray(whole.rows, dtype=np.int64)
    if run.part != Slice():
        run.part.require(len(whole.shards), "shards")
        taken, files = run.part.of(len(whole.shards)), index.column("file")[numbers]
        numbers = numbers[(files >= taken.start) & (files < taken.stop)]
    rows = View(whole.reader, numbers)
    paths = rows.columns("annotation_path").column(0)
    last = IdLookup(*(path_ids(chunk.to_pylist()) for chunk in paths.chunks)).effective()
    sizes = np.maximum(index.column("size")[numbers], 0) + index.column("annotation_size")[numbers]
    cuts = run.cut(sizes + 2 * PER_FILE, int(sizes.sum()))
    tasks = [_Piece(run.place, form, rows[lo:hi], lo, ~last[lo:hi]) for lo, hi in cuts]
    tally, listing = Tally([0, 0, 0]), partial(_listing_files, whole, form)
    run.write(_write_piece, tasks, tally, _names_of(rows, form), listing, len(rows), int(sizes.sum()))
    return tally


def _names_of(rows: Rows, form: str) -> Iterator[str]:
    """The names of all files to write."""
    table = rows.columns("key", "path", "annotation_path")
    for row in zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True):
        yield from (name for name, _ in _files_of(form, *row))


def _files_of(form: str, key: str, path: str, document: str) -> tuple[tuple[str, int], ...]:
    """Name and kind of each file of a row. ``path``, ``document``: of the image and the annotation in the source."""
    if form == "card":
        return (f"raw/{path}", IMAGE), (f"captions/{document}", CAPTION)
    image = image_name(key, path), IMAGE
    return (image, (f"{key}.txt", CAPTION)) if form == "captions" else (image,)


def _content(sample: Sample, form: str, kind: int) -> list[bytes]:
    if kind == IMAGE:
        return [sample.image]
    if form == "captions":
        return [" ".join(sample.caption.split()).encode()]  # trainers read the first line
    document = sample.annotation.encode()
    return [_BOM, document] if sample.bom else [document]


def _listing_files(rows: Rows, form: str) -> list[Listing]:
    """The files that exist once for all rows."""
    if form == "card":
        return [("data.json", _listing_of(rows))]
    return [("metadata.jsonl", _metadata_of(rows))] if form == "imagefolder" else []


def _write_piece(task: _Piece, report: Report) -> Tally:
    """Write a piece. Raises IndexMismatchError, DamagedFileError, WriteError."""
    tally = Tally([0, 0, 0])
    with task.place.tree() as tree:
        for number, sample in enumerate(task.rows):
            for name, kind in _files_of(task.form, sample.key, sample.path, sample.annotation_path):
                if kind == IMAGE or task.form != "card" or not task.repeated[number]:
                    write(tree, name, _content(sample, task.form, kind), kind, tally)
            report(1, max(0, sample.size))
    return tally


def image_name(key: str, path: str) -> str:
    """The key with the image's ending. Keys are unique; paths of several tars may repeat."""
    ending = os.path.splitext(path)[1]
    return f"{key}{ending if ending.lower() in _ENDINGS else '.jpg'}"


def _listing_of(rows: Rows) -> Iterator[bytes]:
    """data.json of all rows, in the order of the original listing."""
    table = rows.columns("path", "annotation_path", "position")
    order = np.argsort(table.column("position").to_numpy(), kind="stable")
    yield b"["
    for first in range(0, len(order), schema.INDEX_BATCH_ROWS):
        some = table.take(number_array(order[first : first + schema.INDEX_BATCH_ROWS]))
        pairs = zip(some.column("path").to_pylist(), some.column("annotation_path").to_pylist(), strict=True)
        entries = [json.dumps({"image": image, "annotation": annotation}) for image, annotation in pairs]
        yield ((", " if first else "") + ", ".join(entries)).encode()
    yield b"]"


def _metadata_of(rows: Rows) -> Iterator[bytes]:
    """metadata.jsonl of all rows: file_name, key, caption, width, height, and the added columns of values."""
    added = [name for name in rows.added_columns() if isinstance(rows.reader._column(name), Values)]
    for first in range(0, len(rows), schema.INDEX_BATCH_ROWS):
        some = rows[first : first + schema.INDEX_BATCH_ROWS]
        table = some.columns("path", "key", "caption", "width", "height")
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
        columns |= {name: some.column(name).to_pylist() for name in added}
        paths = columns.pop("path")
        names = [image_name(key, path) for key, path in zip(columns["key"], paths, strict=True)]
        for file_name, *values in zip(names, *columns.values(), strict=True):
            row = {"file_name": file_name} | dict(zip(columns, map(_json_value, values), strict=True))
            yield json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _json_value(value: Any) -> Any:
    """The value for JSON; NaN and infinities become null, as JSON has none."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
