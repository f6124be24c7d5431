"""Value ranges against pyarrow's own values, over what pyarrow, datasets, DuckDB and Polars write, and over damage."""

import io
import pickle
import random
from itertools import product

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from builder.base.errors import DamagedFileError
from builder.source.files import LocalFile
from builder.store.footers import footer_check
from builder.store.pages import UnexpectedPageError, decode_levels, value_ranges
from builder.store.thrift import (
    BINARY,
    FALSE,
    I64,
    STRUCT,
    Value,
    get,
    i32,
    i64,
    list_of,
    read_struct,
    struct,
    write_struct,
)


class MemoryFile:
    """A ByteFile over bytes that counts what is read."""

    name = "shard.parquet"

    def __init__(self, data: bytes) -> None:
        self.data, self.size, self.reads = data, len(data), []

    def read_at(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert length >= 0
        self.reads.append(length)
        return self.data[offset : offset + length]

    def close(self) -> None:
        pass


def written(table: pa.Table, **options) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **({"compression": "none", "use_dictionary": False} | options))
    return out.getvalue()


def ranges_of(data: bytes, column: str):
    return value_ranges(MemoryFile(data), pq.read_metadata(io.BytesIO(data)), column)


def values_by_range(data: bytes, column: str) -> list[bytes | None] | None:
    ranges = ranges_of(data, column)
    if ranges is None:
        return None
    assert ranges.offsets.dtype == ranges.lengths.dtype == np.int64
    pairs = zip(ranges.offsets.tolist(), ranges.lengths.tolist(), strict=True)
    return [None if length == -1 else data[offset : offset + length] for offset, length in pairs]


def values_by_pyarrow(data: bytes, column: str) -> list[bytes | None]:
    array = pq.ParquetFile(io.BytesIO(data)).read().column(column.split(".")[0]).to_pylist()
    for name in column.split(".")[1:]:
        array = [value and value[name] for value in array]
    return [value.encode() if isinstance(value, str) else value for value in array]


def assert_same(data: bytes, column: str) -> None:
    assert values_by_range(data, column) == values_by_pyarrow(data, column)


def image_table(values: list[bytes | None], null_structs: bool = False, nullable=(True, True)) -> pa.Table:
    """``image: struct<bytes, path>``; with ``null_structs`` every second null is one of the struct."""
    leaf = pa.field("bytes", pa.binary(), nullable=nullable[1])
    kind = pa.struct([leaf, pa.field("path", pa.string())])
    rows = [
        None if value is None and nullable[0] and (null_structs and i % 2) else {"bytes": value, "path": f"{i}.jpg"}
        for i, value in enumerate(values)
    ]
    schema = pa.schema([pa.field("image", kind, nullable=nullable[0]), pa.field("n", pa.int32())])
    return pa.table([pa.array(rows, kind), pa.array(range(len(values)), pa.int32())], schema=schema)


RANDOM = random.Random(11)
IMAGES = [RANDOM.randbytes(RANDOM.choice([0, 1, 30, 200, 900])) for _ in range(60)] + [RANDOM.randbytes(40_000)]

NULLS = {"none": lambda i: False, "some": lambda i: i % 7 in (1, 2, 5) or 20 < i < 40, "all": lambda i: True}
PAGES = [
    {},
    {"data_page_size": 64, "write_batch_size": 1},  # a page for each value
    {"data_page_size": 2000, "write_batch_size": 7, "write_page_index": True},
    {"write_statistics": False, "write_page_checksum": True},
]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_ranges_hold_the_values_pyarrow_reads_for_every_writer_setting(version, compression, dictionary):
    walked = 0
    for pages, group, nullable, nulls in product(PAGES, [7, 1000], product([False, True], repeat=2), NULLS):
        if nulls != "none" and not any(nullable):
            continue
        values = [None if NULLS[nulls](i) else value for i, value in enumerate(IMAGES)]
        table = image_table(values, null_structs=not nullable[1] or nulls == "some", nullable=nullable)
        if not nullable[1]:  # only whole structs are null then
            kind = table.schema.field("image").type
            rows = [None if value is None else {"bytes": value, "path": ""} for value in values]
            table = table.set_column(0, table.schema.field("image"), pa.array(rows, kind))
        options = {
            "data_page_version": version,
            "compression": compression,
            "use_dictionary": dictionary,
            "row_group_size": group,
            **pages,
        }
        data = written(table, **options)
        got = values_by_range(data, "image.bytes")
        if compression == "none" and not dictionary:
            assert got is not None, (options, nullable, nulls)
        if compression != "none" and version == "1.0":
            assert got is None, (options, nullable, nulls)
        if got is not None:
            assert got == values_by_pyarrow(data, "image.bytes") == values, (options, nullable, nulls)
            walked += 1
    if compression == "none" and not dictionary:
        assert walked == len(PAGES) * 2 * (3 * 3 + 1)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_content_defined_chunks_are_followed(version):
    values = [RANDOM.randbytes(RANDOM.randrange(3000)) if i % 9 else None for i in range(400)]
    chunking = {"min_chunk_size": 4 << 10, "max_chunk_size": 16 << 10, "norm_level": 0}
    try:
        data = written(image_table(values), use_content_defined_chunking=chunking, data_page_version=version)
    except TypeError:
        pytest.skip("this pyarrow has no content-defined chunking")
    assert values_by_range(data, "image.bytes") == values


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.binary(), [b"", b"a", None] * 9),
        (pa.large_binary(), [b"", b"a", None] * 9),
        (pa.string(), ["", "ä", None] * 9),
        (pa.large_string(), ["x" * 70_000, None, "y"]),
        (pa.binary(), []),
        (pa.binary(), [None]),
    ],
)
def test_other_columns_of_byte_arrays_work_too(kind, values):
    for options in ({}, {"data_page_version": "2.0"}, {"row_group_size": 2}):
        assert_same(written(pa.table({"value": pa.array(values, kind)}), **options), "value")


@pytest.mark.parametrize("depth", [2, 3, 4, 7, 8])
def test_structs_may_be_nested_and_null_at_any_level(depth):
    kind: pa.DataType = pa.binary()
    for _ in range(depth - 1):
        kind = pa.struct([pa.field("s", kind)])
    chooser = random.Random(depth)

    def value(level: int):
        if chooser.random() < 0.15:
            return None
        return {"s": value(level - 1)} if level else chooser.randbytes(chooser.randrange(20))

    rows = [value(depth - 1) for _ in range(300)]
    table = pa.table({"top": pa.array(rows, kind)})
    for options in ({}, {"data_page_version": "2.0", "data_page_size": 100}):
        assert_same(written(table, **options), "top" + ".s" * (depth - 1))


def test_what_does_not_lie_in_the_file_as_it_is_gives_none():
    table = pa.table(
        {
            "list": pa.array([[b"a", b"b"]] * 9),
            "fixed": pa.array([b"abc"] * 9, pa.binary(3)),
            "number": pa.array(range(9)),
            "same": pa.array([b"same"] * 9),
        }
    )
    data = written(table)
    paths = [pq.read_metadata(io.BytesIO(data)).schema.column(i).path for i in range(4)]
    assert [values_by_range(data, path) for path in paths] == [None, None, None, [b"same"] * 9]
    assert values_by_range(written(table, use_dictionary=True), "same") is None
    assert values_by_range(written(table, column_encoding={"same": "DELTA_BYTE_ARRAY"}), "same") is None
    assert values_by_range(written(table, column_encoding={"same": "DELTA_LENGTH_BYTE_ARRAY"}), "same") is None


def test_a_chunk_that_left_its_dictionary_midway_gives_none():
    values = [f"{i:04}".encode() * 100 for i in range(300)]
    data = written(
        pa.table({"value": values}), use_dictionary=True, dictionary_pagesize_limit=2000, data_page_size=5000
    )
    encodings = pq.read_metadata(io.BytesIO(data)).row_group(0).column(0).encodings
    assert {"PLAIN", "RLE_DICTIONARY"} <= set(encodings)
    assert values_by_range(data, "value") is None


def test_pages_of_version_2_that_a_compressor_left_alone_are_walked():
    """Page headers of version 2 may say that a page of a compressed chunk is not."""
    data = written(pa.table({"value": IMAGES}), data_page_version="2.0", data_page_size=64, write_batch_size=1)
    footer = footer_of(data)
    for chunk in (get(group, 1, 0) for group in get(footer, 4)):
        get(chunk, 3)[4] = i32(6)  # zstd
    marked = bytearray()
    at, end = get(footer, 4, 0, 1, 0, 3, 9), 4 + get(footer, 4, 0, 1, 0, 3, 7)
    while at < end:
        header, body = read_struct(data, at)
        get(header, 8)[7] = Value(FALSE, False)
        at = body + get(header, 3)
        marked += write_struct(header) + data[body:at]
    get(footer, 4, 0, 1, 0, 3)[7] = i64(len(marked))
    data = assembled(data[:4] + bytes(marked), footer)
    assert values_by_pyarrow(data, "value") == values_by_range(data, "value") == IMAGES


PATTERNS = st.lists(st.one_of(st.none(), st.binary(max_size=40), st.binary(min_size=500, max_size=700)), max_size=60)


@settings(max_examples=150, deadline=None)
@given(
    values=PATTERNS,
    null_structs=st.booleans(),
    version=st.sampled_from(["1.0", "2.0"]),
    page=st.sampled_from([1, 100, 1 << 20]),
    batch=st.sampled_from([1, 3, 1024]),
    group=st.integers(1, 70),
    checksum=st.booleans(),
)
def test_any_values_and_nulls_are_found(values, null_structs, version, page, batch, group, checksum):
    data = written(
        image_table(values, null_structs),
        data_page_version=version,
        data_page_size=page,
        write_batch_size=batch,
        row_group_size=group,
        write_page_checksum=checksum,
    )
    assert values_by_range(data, "image.bytes") == values


# --- other writers


def test_what_datasets_writes_is_walked(tmp_path):
    from datasets import Dataset, Features, Image, Value

    values = [RANDOM.randbytes(RANDOM.randrange(100, 20_000)) for _ in range(120)] + [None]
    features = Features({"image": Image(), "caption": Value("string")})
    rows = {
        "image": [value and {"bytes": value, "path": "a.jpg"} for value in values],
        "caption": ["a caption"] * len(values),
    }
    path = str(tmp_path / "train.parquet")
    for options in ({}, {"batch_size": 50}):
        Dataset.from_dict(rows, features=features).to_parquet(path, **options)
        data = (tmp_path / "train.parquet").read_bytes()
        got = values_by_range(data, "image.bytes")
        assert got == values_by_pyarrow(data, "image.bytes")
        assert got == values


@pytest.mark.parametrize("version", ["V1", "V2"])
def test_what_duckdb_writes_is_walked(tmp_path, version):
    duckdb = pytest.importorskip("duckdb")
    values = [None if i % 11 == 3 else RANDOM.randbytes(i % 800) for i in range(5000)]
    table = image_table(values, null_structs=True)
    path = tmp_path / "duck.parquet"
    with duckdb.connect() as connection:
        connection.register("images", table)
        for options in ("", ", ROW_GROUP_SIZE 2048", ", COMPRESSION zstd"):
            settings_ = f"FORMAT parquet, COMPRESSION uncompressed, PARQUET_VERSION {version}{options}"
            if "zstd" in options:
                settings_ = f"FORMAT parquet, PARQUET_VERSION {version}{options}"
            connection.execute(f"COPY images TO '{path}' ({settings_})")
            data = path.read_bytes()
            got = values_by_range(data, "image.bytes")
            if got is not None:
                assert got == values_by_pyarrow(data, "image.bytes") == values
            if "zstd" in options or version == "V2":
                continue  # compressed, or DELTA_LENGTH_BYTE_ARRAY
            assert got is not None


@pytest.mark.parametrize("page", [None, 1000, 100_000])
def test_what_polars_writes_is_walked(tmp_path, page):
    polars = pytest.importorskip("polars")
    values = [None if i % 11 == 3 else RANDOM.randbytes(i % 800) for i in range(3000)]
    frame = polars.DataFrame({"image": [{"bytes": value, "path": "p"} for value in values], "value": values})
    path = tmp_path / "bear.parquet"
    for group in (None, 700):
        frame.write_parquet(path, compression="uncompressed", row_group_size=group, data_page_size=page)
        data = path.read_bytes()
        for column in ("image.bytes", "value"):
            assert values_by_range(data, column) == values
            assert values_by_pyarrow(data, column) == values


def test_columns_that_polars_writes_required_and_empty_frames_work(tmp_path):
    polars = pytest.importorskip("polars")
    path = tmp_path / "bear.parquet"
    polars.DataFrame({"value": []}, schema={"value": polars.Binary}).write_parquet(path, compression="uncompressed")
    assert values_by_range(path.read_bytes(), "value") == []


# --- the price


def test_big_images_are_hopped_over_and_small_ones_read_at_once():
    big = [RANDOM.randbytes(100_000) for _ in range(80)]
    data = written(pa.table({"value": big}))
    file = MemoryFile(data)
    assert value_ranges(file, pq.read_metadata(io.BytesIO(data)), "value").lengths.tolist() == [100_000] * 80
    assert sum(file.reads) < 2000
    assert len(file.reads) < 90

    data = written(pa.table({"value": [b"x" * 100] * 20_000}), data_page_size=10_000)
    file = MemoryFile(data)
    assert len(value_ranges(file, pq.read_metadata(io.BytesIO(data)), "value").lengths) == 20_000
    assert sum(file.reads) < 1.5 * len(data)
    assert len(file.reads) < 40
    assert max(file.reads) <= 1 << 20


def test_a_header_with_statistics_of_whole_values_is_read():
    value = RANDOM.randbytes(300_000)
    data = written(pa.table({"value": [value]}))
    footer = footer_of(data)
    header, body = read_struct(data, 4)
    get(header, 5)[5] = struct({5: Value(BINARY, value), 6: Value(BINARY, value)})
    chunk = write_struct(header) + data[body : body + get(header, 3)]
    get(footer, 4, 0, 1, 0, 3)[7] = i64(len(chunk))
    data = assembled(data[:4] + chunk, footer)
    assert values_by_range(data, "value") == values_by_pyarrow(data, "value") == [value]


def test_pages_of_unknown_kind_and_index_pages_are_skipped():
    data = written(pa.table({"value": [b"one", b"two"]}))
    footer = footer_of(data)
    size = get(footer, 4, 0, 1, 0, 3, 7)
    strangers = b"".join(
        write_struct({1: i32(kind), 2: i32(5), 3: i32(5), **extra}) + b"?????"
        for kind, extra in ((1, {6: struct({})}), (9, {}))
    )
    chunk = strangers + data[4 : 4 + size] + strangers
    get(footer, 4, 0, 1, 0, 3)[7] = i64(len(chunk))
    assert values_by_range(assembled(data[:4] + chunk, footer), "value") == [b"one", b"two"]


# --- levels


def encoded_levels(runs: list[tuple[bool, list[int]]], width: int) -> bytes:
    out = bytearray()
    for packed, levels in runs:
        if packed:
            bits = 0
            for i, level in enumerate(levels):
                bits |= level << (i * width)
            out += varint(len(levels) // 8 << 1 | 1) + bits.to_bytes(len(levels) // 8 * width, "little")
        else:
            out += varint(len(levels) << 1) + bytes([levels[0]])
    return bytes(out)


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


@st.composite
def level_runs(draw):
    highest = draw(st.integers(1, 9))
    level = st.integers(0, highest)
    runs = []
    for _ in range(draw(st.integers(0, 6))):
        if draw(st.booleans()):
            groups = draw(st.integers(1, 3))
            runs.append((True, draw(st.lists(level, min_size=8 * groups, max_size=8 * groups))))
        else:
            runs.append((False, [draw(level)] * draw(st.integers(1, 300))))
    return highest, runs


@given(level_runs(), st.integers(0, 7), st.binary(max_size=3))
@example((1, [(False, [1] * 70_000)]), 0, b"")
def test_levels_come_out_of_any_mixture_of_runs(drawn, padding, rest):
    highest, runs = drawn
    levels = [level for _, run in runs for level in run]
    data = encoded_levels(runs, highest.bit_length())
    count = max(len(levels) - padding, 0)
    assert decode_levels(data + rest, highest, count).tolist() == [level == highest for level in levels[:count]]
    with pytest.raises(ValueError, match=f"end after {len(levels)} of"):
        decode_levels(data, highest, len(levels) + 1)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "end after 0 of 9"),
        (b"\x12", "end after 0 of 9"),  # a run without its level
        (b"\x00\x01" * 9, "end after 0 of 9"),  # empty runs
        (b"\x01" * 9, "end after 0 of 9"),
        (b"\x03\xff", "end after 8 of 9"),
        (b"\xff" * 9, "end after 0 of 9"),
        (b"\x12\x02", "level 2, but the highest is 1"),
    ],
)
def test_levels_that_make_no_sense_are_refused(data, problem):
    with pytest.raises(ValueError, match=problem):
        decode_levels(data, 1, 9)


# --- damage


def footer_of(data: bytes):
    return read_struct(data, len(data) - 8 - int.from_bytes(data[-8:-4], "little"))[0]


def assembled(front: bytes, footer) -> bytes:
    tail = write_struct(footer)
    return front + tail + len(tail).to_bytes(4, "little") + b"PAR1"


def plain_file() -> tuple[bytes, int]:
    """Two values of 3 and 5 bytes in one page of a required column, and the offset of the first length."""
    table = pa.table([pa.array([b"one", b"three"])], schema=pa.schema([pa.field("value", pa.binary(), nullable=False)]))
    data = written(table, write_statistics=False, store_schema=False)
    return data, data.index(b"\x03\0\0\0one")


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        (0xFFFFFFFF, 5, "value 0 has 4294967295 bytes"),
        (0x80000003, 5, "value 0 has 2147483651 bytes"),
        (3, 6, "value 1 has 6 bytes; the page has 5 left"),
        (3, 4, "1 bytes after the last of 2 values"),
        (12, 5, "value 1 has no length"),
        (10, 5, "value 1 has no length"),
    ],
)
def test_lengths_that_lie_are_refused(first, second, problem):
    data, at = plain_file()
    patched = bytearray(data)
    patched[at : at + 4] = first.to_bytes(4, "little")
    patched[at + 7 : at + 11] = second.to_bytes(4, "little")
    with pytest.raises(DamagedFileError, match=problem) as caught:
        ranges_of(bytes(patched), "value")
    assert caught.value.args[:2] == ("shard.parquet", "row group 0, page at byte 4")


def padded(data: bytes, at: int, padding: bytes) -> bytes:
    """The file of ``plain_file`` with bytes behind the last value of its page."""
    footer = footer_of(data)
    header, _ = read_struct(data, 4)
    header[2] = header[3] = i32(16 + len(padding))
    chunk = write_struct(header) + data[at : at + 16] + padding
    get(footer, 4, 0, 1, 0, 3)[7] = i64(len(chunk))
    return assembled(data[:4] + chunk, footer)


@pytest.mark.parametrize("count", [1, 8, 64])
def test_zero_bytes_behind_the_last_value_are_padding(count):
    """fastparquet ends each page with eight."""
    data = padded(*plain_file(), bytes(count))
    assert values_by_range(data, "value") == [b"one", b"three"] == values_by_pyarrow(data, "value")


@pytest.mark.parametrize("padding", [b"\0\0\0\1", bytes(10_000)])
def test_other_bytes_behind_the_last_value_are_damage(padding):
    """Whoever decodes such a page all the same may get other values, so this is no page of an unknown kind."""
    with pytest.raises(DamagedFileError, match=f"{len(padding)} bytes after the last of 2 values") as caught:
        ranges_of(padded(*plain_file(), padding), "value")
    assert type(caught.value) is DamagedFileError


def rows_of(footer, rows: int) -> None:
    footer[3] = i64(rows)
    get(footer, 4, 0)[3] = i64(rows)
    get(footer, 4, 0, 1, 0, 3)[5] = i64(rows)


def many_groups(footer) -> None:
    footer[3] = i64(2000)
    footer[4] = list_of(STRUCT, get(footer, 4) * 1000)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda f: rows_of(f, 10**9), "footer: it claims 1000000000 rows; the file has"),
        (lambda f: rows_of(f, 4_000_000), "row group 0: 4000000 values, but 2 in its pages"),
        (lambda f: rows_of(f, 1), "it claims 2 values; its column chunk has 1 left"),
        (lambda f: f.update({3: i64(3)}), "footer: it claims 3 rows; its row groups have 2"),
        (lambda f: f.update({3: i64(1)}), "row group 0: more rows than the 1 of the file"),
        (lambda f: f.update({3: i64(-1)}), "footer: it claims -1 rows"),
        (lambda f: get(f, 4, 0).update({3: i64(3)}), "row group 0: 3 rows, but 2 values"),
        (lambda f: get(f, 4, 0, 1, 0, 3).update({7: i64(10**12)}), "outside the file"),
        (lambda f: get(f, 4, 0, 1, 0, 3).update({7: i64(-5)}), "outside the file"),
        (lambda f: get(f, 4, 0, 1, 0, 3).update({7: i64(20)}), "more than its column chunk has"),
        (lambda f: get(f, 4, 0, 1, 0, 3).update({9: i64(-4)}), "outside the file"),
        (lambda f: get(f, 4, 0, 1, 0, 3).update({9: i64(0)}), "outside the file"),
        (lambda f: get(f, 4, 0, 1, 0, 3).update({9: i64(6)}), "row group 0, page at byte 6"),
        (lambda f: get(f, 4, 0).update({1: list_of(STRUCT, [])}), "row group 0: 0 columns"),
        (lambda f: get(f, 4, 0, 1, 0, 3).update({3: list_of(BINARY, [b"other"])}), "column 0 is not value, as in"),
        (lambda f: get(f, 4, 0, 1, 0, 3).update({1: i32(1)}), "column 0 is not value, as in"),
        (many_groups, "chunks of value overlap"),
    ],
)
def test_footers_that_lie_are_refused(edit, problem):
    data, _ = plain_file()
    footer = footer_of(data)
    front = data[: 4 + get(footer, 4, 0, 1, 0, 3, 7)]
    edit(footer)
    with pytest.raises(DamagedFileError, match=problem):
        ranges_of(assembled(front, footer), "value")


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda h: h.pop(1), "its header gives no type"),
        (lambda h: h.pop(5), "the header of a data page is missing"),
        (lambda h: h.update({5: i32(1)}), "the header of a data page is missing"),
        (lambda h: h.update({3: i32(-1)}), "its header gives a wrong size"),
        (lambda h: h.update({3: i32(2**31 - 1)}), "more than its column chunk has"),
        (lambda h: h.update({2: i32(1)}), "two sizes"),
        (lambda h: get(h, 5).update({1: i32(2**31 - 1)}), "it claims 2147483647 values; its column chunk has"),
        (lambda h: get(h, 5).update({1: i32(1)}), "bytes after the last of 1 values"),
        (lambda h: get(h, 5).update({1: Value(BINARY, b"")}), "its header gives a wrong number of values"),
        (lambda h: h.update({9: list_of(STRUCT, [{}] * 5000)}), "more than 1000 values"),
    ],
)
def test_page_headers_that_lie_are_refused(edit, problem):
    data, at = plain_file()
    footer = footer_of(data)
    header, body = read_struct(data, 4)
    assert body == at
    edit(header)
    chunk = write_struct(header) + data[at : at + 16]
    get(footer, 4, 0, 1, 0, 3)[7] = i64(len(chunk))
    with pytest.raises(DamagedFileError, match=problem) as caught:
        ranges_of(assembled(data[:4] + chunk, footer), "value")
    assert isinstance(caught.value, UnexpectedPageError) != ("bytes after" in problem)
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize(
    ("levels", "problem"),
    [
        (b"", "end after 0 of 3"),
        (varint(3 << 1) + b"\x03", "level 3, but the highest is 2"),
        (varint(3 << 1) + b"\x02" + bytes(5000), "levels of 5002 bytes for 3 values"),
        (varint(3 << 1) + b"\x00", "bytes after the last of 0 values"),  # all null, and yet there are values
        (None, "more than the page has"),
    ],
)
def test_levels_that_lie_are_refused(version, levels, problem):
    data = written(image_table([b"one", b"two", b"six"]), data_page_version=version)
    footer = footer_of(data)
    payload = b"".join(len(v).to_bytes(4, "little") + v for v in (b"one", b"two", b"six"))
    header, _ = read_struct(data, 4)
    size = 10**6 if levels is None else len(levels)
    body = (size.to_bytes(4, "little") if version == "1.0" else b"") + (levels or b"") + payload
    header[2] = header[3] = i32(len(body))
    if version == "2.0":
        get(header, 8)[5] = i32(size)
    front = data[:4] + write_struct(header) + body
    get(footer, 4, 0, 1, 0, 3)[7] = i64(len(front) - 4)
    with pytest.raises(DamagedFileError, match=problem):
        ranges_of(assembled(front, footer), "image.bytes")


def test_a_file_cut_after_its_footer_was_read_is_refused():
    data, _ = plain_file()
    metadata = pq.read_metadata(io.BytesIO(data))
    file = MemoryFile(data)
    file.read_at = lambda offset, length: data[offset : min(offset + length, 30) if offset < 30 else offset + length]
    with pytest.raises(DamagedFileError, match="the file ends at byte 30"):
        value_ranges(file, metadata, "value")
    with pytest.raises(DamagedFileError, match="cut short"):
        value_ranges(MemoryFile(data[:30]), metadata, "value")


def test_metadata_of_another_file_is_refused():
    data, _ = plain_file()
    other = pq.read_metadata(io.BytesIO(written(pa.table({"value": [b"a"] * 3}))))
    with pytest.raises(DamagedFileError, match="it has 2 rows; it had 3 before"):
        value_ranges(MemoryFile(data), other, "value")


def test_a_footer_over_which_pyarrow_would_end_the_process_is_walked():
    """pyarrow 26 aborts in RowGroupMetaData.column where a histogram has another length than the levels."""
    data = written(image_table([b"one", None, b"three"]))
    footer = footer_of(data)
    get(footer, 4, 0, 1, 0, 3)[16] = struct({2: list_of(I64, [1, 2]), 3: list_of(I64, [1] * 9)})
    front = data[: 4 + get(footer, 4, 0, 1, 0, 3, 7)]
    assert values_by_range(assembled(front, footer), "image.bytes") == [b"one", None, b"three"]


@pytest.mark.parametrize("field", [{1: Value(BINARY, b"elsewhere.parquet")}, {8: struct({1: struct({})})}])
def test_chunks_in_another_file_and_encrypted_ones_give_none(field):
    data, _ = plain_file()
    footer = footer_of(data)
    get(footer, 4, 0, 1, 0).update(field)
    assert ranges_of(assembled(data[:-8], footer), "value") is None


def test_a_column_that_is_not_there_is_an_error():
    data, _ = plain_file()
    with pytest.raises(DamagedFileError, match=r"0 columns are called image\.bytes, not one"):
        ranges_of(data, "image.bytes")


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_flipped_and_cut_files_give_an_error_or_ranges_inside_the_file(version):
    values = [None if i % 5 == 2 else RANDOM.randbytes(i) for i in range(40)]
    options = {"data_page_version": version, "row_group_size": 15, "data_page_size": 90, "write_batch_size": 2}
    data = written(image_table(values, null_structs=True), **options)
    chunks = [pq.read_metadata(io.BytesIO(data)).row_group(i).column(0) for i in range(3)]
    chooser = random.Random(3)
    outcomes = {"error": 0, "none": 0, "ranges": 0}
    for _ in range(400):
        mutated = bytearray(data)
        chunk = chooser.choice(chunks)
        for _ in range(chooser.choice([1, 1, 2, 4])):
            at = chunk.data_page_offset + chooser.randrange(chunk.total_compressed_size)
            mutated[at] = chooser.choice([mutated[at] ^ 1 << chooser.randrange(8), 0, 0xFF, chooser.randrange(256)])
        outcomes[outcome(bytes(mutated), pq.read_metadata(io.BytesIO(data)))] += 1
    assert outcomes["error"] > 100
    assert outcomes["ranges"] > 50  # a flip inside a value is not for the walk to see


def outcome(data: bytes, metadata: pq.FileMetaData) -> str:
    try:
        ranges = value_ranges(MemoryFile(data), metadata, "image.bytes")
    except DamagedFileError:
        return "error"
    if ranges is None:
        return "none"
    assert len(ranges.offsets) == len(ranges.lengths) == metadata.num_rows
    assert ranges.lengths.min(initial=0) >= -1
    held = ranges.lengths >= 0
    assert (ranges.offsets[held] >= 4).all()
    assert (ranges.offsets[held] + ranges.lengths[held] <= len(data)).all()
    return "ranges"


# --- digest


def test_the_digest_is_of_the_footer_with_length_and_magic(tmp_path):
    data, _ = plain_file()
    path = tmp_path / "a.parquet"
    path.write_bytes(data)
    footer = data[-8 - int.from_bytes(data[-8:-4], "little") :]
    file = LocalFile(str(path))
    assert footer_check(file) == {"size": len(data), "footer": xxhash.xxh3_128(footer).hexdigest()}
    file.close()


def test_the_digest_reads_the_tail_only_and_in_pieces():
    data, _ = plain_file()
    footer = footer_of(data)
    footer[5] = list_of(STRUCT, [{1: Value(BINARY, b"key"), 2: Value(BINARY, b"v" * (3 << 20))}])
    data = assembled(data[:4] + bytes(10 << 20), footer)
    file = MemoryFile(data)
    check = footer_check(file)
    length = int.from_bytes(data[-8:-4], "little") + 8
    assert check == {"size": len(data), "footer": xxhash.xxh3_128(data[-length:]).hexdigest()}
    assert sum(file.reads) == length + 8
    assert max(file.reads) <= 1 << 20


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "0 bytes are too few"),
        (b"PAR1PAR1", "8 bytes are too few"),
        (b"PAR1" + bytes(100), "no PAR1 there"),
        (b"PAR1" + bytes(100) + b"\x08\0\0\0PARE", "encrypted"),
        (b"PAR1" + bytes(100) + b"\xff\xff\xff\xffPAR1", "a footer of 4294967295 bytes does not fit in a file of 112"),
        (b"PAR1" + bytes(3) + b"\x04\0\0\0PAR1", "a footer of 4 bytes does not fit in a file of 15"),
    ],
)
def test_what_is_no_parquet_is_named(data, problem):
    with pytest.raises(DamagedFileError, match=problem):
        footer_check(MemoryFile(data))


def test_a_stream_without_a_length_is_refused():
    data, _ = plain_file()
    stream = MemoryFile(data)
    stream.size = None
    for read in (footer_check, lambda file: value_ranges(file, pq.read_metadata(io.BytesIO(data)), "value")):
        with pytest.raises(DamagedFileError, match="cannot be known"):
            read(stream)
