"""Write meta/index.arrow: where every row's bytes lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from builder.base import schema
from builder.base.arrays import number_array, numbers_of
from builder.base.errors import OutputError
from builder.store.output import ArrowSink, NewFile, whole

Parts = Callable[[], Iterable[pa.Table]]
"""Returns the index rows (INDEX_ROW and ``key_hash``), shard by shard. It can be called several times."""


def write_index(
    file: NewFile, root: str, files: Sequence[schema.IndexedFile], parts: Parts, rows: int | None = None
) -> str:
    """Write the index of all parts, in their order, into ``file``. Returns its xxh3-128, hex. ``rows``: the expected
    number of rows, if known. Raises OutputError if the parts hold another number.

    Memory: one batch of INDEX_BATCH_ROWS rows, and 28 bytes for each row of the whole index.
    """
    with whole(file):
        hashes = [np.zeros(0, dtype=np.uint64)]
        # Copied: views would keep every part memory-mapped, and a process may have 65,530 maps.
        hashes += [numbers_of(part.column("key_hash")).copy() for part in parts()]
        key_hashes = np.concatenate(hashes)
        del hashes
        if rows is not None and len(key_hashes) != rows:
            raise OutputError(f"the parts of the index hold {len(key_hashes):,} rows, the receipts say {rows:,}")
        order = np.argsort(key_hashes, kind="stable")
        header = schema.IndexHeader(schema.INDEX_VERSION, root, len(order), tuple(files))
        table = schema.INDEX_TABLE.with_metadata({schema.INDEX_METADATA_KEY: header.to_json()})
        with pa.ipc.new_file(ArrowSink(file), table) as writer:
            first = 0
            for batch in _rebatched(parts()):
                mine = order[first : first + batch.num_rows]
                columns = [*batch.columns, number_array(key_hashes[mine]), number_array(mine.astype(np.int64))]
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=table))
                first += batch.num_rows
        return file.close()


def _rebatched(parts: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
    """Yield the rows in batches of INDEX_BATCH_ROWS. The last may be shorter."""
    pending: list[pa.Table] = []
    count = 0
    for part in parts:
        rest = part.select(schema.INDEX_ROW.names)
        while count + rest.num_rows >= schema.INDEX_BATCH_ROWS:
            room = schema.INDEX_BATCH_ROWS - count
            yield _one_batch([*pending, rest.slice(0, room)])
            rest, pending, count = rest.slice(room), [], 0
        if rest.num_rows:
            pending.append(rest)
            count += rest.num_rows
    if count:
        yield _one_batch(pending)


def _one_batch(tables: list[pa.Table]) -> pa.RecordBatch:
    batches = pa.concat_tables(tables).combine_chunks().to_batches()
    if len(batches) != 1:  # taking only the first would silently lose the rows of the others
        rows = sum(table.num_rows for table in tables)
        raise OutputError(f"the captions of {rows:,} rows are more than the 2 GiB that a batch of the index can hold")
    return batches[0]
