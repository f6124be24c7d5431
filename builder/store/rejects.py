"""Write and read meta/rejects.parquet: every listed sample that did not become a row, in the order of the listing."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builder.base.arrays import number_array, numbers_of, take_text
from builder.base.errors import DamagedFileError
from builder.base.schema import REJECT_ROW
from builder.store.footers import check_claims
from builder.store.output import ArrowSink, NewFile, whole
from builder.store.parquet_file import open_parquet

GROUP_ROWS = 1 << 20
"""Rows of a row group: the default of ``pq.write_table``. One row group is in memory twice."""

_TOGETHER = 1024
"""Tables joined at a time. Each is a memory-mapped file, and a process may have 65,530 maps."""


def write_rejects(file: NewFile, tables: Iterable[pa.Table]) -> tuple[int, str]:
    """Write the rejects of all tables (REJECT_ROW) into ``file``. Returns (size in bytes, xxh3-128 in hex)."""
    with whole(file):
        table = _together(tables)
        positions = numbers_of(table.column("position"))
        order = np.argsort(positions, kind="stable")
        with pq.ParquetWriter(pa.PythonFile(ArrowSink(file), mode="w"), REJECT_ROW, compression="zstd") as writer:
            for first in range(0, max(1, len(order)), GROUP_ROWS):
                mine = order[first : first + GROUP_ROWS]
                columns = [number_array(positions[mine])]
                columns += [take_text(column, mine) for column in table.columns[1:]]
                writer.write_table(pa.Table.from_arrays(columns, schema=REJECT_ROW), row_group_size=GROUP_ROWS)
        return file.position, file.close()


def read_rejects(path: str) -> pa.Table:
    """Read a rejects file as a table of REJECT_ROW. Raises DamagedFileError if it cannot be read as one."""
    try:
        check_claims(path, pq.read_metadata(path), os.path.getsize(path))
        with open_parquet(path) as parquet:  # pq.read_table imports pandas: 0.4 s
            table = parquet.read()
        table.validate(full=True)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DamagedFileError(path, "rejects", str(error)) from error
    if not table.schema.remove_metadata().equals(REJECT_ROW):
        raise DamagedFileError(path, "schema", "its columns are not those of the table of rejects")
    return table


def _together(tables: Iterable[pa.Table]) -> pa.Table:
    whole: list[pa.Table] = []
    pending: list[pa.Table] = []
    for table in tables:
        pending.append(table)
        if len(pending) == _TOGETHER:
            whole.append(pa.concat_tables(pending).combine_chunks())
            pending = []
    nothing = pa.Table.from_batches([], schema=REJECT_ROW)  # Schema.empty_table imports pandas
    return pa.concat_tables([nothing, *whole, *pending]).combine_chunks()
