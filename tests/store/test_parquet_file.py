"""Parquet files are read one row group at a time, in the calling thread."""

from __future__ import annotations

import io
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder.store.parquet_file import open_parquet

GROUPS, ROWS, VALUE = 3, 4, 100_000


class Watched(io.BytesIO):
    """Notes the size and the thread of each read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads: list[tuple[int, int]] = []

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.reads.append((len(data), threading.get_ident()))
        return data


@pytest.fixture
def file() -> Watched:
    written = io.BytesIO()
    table = pa.table({"image": [bytes([number]) * VALUE for number in range(GROUPS * ROWS)]})
    pages = {"data_page_size": 1, "write_batch_size": 1}  # one for each value
    pq.write_table(table, written, row_group_size=ROWS, compression="none", use_dictionary=False, **pages)
    return Watched(written.getvalue())


def test_only_the_row_group_that_is_iterated_is_read(file: Watched) -> None:
    with open_parquet(file) as parquet:
        footer = sum(size for size, _ in file.reads)
        next(parquet.iter_batches(1))
    assert ROWS * VALUE <= sum(size for size, _ in file.reads) - footer < (ROWS + 1) * VALUE


@pytest.mark.parametrize(
    ("buffer_size", "most"),
    [
        (0, (ROWS + 1) * VALUE),
        (4096, VALUE),
    ],
    ids=["a column chunk", "a page"],
)
def test_a_buffer_size_reads_a_page_at_a_time(buffer_size: int, most: int, file: Watched) -> None:
    with open_parquet(file, buffer_size=buffer_size) as parquet:
        footer = len(file.reads)
        list(parquet.iter_batches(1))
    assert most - VALUE < max(size for size, _ in file.reads[footer:]) <= most


def test_a_file_object_is_read_in_the_calling_thread(file: Watched) -> None:
    with open_parquet(file) as parquet:
        parquet.read_row_group(1, use_threads=False)
        list(parquet.iter_batches(1, use_threads=False))
    assert {thread for _, thread in file.reads} == {threading.get_ident()}
