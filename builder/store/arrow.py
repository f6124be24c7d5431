"""Write an Arrow IPC shard, in the form that ``datasets.load_from_disk`` memory-maps."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from builder.base import schema
from builder.base.options import GROUP_BYTES
from builder.store.output import ArrowSink, NewFile
from builder.store.shards import ShardWriter, TextRow, WrittenShard, row_columns


class ArrowShardWriter(ShardWriter):
    """Writes rows as an IPC stream. A record batch has at most GROUP_BYTES, unless one row is larger. ``add`` copies
    the images."""

    def __init__(self, file: NewFile) -> None:
        super().__init__(file)
        self._offsets = [np.zeros(0, dtype=np.int64)]
        self._writer = pa.ipc.new_stream(ArrowSink(file), schema.SHARD_SCHEMA)
        self._begin_batch()

    def _begin_batch(self) -> None:
        self._images = bytearray()
        self._ends = [0]
        self._rows: list[TextRow] = []
        self._weight = 0

    def add(self, image: memoryview, row: TextRow) -> None:
        weight = len(image) + row.weight
        if self._weight + weight > GROUP_BYTES and self._rows:
            self._end_batch()
        self._ends.append(self._ends[-1] + len(image))
        self._rows.append(row)
        self._weight += weight
        if weight > GROUP_BYTES:
            self._end_batch(image)  # not copied: a copy would double the memory
        else:
            self._images += image

    def close(self) -> WrittenShard:
        self._end_batch()
        self._writer.close()
        return self._finish(np.concatenate(self._offsets))

    def _end_batch(self, images: memoryview | None = None) -> None:
        rows = self._rows
        if not rows:
            return
        offsets = np.array(self._ends, dtype=np.int32)  # a batch is far below 2 GiB: GROUP_BYTES and one image at most
        data = pa.py_buffer(self._images if images is None else images)
        image = pa.Array.from_buffers(pa.binary(), len(rows), [None, pa.py_buffer(offsets), data])
        columns = row_columns(rows, image)
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema.SHARD_SCHEMA))
        # The batch's buffers end at the current end of the file, in the order of the columns: the images' bytes, then
        # the paths, then the other columns. A batch has no nulls, so no validity buffers. Arrow's IPC format pads each
        # buffer to 8 bytes (format/Message.fbs); pyarrow uses exactly that.
        later = [each for column in (columns[0].field("path"), *columns[1:]) for each in column.buffers() if each]
        behind = sum(-(-buffer.size // 8) * 8 for buffer in (data, *later))
        self._offsets.append(offsets[:-1].astype(np.int64) + self._file.position - behind)
        self._begin_batch()


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
