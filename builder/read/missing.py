"""Missing files of a dataset: from an unfinished download, or shards that were removed after a push to the Hub."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np

from builder.base.errors import DamagedFileError
from builder.base.records import Step
from builder.base.words import counted
from builder.read.handles import Handles
from builder.read.reader import Reader
from builder.read.view import Rows, View
from builder.store.pushed import PushRecords

Missing = Literal["warn", "drop", "ignore"]
"""What to do if files are missing: warn, leave their rows out, or nothing."""


def warn_of_missing(reader: Reader, stacklevel: int) -> None:
    """Warn how many of a dataset's files are missing. Lists each folder once and opens no file."""
    missing = missing_files(reader._files)
    if not missing:
        return
    folder, files = reader.folder, reader.shards
    first = os.path.join(reader._files.root, files[missing[0]].path)
    text = f"{shlex.quote(folder)} lacks {len(missing):,} of its {counted(len(files), 'file')}, "
    text += f"{shlex.quote(first)} for one. "
    marks = PushRecords(folder).marks()
    if away := [marks[files[number].path].url for number in missing if files[number].path in marks]:
        text += f"{counted(len(away), 'file was', 'files were')} removed once {away[0]} had them: "
        text += f"open_dataset({away[0]!r}) reads all rows. "
    text += "To read one of their rows is an error. "
    if len(away) < len(missing):
        text += f"laion6m info {shlex.quote(folder)} names the files to fetch. "
    warnings.warn(f'{text}To leave these rows out: open_dataset(…, missing="drop")', stacklevel=stacklevel)


def without_missing(rows: Rows) -> View:
    """The rows whose files are here and have the indexed size."""
    reader = rows.reader
    gone = missing_files(reader._files, cut=True)
    index = reader._index
    here = ~np.isin(index.column("file"), gone) & ~np.isin(index.column("annotation_file"), gone)
    numbers = np.asarray(rows.rows, dtype=np.int64)
    kept = numbers[here[numbers]]
    return View(reader, kept, (*rows.steps, Step("files are here", len(kept))))


def missing_files(files: Handles, *, cut: bool = False) -> Sequence[int]:
    """Numbers of the indexed files that are missing. With ``cut``, also of those with another size."""
    listed: dict[str, set[str]] = {}
    gone = []
    for number, file in enumerate(files.files):
        try:
            where, name = os.path.split(files.path(number))
        except DamagedFileError:
            continue  # reading a row of it raises the error
        if where not in listed:
            listed[where] = _names(where)
        size = file.check.get("size")
        if name not in listed[where] or (cut and size not in (None, _size(os.path.join(where, name)))):
            gone.append(number)
    return gone


def _names(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder or "."))
    except OSError:
        return set()


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None
