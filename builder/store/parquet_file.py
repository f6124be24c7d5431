"""Open a Parquet file with pyarrow, so that it reads one row group at a time, in the calling thread."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq


def open_parquet(source: Any, *, buffer_size: int = 0) -> pq.ParquetFile:
    """``source``: a path, or a file object. ``buffer_size``: bytes read at a time; 0 reads whole column chunks. Raises
    what pyarrow raises.

    From pyarrow 26 on, ``pre_buffer`` is on by default. Then ``iter_batches`` first reads the wanted columns of all row
    groups: a file of 10 GB takes 10 GB of memory. And pyarrow reads file objects in threads of its own. If such a
    thread lets go of a Python object while Python exits, the process crashes ("terminate called without an active
    exception").
    """
    return pq.ParquetFile(source, buffer_size=buffer_size, pre_buffer=False)
