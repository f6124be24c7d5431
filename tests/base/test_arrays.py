"""Arrow arrays made from buffers are the arrays that pyarrow makes of the same objects."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.base.arrays import (
    binary_array,
    bool_array,
    from_ipc,
    number_array,
    string_array,
    take_text,
    to_ipc,
    utf8_array,
)

texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=30)


@given(texts)
def test_strings_come_back(strings: list[str]) -> None:
    array = string_array(strings)
    array.validate(full=True)
    assert array.type == pa.string()
    assert array.to_pylist() == strings


@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=40))
def test_nulls_are_kept_apart_from_empty_strings(values: list[str | None]) -> None:
    array = utf8_array([None if value is None else value.encode() for value in values])
    array.validate(full=True)
    assert array.to_pylist() == values
    assert array.null_count == values.count(None)


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_bytes_come_back(values: list[bytes]) -> None:
    array = binary_array(values)
    array.validate(full=True)
    assert array.type == pa.binary()
    assert array.to_pylist() == values


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint64, np.uint8])
def test_numbers_keep_their_type_and_values(kind: type) -> None:
    values = np.array([0, 1, np.iinfo(kind).max, np.iinfo(kind).min], dtype=kind)
    array = number_array(values)
    array.validate(full=True)
    assert array.to_pylist() == values.tolist()
    assert array.type == pa.from_numpy_dtype(kind)
    assert number_array(values[:0]).to_pylist() == []
    assert number_array(values[::2]).to_pylist() == values[::2].tolist()  # a strided view is no buffer: copied


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        string_array(["fine", "\ud83d"])


def test_text_that_32_bit_offsets_cannot_hold_is_refused_before_it_is_put_together() -> None:
    piece = bytes(1 << 20)
    with pytest.raises(OverflowError, match="2,147,483,648 bytes"):
        binary_array([piece] * 2048)


@given(st.lists(st.lists(st.text(max_size=3), max_size=5), max_size=4), st.data())
def test_strings_are_taken_by_their_positions_in_a_row_or_not(chunks: list[list[str]], data: st.DataObject) -> None:
    column = pa.chunked_array([string_array(chunk) for chunk in chunks], type=pa.string())
    strings = [text for chunk in chunks for text in chunk]
    first = data.draw(st.integers(0, len(strings)))
    last = data.draw(st.integers(first, len(strings)))
    some = data.draw(st.lists(st.integers(0, len(strings) - 1), max_size=6)) if strings else []
    for positions in (list(range(first, last)), some, sorted(some)):
        taken = take_text(column, np.array(positions, dtype=np.int64))
        taken.validate(full=True)
        assert taken.to_pylist() == [strings[position] for position in positions]


def test_strings_in_a_row_are_not_copied() -> None:
    column = pa.chunked_array([string_array(["a", "b", "c"]), string_array(["d"])])
    taken = take_text(column, np.arange(1, 4))
    assert taken.chunk(0).buffers()[2].address == column.chunk(0).buffers()[2].address


@given(st.lists(st.booleans()))
def test_bools_come_back(values: list[bool]) -> None:
    array = bool_array(np.array(values, dtype=np.bool_))
    array.validate(full=True)
    assert array.to_pylist() == values


def test_a_slice_sent_as_ipc_leaves_the_rest_behind() -> None:
    table = pa.table({"text": string_array(["x" * 1000] * 1000)})
    data = to_ipc(table.slice(500, 2))
    assert len(data) < 4000
    assert from_ipc(data).equals(table.slice(500, 2))


def test_a_record_batch_and_an_empty_table_survive_ipc() -> None:
    batch = pa.RecordBatch.from_arrays([string_array(["a", "b"])], names=["text"])
    assert from_ipc(to_ipc(batch)).to_pylist() == batch.to_pylist()
    empty = pa.table({"text": string_array([])})
    assert from_ipc(to_ipc(empty)).schema == empty.schema


def test_pandas_is_not_imported() -> None:
    code = (
        "import sys; from builder.base.arrays import *; "
        "string_array(['a']); utf8_array([b'a', None]); binary_array([b'']);"
        "import numpy; from_ipc(to_ipc(__import__('pyarrow').table([number_array(numpy.zeros(2))], names=['n'])));"
        "sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
