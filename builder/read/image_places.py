"""Find where the images lie in a file of another tool, and their sizes in bytes and in pixels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.base.arrays import numbers_of
from builder.base.errors import SourceError
from builder.base.records import ImageInfo, SampleProblem
from builder.read.groups import column_parts
from builder.read.image_columns import ImageColumns
from builder.source.files import LocalFile
from builder.source.glance import glance
from builder.source.images import probe
from builder.store.pages import ValueRanges

NO_RANGES = ValueRanges(np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class Places:
    """Where the images of a file lie, as arrays of one length. ``widths`` and ``heights`` are empty if the file has
    columns for them."""

    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int32]
    heights: npt.NDArray[np.int32]


def arrow_ranges(path: str, whole: pa.Buffer, column: pa.ChunkedArray, *, nested: bool) -> ValueRanges:
    """Where each value lies in a mapped stream: the address of its buffer minus the address of the map. Raises
    SourceError if a buffer lies outside the map, as decompressed buffers do."""
    found = [NO_RANGES]
    for chunk in column.chunks:
        values = chunk.field("bytes") if nested else chunk
        if values.type not in (pa.binary(), pa.large_binary(), pa.string(), pa.large_string()):
            raise SourceError(f"{path}: images stored as {values.type} cannot be pointed at; write them as Parquet")
        _, ends, data = values.buffers()
        if not len(values):
            continue
        size = data.size if data else 0
        first = data.address - whole.address if size else 0
        if not 0 <= first <= first + size <= whole.size:
            raise SourceError(f"{path}: its buffers are compressed, so no image can be pointed at; write it as Parquet")
        width = np.int32 if values.type in (pa.binary(), pa.string()) else np.int64
        edges = np.frombuffer(ends, dtype=width)[values.offset : values.offset + len(values) + 1].astype(np.int64)
        present = numbers_of(pc.and_(chunk.is_valid(), values.is_valid()).cast(pa.uint8())).astype(np.bool_)
        found.append(ValueRanges(first + edges[:-1], np.where(present, np.diff(edges), -1)))
    return ValueRanges(
        np.concatenate([each.offsets for each in found]), np.concatenate([each.lengths for each in found])
    )


def glance_all(file: LocalFile, ranges: ValueRanges, columns: ImageColumns) -> Places:
    """The places of these images. Their sides are read from their own headers."""
    sides = []
    if not columns.sized:
        places = zip(ranges.offsets.tolist(), ranges.lengths.tolist(), strict=True)
        sides = [_size(functools.partial(glance, file, offset, length), length) for offset, length in places]
    return Places(ranges.offsets, ranges.lengths, *_sides(sides))


def decode_all(parquet: pq.ParquetFile, leaf: str, *, probe_sizes: bool) -> Places:
    """For a compressed or encoded column: decode all images for their lengths and, if asked, their sides."""
    name, field = column_parts(leaf, parquet.schema_arrow.names)
    lengths: list[int] = []
    sides: list[tuple[int, int]] = []
    for batch in parquet.iter_batches(64, columns=[leaf]):
        column = batch.column(name).field(field) if field else batch.column(name)
        for value in column:
            data = value.as_buffer().to_pybytes() if value.is_valid else b""
            lengths.append(len(data) if value.is_valid else -1)
            if probe_sizes:
                sides.append(_size(functools.partial(probe, data), lengths[-1]))
    return Places(np.arange(len(lengths), dtype=np.int64), np.array(lengths, dtype=np.int64), *_sides(sides))


def _size(look: Callable[[], ImageInfo], length: int) -> tuple[int, int]:
    """Width and height. 0, 0 for a null, or for bytes that are not an image."""
    if length < 0:
        return 0, 0
    try:
        info = look()
    except SampleProblem:
        return 0, 0
    return info.width, info.height


def _sides(sides: list[tuple[int, int]]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    both = np.array(sides, dtype=np.int32).reshape(-1, 2)
    return both[:, 0], both[:, 1]
