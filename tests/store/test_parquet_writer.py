"""Shards whose image pages are written by hand are Parquet files to everybody, laid out as the Hub wants them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.base import schema
from builder.base.errors import WriteError
from builder.source.files import LocalFile
from builder.store import parquet
from builder.store.footers import footer_check
from builder.store.output import OutputFile
from builder.store.pages import value_ranges
from builder.store.parquet import ParquetShardWriter
from builder.store.shards import TextRow, WrittenShard
from builder.store.thrift import Struct, get, read_struct, write_struct

LEAVES = ["image.bytes", "image.path", "key", "caption", "width", "height", "annotation"]
Row = tuple[bytes, TextRow]


def row(number: int, size: int = 100, text: int = 20) -> Row:
    """A row that differs from all others in every column."""
    image = (f"image {number} ".encode() * (size // 8 + 1))[:size]
    annotation = json.dumps({"caption": f"caption {number} ä図", "x": "y" * text}, ensure_ascii=False).encode()
    return image, TextRow(f"0/{number}", f"0/{number}.jpg", f"caption {number} ä図", number, number + 1, annotation)


def write(path: Path, rows: list[Row], release_every: int = 3) -> WrittenShard:
    writer = ParquetShardWriter(OutputFile(str(path)))
    for number, (image, text) in enumerate(rows):
        writer.add(memoryview(image), text)
        if number % release_every == release_every - 1:
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


@pytest.fixture
def bounds(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Row groups and pages of a few rows."""

    def cut(group: int, page: int) -> None:
        monkeypatch.setattr(parquet, "GROUP_BYTES", group)
        monkeypatch.setattr(parquet, "PAGE_BYTES", page)

    return cut


def by_pyarrow(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def by_duckdb(path: Path) -> list[dict[str, Any]]:
    with duckdb.connect() as connection:
        found = connection.execute("SELECT * FROM read_parquet(?)", [str(path)])
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, values, strict=True)) for values in found.fetchall()]


def by_polars(path: Path) -> list[dict[str, Any]]:
    return pl.read_parquet(path).to_dicts()


def by_parquet_file(path: Path) -> list[dict[str, Any]]:
    """Streamed, a few rows at a time, with buffered pages."""
    with pq.ParquetFile(path, buffer_size=512, pre_buffer=False) as file:
        return [item for batch in file.iter_batches(batch_size=3) for item in batch.to_pylist()]


READERS = [by_pyarrow, by_parquet_file, by_duckdb, by_polars]


# --- everybody reads it ---


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("group", "page"),
    [(10**8, 1 << 19), (10**8, 250), (2000, 10**6), (2000, 350), (1, 1)],
    ids=["one page", "pages", "groups", "both", "a page and a group for each row"],
)
def test_every_reader_gets_the_rows(
    tmp_path: Path, bounds: Callable[[int, int], None], read: Callable[[Path], list[Any]], group: int, page: int
) -> None:
    bounds(group, page)
    rows = [row(number, size=17 * number) for number in range(40)]
    write(tmp_path / "x.parquet", rows)
    assert read(tmp_path / "x.parquet") == expected(rows)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("count", [0, 1])
def test_shards_of_no_row_and_of_one(tmp_path: Path, read: Callable[[Path], list[Any]], count: int) -> None:
    """A slice of the source may have nothing usable in it; its shard is a file all the same."""
    rows = [row(number) for number in range(count)]
    written = write(tmp_path / "x.parquet", rows)
    assert read(tmp_path / "x.parquet") == expected(rows)
    assert len(written.offsets) == count
    assert pq.read_schema(tmp_path / "x.parquet").equals(schema.SHARD_SCHEMA, check_metadata=True)


@pytest.mark.slow
@pytest.mark.parametrize("read", READERS)
def test_one_huge_row_among_small_ones(tmp_path: Path, read: Callable[[Path], list[Any]]) -> None:
    rows = [row(0), row(1, size=9_000_000), row(2), row(3, text=9_000_000), row(4)]
    write(tmp_path / "x.parquet", rows)
    assert read(tmp_path / "x.parquet") == expected(rows)


@pytest.mark.parametrize("read", READERS)
def test_columns_can_be_read_without_the_others(tmp_path: Path, read: Callable[[Path], list[Any]]) -> None:
    rows = [row(number) for number in range(20)]
    path = tmp_path / "x.parquet"
    write(path, rows)
    captions = [text.caption for _, text in rows]
    assert pq.read_table(path, columns=["caption", "height"]).column("caption").to_pylist() == captions
    assert pq.read_table(path, columns=["image.path"]).column("path")[3].as_py() == "0/3.jpg"
    assert pl.scan_parquet(path).filter(pl.col("width") == 7).collect().to_dicts() == expected(rows)[7:8]
    with duckdb.connect() as connection:
        found = connection.execute(
            "SELECT caption, octet_length(image.bytes) FROM read_parquet(?) WHERE key = '0/9'", [str(path)]
        ).fetchall()
    assert found == [(captions[9], 100)]


sizes = st.integers(0, 60) | st.integers(0, 3000)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(sizes, sizes), max_size=25), st.integers(1, 4000), st.integers(1, 2000), st.integers(1, 30))
def test_rows_of_any_sizes_come_back(
    tmp_path_factory: pytest.TempPathFactory, shape: list[tuple[int, int]], group: int, page: int, release_every: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    rows = [row(number, size, text) for number, (size, text) in enumerate(shape)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "GROUP_BYTES", group)
        patch.setattr(parquet, "PAGE_BYTES", page)
        written = write(path, rows, release_every)
    data = path.read_bytes()
    assert pq.read_table(path).to_pylist() == expected(rows)
    for offset, (image, _) in zip(written.offsets.tolist(), rows, strict=True):
        assert data[offset : offset + len(image)] == image
    check_layout(path, written, group, page)
    check_page_index(path)


# --- laid out as it should be ---


def check_layout(path: Path, written: WrittenShard, group_bytes: int, page_bytes: int) -> None:
    metadata = pq.read_metadata(path)
    assert [metadata.schema.column(i).path for i in range(metadata.num_columns)] == LEAVES
    file = LocalFile(str(path))
    ranges = value_ranges(file, metadata, "image.bytes")
    assert ranges is not None, "image bytes do not lie in the file as they are"
    assert ranges.offsets.tolist() == written.offsets.tolist()
    assert ranges.lengths.tolist() == [len(each["image"]["bytes"]) for each in pq.read_table(path).to_pylist()]
    check = footer_check(file)
    file.close()
    assert written.check == check
    assert written.size == check["size"] == path.stat().st_size
    assert written.digest == xxhash.xxh3_128_hexdigest(path.read_bytes())
    assert metadata.num_rows == len(written.offsets)
    position = 4
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(i) for i in range(metadata.num_columns)]
        image = columns[0]
        assert (image.compression, image.statistics, image.has_dictionary_page) == ("UNCOMPRESSED", None, False)
        assert set(image.encodings) == {"PLAIN", "RLE"}
        assert all(column.compression == "ZSTD" for column in columns if column is not image)
        assert {column.path_in_schema for column in columns if column.is_stats_set} == {"key", "width", "height"}
        assert not any(column.has_dictionary_page for column in columns)
        # chunks stand one behind the other, images first, and the group's totals are theirs
        starts = sorted((column.data_page_offset, column.total_compressed_size) for column in columns)
        assert starts[0][0] == image.data_page_offset == position
        for start, length in starts:
            assert start == position
            position += length
        assert group.total_byte_size == sum(column.total_uncompressed_size for column in columns)


def weights(rows: list[Row]) -> list[int]:
    return [len(image) + text.weight for image, text in rows]


def test_groups_are_cut_by_bytes_and_never_before_they_must(tmp_path: Path, bounds: Callable[[int, int], None]) -> None:
    bounds(3000, 500)
    rows = [row(number, size=number * 37 % 900) for number in range(60)]
    write(tmp_path / "x.parquet", rows)
    metadata = pq.read_metadata(tmp_path / "x.parquet")
    counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    first = 0
    for count in counts:
        inside = weights(rows)[first : first + count]
        assert count == 1 or sum(inside) <= 3000
        after = weights(rows)[first + count : first + count + 1]
        assert not after or sum(inside) + after[0] > 3000  # the next row did not fit
        first += count
    assert first == 60


def test_a_group_s_bytes_hold_its_text_too(tmp_path: Path, bounds: Callable[[int, int], None]) -> None:
    """The Hub's viewer counts all of a row group. Captions of 10 MB must not pile up beside small images."""
    bounds(10_000, 500)
    rows = [row(number, size=10, text=2000) for number in range(40)]
    write(tmp_path / "x.parquet", rows)
    metadata = pq.read_metadata(tmp_path / "x.parquet")
    assert max(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)) <= 10_000


def page_locations(data: bytes, chunk: Struct) -> list[tuple[int, int, int]]:
    """Offset, size with header, first row of each page, from the offset index."""
    index, _ = read_struct(data[get(chunk, 4) : get(chunk, 4) + get(chunk, 5)])
    return [(get(page, 1), get(page, 2), get(page, 3)) for page in get(index, 1)]


def footer_of(data: bytes) -> Struct:
    return read_struct(data[-8 - int.from_bytes(data[-8:-4], "little") : -8])[0]


def check_page_index(path: Path) -> None:
    """Every page of every column stands where the offset index says, with the rows that it says."""
    data = path.read_bytes()
    footer = footer_of(data)
    for group in get(footer, 4):
        rows = get(group, 3)
        for chunk in get(group, 1):
            pages = page_locations(data, chunk)
            metadata = get(chunk, 3)
            at, row_number = get(metadata, 9), 0
            for offset, size, first in pages:
                header, used = read_struct(data[offset : offset + size])
                assert (offset, first) == (at, row_number)
                assert get(header, 3) + used == size
                at += size
                row_number += get(header, 5, 1)
            assert at == get(metadata, 9) + get(metadata, 7)
            assert row_number == rows


def test_image_pages_end_at_the_row_with_which_they_are_full(
    tmp_path: Path, bounds: Callable[[int, int], None]
) -> None:
    bounds(10**8, 1000)
    sizes = [300, 300, 300, 300, 2000, 10, 10, 995, 996, 997]
    write(tmp_path / "x.parquet", [row(number, size=size) for number, size in enumerate(sizes)])
    data = (tmp_path / "x.parquet").read_bytes()
    pages = page_locations(data, get(footer_of(data), 4, 0, 1, 0))
    # four bytes of length with each: 4 × 304, 2004, 2 × 14 + 999, 1000, 1001
    assert [first for _, _, first in pages] == [0, 4, 5, 8, 9]
    assert pq.read_metadata(tmp_path / "x.parquet").row_group(0).column(0).has_offset_index


@pytest.mark.slow
def test_the_page_index_of_text_is_pyarrow_s_moved_to_its_place(
    tmp_path: Path, bounds: Callable[[int, int], None]
) -> None:
    """The same text columns written by pyarrow alone: the same pages, rows and bounds, at other offsets."""
    bounds(10**8, 1 << 19)
    rows = [row(number, size=10, text=1200) for number in range(6000)]
    write(tmp_path / "x.parquet", rows)
    data = (tmp_path / "x.parquet").read_bytes()
    columns = {
        "key": [text.key for _, text in rows],
        "caption": [text.caption for _, text in rows],
        "width": pa.array([text.width for _, text in rows], pa.int32()),
        "annotation": [text.annotation.decode() for _, text in rows],
    }
    sink = io.BytesIO()
    pq.write_table(
        pa.table(columns), sink, compression="zstd", use_dictionary=False, write_statistics=["key", "width"],
        write_page_index=True,
    )  # fmt: skip
    own = sink.getvalue()
    theirs = {get(chunk, 3, 3)[-1]: chunk for chunk in get(footer_of(own), 4, 0, 1)}
    compared = []
    for chunk in get(footer_of(data), 4, 0, 1):
        name = get(chunk, 3, 3)[-1]
        if name in theirs:
            ours, other = page_locations(data, chunk), page_locations(own, theirs[name])
            shift = ours[0][0] - other[0][0]
            assert ours == [(offset + shift, size, first) for offset, size, first in other]
            assert (get(chunk, 6) is None) == (get(theirs[name], 6) is None)
            if get(chunk, 6) is not None:  # the column index: bounds of each page
                assert column_index(data, chunk) == column_index(own, theirs[name])
            compared.append((name, len(ours)))
    assert dict(compared)[b"annotation"] > 5  # long columns have many pages
    assert len(compared) == 4


def column_index(data: bytes, chunk: Struct) -> bytes:
    fields, _ = read_struct(data[get(chunk, 6) : get(chunk, 6) + get(chunk, 7)])
    return write_struct(fields)


def test_pyarrow_sees_the_page_index(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", [row(number) for number in range(9)])
    group = pq.read_metadata(tmp_path / "x.parquet").row_group(0)
    assert all(group.column(i).has_offset_index for i in range(len(LEAVES)))
    indexed = {LEAVES[i] for i in range(len(LEAVES)) if group.column(i).has_column_index}
    assert indexed == {"key", "width", "height"}
    assert (group.column(4).statistics.min, group.column(4).statistics.max) == (0, 8)


def test_page_indexes_stand_between_the_pages_and_the_footer(
    tmp_path: Path, bounds: Callable[[int, int], None]
) -> None:
    bounds(2000, 300)
    write(tmp_path / "x.parquet", [row(number) for number in range(50)])
    data = (tmp_path / "x.parquet").read_bytes()
    groups = get(footer_of(data), 4)
    end = max(get(chunk, 3, 9) + get(chunk, 3, 7) for group in groups for chunk in get(group, 1))
    spans = [(get(chunk, n), get(chunk, n + 1)) for n in (6, 4) for group in groups for chunk in get(group, 1)]
    for start, length in (span for span in spans if span[0] is not None):
        assert start == end
        end += length
    assert end == len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def test_the_footer_reads_and_writes_to_the_same_bytes(tmp_path: Path, bounds: Callable[[int, int], None]) -> None:
    """So every field is in order and of a type that our reader knows."""
    bounds(1500, 300)
    write(tmp_path / "x.parquet", [row(number) for number in range(30)])
    data = (tmp_path / "x.parquet").read_bytes()
    footer = data[-8 - int.from_bytes(data[-8:-4], "little") : -8]
    fields, used = read_struct(footer)
    assert used == len(footer)
    assert write_struct(fields) == footer
    assert [get(group, 7) for group in get(fields, 4)] == list(range(len(get(fields, 4))))
    assert data[:4] == data[-4:] == b"PAR1"


def test_nothing_of_a_deprecated_offset_points_elsewhere(tmp_path: Path) -> None:
    """ColumnChunk.file_offset: 0, or where the chunk's metadata is; moved chunks must not keep a stale one."""
    write(tmp_path / "x.parquet", [row(number) for number in range(9)])
    group = pq.read_metadata(tmp_path / "x.parquet").row_group(0)
    assert {group.column(i).file_offset for i in range(len(LEAVES))} == {0}


def test_the_schema_is_that_of_the_shards_with_features_for_datasets(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", [row(1)])
    found = pq.read_schema(tmp_path / "x.parquet")
    assert found.equals(schema.SHARD_SCHEMA, check_metadata=True)
    key_value = pq.read_metadata(tmp_path / "x.parquet").metadata
    assert json.loads(key_value[b"huggingface"])["info"]["features"]["image"] == {"_type": "Image"}


# --- the same rows, the same bytes ---


def test_the_same_rows_give_the_same_bytes_however_they_come(
    tmp_path: Path, bounds: Callable[[int, int], None]
) -> None:
    bounds(3000, 500)
    rows = [row(number, size=number * 41 % 700) for number in range(50)]
    digests = {write(tmp_path / f"{every}", rows, release_every=every).digest for every in (1, 2, 7, 1000)}
    assert len(digests) == 1
    other = [*rows[:-1], row(999, size=len(rows[-1][0]))]
    assert write(tmp_path / "other", other).digest not in digests


def test_views_may_be_reused_after_release(tmp_path: Path) -> None:
    """Samples come in two buffers that are filled in turn."""
    writer = ParquetShardWriter(OutputFile(str(tmp_path / "x.parquet")))
    buffer = bytearray(100)
    rows = [row(number) for number in range(10)]
    for image, text in rows:
        buffer[:] = image
        writer.add(memoryview(buffer), text)
        writer.release()
    writer.close()
    assert by_pyarrow(tmp_path / "x.parquet") == expected(rows)


def test_offsets_are_numbers_an_index_can_take(tmp_path: Path) -> None:
    written = write(tmp_path / "x.parquet", [row(number) for number in range(5)])
    assert written.offsets.dtype == np.int64


def test_an_aborted_shard_gives_its_handle_back(tmp_path: Path) -> None:
    import os

    before = os.listdir("/proc/self/fd")
    writer = ParquetShardWriter(OutputFile(str(tmp_path / "x.parquet")))
    writer.add(memoryview(b"image"), row(1)[1])
    writer.abort()
    writer.abort()
    assert os.listdir("/proc/self/fd") == before


def test_a_full_disk_is_a_write_error(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").symlink_to("/dev/full")
    with pytest.raises(WriteError, match="No space left"):
        write(tmp_path / "x.parquet", [row(1)])


@pytest.mark.slow
def test_level_runs_of_any_length(tmp_path: Path, bounds: Callable[[int, int], None]) -> None:
    """A run's length is a varint: 1, 2 and 3 bytes of it."""
    for count in (1, 63, 64, 127, 128, 8191, 8192):
        path = tmp_path / f"{count}.parquet"
        tiny = TextRow("k", "p", "c", 1, 1, b"{}")
        write(path, [(b"%d" % number, tiny) for number in range(count)], release_every=10**6)
        assert pq.read_table(path, columns=["image.bytes"]).column("bytes").to_pylist() == [
            b"%d" % number for number in range(count)
        ]
