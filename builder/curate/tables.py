"""Users' tables: a column of values and a column of names that they belong to, from Parquet, CSV and JSON lines.
The type of the values is guessed by looking at all of them."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from builder.base.errors import OptionError, SourceError
from builder.store.parquet_file import open_parquet

JOINS = ("key", "path", "url", "sha256")
"""What a table's rows can be joined by. Columns are looked for in this order."""

_PARQUET = (".parquet", ".pq")
_TEXT = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_LINES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz")
KNOWN = (*_PARQUET, *_TEXT, *_LINES)


_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d*)?([eE][+-]?\d+)?|[+-]?\.\d+|[+-]?inf(inity)?|nan", re.IGNORECASE)
"""007 is no number: it is a name."""

Pick: TypeAlias = Callable[[Iterable[str]], "tuple[str, str | None]"]
"""The names of a file's columns → the column of names, and the column of values."""


@dataclass(frozen=True, slots=True)
class Table:
    """``names``: the rows that the values belong to, as strings, by ``on``. ``invalid``: values that are null because
    they have another type than the rest."""

    on: str
    names: pa.ChunkedArray
    values: pa.ChunkedArray
    invalid: int


def read_tables(files: Sequence[str], name: str, on: str | None = None) -> Table:
    """The column ``name`` of all files, joined by ``on``; None: by the first of JOINS that the file has. If a file has
    only one other column, its values are there, whatever its name. Raises SourceError, OptionError."""
    parts = [read_table(file, name, on, JOINS) for file in files]
    if len({part.on for part in parts}) > 1:
        named = ", ".join(f"{shlex.quote(file)}: {part.on}" for file, part in zip(files, parts, strict=True))
        raise OptionError("on", on, f"the files would be joined by different columns ({named}). Give one that all have")
    try:
        both = [pa.Table.from_arrays([part.names, part.values], names=["names", "values"]) for part in parts]
        table = pa.concat_tables(both, promote_options="permissive")
    except pa.ArrowException:
        kinds = ", ".join(f"{shlex.quote(file)}: {part.values.type}" for file, part in zip(files, parts, strict=True))
        raise SourceError(f"the files hold values of different types ({kinds})") from None
    return Table(parts[0].on, table.column("names"), table.column("values"), sum(part.invalid for part in parts))


def read_table(file: str, name: str | None, on: str | None, joins: Sequence[str]) -> Table:
    """Read one file. ``name`` None: without values (all null). ``joins``: what it may be joined by."""
    ending = _ending(file)
    read = _read_parquet if ending in _PARQUET else _read_csv if ending in _TEXT else _read_lines
    try:
        return read(file, partial(_columns, name, on, joins))
    except SourceError as error:
        raise SourceError(f"{shlex.quote(file)}: {error}") from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise SourceError(f"cannot read {shlex.quote(file)}: {reason}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise SourceError(f"{shlex.quote(file)}: {error}") from None


def _ending(file: str) -> str:
    for ending in KNOWN:
        if file.lower().endswith(ending):
            return ending
    raise SourceError(f"{shlex.quote(file)}: not a table. The name of a table ends in {', '.join(KNOWN)}")


def _columns(name: str | None, on: str | None, joins: Sequence[str], names: Iterable[str]) -> tuple[str, str | None]:
    """The column of names and the column of values. Raises SourceError."""
    there = list(names)
    by = on or next((each for each in joins if each in there), None)
    if by is None or by not in there:
        wanted = by or " or ".join(joins)
        raise SourceError(f"no column {wanted}; it has {', '.join(there) or 'none'}")
    if name is None:
        return by, None
    others = [each for each in there if each not in (by, *(joins if name not in joins else ()))]
    if name in there:
        return by, name
    if len(others) != 1:
        raise SourceError(f"no column {name}; it has {', '.join(there)}")
    return by, others[0]


def _table(by: str, value: str | None, table: pa.Table, invalid: int = 0) -> Table:
    names = table.column(by)
    if pa.types.is_dictionary(names.type):
        names = names.cast(names.type.value_type)
    if not (pa.types.is_integer(names.type) or pa.types.is_string(names.type) or pa.types.is_large_string(names.type)):
        raise SourceError(f"its column {by} holds {names.type} values, not strings")
    names = names.cast(pa.string())
    if by == "sha256":
        names = pc.utf8_lower(names)
    values = table.column(value) if value else pa.chunked_array([pa.nulls(len(names))])
    return Table(by, names, values, invalid)


def _read_parquet(file: str, pick: Pick) -> Table:
    with open_parquet(file) as parquet:
        by, value = pick(parquet.schema_arrow.names)
        return _table(by, value, parquet.read(columns=[by, value] if value else [by]))


def _read_csv(file: str, pick: Pick) -> Table:
    parse = pacsv.ParseOptions(delimiter="\t" if _ending(file).startswith(".tsv") else ",", newlines_in_values=True)
    with pacsv.open_csv(file, parse_options=parse) as reader:
        by, value = pick(reader.schema.names)
    wanted = [by, value] if value else [by]
    convert = pacsv.ConvertOptions(
        include_columns=wanted,
        column_types=dict.fromkeys(wanted, pa.string()),  # a key of digits is no number
        strings_can_be_null=True,
        null_values=[""],
        quoted_strings_can_be_null=False,
    )
    table = pacsv.read_csv(file, parse_options=parse, convert_options=convert)
    if value:
        place = table.column_names.index(value)
        table = table.set_column(place, value, typed_texts(table.column(value)))
    return _table(by, value, table)


def _read_lines(file: str, pick: Pick) -> Table:
    names: list[Any] = []
    values: list[Any] = []
    by: str | None = None
    value: str | None = None
    for place, entry in _entries(file):
        if by is None:
            by, value = pick(entry)
        of = entry.get(by)
        if not isinstance(of, str | int) or isinstance(of, bool):
            raise SourceError(f"{place}: {by} is {json.dumps(of):.40}, not a string")
        names.append(str(of))
        values.append(entry.get(value) if value else None)
    if by is None:
        raise SourceError("no JSON objects in it")
    column, invalid = typed(values, value) if value else (pa.chunked_array([pa.nulls(len(values))]), 0)
    table = pa.Table.from_arrays([pa.chunked_array([pa.array(names, pa.string())]), column], names=[by, value or ""])
    return _table(by, value, table, invalid)


def _entries(file: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """The objects of a JSON lines file or a JSON list, and the place of each."""
    opened = gzip.open if file.lower().endswith(".gz") else open
    with cast(Any, opened)(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            text = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
            if not text:
                continue
            try:
                entry = json.loads(text if number > 1 or text[:1] != b"[" else text + lines.read())
            except (ValueError, RecursionError) as error:
                raise SourceError(f"line {number}: not JSON: {error}") from None
            listed = isinstance(entry, list) and number == 1
            for at, each in enumerate(entry if listed else [entry], 1):
                place = f"entry {at}" if listed else f"line {number}"
                if not isinstance(each, dict):
                    raise SourceError(f"{place}: not an object: {json.dumps(each):.40}")
                yield place, each


def tables_in(folder: str) -> list[str]:
    """Files directly in a folder that hold tables, by name."""
    names = [entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith(".")]
    return [os.path.join(folder, name) for name in sorted(names) if name.lower().endswith(KNOWN)]


def typed(values: Sequence[Any], name: str) -> tuple[pa.ChunkedArray, int]:
    """Turn JSON values into the type that most of them have: booleans, numbers (int64, uint64 or float64), strings or
    lists of strings. Strings of digits count as numbers among numbers, or if all strings are such. Numbers among
    strings become text. Any other value becomes null. Returns the column and the number of those nulls. Raises
    SourceError if nothing fits any type."""
    kinds = Counter(map(_kind, values))
    sizes = {kind: kinds[kind] for kind in ("list", "boolean", "number", "text")}
    texts = (value for value in values if isinstance(value, str)) if sizes["text"] else ()
    numeric = sum(bool(_NUMBER.fullmatch(text.strip())) for text in texts)
    if numeric and (numeric == sizes["text"] or sizes["number"]):
        sizes["number"] += numeric
        sizes["text"] -= numeric
    best = max(sizes, key=lambda kind: sizes[kind])
    if not sizes[best]:
        only_nulls = kinds["none"] == len(values)
        what = "only nulls" if only_nulls else "no numbers, booleans, strings or lists of strings"
        raise SourceError(f"{name} holds {what}")
    if best == "number":
        column = _numbers([_number(value) for value in values])
    elif best == "text":
        column = pa.array([_text(value) for value in values], pa.string())
    else:
        kind = pa.bool_() if best == "boolean" else pa.list_(pa.string())
        column = pa.array([value if _kind(value) == best else None for value in values], kind)
    return pa.chunked_array([column]), column.null_count - kinds["none"]


def typed_texts(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Strings as whole numbers, numbers or booleans if all of them are; then "" is null."""
    if texts.null_count == len(texts):
        return texts
    if not pc.any(pc.match_substring_regex(texts, r"^\s*[+-]?0\d")).as_py():
        for kind in (pa.int64(), pa.uint64(), pa.float64()):
            with suppress(pa.ArrowException):
                return texts.cast(kind)
    if pc.all(pc.is_in(pc.utf8_lower(texts), pa.array(["true", "false", None]))).as_py():
        return pc.equal(pc.utf8_lower(texts), "true")
    return texts


def _kind(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    return "list" if isinstance(value, list) and all(isinstance(each, str) for each in value) else "other"


def _number(value: Any) -> int | float | None:
    kind = _kind(value)
    if kind == "number":
        return value  # type: ignore[no-any-return]
    if kind != "text" or not _NUMBER.fullmatch(value.strip()):
        return None
    number = float(value)
    return int(value) if math.isfinite(number) and re.fullmatch(r"\s*[+-]?\d+\s*", value) else number


def _text(value: Any) -> str | None:
    kind = _kind(value)
    return value if kind == "text" else str(value) if kind == "number" else None


def _numbers(values: list[int | float | None]) -> pa.Array:
    if any(isinstance(value, float) for value in values):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    for kind in (pa.int64(), pa.uint64()):
        with suppress(pa.ArrowException, OverflowError):
            return pa.array(values, kind)
    return pa.array([None if value is None else float(value) for value in values], pa.float64())
