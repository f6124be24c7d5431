"""Arrow string arrays made from their buffers, and columns of more text than one of them holds.

``pa.array`` and ``pa.table`` of Python objects look for pandas first and import it where it is installed: 0.17 s in
each process, for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

MOST_TEXT = 1 << 30
"""Bytes of one array of strings. Its offsets are 32 bits wide: at 2 GiB they overflow, which 6 million captions
pass."""
_MOST_OFFSET = 2**31 - 1


def string_array(strings: list[str]) -> pa.StringArray:
    """Strings → StringArray. Raises UnicodeEncodeError for a lone surrogate, OverflowError past 2 GiB in all."""
    return utf8_array(list(map(str.encode, strings)))


def utf8_array(documents: Sequence[bytes | None]) -> pa.StringArray:
    """UTF-8 bytes, already known to be valid → StringArray; None → null."""
    if None not in documents:
        return _from_buffers(documents, pa.string())  # type: ignore[arg-type]
    filled = _from_buffers([document or b"" for document in documents], pa.string())
    present = np.packbits([document is not None for document in documents], bitorder="little")
    return pa.Array.from_buffers(pa.string(), len(filled), [pa.py_buffer(present), *filled.buffers()[1:]])


def binary_array(values: list[bytes]) -> pa.BinaryArray:
    return _from_buffers(values, pa.binary())


def number_array(values: np.ndarray) -> pa.Array:
    """A numpy column → Arrow, sharing its memory."""
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def bool_array(values: np.ndarray) -> pa.BooleanArray:
    """A numpy column of bools → Arrow. (``cast`` would import ``pyarrow.compute``, 30 ms.)"""
    bits = np.packbits(np.asarray(values, dtype=np.bool_), bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(bits)])


def numbers_of(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A column of numbers without nulls → numpy, sharing its memory where it is one chunk.

    ``to_numpy`` of a ChunkedArray imports pandas.
    """
    kind = np.dtype(column.type.to_pandas_dtype())
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype=kind, count=len(chunk), offset=chunk.offset * kind.itemsize)
        for chunk in chunks_of(column)
        if len(chunk)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype=kind), *parts])


def text_fits(column: pa.Array, size: int | None = None) -> bool:
    """Whether every string (or list, of ``size`` values in all) lies within the data, which Arrow takes for granted: a
    lie would be a crash of whoever reads the column. 4 bytes looked at for each row; the text itself is not touched."""
    if not len(column):
        return True
    buffers = column.buffers()
    if size is None:
        size = buffers[2].size if buffers[2] else 0
    if buffers[1] is None or buffers[1].size < (column.offset + len(column) + 1) * 4:
        return False
    offsets = np.frombuffer(buffers[1], dtype=np.int32, count=len(column) + 1, offset=column.offset * 4)
    # Compared, not subtracted: a difference of 32-bit numbers that lie can wrap around to a sound one.
    return bool(offsets[0] >= 0 and (offsets[1:] >= offsets[:-1]).all() and offsets[-1] <= size)


def bools_of(array: pa.BooleanArray) -> np.ndarray:
    """An array of bools without nulls → numpy. (``to_numpy`` may import pandas.)"""
    first = array.offset
    bits = np.frombuffer(array.buffers()[1] or b"", dtype=np.uint8)
    return np.unpackbits(bits, bitorder="little")[first : first + len(array)].view(np.bool_)


class TextColumn:
    """A column of strings that grows, in as few arrays of at most MOST_TEXT bytes as it fills. Nothing is in memory
    twice: what is put into it grows in place and becomes the column."""

    def __init__(self) -> None:
        self._chunks: list[pa.StringArray] = []
        self._begin()

    def _begin(self) -> None:
        self._data = bytearray()
        self._ends = [np.zeros(1, dtype=np.int32)]

    def add(self, strings: Sequence[str]) -> None:
        """Append strings. Raises UnicodeEncodeError for a lone surrogate, OverflowError past 2 GiB at once."""
        documents = list(map(str.encode, strings))
        self.append(b"".join(documents), np.fromiter(map(len, documents), dtype=np.int64, count=len(documents)))

    def append(self, text: bytes, lengths: np.ndarray) -> None:
        """Append strings that lie one behind the other in ``text``, UTF-8. Raises OverflowError past 2 GiB at once."""
        if self._data and len(self._data) + int(lengths.sum()) > MOST_TEXT:
            self._end()
        ends = len(self._data) + np.cumsum(lengths)
        if len(ends) and ends[-1] > _MOST_OFFSET:
            raise OverflowError(f"{ends[-1]:,} bytes of text are more than 32-bit offsets hold")
        self._ends.append(ends.astype(np.int32))
        self._data += text

    def _end(self) -> None:
        count = sum(map(len, self._ends)) - 1
        buffers = [None, pa.py_buffer(np.concatenate(self._ends)), pa.py_buffer(self._data)]
        self._chunks.append(pa.Array.from_buffers(pa.string(), count, buffers))
        self._begin()

    def done(self) -> pa.ChunkedArray:
        """The column. What is put in later is not in it."""
        if len(self._ends) > 1:
            self._end()
        return pa.chunked_array(self._chunks, type=pa.string())


class Pool:
    """Keeps copies of small arrays in large blocks of memory. Freed one by one, 12,000 small arrays leave holes that
    nothing else fits into; a block goes back to the system whole, with the last array in it."""

    _BLOCK = 64 << 20  # above 32 MiB glibc always maps

    def __init__(self) -> None:
        self._block = np.empty(0, dtype=np.uint8)
        self._used = 0

    def keep(self, array: np.ndarray) -> np.ndarray:
        """The same array, in a block."""
        if self._used + array.nbytes > len(self._block):
            self._block, self._used = np.empty(max(self._BLOCK, array.nbytes), dtype=np.uint8), 0
        room = self._block[self._used : self._used + array.nbytes]
        self._used += -(-array.nbytes // 16) * 16
        kept = room.view(array.dtype).reshape(array.shape)
        kept[:] = array
        return kept


def take_text(column: pa.Array | pa.ChunkedArray, positions: np.ndarray) -> pa.ChunkedArray:
    """The strings at these positions, in their order. ``ChunkedArray.take`` would put all chunks into one array first,
    which fails past 2 GiB."""
    chunks = [chunk for chunk in chunks_of(column) if len(chunk)]
    if not len(positions) or _in_a_row(positions):  # as a listing in the archives' order has them: nothing is copied
        return pa.chunked_array(chunks_of(column), type=column.type).slice(
            int(positions[0]) if len(positions) else 0, len(positions)
        )
    if len(chunks) < 2:
        taken = chunks[0].take(number_array(positions)) if chunks else column.slice(0, 0)
        return pa.chunked_array([taken] if isinstance(taken, pa.Array) else taken.chunks, type=column.type)
    starts = np.cumsum([0, *map(len, chunks)])
    owners = np.searchsorted(starts, positions, side="right") - 1
    sizes = np.empty(len(positions), dtype=np.int64)
    for number, mine in _by_owner(owners):
        sizes[mine] = _lengths(chunks[number])[positions[mine] - starts[number]]
    parts = np.cumsum(sizes) // MOST_TEXT  # one string may reach over an edge: less than 2 GiB together all the same
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
    """Is each one more than that before it?"""
    count = len(positions)
    return bool(positions[-1] - positions[0] == count - 1 and np.all(positions[1:] - positions[:-1] == 1))


def _by_owner(owners: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each owner that occurs, with the places where it does, ascending."""
    order = np.argsort(owners, kind="stable")
    edges = np.flatnonzero(np.diff(owners[order])) + 1
    for first, last in pairwise([0, *edges.tolist(), len(order)]):
        yield int(owners[order[first]]), order[first:last]


def all_end_alike(column: pa.Array | pa.ChunkedArray, ending: bytes) -> bool:
    """Whether every path of a column ends so, behind a name that is not empty."""
    wanted = np.frombuffer(ending, np.uint8)
    for chunk in chunks_of(column):
        if not len(chunk):
            continue
        edges = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        if int((edges[1:] - edges[:-1]).min()) <= len(ending):
            return False
        data, ends = np.frombuffer(chunk.buffers()[2], np.uint8), edges[1:]
        if any((data[ends - len(ending) + place] != wanted[place]).any() for place in range(len(ending))):
            return False
        if (data[ends - len(ending) - 1] == ord("/")).any():
            return False
    return True


def not_empty(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Which strings of a column have any text, as bools."""
    parts = [_lengths(chunk) > 0 for chunk in chunks_of(column) if len(chunk)]
    return np.concatenate([np.zeros(0, dtype=np.bool_), *parts])


def chunks_of(column: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


def _lengths(array: pa.Array) -> np.ndarray:
    """Bytes of each string."""
    ends = np.frombuffer(array.buffers()[1], dtype=np.int32)[array.offset : array.offset + len(array) + 1]
    return np.diff(ends)


def _from_buffers(values: list[bytes], kind: pa.DataType) -> pa.Array:
    offsets = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, values), dtype=np.int64, count=len(values)), out=offsets[1:])
    if offsets[-1] > _MOST_OFFSET:
        raise OverflowError(f"{offsets[-1]:,} bytes of text are more than 32-bit offsets hold")
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(kind, len(values), buffers)


def to_ipc(table: pa.Table | pa.RecordBatch) -> bytes:
    """An Arrow IPC stream. Unlike pickling, it holds only the rows of a slice, not all of what it was cut from."""
    return ipc_buffer(table).to_pybytes()  # type: ignore[no-any-return]


def ipc_buffer(table: pa.Table | pa.RecordBatch) -> pa.Buffer:
    """The same where it need not be pickled: not copied once more."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    return sink.getvalue()


def from_ipc(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()
