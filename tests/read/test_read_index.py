from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.base import schema
from builder.base.arrays import number_array, string_array
from builder.base.errors import DamagedFileError, Laion6mError, SourceError
from builder.base.options import ConvertOptions
from builder.conversion.convert import convert
from builder.conversion.index import index
from builder.read.index import Index
from builder.read.opening import open_dataset
from builder.read.reader import Reader
from builder.store.index import write_index
from builder.store.output import OutputFile
from tests.sources import make_source

ROWS = 2 * schema.INDEX_BATCH_ROWS + 1234


def part(keys: list[str], hashes: np.ndarray | None = None) -> pa.Table:
    """Index rows with these keys; all other columns follow from the row's number."""
    count = len(keys)
    numbers = np.arange(count)
    if hashes is None:
        hashes = np.array([xxhash.xxh3_64_intdigest(key.encode()) for key in keys], dtype=np.uint64)
    columns: dict[str, pa.Array] = {
        "file": number_array(np.zeros(count, np.int32)),
        "bom": pa.nulls(count, pa.bool_()).fill_null(False),
        "digest": pa.nulls(count, pa.binary(16)),
        "annotation": pa.nulls(count, pa.string()),
        "key": string_array(keys),
    }
    for field in schema.INDEX_ROW:
        if field.name not in columns:
            if pa.types.is_string(field.type):
                columns[field.name] = string_array([f"{field.name} {number}" for number in numbers])
            else:
                values = np.full(count, -1) if field.name == "annotation_file" else numbers
                columns[field.name] = number_array(values.astype(field.type.to_pandas_dtype()))
    arrays = [columns[name] for name in schema.INDEX_ROW.names]
    return pa.Table.from_arrays([*arrays, number_array(hashes)], names=[*schema.INDEX_ROW.names, "key_hash"]).cast(
        schema.INDEX_ROW.append(pa.field("key_hash", pa.uint64()))
    )


def made(folder: Path, *parts: pa.Table) -> Index:
    path = folder / "index.arrow"
    files = [schema.IndexedFile("data/0.parquet", "parquet", sum(each.num_rows for each in parts), {"size": 1})]
    write_index(OutputFile(str(path)), "", files, lambda: iter(parts))
    return Index(str(path), str(folder))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Three batches, written as four parts whose ends are not the batches'."""
    keys = [f"{number:09d}" for number in range(ROWS)]
    edges = [0, 1000, 70_000, 70_000, ROWS]
    return made(tmp_path_factory.mktemp("large"), *(part(keys[i:j]) for i, j in pairwise(edges)))


def test_every_row_is_in_its_batch(large: Index) -> None:
    assert len(large) == ROWS
    edges = [0, 1, 999, 1000, 65_535, 65_536, 69_999, 70_000, 131_071, 131_072, ROWS - 1]
    for row in [*edges, *random.Random(0).sample(range(ROWS), 200)]:
        batch, at = large.place(row)
        assert batch.text("key", at) == f"{row:09d}"
        start = next(first for first in (70_000, 1000, 0) if first <= row)
        assert batch.text("caption", at) == f"caption {row - start}"
        assert batch.offset[at] == row - start


def test_every_key_is_found_across_batches(large: Index) -> None:
    for row in [0, 65_535, 65_536, 131_072, ROWS - 1, *random.Random(1).sample(range(ROWS), 500)]:
        assert large.find(f"{row:09d}") == row
    for key in ("", "x", f"{ROWS:09d}", "00000000", "\udcff"):
        assert large.find(key) is None


def test_columns_are_whole_and_in_order(large: Index) -> None:
    assert large.column("width").tolist()[70_000:70_003] == [0, 1, 2]
    assert large.column("width").dtype == np.int32
    table = large.table(["key", "size"])
    assert table.column("key").to_pylist() == [f"{number:09d}" for number in range(ROWS)]
    assert table.schema.names == ["key", "size"]


@pytest.mark.slow
@pytest.mark.parametrize(("equal", "place"), [(2, 0), (5, 4), (70_000, 0), (70_000, None)])
def test_keys_of_one_hash_are_told_apart_by_themselves(equal: int, place: int | None, tmp_path: Path) -> None:
    """Also where they begin in one batch and end in the next: hashes of 64 bits may meet, in 10^9 rows they will."""
    count = schema.INDEX_BATCH_ROWS + 40_000
    first = schema.INDEX_BATCH_ROWS - equal // 2
    same = xxhash.xxh3_64_intdigest(b"wanted")
    rng = np.random.default_rng(0)
    hashes = np.concatenate(
        [
            np.sort(rng.integers(0, same, first, dtype=np.uint64)),
            np.full(equal, same, dtype=np.uint64),
            np.sort(rng.integers(same + 1, 2**64, count - first - equal, dtype=np.uint64)),
        ]
    )
    keys = [f"{number}" for number in range(count)]
    if place is not None:
        keys[first + place] = "wanted"
    assert made(tmp_path, part(keys, hashes)).find("wanted") == (None if place is None else first + place)


@given(keys=st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=8), unique=True, max_size=30))
@settings(max_examples=30)
def test_any_keys_are_found(keys: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    found = made(tmp_path_factory.mktemp("keys"), part(keys))
    assert [found.find(key) for key in keys] == list(range(len(keys)))
    assert found.find("x" * 9) is None


def test_an_index_of_no_rows_finds_nothing(tmp_path: Path) -> None:
    for parts in ((), (part([]),)):
        empty = made(tmp_path, *parts)
        assert (len(empty), empty.find("a"), empty.column("size").tolist()) == (0, None, [])
        assert empty.table(["key"]).num_rows == 0


# Damage


def header(**change: object) -> bytes:
    document = {"version": 1, "root": "", "rows": 3, "files": []} | change
    return json.dumps(document).encode()


def write_raw(path: Path, metadata: dict[bytes, bytes] | None, table: pa.Schema, batches: list[pa.RecordBatch]) -> None:
    with pa.ipc.new_file(str(path), table.with_metadata(metadata)) as writer:
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(metadata))


def rows(count: int) -> pa.RecordBatch:
    table = part([str(number) for number in range(count)])
    columns = [table.column(name).combine_chunks() for name in schema.INDEX_ROW.names]
    numbers = [number_array(np.arange(count).astype(kind)) for kind in (np.uint64, np.int64)]
    flat = [column.chunk(0) if isinstance(column, pa.ChunkedArray) else column for column in columns]
    return pa.RecordBatch.from_arrays([*flat, *numbers], schema=schema.INDEX_TABLE)


FILES = [{"path": "a", "kind": "tar", "rows": 0, "check": {}}]
BATCH = rows(3)


@pytest.mark.parametrize(
    ("metadata", "batches", "words"),
    [
        (header(files=FILES), [BATCH], None),
        (None, [BATCH], "not an index of this tool: the field laion6m is missing"),
        (b"{", [BATCH], "not an index of this tool"),
        (b"[]", [BATCH], "not an index of this tool"),
        (b"null", [BATCH], "not an index of this tool"),
        (header(files=[{}]), [BATCH], "not an index of this tool: the field path is missing"),
        (header(files=3), [BATCH], "not an index of this tool"),
        (header(rows="three"), [BATCH], "not an index of this tool"),
        (b'{"version": 1, "root": "", "rows": 1e999, "files": []}', [BATCH], "not an index of this tool"),
        (b"[" * 100_000, [BATCH], "not an index of this tool"),
        (header(version=2), [BATCH], "version: it is 2, this tool reads 1"),
        (header(files=FILES, rows=10**9), [BATCH], "1 for 1000000000 rows"),  # a billion rows claimed
        (header(files=FILES, rows=-3), [BATCH], "for -3 rows"),
        (header(files=FILES, rows=0), [BATCH], "1 for 0 rows"),
        (header(files=FILES), [BATCH, BATCH], "2 for 3 rows"),
        (header(files=FILES), [], "0 for 3 rows"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused_when_it_is_opened(
    metadata: bytes | None, batches: list[pa.RecordBatch], words: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "index.arrow"
    write_raw(path, {schema.INDEX_METADATA_KEY: metadata} if metadata else None, schema.INDEX_TABLE, batches)
    if words is None:
        assert Index(str(path), "").find("1") is None  # its hashes are 0, 1, 2
        return
    with pytest.raises(DamagedFileError, match=words):
        Index(str(path), "")


def test_other_columns_than_an_indexes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "index.arrow"
    table = pa.schema([("file", pa.int32())])
    write_raw(path, {schema.INDEX_METADATA_KEY: header()}, table, [])
    with pytest.raises(DamagedFileError, match="its columns are not those of an index"):
        Index(str(path), "")


def with_column(name: str, column: pa.Array) -> pa.RecordBatch:
    return BATCH.set_column(BATCH.schema.get_field_index(name), schema.INDEX_TABLE.field(name), column)


def strings(ends: list[int], data: bytes) -> pa.Array:
    """A string array with these offsets, whatever Arrow would say to them."""
    return pa.Array.from_buffers(
        pa.string(), len(ends) - 1, [None, pa.py_buffer(np.array(ends, dtype=np.int32)), pa.py_buffer(data)]
    )


def key_of_second(found: Index) -> object:
    batch, at = found.place(1)
    return batch.text("key", at)


@pytest.mark.parametrize(
    ("batch", "touch"),
    [
        (rows(2), key_of_second),  # fewer than the header says
        (rows(4), key_of_second),
        (with_column("size", pa.array([1, None, 3], pa.int64())), key_of_second),
        (with_column("size", pa.array([1, None, 3], pa.int64())), lambda found: found.column("size")),
        (with_column("file", pa.array([0, 1, 0], pa.int32())), key_of_second),  # there is one file
        (with_column("file", pa.array([0, -1, 0], pa.int32())), key_of_second),
        (with_column("annotation_file", pa.array([0, -3, 0], pa.int32())), key_of_second),
        (with_column("annotation_file", pa.array([0, 1, 0], pa.int32())), key_of_second),
        (with_column("key", strings([0, 9, 1, 3], b"012")), key_of_second),
        (with_column("key", strings([0, -5, 2, 3], b"012")), key_of_second),
        (with_column("key", strings([0, 5, 1, 3], b"012")), lambda found: found.table(["key"])),
        (with_column("caption", strings([0, 1, -2, 3], b"012")), lambda found: found.table(["caption"])),
        (with_column("key", strings([0, 1, 2, 3], b"0\xff2")), key_of_second),
        (with_column("find_row", pa.array([9, 9, 9], pa.int64())), lambda found: found.find("a")),
    ],
)
def test_a_batch_that_contradicts_itself_is_refused_when_it_is_looked_at(
    batch: pa.RecordBatch, touch: Callable[[Index], object], tmp_path: Path
) -> None:
    path = tmp_path / "index.arrow"
    if batch.num_rows == 3 and touch.__name__ == "<lambda>":
        hashed = xxhash.xxh3_64_intdigest(b"a")
        position = batch.schema.get_field_index("find_hash")
        batch = batch.set_column(position, batch.schema.field(position), pa.array([hashed] * 3, pa.uint64()))
    write_raw(path, {schema.INDEX_METADATA_KEY: header(files=FILES)}, schema.INDEX_TABLE, [batch])
    found = Index(str(path), "")
    with pytest.raises(DamagedFileError, match=r"index\.arrow"):
        touch(found)


def test_an_index_that_is_not_there_or_no_arrow_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not there"):
        Index(str(tmp_path / "index.arrow"), "")
    for content in (b"", b"x", b"ARROW1\0\0", b"ARROW1\0\0" + bytes(100) + b"ARROW1", b"PAR1" * 100):
        (tmp_path / "index.arrow").write_bytes(content)
        with pytest.raises(DamagedFileError, match="not an Arrow IPC file"):
            Index(str(tmp_path / "index.arrow"), "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SourceError, match="a directory, not a file"):
        Index(str(tmp_path / "folder"), "")


CASES = 130


def read(reader: Reader, attempt: Callable[[Callable[[], object]], None]) -> None:
    """Whatever there is to be read."""
    for row in range(0, min(len(reader), 25), 5):
        attempt(lambda row=row: reader[row].image)  # type: ignore[misc]
        attempt(lambda row=row: reader[row].annotation)  # type: ignore[misc]
        attempt(lambda row=row: repr(reader[row]))  # type: ignore[misc]
    attempt(lambda: reader[list(range(min(len(reader), 25)))])
    attempt(lambda: "00000/000000003" in reader)
    attempt(reader.widths)
    attempt(lambda: reader.columns().validate())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* lacks .* files:UserWarning")  # a damaged name is one of a missing file
@pytest.mark.parametrize("kind", ["parquet", "index", "recaptions"])
def test_a_damaged_index_gives_rows_or_errors_of_ours_and_nothing_else(kind: str, tmp_path: Path) -> None:
    """A bound on time and on what may be raised: no crash, no hang, no other exception."""
    source = make_source(tmp_path / "src", "img2dataset" if kind == "recaptions" else "card")
    options = ConvertOptions(recaptions=source.recaptions)
    (convert if kind == "parquet" else index)(str(source.path), str(tmp_path / "out"), options, num_proc=1, quiet=True)
    path = tmp_path / "out" / schema.INDEX
    whole = path.read_bytes()
    rng = random.Random(len(kind))
    outcomes = {"rows": 0, "errors": 0}

    def attempt(look: Callable[[], object]) -> None:
        try:
            look()
        except Laion6mError:
            outcomes["errors"] += 1
        else:
            outcomes["rows"] += 1

    for number in range(CASES):
        data = bytearray(whole)
        if number % 10 == 0:
            del data[rng.randrange(len(data)) :]
        else:
            for _ in range(rng.choice([1, 1, 2, 4, 16])):
                tail = rng.randrange(max(0, len(data) - 3000), len(data))  # the footer, where the sizes and offsets are
                place = rng.choice([tail, rng.randrange(len(data))])
                data[place] = rng.choice([data[place] ^ (1 << rng.randrange(8)), 0, 0xFF])
        path.write_bytes(data)
        try:
            read(open_dataset(tmp_path / "out"), attempt)
        except Laion6mError:
            outcomes["errors"] += 1
    assert outcomes["rows"] > 200
    assert outcomes["errors"] > 50
