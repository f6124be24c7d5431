"""Annotations of many rows: whole documents, or one field."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from builder.base.arrays import utf8_array
from builder.engines.progress import Progress
from builder.read.groups import NoColumnError
from builder.read.reader import Reader

_AT_ONCE = 4096  # documents per Arrow array, which holds 2 GiB at most; a document is a few kB


def documents(reader: Reader, rows: Sequence[int] | npt.NDArray[np.int64]) -> pa.ChunkedArray:
    """The annotations of these rows, as strings; null if a foreign dataset has none. Raises DamagedFileError,
    IndexMismatchError."""
    chunks = [
        utf8_array([_document(reader, int(row)) for row in rows[start : start + _AT_ONCE]])
        for start in range(0, len(rows), _AT_ONCE)
    ]
    return pa.chunked_array(chunks, type=pa.string())


def _document(reader: Reader, row: int) -> bytes | None:
    batch, at = reader._index.place(row)
    try:
        return reader._annotation(row, batch, at)
    except NoColumnError:
        return None


def field_values(reader: Reader, field: str, *, quiet: bool = True) -> list[Any]:
    """One field of all annotations: a value for each row, None for a missing one. A document that is no JSON object has
    no fields. Raises DamagedFileError, IndexMismatchError."""
    values = []
    with Progress("reading annotations", len(reader), quiet=quiet) as progress:
        for row in range(len(reader)):
            document = _document(reader, row)
            try:
                content = json.loads(document) if document else None
            except (ValueError, RecursionError):
                content = None
            values.append(content.get(field) if isinstance(content, dict) else None)
            progress.update(1)
    return values
