"""Find where the values of a binary column lie in a Parquet file. Reads page headers and lengths, not values.

An uncompressed PLAIN page holds each value unchanged after its length. So random access needs only (offset, length).
Pages of any other kind are left to pyarrow.

Source: parquet-format, README.md, Encodings.md (PLAIN; RLE / bit-packing hybrid) and parquet.thrift (PageHeader).
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from builder.base.errors import DamagedFileError
from builder.store.footers import FREE_NULLS, MAGIC, read_footer, structs
from builder.store.thrift import BINARY, I32, I64, LIST, STRUCT, Struct, ThriftError, get, need, read_struct

if TYPE_CHECKING:
    import pyarrow.parquet as pq
    from numpy.typing import NDArray

    from builder.source.files import ByteFile

_BYTE_ARRAY = 6  # Type
_DATA_PAGE, _DATA_PAGE_V2 = 0, 3  # PageType
_V1_HEADER, _V2_HEADER = 5, 8  # fields of PageHeader
_PLAIN, _RLE = 0, 3  # Encoding

_HEADER_READ = 512  # a header without statistics is 20 to 60 bytes
_MAX_HEADER = 16 << 20  # pyarrow's limit; statistics may hold two whole values
_MAX_HEADER_VALUES = 1000  # parquet.thrift knows about 30
_READ_AHEAD = 256 << 10
_MOST_PADDING = 4096  # fastparquet ends each page with 8 zero bytes
_HOP_FROM = 16 << 10
"""If values have this many bytes or more on average, 4-byte reads of the lengths (about 1 µs each) are faster than
reading the whole page."""

_uint32 = struct.Struct("<I").unpack_from


class UnexpectedPageError(DamagedFileError):
    """A page that this module does not understand. The file may be sound: a reader that decodes pages may still find
    the values. Args as in DamagedFileError."""


@dataclass(frozen=True, slots=True)
class ValueRanges:
    """Where each row's value lies: file offsets and lengths in bytes, both int64 of shape ``(rows,)``. A null has
    offset 0 and length -1."""

    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]


def value_ranges(file: ByteFile, metadata: pq.FileMetaData, column: str) -> ValueRanges | None:
    """The ranges of ``column`` (dotted path of a leaf: ``"image.bytes"``) in row order.

    None if the file does not hold the bytes unchanged: a page is compressed, dictionary-encoded or otherwise not PLAIN;
    the column is repeated or not BYTE_ARRAY; a chunk is in another file.

    Reads page headers, levels and lengths. Memory: the result, the levels of one page and 16 MiB. Every range lies
    inside its column chunk.

    Raises DamagedFileError for a file that contradicts itself or the schema in ``metadata``. Raises UnexpectedPageError
    if a page does: other writers may lay out pages in their own way.
    """
    size, footer = read_footer(file)
    place = "schema"
    try:
        leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
        found = [i for i, leaf in enumerate(leaves) if leaf.path == column]  # a name may be no UTF-8
        if len(found) != 1:
            raise DamagedFileError(file.name, place, f"{len(found)} columns are called {column}, not one")
        leaf = leaves[found[0]]
        if leaf.physical_type != "BYTE_ARRAY" or leaf.max_repetition_level or leaf.max_definition_level > 255:
            return None
        place = "footer"
        rows, groups = need(footer, 3, I64), structs(footer, 4)
        if rows != metadata.num_rows:
            raise DamagedFileError(file.name, place, f"it has {rows} rows; it had {metadata.num_rows} before")
        if not 0 <= rows <= size // 4 + FREE_NULLS:
            raise DamagedFileError(file.name, place, f"it claims {rows} rows; the file has {size} bytes")
        chunks = []
        for number, group in enumerate(groups):
            place = f"row group {number}"
            chunk = _chunk(group, number, found[0], column, size)
            if chunk is None:
                return None
            chunks.append(chunk)
    except ValueError as error:  # ThriftError is one
        raise DamagedFileError(file.name, place, str(error)) from error
    for before, after in pairwise(sorted((chunk.start, chunk.end) for chunk in chunks)):
        if after[0] < before[1]:  # thousands of row groups that share one chunk would take forever
            raise DamagedFileError(file.name, f"byte {after[0]}", f"chunks of {column} overlap")
    walk = _Walk(file, leaf.max_definition_level, rows)
    if not all(walk.chunk(chunk) for chunk in chunks):
        return None
    if walk.row != rows:
        raise DamagedFileError(file.name, "footer", f"it claims {rows} rows; its row groups have {walk.row}")
    return ValueRanges(walk.offsets, walk.lengths)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A column chunk: pages from byte ``start`` (inclusive) to ``end`` (exclusive) that hold ``values`` values."""

    group: int
    start: int
    end: int
    values: int
    compressed: bool


def _chunk(group: Struct, number: int, index: int, column: str, file_size: int) -> _Chunk | None:
    """Column ``index`` of a RowGroup. None if it is encrypted or in another file. Raises ThriftError."""
    rows, columns = need(group, 3, I64), structs(group, 1)
    if index >= len(columns):
        raise ThriftError(-1, f"{len(columns)} columns, fewer than the schema has")
    if columns[index].keys() & {1, 8}:  # file_path, crypto_metadata
        return None
    fields: Struct = need(columns[index], 3, STRUCT)
    path = need(fields, 3, LIST)
    if path.kind != BINARY or b".".join(path.values) != column.encode() or need(fields, 1, I32) != _BYTE_ARRAY:
        raise ThriftError(-1, f"column {index} is not {column}, as in the schema")
    values, size, start = need(fields, 5, I64), need(fields, 7, I64), need(fields, 9, I64)
    dictionary = get(fields, 11)
    if type(dictionary) is int and 0 < dictionary < start:  # some writers write 0 for none
        start = dictionary
    if values != rows:
        raise ThriftError(-1, f"{rows} rows, but {values} values of {column}")
    if size < 0 or (size and not len(MAGIC) <= start <= file_size - size):
        raise ThriftError(-1, f"{column} lies at byte {start} with {size} bytes, outside the file")
    return _Chunk(number, start if size else 0, start + size if size else 0, values, need(fields, 4, I32) != 0)


class _Walk:
    """The rows found so far, and the bytes of the file that were read last."""

    def __init__(self, file: ByteFile, max_level: int, rows: int) -> None:
        self.offsets: NDArray[np.int64] = np.zeros(rows, np.int64)
        self.lengths: NDArray[np.int64] = np.empty(rows, np.int64)  # not filled: rows only claimed take no memory
        self.row = 0
        self._file = file
        self._max_level = max_level
        self._place = ""
        self._data = b""
        self._base = 0  # offset of _data in the file
        self._end = 0  # end of the column chunk: nothing is read beyond it
        self._left = 0  # values of the column chunk that are still to come

    def chunk(self, chunk: _Chunk) -> bool:
        """Walk one column chunk. Returns False if a page does not hold its values unchanged."""
        self._place = f"row group {chunk.group}"
        self._end, self._left = chunk.end, chunk.values
        if self._left > len(self.offsets) - self.row:
            self._fail(f"more rows than the {len(self.offsets)} of the file")
        at = chunk.start
        while at < chunk.end:
            self._place = f"row group {chunk.group}, page at byte {at}"
            header, body = self._header(at)
            kind, size = self._count(header, 1, "type"), self._count(header, 3, "size")
            at = body + size
            if at > chunk.end:
                self._fail(f"{size} bytes, {at - chunk.end} more than its column chunk has")
            # dictionaries and indexes hold no rows
            if kind in (_DATA_PAGE, _DATA_PAGE_V2) and not self._data_page(kind, header, body, at, chunk.compressed):
                return False
        if self._left:
            self._place = f"row group {chunk.group}"
            self._fail(f"{chunk.values} values, but {chunk.values - self._left} in its pages")
        return True

    def _data_page(self, kind: int, header: Struct, body: int, end: int, compressed: bool) -> bool:
        page = header.get(_V1_HEADER if kind == _DATA_PAGE else _V2_HEADER)
        if page is None or page.kind != STRUCT:
            self._fail("the header of a data page is missing")
        fields: Struct = page.data
        if kind == _DATA_PAGE_V2:
            compressed = compressed and get(fields, 7) is not False
            encoding, level_encoding = self._count(fields, 4, "encoding"), _RLE
        else:
            encoding, level_encoding = self._count(fields, 2, "encoding"), self._count(fields, 3, "level encoding")
        if compressed or encoding != _PLAIN or (self._max_level and level_encoding != _RLE):
            return False
        if self._count(header, 2, "uncompressed size") != end - body:
            self._fail("an uncompressed page states two sizes")
        values = self._count(fields, 1, "number of values")
        if values > self._left:
            self._fail(f"it claims {values} values; its column chunk has {self._left} left")
        if kind == _DATA_PAGE_V2:
            body += self._count(fields, 6, "length of repetition levels")
            size = self._count(fields, 5, "length of definition levels")
        elif self._max_level and end - body >= 4:
            body, size = body + 4, _uint32(self._bytes(body, 4))[0]
        else:
            size = 0
        if size > end - body:
            self._fail(f"definition levels of {size} bytes, more than the page has")
        present = self._levels(body, size, values) if self._max_level else None
        self._values(body + size, end, values, present)
        self._left -= values
        return True

    def _header(self, at: int, length: int = _HEADER_READ) -> tuple[Struct, int]:
        """(the page header at ``at``, the offset after it). Most headers lie in the bytes that were read last."""
        if not 0 <= at - self._base < len(self._data):
            self._read(at, length)
        try:
            header, after = read_struct(self._data, at - self._base, max_values=_MAX_HEADER_VALUES)
        except ThriftError as error:
            if length > _MAX_HEADER or self._base + len(self._data) >= self._end:
                self._fail(f"no page header: {error.args[1]}")
            self._read(at, length)
            return self._header(at, 8 * length)
        return header, self._base + after

    def _levels(self, offset: int, size: int, values: int) -> NDArray[np.bool_] | None:
        """Which rows hold a value, shape ``(values,)``; None if all do."""
        if size > 64 + 8 * values:  # a run of one value takes at most 6 bytes
            self._fail(f"definition levels of {size} bytes for {values} values")
        try:
            present = decode_levels(self._bytes(offset, size), self._max_level, values)
        except ValueError as error:
            self._fail(str(error))
        return None if present.all() else present

    def _values(self, at: int, end: int, values: int, present: NDArray[np.bool_] | None) -> None:
        """Read the length of each value between ``at`` and ``end``, skip the value, and store where it lies."""
        count = values if present is None else int(np.count_nonzero(present))
        if end - at < 4 * count:
            self._fail(f"{count} values in {end - at} bytes")
        hop = end - at >= _HOP_FROM * count
        offsets, lengths = array("q"), array("q")
        data, base = self._data, self._base
        for _ in range(count):
            place = at - base
            if not 0 <= place <= len(data) - 4:
                if end - at < 4:
                    self._fail(f"value {len(offsets)} has no length")
                data = self._read(at, 4 if hop else _READ_AHEAD)
                base, place = at, 0
            length = _uint32(data, place)[0]
            at += 4
            if length > end - at:
                self._fail(f"value {len(offsets)} has {length} bytes; the page has {end - at} left")
            offsets.append(at)
            lengths.append(length)
            at += length
        if at != end and (end - at > _MOST_PADDING or self._bytes(at, end - at).strip(b"\0")):
            # The lengths do not add up. A reader that decodes them anyway gets other values.
            raise DamagedFileError(self._file.name, self._place, f"{end - at} bytes after the last of {count} values")
        where: Any = slice(self.row, self.row + values)
        if present is not None:
            self.lengths[where] = -1
            where = self.row + np.flatnonzero(present)
        self.offsets[where] = np.frombuffer(offsets, np.int64) if count else 0
        self.lengths[where] = np.frombuffer(lengths, np.int64) if count else 0
        self.row += values

    def _bytes(self, offset: int, length: int) -> bytes:
        place = offset - self._base
        if not 0 <= place <= len(self._data) - length:
            self._read(offset, length)
            place = 0
        return self._data[place : place + length]

    def _read(self, offset: int, length: int) -> bytes:
        """Read ``length`` bytes from ``offset`` on. Fewer only at the end of the column chunk."""
        length = min(length, self._end - offset)
        self._data, self._base = self._file.read_at(offset, length), offset
        if len(self._data) < length:
            self._fail(f"the file ends at byte {offset + len(self._data)}")
        return self._data

    def _count(self, fields: Struct, number: int, what: str) -> int:
        value = get(fields, number)
        if type(value) is not int or value < 0:
            self._fail(f"its header gives no {what}" if value is None else f"its header gives a wrong {what}")
        return value

    def _fail(self, problem: str) -> NoReturn:
        raise UnexpectedPageError(self._file.name, self._place, problem)


def decode_levels(data: bytes, max_level: int, count: int) -> NDArray[np.bool_]:
    """Which of ``count`` definition levels are equal to ``max_level`` (1 to 255), as bools of shape ``(count,)``.

    ``data`` is the RLE / bit-packed hybrid. Levels beyond ``count`` are ignored, as in pyarrow: bit-packed runs hold
    multiples of eight. Raises ValueError for too few levels, and for a level above ``max_level``.
    """
    present = np.empty(count, np.bool_)
    width = max_level.bit_length()
    weights = (1 << np.arange(width)).astype(np.uint8)
    done = at = 0
    while done < count:
        run = shift = 0
        while True:  # varint
            if at >= len(data) or shift > 28:
                raise ValueError(f"definition levels end after {done} of {count}")
            run |= (data[at] & 0x7F) << shift
            shift += 7
            at += 1
            if data[at - 1] < 0x80:
                break
        if run & 1:
            packed = np.frombuffer(data[at : at + (run >> 1) * width], np.uint8)
            at += len(packed)
            length = min(len(packed) * 8 // width, count - done)
            levels = np.unpackbits(packed, count=length * width, bitorder="little").reshape(-1, width) @ weights
            highest = int(levels.max(initial=0))
            present[done : done + length] = levels == max_level
        else:
            length = min(run >> 1, count - done) if at < len(data) else 0
            highest = data[at] if length else 0
            at += 1
            present[done : done + length] = highest == max_level
        if highest > max_level:
            raise ValueError(f"definition level {highest}, but the highest is {max_level}")
        if length == 0:
            raise ValueError(f"definition levels end after {done} of {count}")
        done += length
    return present
