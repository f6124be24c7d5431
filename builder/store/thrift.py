"""The part of the Thrift compact protocol that Parquet uses: structs, lists and scalars, without generated code.

A parsed struct keeps the wire type of every value. So a few fields can be changed, and all other bytes are written back
unchanged: ``write_struct(read_struct(data)[0]) == data``. This holds if the writer puts fields in ascending order and
integers in their shortest form, as every Parquet writer does.

Source: thrift/doc/specs/thrift-compact-protocol.md. Maps and UUIDs do not occur in parquet.thrift and are refused.
"""

from __future__ import annotations

import struct as packing
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any, NamedTuple

TRUE, FALSE, I8, I16, I32, I64, DOUBLE, BINARY, LIST, SET, STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12
"""Wire types. In a field's header, TRUE and FALSE are the value itself. As the type of list items, both mean bool."""

MAX_DEPTH = 32  # parquet.thrift nests 7 deep; Python gives up at about 1,000
_BITS = {I16: 16, I32: 32, I64: 64}


class ThriftError(ValueError):
    """Bytes are no struct, or not the expected one. Args: offset in the bytes (-1 if there is none), problem."""

    def __str__(self) -> str:
        offset, problem = self.args
        return f"byte {offset} of the struct: {problem}" if offset >= 0 else str(problem)


class Value(NamedTuple):
    """The value of a field. ``data``: bool, int, float, bytes, ``Items`` or ``Struct``, depending on ``kind``."""

    kind: int
    data: Any


class Items(NamedTuple):
    """The items of a list or set: bare ``data`` values, all of the same ``kind``."""

    kind: int
    values: list[Any]


Struct = dict[int, Value]
"""Field number → value."""


def i16(value: int) -> Value:
    return Value(I16, value)


def i32(value: int) -> Value:
    return Value(I32, value)


def i64(value: int) -> Value:
    return Value(I64, value)


def struct(fields: Struct) -> Value:
    return Value(STRUCT, fields)


def list_of(kind: int, values: Iterable[Any]) -> Value:
    """A list of bare values: ``list_of(I32, [0, 3])``, ``list_of(STRUCT, [{1: i32(0)}])``."""
    return Value(LIST, Items(kind, list(values)))


def get(fields: Struct, *path: int) -> Any:
    """The plain value at ``path``; None if a field is missing.

    A step in ``path`` is a field number in a struct, or a position in a list: ``get(footer, 4, 0, 3)`` is num_rows of
    the first row group. A struct or list is returned itself, not as a copy. So a change in it changes what
    ``write_struct`` writes.
    """
    at: Any = fields
    for step in path:
        if isinstance(at, dict):
            value = at.get(step)
            if value is None:
                return None
            at = value.data.values if isinstance(value.data, Items) else value.data
        else:
            at = at[step]
            at = at.values if isinstance(at, Items) else at
    return at


def need(fields: Struct, number: int, kind: int) -> Any:
    """The data of a field. Raises ThriftError if the field is missing or not of ``kind``."""
    value = fields.get(number)
    if value is None or value.kind != kind:
        raise ThriftError(-1, f"field {number} is {'missing' if value is None else f'of type {value.kind}'}")
    return value.data


def read_struct(data: bytes | memoryview, offset: int = 0, *, max_values: int = 1 << 23) -> tuple[Struct, int]:
    """(the struct that begins at ``offset``, the offset after it).

    Raises ThriftError for anything else, and for more than ``max_values`` fields and list items in all: one byte in the
    file can become a value of 150 bytes in memory.
    """
    try:
        return _read_struct(data, offset, MAX_DEPTH, repeat(None, max_values))
    except IndexError:
        raise ThriftError(len(data), "the bytes end inside a struct") from None
    except StopIteration:
        raise ThriftError(offset, f"more than {max_values} values") from None


def _read_struct(data: bytes | memoryview, offset: int, depth: int, budget: Iterator[None]) -> tuple[Struct, int]:
    if depth == 0:
        raise ThriftError(offset, f"nested more than {MAX_DEPTH} deep")
    fields: Struct = {}
    number = 0
    while header := data[offset]:
        next(budget)
        start, offset = offset, offset + 1
        kind = header & 0x0F
        if header >> 4:
            number += header >> 4
        else:
            number, offset = _read_integer(data, offset, 16)
        if number > 0x7FFF:
            raise ThriftError(start, "field numbers end at 32767")
        if number in fields:
            raise ThriftError(start, f"field {number} comes twice")
        if kind <= FALSE:
            if kind == 0:
                raise ThriftError(start, f"field {number} has no type")
            fields[number] = Value(kind, kind == TRUE)
        else:
            value, offset = _read_value(data, offset, kind, depth, budget)
            fields[number] = Value(kind, value)
    return fields, offset + 1


def _read_value(
    data: bytes | memoryview, offset: int, kind: int, depth: int, budget: Iterator[None]
) -> tuple[Any, int]:
    if I16 <= kind <= I64:
        return _read_integer(data, offset, _BITS[kind])
    if kind == BINARY:
        size, start = _read_varint(data, offset)
        if size > len(data) - start:
            raise ThriftError(offset, f"a string of {size} bytes, but {len(data) - start} are left")
        return bytes(data[start : start + size]), start + size
    if kind == STRUCT:
        return _read_struct(data, offset, depth - 1, budget)
    if kind in (LIST, SET):
        return _read_items(data, offset, depth - 1, budget)
    if kind in (TRUE, FALSE):  # items of a list: 1 is true, 2 (from some old writers 0) is false
        return data[offset] == TRUE, offset + 1
    if kind == I8:
        return (data[offset] ^ 0x80) - 0x80, offset + 1
    if kind == DOUBLE:
        if len(data) - offset < 8:
            raise IndexError
        return packing.unpack_from("<d", data, offset)[0], offset + 8
    raise ThriftError(offset, f"type {kind} does not occur in Parquet")


def _read_items(data: bytes | memoryview, offset: int, depth: int, budget: Iterator[None]) -> tuple[Items, int]:
    if depth == 0:
        raise ThriftError(offset, f"nested more than {MAX_DEPTH} deep")
    start, header = offset, data[offset]
    count, kind = header >> 4, header & 0x0F
    offset += 1
    if count == 15:
        count, offset = _read_varint(data, offset)
    if count > len(data) - offset:  # every item takes a byte or more
        raise ThriftError(start, f"a list of {count} items, but {len(data) - offset} bytes are left")
    values = []
    for _ in range(count):
        next(budget)
        value, offset = _read_value(data, offset, kind, depth, budget)
        values.append(value)
    return Items(kind, values), offset


def _read_integer(data: bytes | memoryview, offset: int, bits: int) -> tuple[int, int]:
    number, end = _read_varint(data, offset)
    if number >> bits:
        raise ThriftError(offset, f"an integer of more than {bits} bits")
    return (number >> 1) ^ -(number & 1), end


def _read_varint(data: bytes | memoryview, offset: int) -> tuple[int, int]:
    byte = data[offset]
    if byte < 0x80:
        return byte, offset + 1
    number, shift, start = byte & 0x7F, 7, offset
    while byte >= 0x80:
        if shift == 70:  # 10 bytes carry 64 bits
            raise ThriftError(start, "an integer of more than 10 bytes")
        offset += 1
        byte = data[offset]
        number |= (byte & 0x7F) << shift
        shift += 7
    return number, offset + 1


def write_struct(fields: Struct) -> bytes:
    """The bytes of a struct, with fields in ascending order. Raises ThriftError for an integer too large for its
    type."""
    out = bytearray()
    _write_struct(out, fields)
    return bytes(out)


def _write_struct(out: bytearray, fields: Struct) -> None:
    last = 0
    for number in sorted(fields):
        kind, data = fields[number]
        if 0 < number - last < 16:
            out.append((number - last) << 4 | kind)
        else:
            out.append(kind)
            _write_integer(out, number, 16)
        last = number
        if kind > FALSE:
            _write_value(out, kind, data)
    out.append(0)


def _write_value(out: bytearray, kind: int, data: Any) -> None:
    if I16 <= kind <= I64:
        _write_integer(out, data, _BITS[kind])
    elif kind == BINARY:
        write_varint(out, len(data))
        out += data
    elif kind == STRUCT:
        _write_struct(out, data)
    elif kind in (LIST, SET):
        count = len(data.values)
        out.append(min(count, 15) << 4 | data.kind)
        if count >= 15:
            write_varint(out, count)
        for value in data.values:
            _write_value(out, data.kind, value)
    elif kind in (TRUE, FALSE):
        out.append(TRUE if data else FALSE)
    elif kind == I8:
        out.append(_fitting(data, 8) & 0xFF)
    elif kind == DOUBLE:
        out += packing.pack("<d", data)
    else:
        raise ThriftError(-1, f"type {kind} does not occur in Parquet")


def _write_integer(out: bytearray, number: int, bits: int) -> None:
    write_varint(out, (_fitting(number, bits) << 1) ^ (number >> 63))


def _fitting(number: int, bits: int) -> int:
    if not -(1 << (bits - 1)) <= number < 1 << (bits - 1):
        raise ThriftError(-1, f"{number} does not fit into {bits} bits")
    return number


def write_varint(out: bytearray, number: int) -> None:
    """Append a number of 0 or more, in base 128, the lowest digits first (ULEB128)."""
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
