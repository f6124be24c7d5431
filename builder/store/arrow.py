"""Write an Arrow IPC shard, in the form that ``datasets.load_from_disk`` memory-maps."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from builder.base import schema
from builder.base.options import GROUP_BYTES
from builder.store.output import ArrowSink, NewFile
from builder.store.shards import TextRow, WrittenShard, row_columns


class ArrowShardWriter:
    """Writes rows into ``file`` as an IPC stream. A record batch has at most GROUP_BYTES, unless one row
    is larger."""

    def __init__(self, file: NewFile) -> None:
        self._file = file
        self._offsets = [np.zeros(0, dtype=np.int64)]
        self._writer = pa.ipc.new_stream(ArrowSink(self._file), schema.SHARD_SCHEMA)
        self._images = bytearray()
        self._ends = [0]
        self._rows: list[TextRow] = []
        self._weight = 0
        self._count = 0
        self._image_bytes = 0

    def add(self, image: memoryview, row: TextRow) -> None:
        weight = len(image) + row.weight
        if self._weight + weight > GROUP_BYTES and self._rows:
            self._end_batch()
        self._ends.append(self._ends[-1] + len(image))
        self._rows.append(row)
        self._weight += weight
        self._image_bytes += len(image)
        if weight > GROUP_BYTES:
            self._end_batch(image)  # not copied: a copy would double the memory
        else:
            self._images += image

    def release(self) -> None:
        """Does nothing: ``add`` has already copied the images."""

    def close(self) -> WrittenShard:
        self._end_batch()
        self._writer.close()
        digest = self._file.close()
        check = {"size": self._file.position}
        offsets = np.concatenate(self._offsets)
        return WrittenShard(offsets, self._count, self._image_bytes, self._file.position, digest, check)

    def abort(self) -> None:
        self._file.abort()

    def _end_batch(self, images: memoryview | None = None) -> None:
        rows = self._rows
        if not rows:
            return
        offsets = np.array(self._ends, dtype=np.int32)  # a batch is far below 2 GiB: GROUP_BYTES and one image at most
        data = pa.py_buffer(self._images if images is None else images)
        image = pa.Array.from_buffers(pa.binary(), len(rows), [None, pa.py_buffer(offsets), data])
        columns = row_columns(rows, image)
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema.SHARD_SCHEMA))
        # The batch's buffers end at the current end of the file. Each is padded; they are in column order.
        behind = sum(_padded(length) for length in _buffer_lengths(columns)[_IMAGE_BUFFER:])
        self._offsets.append(offsets[:-1].astype(np.int64) + self._file.position - behind)
        self._count += len(rows)
        self._images, self._ends, self._rows, self._weight = bytearray(), [0], [], 0


_IMAGE_BUFFER = 1
"""Position of the images' bytes among a batch's buffers, without the empty validity buffers. Position 0 is the images'
offsets."""


def _buffer_lengths(columns: list[pa.Array]) -> list[int]:
    """The size in bytes of each buffer in a batch without nulls: offsets and values, in column order."""
    lengths: list[int] = []
    for column in columns:
        if pa.types.is_struct(column.type):
            lengths += _buffer_lengths(column.flatten())
        elif pa.types.is_integer(column.type):
            lengths.append(len(column) * column.type.bit_width // 8)
        else:
            ends = np.frombuffer(column.buffers()[1], dtype=np.int32, count=len(column) + 1)
            lengths += [len(ends) * 4, int(ends[-1])]
    return lengths


def _padded(length: int) -> int:
    """A buffer's size with padding. Arrow's IPC format aligns buffers to 8 bytes (format/Message.fbs); pyarrow uses
    exactly that."""
    return -(-length // 8) * 8


def image_offsets(path: str, column: str = "image") -> np.ndarray:
    """The file offset of each row's image in an IPC stream file. It is the address of the mapped buffer minus the
    address of the map."""
    found = [np.zeros(0, dtype=np.int64)]
    with pa.memory_map(path) as source:
        whole = source.read_buffer()
        for batch in pa.ipc.open_stream(whole):
            values = batch.column(column).field("bytes")
            _, ends, data = values.buffers()
            if len(values):
                starts = np.frombuffer(ends, dtype=np.int32, count=len(values) + 1)[:-1]
                found.append(starts.astype(np.int64) + (data.address - whole.address if data.size else 0))
    return np.concatenate(found)
