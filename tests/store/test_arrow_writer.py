"""Arrow shards: IPC streams whose images can be read by offset."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.base import schema
from builder.base.errors import WriteError
from builder.store import arrow
from builder.store.arrow import ArrowShardWriter, image_offsets
from builder.store.output import OutputFile
from builder.store.shards import TextRow, WrittenShard

Row = tuple[bytes, TextRow]


def row(number: int, size: int = 100, text: int = 20) -> Row:
    image = (f"image {number} ".encode() * (size // 8 + 1))[:size]
    annotation = json.dumps({"caption": f"caption {number} ä図", "x": "y" * text}, ensure_ascii=False).encode()
    return image, TextRow(f"0/{number}", f"0/{number}.jpg", f"caption {number} ä図", number, number + 1, annotation)


def write(path: Path, rows: list[Row]) -> WrittenShard:
    writer = ArrowShardWriter(OutputFile(str(path)))
    buffer = bytearray()
    for image, text in rows:
        buffer[:] = image  # copied when it is added: the buffer is free at once
        with memoryview(buffer) as view:
            writer.add(view, text)
        writer.release()
    return writer.close()


def expected(rows: list[Row]) -> list[dict[str, Any]]:
    return [
        {
            "image": {"bytes": image, "path": text.path},
            "key": text.key,
            "caption": text.caption,
            "width": text.width,
            "height": text.height,
            "annotation": text.annotation.decode(),
        }
        for image, text in rows
    ]


def read(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()


def check(path: Path, rows: list[Row], written: WrittenShard) -> None:
    data = path.read_bytes()
    table = read(path)
    table.validate(full=True)
    assert table.to_pylist() == expected(rows)
    assert table.schema.equals(schema.SHARD_SCHEMA, check_metadata=True)
    assert written.offsets.dtype == np.int64
    for offset, (image, _) in zip(written.offsets.tolist(), rows, strict=True):
        assert data[offset : offset + len(image)] == image
    assert (written.size, written.check) == (len(data), {"size": len(data)})
    assert written.digest == xxhash.xxh3_128_hexdigest(data)


@pytest.mark.parametrize("bound", [10**8, 2000, 1])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_rows_come_back_and_their_images_lie_where_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: int, count: int
) -> None:
    monkeypatch.setattr(arrow, "GROUP_BYTES", bound)
    rows = [row(number, size=number * 17) for number in range(count)]
    check(tmp_path / "x.arrow", rows, write(tmp_path / "x.arrow", rows))


sizes = st.integers(0, 60) | st.integers(0, 3000)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(sizes, sizes), max_size=20), st.integers(1, 4000))
def test_rows_of_any_sizes_come_back(
    tmp_path_factory: pytest.TempPathFactory, shape: list[tuple[int, int]], bound: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.arrow"
    rows = [row(number, size, text) for number, (size, text) in enumerate(shape)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrow, "GROUP_BYTES", bound)
        written = write(path, rows)
    check(path, rows, written)


def test_batches_are_cut_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets of a batch are 32-bit: what is far from 2 GiB in Parquet has to be so here."""
    monkeypatch.setattr(arrow, "GROUP_BYTES", 2000)
    rows = [row(number, size=300) for number in range(30)]
    write(tmp_path / "x.arrow", rows)
    with pa.memory_map(str(tmp_path / "x.arrow")) as source:
        counts = [batch.num_rows for batch in pa.ipc.open_stream(source)]
    weight = 300 + rows[-1][1].weight
    assert sum(counts) == 30
    assert set(counts[:-1]) == {2000 // weight}


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [row(number, size=number * 17) for number in range(30)]
    assert write(tmp_path / "a", rows).digest == write(tmp_path / "b", rows).digest


@pytest.mark.parametrize(
    "values",
    [
        [],
        [b"", b"", b""],  # pyarrow gives such a column no data buffer
        [b"a", b"", b"bcd"],
        [b"a", None, b"bcd", None],
        [None, None],
    ],
)
def test_offsets_in_streams_of_others(tmp_path: Path, values: list[bytes | None]) -> None:
    """An image's offset is right wherever there are bytes; what others wrote may hold none."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": value, "path": "x"} for value in values], kind)
    table = pa.table({"label": pa.array(range(len(values)), pa.int64()), "picture": images})
    path = tmp_path / "x.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
        writer.write_table(table)
    offsets = image_offsets(str(path), "picture")
    data = path.read_bytes()
    assert len(offsets) == 2 * len(values)
    for offset, value in zip(offsets.tolist(), [*values, *values], strict=True):
        assert data[offset : offset + len(value or b"")] == (value or b"")


def test_an_aborted_shard_gives_its_handle_back(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    writer = ArrowShardWriter(OutputFile(str(tmp_path / "x.arrow")))
    writer.add(memoryview(b"image"), row(1)[1])
    writer.abort()
    assert os.listdir("/proc/self/fd") == before


def test_a_full_disk_is_a_write_error(tmp_path: Path) -> None:
    (tmp_path / "x.arrow").symlink_to("/dev/full")
    with pytest.raises(WriteError, match="No space left"):
        write(tmp_path / "x.arrow", [row(1)])
