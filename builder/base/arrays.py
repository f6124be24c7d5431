"""Arrow string arrays made from their buffers, and text columns larger than one such array.

``pa.array`` and ``pa.table`` import pandas if they get Python objects and pandas is installed. That would cost 0.17 s
in each process, for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import pyarrow as pa

MOST_TEXT = 1 << 30
"""The most bytes in one array of strings. Its offsets are 32 bits wide and overflow at 2 GiB. 6 million captions are
larger than that."""
_MOST_OFFSET = 2**31 - 1


def string_array(strings: list[str]) -> pa.StringArray:
    """Strings → StringArray. Raises UnicodeEncodeError for a lone surrogate, OverflowError for more than 2 GiB in
    all."""
    return utf8_array(list(map(str.encode, strings)))


def utf8_array(documents: Sequence[bytes | None]) -> pa.StringArray:
    """UTF-8 bytes → StringArray; None → null. The bytes must be valid UTF-8: they are not checked."""
    if None not in documents:
        return _from_buffers(documents, pa.string())  # type: ignore[arg-type]
    filled = _from_buffers([document or b"" for document in documents], pa.string())
    present = np.packbits([document is not None for document in documents], bitorder="little")
    return pa.Array.from_buffers(pa.string(), len(filled), [pa.py_buffer(present), *filled.buffers()[1:]])


def binary_array(values: list[bytes]) -> pa.BinaryArray:
    return _from_buffers(values, pa.binary())


def number_array(values: np.ndarray, null: np.ndarray | None = None) -> pa.Array:
    """A numpy column → an Arrow array that shares its memory (a copy if it is not contiguous). ``null``: which values
    are null, as bools. (``pa.array`` with a mask imports pandas.)"""
    kind = pa.from_numpy_dtype(values.dtype)
    valid = None if null is None else pa.py_buffer(np.packbits(~null, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(np.ascontiguousarray(values))])


def bool_array(values: np.ndarray) -> pa.BooleanArray:
    """A numpy column of bools → an Arrow array. ``cast`` would import ``pyarrow.compute``, which takes 30 ms."""
    bits = np.packbits(np.asarray(values, dtype=np.bool_), bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(bits)])


def numbers_of(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A column of numbers without nulls → numpy. One chunk shares its memory; several are copied.

    ``to_numpy`` of a ChunkedArray would import pandas.
    """
    kind = np.dtype(column.type.to_pandas_dtype())
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype=kind, count=len(chunk), offset=chunk.offset * kind.itemsize)
        for chunk in chunks_of(column)
        if len(chunk)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype=kind), *parts])


def text_fits(column: pa.Array, size: int | None = None) -> bool:
    """Whether the offsets of all strings lie within the data. For a column of lists, ``size`` is the number of values
    in all. Arrow does not check this: wrong offsets crash any reader of the column. Reads 4 bytes for each row and none
    of the text."""
    if not len(column):
        return True
    buffers = column.buffers()
    if size is None:
        size = buffers[2].size if buffers[2] else 0
    if buffers[1] is None or buffers[1].size < (column.offset + len(column) + 1) * 4:
        return False
    offsets = np.frombuffer(buffers[1], dtype=np.int32, count=len(column) + 1, offset=column.offset * 4)
    # Compared, not subtracted: the difference of two wrong 32-bit offsets can overflow and look right.
    return bool(offsets[0] >= 0 and (offsets[1:] >= offsets[:-1]).all() and offsets[-1] <= size)


def bools_of(array: pa.BooleanArray) -> np.ndarray:
    """An array of bools without nulls → numpy. ``to_numpy`` may import pandas."""
    first = array.offset
    bits = np.frombuffer(array.buffers()[1] or b"", dtype=np.uint8)
    return np.unpackbits(bits, bitorder="little")[first : first + len(array)].view(np.bool_)


class TextColumn:
    """A column of strings that grows. It has as few chunks as possible, each of at most MOST_TEXT bytes. Nothing is in
    memory twice: the text grows in place, and its buffer becomes the column."""

    def __init__(self) -> None:
        self._chunks: list[pa.StringArray] = []
        self._begin()

    def _begin(self) -> None:
        self._data = bytearray()
        self._ends = bytearray(4)  # 32-bit offsets

    def add(self, strings: Sequence[str]) -> None:
        """Append strings. Raises UnicodeEncodeError for a lone surrogate, OverflowError for more than 2 GiB in one
        call."""
        documents = list(map(str.encode, strings))
        self.append(b"".join(documents), np.fromiter(map(len, documents), dtype=np.int64, count=len(documents)))

    def append(self, text: bytes, lengths: np.ndarray) -> None:
        """Append strings that stand one after another in ``text`` (UTF-8). ``lengths``: bytes of each. Raises
        OverflowError for more than 2 GiB in one call."""
        if self._data and len(self._data) + int(lengths.sum()) > MOST_TEXT:
            self._end()
        ends = len(self._data) + np.cumsum(lengths)
        if len(ends) and ends[-1] > _MOST_OFFSET:
            raise OverflowError(f"{ends[-1]:,} bytes of text are more than 32-bit offsets hold")
        self._ends += ends.astype(np.int32).tobytes()
        self._data += text

    def _end(self) -> None:
        buffers = [None, pa.py_buffer(self._ends), pa.py_buffer(self._data)]
        self._chunks.append(pa.Array.from_buffers(pa.string(), len(self._ends) // 4 - 1, buffers))
        self._begin()

    def done(self) -> pa.ChunkedArray:
        """The column so far. Strings that are added later are not in it."""
        if len(self._ends) > 4:
            self._end()
        return pa.chunked_array(self._chunks, type=pa.string())


class OtherEnding:
    """A column of paths that are another column's with another ending. They are made when they are asked for: 6 million
    would take 144 MB. ``cut``: bytes of the ending to cut off, 1 or more; ``ending``: what to add."""

    def __init__(self, paths: pa.ChunkedArray, cut: int, ending: bytes) -> None:
        self.paths, self._cut, self._ending = paths, cut, ending

    def __len__(self) -> int:
        return len(self.paths)

    def slice(self, offset: int, length: int) -> OtherEnding:
        """``length`` paths from ``offset`` on."""
        return OtherEnding(self.paths.slice(offset, length), self._cut, self._ending)

    def of(self, some: pa.StringArray) -> pa.StringArray:
        """The paths that follow from some of the other column's."""
        if not len(some):
            return some
        ends = _offsets(some)
        data = np.frombuffer(some.buffers()[2], np.uint8)[ends[0] : ends[-1]]
        made, lengths = with_ending(data, np.diff(ends), self._cut, self._ending)
        offsets = np.zeros(len(some) + 1, np.int32)
        np.cumsum(lengths, out=offsets[1:])
        return pa.Array.from_buffers(pa.string(), len(some), [None, pa.py_buffer(offsets), pa.py_buffer(made)])


Texts: TypeAlias = "pa.StringArray | pa.ChunkedArray | OtherEnding"


def whole_text(column: Texts) -> pa.StringArray | pa.ChunkedArray:
    """The column with every string in memory."""
    if isinstance(column, OtherEnding):
        return pa.chunked_array(list(stretches_of(column, 1 << 20)), pa.string())
    return column


def stretches_of(column: Texts, together: int) -> Iterator[pa.StringArray]:
    """The strings of a column in arrays, at most ``together`` in each."""
    for chunk in chunks_of(column.paths if isinstance(column, OtherEnding) else column):
        for first in range(0, len(chunk), together):
            some = chunk.slice(first, together)
            yield column.of(some) if isinstance(column, OtherEnding) else some


def with_ending(texts: np.ndarray, lengths: np.ndarray, cut: int, ending: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Strings that stand one after another, shape (bytes,), with their last ``cut`` bytes (1 or more) replaced by
    ``ending`` (1 or more), and their new lengths."""
    new = lengths - (cut - len(ending))
    tail = np.frombuffer(ending, np.uint8)
    if len(lengths) and (lengths == lengths[0]).all():
        rows = np.empty((len(lengths), int(new[0])), np.uint8)
        rows[:, : -len(ending)], rows[:, -len(ending) :] = texts.reshape(len(lengths), -1)[:, :-cut], tail
        return rows.reshape(-1), new
    kept, stays = np.ones(len(texts), np.bool_), np.ones(int(new.sum()), np.bool_)
    for mask, ends, count in ((kept, np.cumsum(lengths), cut), (stays, np.cumsum(new), len(ending))):
        for back in range(1, count + 1):
            mask[ends - back] = False
    made = np.empty(len(stays), np.uint8)
    made[stays] = texts[kept]
    made[~stays] = np.tile(tail, len(lengths))
    return made, new


class Pool:
    """Keeps copies of small arrays in large blocks of memory. 12,000 small arrays, freed one by one, leave holes that
    nothing else fits into. A block returns to the system as a whole, when its last array is freed."""

    _BLOCK = 64 << 20  # glibc always maps blocks of more than 32 MiB

    def __init__(self) -> None:
        self._block = np.empty(0, dtype=np.uint8)
        self._used = 0

    def keep(self, array: np.ndarray) -> np.ndarray:
        """A copy of the array, in a block."""
        if self._used + array.nbytes > len(self._block):
            self._block, self._used = np.empty(max(self._BLOCK, array.nbytes), dtype=np.uint8), 0
        room = self._block[self._used : self._used + array.nbytes]
        self._used += -(-array.nbytes // 16) * 16
        kept = room.view(array.dtype).reshape(array.shape)
        kept[:] = array
        return kept


def take_text(column: Texts, positions: np.ndarray) -> pa.ChunkedArray:
    """The strings at these positions, in the order of the positions. ``ChunkedArray.take`` would first join all chunks
    into one array, which fails for more than 2 GiB."""
    if isinstance(column, OtherEnding):
        return pa.chunked_array(map(column.of, take_text(column.paths, positions).chunks), pa.string())
    chunks = [chunk for chunk in chunks_of(column) if len(chunk)]
    if not len(positions) or _in_a_row(positions):  # as in a listing in the archives' order: nothing is copied
        first = int(positions[0]) if len(positions) else 0
        return pa.chunked_array(chunks, type=column.type).slice(first, len(positions))
    if len(chunks) == 1:
        return pa.chunked_array([chunks[0].take(number_array(positions))], type=column.type)
    starts = np.cumsum([0, *map(len, chunks)])
    owners = np.searchsorted(starts, positions, side="right") - 1
    sizes = np.empty(len(positions), dtype=np.int64)
    for number, mine in _by_owner(owners):
        sizes[mine] = _lengths(chunks[number])[positions[mine] - starts[number]]
    parts = np.cumsum(sizes) // MOST_TEXT  # a part may be MOST_TEXT and one string: still less than 2 GiB
    edges = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(positions)]
    pieces = []
    for first, last in pairwise(edges):
        there = positions[first:last]
        owned = list(_by_owner(owners[first:last]))
        some = [chunks[number].take(number_array(there[mine] - starts[number])) for number, mine in owned]
        back = np.empty(len(there), dtype=np.int64)
        back[np.concatenate([mine for _, mine in owned])] = np.arange(len(there))
        pieces.append(pa.concat_arrays(some).take(number_array(back)))
    return pa.chunked_array(pieces, type=column.type)


def _in_a_row(positions: np.ndarray) -> bool:
    """Whether each position is one more than the one before."""
    count = len(positions)
    return bool(positions[-1] - positions[0] == count - 1 and np.all(positions[1:] - positions[:-1] == 1))


def _by_owner(owners: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(owner, ascending places at which it occurs) for each owner in ``owners``."""
    order = np.argsort(owners, kind="stable")
    edges = np.flatnonzero(np.diff(owners[order])) + 1
    for first, last in pairwise([0, *edges.tolist(), len(order)]):
        yield int(owners[order[first]]), order[first:last]


def all_end_alike(column: pa.Array | pa.ChunkedArray, ending: bytes) -> bool:
    """Whether every path of a column has this ending, after a name that is not empty."""
    wanted = np.frombuffer(ending, np.uint8)
    for chunk in chunks_of(column):
        if not len(chunk):
            continue
        edges = _offsets(chunk)
        if int((edges[1:] - edges[:-1]).min()) <= len(ending):
            return False
        data, ends = np.frombuffer(chunk.buffers()[2], np.uint8), edges[1:]
        if any((data[ends - len(ending) + place] != wanted[place]).any() for place in range(len(ending))):
            return False
        if (data[ends - len(ending) - 1] == ord("/")).any():
            return False
    return True


def not_empty(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Which strings of a column are not empty, as bools."""
    parts = [_lengths(chunk) > 0 for chunk in chunks_of(column) if len(chunk)]
    return np.concatenate([np.zeros(0, dtype=np.bool_), *parts])


def chunks_of(column: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


def _lengths(array: pa.Array) -> np.ndarray:
    """Bytes of each string."""
    return np.diff(_offsets(array))


def _offsets(array: pa.Array) -> np.ndarray:
    return np.frombuffer(array.buffers()[1], dtype=np.int32)[array.offset : array.offset + len(array) + 1]


def _from_buffers(values: list[bytes], kind: pa.DataType) -> pa.Array:
    offsets = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, values), dtype=np.int64, count=len(values)), out=offsets[1:])
    if offsets[-1] > _MOST_OFFSET:
        raise OverflowError(f"{offsets[-1]:,} bytes of text are more than 32-bit offsets hold")
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(kind, len(values), buffers)


def to_ipc(table: pa.Table | pa.RecordBatch) -> bytes:
    """The table as an Arrow IPC stream. For a slice, it holds only the slice's rows; a pickle holds the whole table."""
    return ipc_buffer(table).to_pybytes()  # type: ignore[no-any-return]


def ipc_buffer(table: pa.Table | pa.RecordBatch) -> pa.Buffer:
    """The same stream as a buffer, with one copy less. For data that is not pickled."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    return sink.getvalue()


def from_ipc(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()
