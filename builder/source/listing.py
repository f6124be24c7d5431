"""data.json → the listed samples, in their order.

430 MB of JSON with 6 million objects in it would be gigabytes as a list of dicts. It is parsed in stretches that end
between two entries, and each stretch becomes columns before the next is read.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from builder.base.arrays import TextColumn, chunks_of
from builder.base.errors import ListingError
from builder.source.files import ByteFile
from builder.source.scan import digests_of, name_digests
from builder.source.tar_headers import normal_name

Ids = npt.NDArray[np.uint64]
"""(n, 2): xxh3-128 of n paths. What is joined on: 16 bytes instead of a string, and with 128 bits no two paths meet."""

_STRETCH = 128 << 10  # bytes parsed at a time: 2,000 entries, for 2 ms in which no other thread gets a turn
_WHOLE = 8 << 20
"""Bytes within which an entry has to end, and which are parsed at once to find the place of an error: three bytes of
JSON can become 80 in memory."""
_TRIES = 1000  # braces looked at for a comma behind them: in a listing it is one of the last few
_TOGETHER = 1 << 16  # paths that are Python objects at a time
_COMMA = re.compile(r"[ \t\r\n]*,[ \t\r\n]*")
_COMMA_BEHIND = re.compile(_COMMA.pattern.encode())


@dataclass(frozen=True, slots=True)
class Listing:
    """Listed samples, column by column, all of length n, in listing order. Paths are normalised (``./a`` is ``a``).

    A column may be chunked: 6 million captions are more text than one Arrow array holds.
    """

    images: pa.StringArray | pa.ChunkedArray
    annotations: pa.StringArray | pa.ChunkedArray
    recaptions: pa.StringArray | pa.ChunkedArray | None = None  # JSON objects: the listing itself carries the captions

    def __len__(self) -> int:
        return len(self.images)


def path_ids(paths: Iterable[str] | pa.StringArray) -> Ids:
    """xxh3-128 of each path's UTF-8 bytes, shape (n, 2)."""
    if isinstance(paths, pa.StringArray):
        parts = (paths.slice(first, _TOGETHER) for first in range(0, len(paths), _TOGETHER))
        return ids_of(digests_of(path for part in parts for path in part.view(pa.binary()).to_pylist()))
    return ids_of(name_digests(paths))


def ids_of(digests: bytes) -> Ids:
    """Digests that lie one behind the other, as an array over the same memory."""
    return np.frombuffer(digests, dtype="<u8").reshape(-1, 2)


def column_ids(paths: pa.StringArray | pa.ChunkedArray, together: int) -> Iterator[Ids]:
    """The ids of a column of paths, ``together`` at a time: those of 6 million would be 96 MB."""
    for chunk in chunks_of(paths):
        for first in range(0, len(chunk), together):
            yield path_ids(chunk.slice(first, together))


def read_listing(files: Iterable[ByteFile]) -> Listing:
    """Read JSON lists of ``{"image": path, "annotation": path}``, one after another.

    Raises ListingError with the file and the byte or the entry where it is cut off, not JSON, not a list, or an entry
    lacks a path. Other keys of an entry are passed over.
    """
    images, annotations = TextColumn(), TextColumn()
    for file in files:
        first = 0
        for entries in _stretches(file):
            images.add(_paths_of(entries, "image", file.name, first))
            annotations.add(_paths_of(entries, "annotation", file.name, first))
            first += len(entries)
    return Listing(images.done(), annotations.done())


def check_listing(file: ByteFile, most: int) -> None:
    """Read a listing and keep nothing of it. Raises what :func:`read_listing` raises.

    Of one of more than ``most`` bytes only so many at its beginning and a stretch at its end are read, where it shows
    that a download was cut off or is of something else. Where the end is not sound all is read, to tell the place.
    """
    long = file.size is not None and file.size > most and _ends_well(file, file.size)
    first = 0
    for number, entries in enumerate(_stretches(file)):
        for key in ("image", "annotation"):
            _paths_of(entries, key, file.name, first)
        first += len(entries)
        if long and number * _STRETCH > most:
            break


def _ends_well(file: ByteFile, size: int) -> bool:
    """Whether the last stretch, from behind an entry on, is entries and the list's end. Where a string looks like the
    end of an entry it may say no by mistake."""
    _, comma, tail = file.read_at(max(0, size - _STRETCH), _STRETCH).partition(b"},")
    try:
        entries = _parse(b"[" + tail, file.name, 0)
        for key in ("image", "annotation"):
            _paths_of(entries, key, file.name, 0)
    except ListingError:
        return False
    return bool(comma)


def _paths_of(entries: list[Any], key: str, name: str, first: int) -> list[str]:
    try:
        paths = [entry[key] for entry in entries]
        joined = "\n".join(["", *paths, ""])
    except (KeyError, TypeError, IndexError):
        raise _bad_entry(entries, key, name, first) from None
    # One look at all of them: only a listing with odd paths in it pays for normalising each.
    if not joined.isascii() or any(odd in joined for odd in ("/.", "//", "\n/", "\n.", "/\n", "\0")):
        paths = [normal_name(path.encode("utf-8", "backslashreplace").decode()) for path in paths]
    return paths


def _bad_entry(entries: list[Any], key: str, name: str, first: int) -> ListingError:
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            return ListingError(name, f"entry {first + number}", f"{json.dumps(entry)[:80]} is not an object")
        if key not in entry:
            found = ", ".join(sorted(entry)[:8]) or "none"
            return ListingError(name, f"entry {first + number}", f"has no {key!r}; its keys: {found}")
        if not isinstance(entry[key], str):
            return ListingError(
                name, f"entry {first + number}", f"{key!r} is {json.dumps(entry[key])[:80]}, not a path"
            )
    raise AssertionError("an entry was bad a moment ago")


def _stretches(file: ByteFile) -> Iterator[list[Any]]:
    """Lists of entries. A stretch is cut behind the last ``}`` before a comma; that it parses proves that the cut lay
    between two entries, as any other place leaves a string or an object open."""
    pending, base, offset = b"", 0, 0  # base: the file offset of pending's first byte
    opened = False
    while block := file.read_at(offset, _STRETCH):
        offset += len(block)
        pending += block
        if not opened:
            start = _opening(pending, file.name)
            pending, base, opened = pending[start:], start, True
        cut, used = _last_entry(pending)
        if cut < 0:
            if len(pending) > _WHOLE:
                raise ListingError(file.name, f"after byte {base - 1}", _endless())
            continue
        try:
            entries = json.loads((b"[" + pending[:cut] + b"]").decode())
        except (ValueError, RecursionError):
            entries, used = _one_by_one(pending[:used])
            if not entries:
                yield from _the_rest_at_once(file, base)
                return
        yield entries
        pending, base = pending[used:], base + used
    if not opened:
        raise ListingError(file.name, "byte 0", "the file is empty; expected a JSON list")
    yield _parse(b"[" + pending, file.name, base - 1)


def _last_entry(pending: bytes) -> tuple[int, int]:
    """Where the last ``}`` with a comma behind it ends, and where that comma does; -1 and -1 where there is none."""
    at = pending.rfind(b"},")
    if at >= 0:
        return at + 1, at + 2
    at = len(pending)
    for _ in range(_TRIES):
        at = pending.rfind(b"}", 0, at)
        if at < 0:
            break
        if comma := _COMMA_BEHIND.match(pending, at + 1):
            return at + 1, comma.end()
    return -1, -1


def _one_by_one(data: bytes) -> tuple[list[Any], int]:
    """The entries that have a comma behind them, and how many bytes they take: slower, but sure where an entry ends
    that has objects, or ``},`` in a string, inside."""
    decode, entries, used = json.JSONDecoder().raw_decode, [], 0
    try:
        text = data.decode()
        at = len(text) - len(text.lstrip(" \t\r\n"))
        while True:
            entry, at = decode(text, at)
            comma = _COMMA.match(text, at)
            if comma is None:
                break
            entries.append(entry)
            at = used = comma.end()
    except (ValueError, RecursionError):  # the last entry goes on behind the cut; if it does not, it comes first next
        pass
    return entries, len(text[:used].encode()) if used else 0


def _opening(head: bytes, name: str) -> int:
    """The offset behind the list's opening bracket."""
    text = head.removeprefix(codecs.BOM_UTF8)
    body = text.lstrip(b" \t\r\n")
    start = len(head) - len(body)
    if body.startswith(b"["):
        return start + 1
    if not body:
        raise ListingError(name, f"byte {start}", "the file is blank; expected a JSON list")
    what = "an object" if body.startswith(b"{") else repr(body[:20].decode("utf-8", "replace"))
    raise ListingError(name, f"byte {start}", f'found {what}; expected a JSON list of {{"image": …, "annotation": …}}')


def _the_rest_at_once(file: ByteFile, base: int) -> Iterator[list[Any]]:
    """From entry start ``base`` to the end in one go: gives the exact place of an error, or the entries where the cut
    had fallen into a string."""
    data = file.read_at(base, _WHOLE)
    ends = not file.read_at(base + len(data), 1)
    yield _parse(b"[" + data, file.name, base - 1, "the list is cut off here" if ends else _endless())


def _endless() -> str:
    return f"no entry ends within {_WHOLE:,} bytes"


def _parse(text: bytes, name: str, base: int, cut_off: str = "the list is cut off here") -> list[Any]:
    try:
        value: list[Any] = json.loads(text.decode())
    except UnicodeDecodeError as error:
        problem = cut_off if error.reason == "unexpected end of data" else "not UTF-8"
        raise ListingError(name, f"byte {base + error.start}", problem) from None
    except RecursionError:
        raise ListingError(name, f"after byte {base}", "nested too deeply") from None
    except json.JSONDecodeError as error:
        place = base + len(error.doc[: error.pos].encode())
        at_end = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string")
        raise ListingError(name, f"byte {place}", cut_off if at_end else error.msg) from None
    except ValueError as error:  # a number of more digits than Python turns into one
        raise ListingError(name, f"after byte {base}", str(error)) from None
    return value
