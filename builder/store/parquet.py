"""Write a Parquet shard: text columns with pyarrow, image pages directly from the buffer they were read into.

pyarrow would copy every image three times: into an array, into a page, into the file. Here, a page is its header and
then ``length, bytes`` for each image (PLAIN encoding). One ``writev`` hands it to the system. pyarrow writes the text
columns of a row group into memory, as a small Parquet file. Their column chunks are copied from there, with their
offsets shifted. The footer is made from both.

Source: apache/parquet-format, README.md and parquet.thrift (it defines the field numbers below).
"""

from __future__ import annotations

import functools
import struct as packing
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from builder.base import schema
from builder.base.options import GROUP_BYTES, PAGE_BYTES
from builder.store.output import NewFile
from builder.store.shards import ShardWriter, TextRow, WrittenShard, row_columns
from builder.store.thrift import (
    BINARY,
    I32,
    STRUCT,
    Struct,
    get,
    i16,
    i32,
    i64,
    list_of,
    read_struct,
    struct,
    write_struct,
    write_varint,
)

MAGIC = b"PAR1"
_BYTE_ARRAY, _PLAIN, _RLE, _UNCOMPRESSED, _DATA_PAGE = 6, 0, 3, 0, 0
_DEFINED = 2  # definition level of a value in an optional leaf of an optional struct
_LENGTH = packing.Struct("<I")

AS_TEXT = {
    "compression": "zstd",
    "use_dictionary": False,
    "write_statistics": ["key", "width", "height"],
    "write_page_index": True,
}
"""How pyarrow writes columns of text. Long text has no statistics: they would repeat whole captions in the footer."""

TEXT = pa.schema(
    [pa.field("image", pa.struct([("path", pa.string())])) if f.name == "image" else f for f in schema.ROW]
)


@dataclass(slots=True)
class _Group:
    """The row group being written."""

    start: int  # file offset of its first page
    rows: list[TextRow] = field(default_factory=list)
    bytes: int = 0  # of images and text, uncompressed
    pages: list[tuple[int, int, int]] = field(default_factory=list)  # offset, size with header, first row


class ParquetShardWriter(ShardWriter):
    """Writes rows as Parquet, with image pages of its own."""

    def __init__(self, file: NewFile) -> None:
        super().__init__(file)
        self._file.write([MAGIC])
        self._groups: list[Struct] = []
        self._column_indexes: list[list[bytes | None]] = []
        self._offset_indexes: list[list[Struct]] = []
        self._offsets: list[int] = []
        self._page: list[bytes | memoryview] = []
        self._page_bytes = 0
        self._group = _Group(self._file.position)
        self._rows = 0

    def add(self, image: memoryview, row: TextRow) -> None:
        """Append one row. Pages and row groups end by bytes only, so that the same rows give the same file."""
        size = len(image)
        weight = size + row.weight
        group = self._group
        if group.bytes + weight > GROUP_BYTES and group.rows:
            self._end_group()
            group = self._group
        group.rows.append(row)
        group.bytes += weight
        self._page.append(_LENGTH.pack(size))
        self._page.append(image)
        self._page_bytes += size + 4
        if self._page_bytes >= PAGE_BYTES:
            self._end_page()

    def release(self) -> None:
        """Copy the images of the unfinished page. Afterwards no image view is needed any more."""
        self._page = [bytes(piece) for piece in self._page]

    def close(self) -> WrittenShard:
        self._end_group()
        footer = self._footer()
        tail = [footer, packing.pack("<I", len(footer)), MAGIC]
        self._file.write(tail)
        return self._finish(self._offsets, footer=xxhash.xxh3_128_hexdigest(b"".join(tail)))

    def _end_page(self) -> None:
        if not self._page:
            return
        count = len(self._page) // 2
        levels = _levels(count)
        head = page_header(self._page_bytes + len(levels), count)
        start = self._file.position
        at = start + len(head) + len(levels)
        for image in self._page[1::2]:
            at += 4
            self._offsets.append(at)
            at += len(image)
        self._file.write([head, levels, *self._page])
        self._group.pages.append((start, at - start, len(self._offsets) - count - self._rows))
        self._page, self._page_bytes = [], 0

    def _end_group(self) -> None:
        self._end_page()
        group = self._group
        if group.rows:
            image_chunk = self._image_chunk(group)
            text_chunks, column_indexes, offset_indexes = self._write_text(group.rows)
            chunks = [image_chunk, *text_chunks]  # both footer and file are in the schema's order
            locations = [{1: i64(start), 2: i32(size), 3: i64(row)} for start, size, row in group.pages]
            self._column_indexes.append([None, *column_indexes])
            self._offset_indexes.append([{1: list_of(STRUCT, locations)}, *offset_indexes])
            self._groups.append(
                {
                    1: list_of(STRUCT, chunks),
                    2: i64(sum(get(chunk, 3, 6) for chunk in chunks)),
                    3: i64(len(group.rows)),
                    5: i64(group.start),
                    6: i64(sum(get(chunk, 3, 7) for chunk in chunks)),
                    7: i16(len(self._groups)),
                }
            )
            self._rows += len(group.rows)
        self._group = _Group(self._file.position)

    def _image_chunk(self, group: _Group) -> Struct:
        """ColumnChunk of image.bytes, the first leaf column."""
        total = sum(size for _, size, _ in group.pages)
        metadata: Struct = {
            1: i32(_BYTE_ARRAY),
            2: list_of(I32, [_PLAIN, _RLE]),
            3: list_of(BINARY, [b"image", b"bytes"]),
            4: i32(_UNCOMPRESSED),
            5: i64(len(group.rows)),
            6: i64(total),
            7: i64(total),
            9: i64(group.pages[0][0]),
            13: list_of(STRUCT, [{1: i32(_DATA_PAGE), 2: i32(_PLAIN), 3: i32(len(group.pages))}]),
        }
        return {2: i64(0), 3: struct(metadata)}

    def _write_text(self, rows: list[TextRow]) -> tuple[list[Struct], list[bytes | None], list[Struct]]:
        """Write the chunks of the text columns. Returns their ColumnChunks, ColumnIndexes and OffsetIndexes, in column
        order."""
        small = _text_file(rows)
        length = int.from_bytes(small[-8:-4], "little")
        footer, _ = read_struct(small[-8 - length : -8])
        chunks: list[Struct] = get(footer, 4, 0, 1)
        end = max(_chunk_start(chunk) + get(chunk, 3, 7) for chunk in chunks)
        shift = self._file.position - len(MAGIC)
        self._file.write([small[len(MAGIC) : end]])
        column_indexes: list[bytes | None] = []
        offset_indexes: list[Struct] = []
        for chunk in chunks:
            column_indexes.append(_span(small, get(chunk, 6), get(chunk, 7)))
            pages, _ = read_struct(_span(small, get(chunk, 4), get(chunk, 5)) or b"\0")
            for page in get(pages, 1):
                page[1] = i64(get(page, 1) + shift)
            offset_indexes.append(pages)
            for number in (4, 5, 6, 7):
                chunk.pop(number, None)
            metadata: Struct = get(chunk, 3)
            for number in (9, 10, 11):
                if number in metadata:
                    metadata[number] = i64(get(metadata, number) + shift)
        return chunks, column_indexes, offset_indexes

    def _footer(self) -> bytes:
        """Write the page indexes and return the footer's bytes. The indexes stand before the footer, all ColumnIndexes
        first, as in parquet-format's PageIndex.md."""
        for group, indexes in zip(self._groups, self._column_indexes, strict=True):
            for chunk, index in zip(get(group, 1), indexes, strict=True):
                if index is not None:
                    chunk[6], chunk[7] = i64(self._file.position), i32(len(index))
                    self._file.write([index])
        for group, pages in zip(self._groups, self._offset_indexes, strict=True):
            for chunk, page in zip(get(group, 1), pages, strict=True):
                encoded = write_struct(page)
                chunk[4], chunk[5] = i64(self._file.position), i32(len(encoded))
                self._file.write([encoded])
        return write_struct({**_template(), 3: i64(self._rows), 4: list_of(STRUCT, self._groups)})


def page_header(size: int, count: int) -> bytes:
    """The PageHeader of an uncompressed PLAIN data page (version 1) of ``size`` bytes with ``count`` values."""
    data: Struct = {1: i32(count), 2: i32(_PLAIN), 3: i32(_RLE), 4: i32(_RLE)}
    return write_struct({1: i32(_DATA_PAGE), 2: i32(size), 3: i32(size), 5: struct(data)})


def _levels(count: int) -> bytes:
    """Definition levels of a page without nulls: the length of one RLE run, then the run."""
    run = bytearray()
    write_varint(run, count << 1)
    run.append(_DEFINED)
    return _LENGTH.pack(len(run)) + run


def _text_file(rows: list[TextRow]) -> bytes:
    """All columns but image.bytes, as a Parquet file of one row group."""
    columns = row_columns(rows, None)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, TEXT, **AS_TEXT, store_schema=False) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=TEXT), row_group_size=len(rows))
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _chunk_start(chunk: Struct) -> int:
    dictionary, data = get(chunk, 3, 11), get(chunk, 3, 9)
    return int(data if dictionary is None else min(dictionary, data))


def _span(data: bytes, offset: int | None, length: int | None) -> bytes | None:
    return None if offset is None or length is None else data[offset : offset + length]


@functools.cache
def _template() -> Struct:
    """The footer that pyarrow writes for an empty file of our schema: schema, key-value metadata and column orders."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema.SHARD_SCHEMA):
        pass
    data = sink.getvalue().to_pybytes()
    return read_struct(data[-8 - int.from_bytes(data[-8:-4], "little") : -8])[0]
