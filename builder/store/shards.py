"""Writing a shard: its rows, the facts about the finished file, and what all its writers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from builder.base import schema
from builder.base.arrays import number_array, string_array, utf8_array
from builder.store.output import NewFile


class TextRow(NamedTuple):
    """A row without its image. ``annotation``: the JSON document in UTF-8. ``width`` and ``height``: pixels."""

    key: str
    path: str
    caption: str
    width: int
    height: int
    annotation: bytes

    @property
    def weight(self) -> int:
        """Bytes it adds to a row group, about. Twice the annotation: the annotation holds the caption too."""
        return len(self.annotation) * 2


def row_columns(rows: Sequence[TextRow], images: pa.Array | None) -> list[pa.Array]:
    """The columns of rows, in the order of schema.ROW. ``images``: a binary array of their bytes. None: ``image`` holds
    only the path."""
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
    """Facts about a finished shard. ``offsets``: file offset of each row's image, in bytes. ``digest``: xxh3-128 of the
    whole file, hex. ``check``: how the index tells that the file is still the same. ``annotation_offsets``: file offset
    of each row's annotation; None if annotations are in a column."""

    offsets: npt.NDArray[np.int64]
    size: int
    digest: str
    check: dict[str, Any]
    annotation_offsets: npt.NDArray[np.int64] | None = None


class ShardWriter:
    """Writes rows into ``file``. Each format has a subclass. Deterministic: the same rows in the same order give the
    same bytes. Not thread-safe."""

    def __init__(self, file: NewFile) -> None:
        self._file = file

    def add(self, image: memoryview, row: TextRow) -> None:
        """Append a row. ``image`` must stay valid until ``release`` or ``close``."""
        raise NotImplementedError

    def release(self) -> None:
        """Write or copy all images that are still held as views."""

    def close(self) -> WrittenShard:
        """Finish the file under its final name. The writer cannot be used afterwards."""
        raise NotImplementedError

    def abort(self) -> None:
        """Give the file up."""
        self._file.abort()

    def _finish(self, offsets: npt.ArrayLike, **check: str) -> WrittenShard:
        """Close the file. Returns the facts about it. ``check``: for the index, besides the size."""
        digest, size = self._file.close(), self._file.position
        return WrittenShard(np.array(offsets, dtype=np.int64), size, digest, {"size": size, **check})
