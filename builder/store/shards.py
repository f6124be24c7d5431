"""A shard being written: what goes in, what is known of it afterwards, and the contract of its writers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from builder.base import schema
from builder.base.arrays import number_array, string_array, utf8_array


class TextRow(NamedTuple):
    """A row without its image. ``annotation``: the document in UTF-8. ``width`` and ``height``: pixels."""

    key: str
    path: str
    caption: str
    width: int
    height: int
    annotation: bytes

    @property
    def weight(self) -> int:
        """Bytes it adds to a row group, about: the caption stands in the annotation too."""
        return len(self.annotation) * 2


def row_columns(rows: Sequence[TextRow], images: pa.Array | None) -> list[pa.Array]:
    """The columns of rows in the order of schema.ROW. ``images``: their bytes, binary; None: ``image`` is its path
    alone."""
    parts = [string_array([row.path for row in rows])]
    if images is not None:
        parts.insert(0, images)
    return [
        pa.StructArray.from_arrays(parts, fields=list(schema.ROW.field("image").type)[-len(parts) :]),
        string_array([row.key for row in rows]),
        string_array([row.caption for row in rows]),
        number_array(np.array([row.width for row in rows], dtype=np.int32)),
        number_array(np.array([row.height for row in rows], dtype=np.int32)),
        utf8_array([row.annotation for row in rows]),
    ]


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """``offsets``: of each row's image in the file. ``digest``: xxh3-128 of the whole file, hex. ``check``: how the
    index tells that the file is still this one. ``annotation_offsets``: where each row's document lies by itself in the
    file; None where it is in a column."""

    offsets: npt.NDArray[np.int64]
    rows: int
    image_bytes: int
    size: int
    digest: str
    check: dict[str, Any]
    annotation_offsets: npt.NDArray[np.int64] | None = None


class ShardWriter(Protocol):
    """Rows in, one file out. Deterministic: the same rows in the same order give the same bytes."""

    def add(self, image: memoryview, row: TextRow) -> None:
        """Append a row. ``image`` must stay valid until ``release`` or ``close``."""

    def release(self) -> None:
        """Copy what is still held of image views."""

    def close(self) -> WrittenShard:
        """Finish the file, under its final name. Afterwards the writer is of no further use."""

    def abort(self) -> None:
        """Give the file up."""
