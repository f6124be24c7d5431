"""meta/index.arrow as it is written: batches of a fixed size, keys that can be found, rows that come back."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from builder.base import schema
from builder.base.arrays import number_array, string_array, utf8_array
from builder.base.errors import WriteError
from builder.base.schema import INDEX_BATCH_ROWS, IndexedFile
from builder.read import index as reader
from builder.read.index import Index
from builder.store.index import write_index
from builder.store.output import OutputFile

PART = pa.schema([*schema.INDEX_ROW, pa.field("key_hash", pa.uint64())])
FILES = [IndexedFile("data/a.parquet", "parquet", 5, {"size": 9, "footer": "00"}), IndexedFile("ä.tar", "tar", 0, {})]


def key_of(row: int) -> str:
    return f"{row % 97:05d}/{row:09d}"


def part(first: int, last: int, hashes: Any = None) -> pa.Table:
    """Index rows ``first`` to ``last``: every column follows from the row's number."""
    rows = np.arange(first, last, dtype=np.int64)
    keys = [key_of(row) for row in rows.tolist()]
    if hashes is None:
        hashes = np.array([xxhash.xxh3_64_intdigest(key.encode()) for key in keys], dtype=np.uint64)
    digests = [xxhash.xxh3_128_digest(key.encode()) for key in keys]
    columns = [
        number_array((rows % 2).astype(np.int32)),
        number_array(rows * 1000 + 2**33),  # beyond what 32 bits hold
        number_array(rows % 1000),
        number_array((rows % 4000).astype(np.int32)),
        number_array((rows % 3000).astype(np.int32)),
        number_array(rows[::-1]),
        number_array(np.full(len(rows), schema.IN_SHARD, dtype=np.int32)),
        number_array(rows * 0),
        number_array(rows % 500),
        number_array((rows % 3 == 0).view(np.uint8)).cast(pa.bool_()),
        utf8_array([None] * 0) if not keys else pa.array(digests, pa.binary(16)),
        string_array(keys),
        string_array([f"{key}.jpg" for key in keys]),
        string_array([f"{key}.json" for key in keys]),
        string_array([f"caption {key}" for key in keys]),
        utf8_array([None if row % 2 else b"{%d}" % row for row in rows.tolist()]),
        number_array(hashes),
    ]
    if not keys:
        columns[10] = pa.array([], pa.binary(16))
    return pa.Table.from_arrays(columns, schema=PART)


def write(tmp_path: Path, parts: list[pa.Table], root: str = "") -> Index:
    (tmp_path / "meta").mkdir(exist_ok=True)
    path = tmp_path / "meta/index.arrow"
    digest = write_index(OutputFile(str(tmp_path / "index.tmp"), str(path)), root, FILES, lambda: iter(parts))
    assert digest == xxhash.xxh3_128_hexdigest(path.read_bytes())
    assert not (tmp_path / "index.tmp").exists()
    return Index(str(path), str(tmp_path))


def check_row(index: Index, row: int, position: int) -> None:
    batch, at = index.place(row)
    key = key_of(row)
    assert (batch.file[at], batch.offset[at], batch.size[at]) == (row % 2, row * 1000 + 2**33, row % 1000)
    assert (batch.width[at], batch.height[at], batch.position[at]) == (row % 4000, row % 3000, position)
    assert (batch.annotation_file[at], batch.annotation_size[at]) == (schema.IN_SHARD, row % 500)
    assert batch.bom[at].as_py() == (row % 3 == 0)
    assert batch.digest[at].as_py() == xxhash.xxh3_128_digest(key.encode())
    texts = [batch.text(name, at) for name in ("key", "path", "annotation_path", "caption")]
    assert texts == [key, f"{key}.jpg", f"{key}.json", f"caption {key}"]
    assert batch.text("annotation", at) == ("" if row % 2 else f"{{{row}}}")


BOUNDS = [0, 3, 3, 40_000, 65_536, 65_537, 131_072, 150_001]
"""Parts that end within, at and just behind the ends of batches; one is empty."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Index:
    parts = [part(first, last) for first, last in pairwise(BOUNDS)]
    return write(tmp_path_factory.mktemp("large"), parts)


def test_all_batches_but_the_last_have_the_fixed_number_of_rows(large: Index) -> None:
    """Row i lies in batch i >> 16: nothing is looked up."""
    with pa.memory_map(large.path) as source:
        file = pa.ipc.open_file(source)
        counts = [file.get_batch(number).num_rows for number in range(file.num_record_batches)]
    assert counts == [INDEX_BATCH_ROWS, INDEX_BATCH_ROWS, 150_001 - 2 * INDEX_BATCH_ROWS]


def test_the_header_and_the_schema_come_back(large: Index) -> None:
    assert large.header == schema.IndexHeader(schema.INDEX_VERSION, "", 150_001, tuple(FILES))
    assert len(large) == 150_001
    with pa.memory_map(large.path) as source:
        assert pa.ipc.open_file(source).schema.remove_metadata() == schema.INDEX_TABLE


def test_rows_come_back_in_every_column(large: Index) -> None:
    for first, last in pairwise(BOUNDS):
        for row in {first, min(first + 1, last - 1), (first + last) // 2, last - 1} if last > first else ():
            check_row(large, row, position=first + last - 1 - row)  # positions run backwards within a part


def test_every_key_is_found(large: Index) -> None:
    assert [row for row in range(0, 150_001, 7) if large.find(key_of(row)) != row] == []
    assert large.find(key_of(150_000)) == 150_000


@pytest.mark.parametrize("key", ["", "missing", "00000/000000000.jpg", "00001/000000000", "\ud83d", "x" * 10_000])
def test_what_is_no_key_is_not_found(large: Index, key: str) -> None:
    assert large.find(key) is None


def test_the_columns_to_find_with_are_sorted_over_all_batches(large: Index) -> None:
    hashes, rows = large.column("find_hash"), large.column("find_row")
    assert hashes.dtype == np.uint64
    assert (hashes[1:] >= hashes[:-1]).all()
    assert sorted(rows.tolist()) == list(range(150_001))
    keys = large.table(["key"]).column("key")
    for place in range(0, 150_001, 5000):
        assert xxhash.xxh3_64_intdigest(keys[int(rows[place])].as_py().encode()) == hashes[place]


@pytest.mark.slow
def test_keys_whose_hashes_meet_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 64 bits they hardly do; here thousands share one, and the run of equals begins in the batch before."""

    class Coarse:
        @staticmethod
        def xxh3_64_intdigest(key: bytes) -> int:
            return int(key.split(b"/")[1]) // 40_000

    parts = [part(0, 100_000, hashes=(np.arange(100_000) // 40_000).astype(np.uint64))]
    index = write(tmp_path, parts)
    monkeypatch.setattr(reader, "xxhash", Coarse)
    for row in (0, 1, 39_999, 40_000, 65_535, 65_536, 79_999, 80_000, 99_999):
        assert index.find(key_of(row)) == row
    assert index.find("x/000050000") is None
    assert index.find("x/000500000") is None


@pytest.mark.parametrize("count", [0, 1, INDEX_BATCH_ROWS - 1, INDEX_BATCH_ROWS, INDEX_BATCH_ROWS + 1])
def test_indexes_of_every_awkward_length(tmp_path: Path, count: int) -> None:
    index = write(tmp_path, [part(0, count)])
    assert len(index) == count
    assert index.find(key_of(0)) == (0 if count else None)
    assert index.find(key_of(count)) is None
    if count:
        check_row(index, count - 1, 0)
        assert index.find(key_of(count - 1)) == count - 1
    assert len(index.column("offset")) == count
    assert index.table(["caption"]).num_rows == count


def test_no_parts_are_an_empty_index(tmp_path: Path) -> None:
    index = write(tmp_path, [])
    assert len(index) == 0
    assert index.find("x") is None


@pytest.mark.slow
def test_the_same_parts_give_the_same_bytes(tmp_path: Path) -> None:
    """Also where a part ends within a batch, and what is written is the slice of a table."""
    files = []
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        index = write(tmp_path / name, [part(0, 70_000), part(70_000, 70_001), part(70_001, 140_000)])
        files.append(Path(index.path).read_bytes())
    assert files[0] == files[1]


def test_how_rows_are_parted_does_not_change_a_row(tmp_path: Path) -> None:
    whole = part(0, 70_000)
    tables = []
    for number, edges in enumerate([[0, 70_000], [0, 1, 65_536, 70_000], list(range(0, 70_001, 10_000))]):
        (tmp_path / str(number)).mkdir()
        slices = [whole.slice(first, last - first) for first, last in pairwise(edges)]
        tables.append(write(tmp_path / str(number), slices).table(schema.INDEX_TABLE.names))
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_a_column_of_nulls_stays_one(tmp_path: Path) -> None:
    """Nobody read the images: no digests."""
    table = part(0, 10).set_column(10, schema.INDEX_ROW.field("digest"), pa.nulls(10, pa.binary(16)))
    batch, _ = write(tmp_path, [table]).place(0)
    assert batch.digest.to_pylist() == [None] * 10


def test_an_index_that_cannot_be_written_leaves_no_file_and_no_handle(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    (tmp_path / "index.tmp").symlink_to("/dev/full")
    new = OutputFile(str(tmp_path / "index.tmp"), str(tmp_path / "index.arrow"))
    with pytest.raises(WriteError, match="No space left"):
        write_index(new, "", FILES, lambda: iter([part(0, 50)]))
    assert not (tmp_path / "index.arrow").exists()
    assert os.listdir("/proc/self/fd") == before
