"""The compact protocol against pyarrow's own structs, against bytes worked out by hand, and against hostile bytes."""

import io
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.store import thrift
from builder.store.thrift import (
    BINARY,
    DOUBLE,
    FALSE,
    I8,
    I16,
    I32,
    I64,
    LIST,
    STRUCT,
    TRUE,
    Items,
    ThriftError,
    Value,
    get,
    i16,
    i32,
    i64,
    list_of,
    need,
    read_struct,
    struct,
    write_struct,
)


def boolean(value: bool) -> Value:
    return Value(TRUE if value else FALSE, value)


def i8(value: int) -> Value:
    return Value(I8, value)


def parquet_bytes(**settings) -> bytes:
    table = pa.table(
        {
            "n": pa.array([*range(500), None], pa.int64()),
            "f": pa.array([0.5] * 501, pa.float64()),
            "t": pa.array([1] * 501, pa.timestamp("us")),
            "small": pa.array([7] * 501, pa.int8()),
            "image": [{"bytes": b"x" * 50, "path": f"{i}.jpg"} for i in range(501)],
            "tags": [["a", "b"]] * 501,
        }
    )
    out = io.BytesIO()
    pq.write_table(table, out, **settings)
    return out.getvalue()


def footer_of(data: bytes) -> bytes:
    return data[-8 - int.from_bytes(data[-8:-4], "little") : -8]


SETTINGS = [
    {},
    {"write_page_index": True, "row_group_size": 20},  # > 14 row groups: the long form of a list
    {"write_page_index": True, "data_page_version": "2.0", "compression": "zstd", "write_page_checksum": True},
    {"write_statistics": False, "use_dictionary": False, "compression": "none", "store_schema": False},
    {"sorting_columns": [pq.SortingColumn(0, descending=True)], "write_page_index": True, "data_page_size": 100},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_footer_is_written_back_byte_for_byte(settings):
    footer = footer_of(parquet_bytes(**settings))
    fields, end = read_struct(footer)
    assert end == len(footer)
    assert write_struct(fields) == footer


@pytest.mark.parametrize("settings", SETTINGS)
def test_page_headers_and_page_indexes_are_written_back_byte_for_byte(settings):
    data = parquet_bytes(**settings)
    footer, _ = read_struct(footer_of(data))
    seen = 0
    for group in get(footer, 4):
        for chunk in get(group, 1):
            offset = get(chunk, 3, 11) or get(chunk, 3, 9)
            end = offset + get(chunk, 3, 7)
            while offset < end:
                header, after = read_struct(data, offset)
                assert write_struct(header) == data[offset:after]
                offset = after + get(header, 3)
                seen += 1
            assert offset == end
            for place, size in ((4, 5), (6, 7)):  # offset index, column index
                if (start := get(chunk, place)) is not None:
                    fields, after = read_struct(memoryview(data), start)
                    assert after - start == get(chunk, size)
                    assert write_struct(fields) == data[start:after]
                    seen += 1
    assert seen >= len(get(footer, 4)) * 7


def test_a_footer_changed_in_one_field_stays_a_footer_pyarrow_reads():
    data = parquet_bytes()
    footer = footer_of(data)
    fields, _ = read_struct(footer)
    fields[6] = Value(BINARY, b"another writer")
    get(fields, 4, 0)[3] = i64(501)  # as it was
    fields[5] = list_of(STRUCT, [{1: Value(BINARY, b"key"), 2: Value(BINARY, b"value")}])
    changed = write_struct(fields)
    metadata = pq.read_metadata(
        io.BytesIO(data[: -8 - len(footer)] + changed + len(changed).to_bytes(4, "little") + b"PAR1")
    )
    assert (metadata.created_by, metadata.num_rows, metadata.metadata) == ("another writer", 501, {b"key": b"value"})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "00"),
        ({1: i32(0), 2: i32(3), 5: struct({1: i32(3), 2: i32(0)})}, "15 00 15 06 3c 15 06 15 00 00 00"),
        ({1: boolean(True), 2: boolean(False)}, "11 12 00"),
        ({16: i32(-1)}, "05 20 01 00"),  # a step of 16 no longer fits into the header
        ({2: i32(1), 1: i32(1)}, "15 02 15 02 00"),  # written in ascending order, whatever the order built in
        ({1: i64(-(2**63))}, "16 ff ff ff ff ff ff ff ff ff 01 00"),
        ({1: i8(-2), 2: i16(300)}, "13 fe 14 d8 04 00"),
        ({1: Value(BINARY, b"ab")}, "18 02 61 62 00"),
        ({1: list_of(TRUE, [True, False])}, "19 21 01 02 00"),
        ({1: list_of(I32, [0] * 15)}, "19 f5 0f" + " 00" * 15 + " 00"),
        ({1: Value(DOUBLE, 1.0)}, "17 00 00 00 00 00 00 f0 3f 00"),
    ],
)
def test_the_bytes_are_those_of_the_specification(fields, expected):
    data = bytes.fromhex(expected)
    assert write_struct(fields) == data
    assert read_struct(data) == (dict(sorted(fields.items())), len(data))


def test_get_walks_fields_and_positions():
    fields = {4: list_of(STRUCT, [{3: i64(7)}, {}]), 5: list_of(LIST, [Items(I32, [1, 2])])}
    assert get(fields, 4, 0, 3) == 7
    assert get(fields, 4, 1, 3) is None
    assert get(fields, 9, 1, 3) is None
    assert get(fields, 5, 0, 1) == 2
    assert get(fields, 4) == [{3: i64(7)}, {}]


def test_need_refuses_what_is_missing_or_of_another_type():
    fields = {4: i64(7), 5: boolean(False)}
    assert need(fields, 4, I64) == 7
    with pytest.raises(ThriftError, match="field 3 is missing"):
        need(fields, 3, I64)
    with pytest.raises(ThriftError, match="field 4 is of type 6"):
        need(fields, 4, I32)


def test_what_may_become_of_bytes_in_memory_has_a_limit():
    data = write_struct({1: list_of(STRUCT, [{}] * 99)})
    assert len(get(read_struct(data, max_values=100)[0], 1)) == 99
    with pytest.raises(ThriftError, match="more than 99 values"):
        read_struct(data, max_values=99)


def integers(bits: int) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


SCALARS = {
    I8: integers(8),
    I16: integers(16),
    I32: integers(32),
    I64: integers(64),
    DOUBLE: st.floats(allow_nan=False),
    BINARY: st.binary(max_size=200),
    TRUE: st.booleans(),
}
BARE = st.sampled_from(sorted(SCALARS)).flatmap(lambda kind: st.tuples(st.just(kind), SCALARS[kind]))
VALUES = st.recursive(
    BARE.map(lambda pair: boolean(pair[1]) if pair[0] == TRUE else Value(*pair)),
    lambda inner: st.one_of(
        st.dictionaries(st.integers(1, 40), inner, max_size=5).map(struct),
        st.lists(st.dictionaries(st.integers(1, 40), inner, max_size=3), max_size=20).map(
            lambda items: list_of(STRUCT, items)
        ),
        st.sampled_from(sorted(SCALARS)).flatmap(
            lambda kind: st.lists(SCALARS[kind], max_size=20).map(lambda items: list_of(kind, items))
        ),
    ),
    max_leaves=20,
)


@pytest.mark.slow
@given(st.dictionaries(st.integers(-(2**15), 2**15 - 1), VALUES, max_size=8), st.binary(max_size=4))
def test_any_struct_survives_writing_and_reading(fields, rest):
    data = write_struct(fields)
    assert read_struct(b"??" + data + rest, 2) == (fields, 2 + len(data))
    with pytest.raises(ThriftError):
        read_struct(data[:-1])


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "end inside"),
        (b"\x15", "end inside"),
        (b"\x15" + b"\x80" * 9, "end inside"),
        (b"\x15" + b"\x80" * 20, "more than 10 bytes"),
        (b"\x15\x80\x80\x80\x80\x10\x00", "more than 32 bits"),
        (b"\x16" + b"\xff" * 9 + b"\x7f\x00", "more than 64 bits"),
        (b"\x18\xff\xff\xff\xff\x0f\x00", "4294967295 bytes, but 1 are left"),
        (b"\x19\xf5\xff\xff\xff\xff\x0f\x00", "4294967295 items, but 1 bytes are left"),
        (b"\x1c" * 100_000, "nested more than"),
        (b"\x19" * 100_000, "nested more than"),
        (b"\x15\x00\x05\x02\x00\x00", "field 1 comes twice"),
        (b"\xf1" * 3000 + b"\x00", "32767"),
        (b"\x10\x00", "no type"),
        (b"\x1b\x00\x00", "type 11 does not occur"),  # a map
        (b"\x19\x1f\x00\x00", "type 15 does not occur"),
        (b"\x17\x00\x00", "end inside"),
    ],
)
def test_hostile_bytes_are_refused_with_what_is_wrong(data, problem):
    with pytest.raises(ThriftError, match=problem):
        read_struct(data)


def test_mutated_footers_raise_nothing_else():
    footer = footer_of(parquet_bytes(write_page_index=True))
    random_bytes = random.Random(6)
    refused = 0
    for _ in range(400):
        data = bytearray(footer)
        for _ in range(random_bytes.choice([1, 1, 3])):
            data[random_bytes.randrange(len(data))] = random_bytes.randrange(256)
        try:
            fields, end = read_struct(bytes(data))
            assert end <= len(data)
            write_struct(fields)
        except ThriftError:
            refused += 1
    assert 50 < refused < 400


@pytest.mark.parametrize("value", [i8(128), i16(-(2**15) - 1), i32(2**31), i64(2**63), Value(11, {})])
def test_a_value_its_type_cannot_hold_is_not_written(value):
    with pytest.raises(ThriftError):
        write_struct({1: value})
    with pytest.raises(ThriftError):
        write_struct({1: list_of(value.kind, [value.data])})


def test_the_error_carries_the_place():
    with pytest.raises(ThriftError) as caught:
        thrift.read_struct(b"\x15\x02\x18\x7f")
    assert caught.value.args[0] == 3
    assert str(caught.value).startswith("byte 3 of the struct: ")
