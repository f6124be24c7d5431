"""Read JSON lists and JSON lines as lists of entries, one stretch at a time.

430 MB of JSON with 6 million objects would take gigabytes as one list of dicts. A stretch ends between two entries.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from builder.base.errors import ListingError
from builder.source.files import ByteFile
from builder.source.listing_plain import Plain, plain_entries

STRETCH = 128 << 10  # bytes parsed at a time: 2,000 entries; blocks other threads for 2 ms
_WHOLE = 8 << 20
"""Most bytes of an entry. Also the bytes parsed at once to find an error's place: 3 bytes of JSON can become 80."""
_FORMS = 'a JSON list of {"image": …, "annotation": …}, or such an object on each line'
_HEAD = 4 << 10  # a list, or the first line, must begin within these bytes
_TRIES = 1000  # braces checked for a comma after them; usually one of the last few has it
_COMMA = re.compile(r"[ \t\r\n]*,[ \t\r\n]*")
_COMMA_BEHIND = re.compile(_COMMA.pattern.encode())


def json_stretches(file: ByteFile, *, plain: bool = False) -> Iterator[list[Any] | Plain]:
    """The entries of a JSON list, or of JSON lines (one object a line). ``plain``: stretches in the plain form
    (listing_plain.py) come as their paths. Raises ListingError with file and byte."""
    head = file.read_at(0, _HEAD).removeprefix(codecs.BOM_UTF8).lstrip(b" \t\r\n")
    return _lines(file) if head.startswith(b"{") else _stretches(file, plain=plain)


def ends_well(file: ByteFile, size: int) -> list[Any] | None:
    """The entries of the last stretch of a JSON list, starting after an entry; None if the list does not end as it
    should. A string that looks like the end of an entry may cause a false None."""
    _, comma, tail = file.read_at(max(0, size - STRETCH), STRETCH).partition(b"},")
    try:
        entries: list[Any] | None = _value(b"[" + tail, file.name, 0) if comma else None
    except ListingError:
        return None
    return entries


def _lines(file: ByteFile) -> Iterator[list[Any] | Plain]:
    pending, base, offset = b"", 0, 0
    while block := file.read_at(offset, STRETCH):
        offset += len(block)
        pending += block
        whole, newline, rest = pending.rpartition(b"\n")
        if newline:
            yield _of_lines(whole, file.name, base)
            base += len(whole) + 1
            pending = rest
        elif len(pending) > _WHOLE:
            raise ListingError(file.name, f"after byte {base}", _endless())
    if pending.strip():
        yield _of_lines(pending, file.name, base)


def _of_lines(text: bytes, name: str, base: int) -> list[Any]:
    text = text.removeprefix(codecs.BOM_UTF8) if base == 0 else text
    lines = [line for line in text.split(b"\n") if line.strip()]
    try:
        found: list[Any] = json.loads(b"[" + b",".join(lines) + b"]")
        if len(found) == len(lines):
            return found
    except (ValueError, RecursionError):
        pass
    entries, place = [], base
    for line in text.split(b"\n"):
        if line.strip():
            try:
                entries.append(_value(line, name, place, "the line is cut off here"))
            except ListingError:
                if entries or base:
                    raise
                raise ListingError(name, f"byte {place}", f"found an object; expected {_FORMS}") from None
        place += len(line) + 1
    return entries


def _stretches(file: ByteFile, *, plain: bool = False) -> Iterator[list[Any] | Plain]:
    """Lists of entries. A stretch is cut after the last ``}`` before a comma. If it parses, the cut lay between two
    entries: any other cut leaves a string or an object open."""
    pending, base, offset = b"", 0, 0  # base: the file offset of pending's first byte
    opened = False
    while block := file.read_at(offset, STRETCH):
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
        if plain and (paths := plain_entries(pending[:cut])):
            yield paths
            pending, base = pending[used:], base + used
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
    yield _value(b"[" + pending, file.name, base - 1)


def _last_entry(pending: bytes) -> tuple[int, int]:
    """Where the last ``}`` that a comma follows ends, and where the comma ends; -1 and -1 if there is none."""
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
    """The entries that a comma follows, and how many bytes they take. Slower, but it finds the end of an entry that
    holds objects, or ``},`` in a string."""
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
    except (ValueError, RecursionError):  # the last entry continues after the cut, or is first next time
        pass
    return entries, len(text[:used].encode()) if used else 0


def _opening(head: bytes, name: str) -> int:
    """The offset after the list's opening bracket."""
    text = head.removeprefix(codecs.BOM_UTF8)
    body = text.lstrip(b" \t\r\n")
    start = len(head) - len(body)
    if body.startswith(b"["):
        return start + 1
    if not body:
        raise ListingError(name, f"byte {start}", "the file is blank; expected a JSON list")
    what = json.dumps(body[:20].decode("utf-8", "replace"), ensure_ascii=False)
    raise ListingError(name, f"byte {start}", f"found {what}; expected {_FORMS}")


def _the_rest_at_once(file: ByteFile, base: int) -> Iterator[list[Any] | Plain]:
    """Parse from entry start ``base`` to the end in one go. Gives the exact place of an error, or the entries if the
    cut had fallen into a string."""
    data = file.read_at(base, _WHOLE)
    ends = not file.read_at(base + len(data), 1)
    yield _value(b"[" + data, file.name, base - 1, "the list is cut off here" if ends else _endless())


def _endless() -> str:
    return f"an entry is longer than {_WHOLE:,} bytes"


def _value(text: bytes, name: str, base: int, cut_off: str = "the list is cut off here") -> Any:
    """The JSON value in ``text``, which begins at byte ``base`` of the file. Raises ListingError."""
    try:
        return json.loads(text.decode())
    except UnicodeDecodeError as error:
        problem = cut_off if error.reason == "unexpected end of data" else "not UTF-8"
        raise ListingError(name, f"byte {base + error.start}", problem) from None
    except RecursionError:
        raise ListingError(name, f"after byte {base}", "nested too deeply") from None
    except json.JSONDecodeError as error:
        place = base + len(error.doc[: error.pos].encode())
        at_end = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string")
        raise ListingError(name, f"byte {place}", cut_off if at_end else error.msg) from None
    except ValueError as error:  # a number with more digits than Python converts
        raise ListingError(name, f"after byte {base}", str(error)) from None
