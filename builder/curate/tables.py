"""Users' tables: a column of values and a column of names that they belong to, from Parquet, CSV and JSON lines."""

from __future__ import annotations

import gzip
import json
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from builder.base.errors import OptionError, SourceError
from builder.curate.guess import typed, typed_texts

JOINS = ("key", "path", "url", "sha256")
"""What a table's rows can be joined by. Columns are looked for in this order."""

_PARQUET = (".parquet", ".pq")
_TEXT = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_LINES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz")
KNOWN = (*_PARQUET, *_TEXT, *_LINES)


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
        named = ", ".join(f"{file}: {part.on}" for file, part in zip(files, parts, strict=True))
        raise OptionError("on", on, f"the files are joined by different columns ({named}); say which")
    try:
        both = [pa.Table.from_arrays([part.names, part.values], names=["names", "values"]) for part in parts]
        table = pa.concat_tables(both, promote_options="permissive")
    except pa.ArrowException:
        kinds = ", ".join(f"{file}: {part.values.type}" for file, part in zip(files, parts, strict=True))
        raise SourceError(f"the files hold values of different types ({kinds})") from None
    return Table(parts[0].on, table.column("names"), table.column("values"), sum(part.invalid for part in parts))


def read_table(file: str, name: str | None, on: str | None, joins: Sequence[str]) -> Table:
    """Read one file. ``name`` None: without values (all null). ``joins``: what it may be joined by."""
    ending = _ending(file)
    try:
        if ending in _PARQUET:
            with pq.ParquetFile(file) as parquet:
                by, value = _columns(file, parquet.schema_arrow.names, name, on, joins)
                table = parquet.read(columns=[by, value] if value else [by])
            return _table(file, by, value, table, 0)
        if ending in _TEXT:
            return _read_csv(file, name, on, joins)
        return _read_lines(file, name, on, joins)
    except OSError as error:
        raise SourceError(f"{shlex.quote(file)}: {error.strerror or error}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise SourceError(f"{shlex.quote(file)}: {error}") from None


def _ending(file: str) -> str:
    for ending in sorted(KNOWN, key=len, reverse=True):
        if file.lower().endswith(ending):
            return ending
    raise SourceError(f"{shlex.quote(file)}: not a table that can be read; its name may end in {', '.join(KNOWN)}")


def _columns(
    file: str, names: Iterable[str], name: str | None, on: str | None, joins: Sequence[str]
) -> tuple[str, str | None]:
    """The column of names and the column of values. Raises SourceError."""
    there = list(names)
    by = on or next((each for each in joins if each in there), None)
    if by is None or by not in there:
        wanted = by or " or ".join(joins)
        raise SourceError(f"{shlex.quote(file)} has no column {wanted}; it has {', '.join(there) or 'none'}")
    if name is None:
        return by, None
    others = [each for each in there if each not in (by, *(joins if name not in joins else ()))]
    if name in there:
        return by, name
    if len(others) != 1:
        raise SourceError(f"{shlex.quote(file)} has no column {name}; it has {', '.join(there)}")
    return by, others[0]


def _table(file: str, by: str, value: str | None, table: pa.Table, invalid: int) -> Table:
    names = table.column(by)
    if pa.types.is_dictionary(names.type):
        names = names.cast(names.type.value_type)
    if not (pa.types.is_integer(names.type) or pa.types.is_string(names.type) or pa.types.is_large_string(names.type)):
        raise SourceError(f"{shlex.quote(file)}: its column {by} holds {names.type} values, not strings")
    names = names.cast(pa.string())
    if by == "sha256":
        names = pc.utf8_lower(names)
    values = table.column(value) if value else pa.chunked_array([pa.nulls(len(names))])
    return Table(by, names, values, invalid)


def _read_csv(file: str, name: str | None, on: str | None, joins: Sequence[str]) -> Table:
    parse = pacsv.ParseOptions(delimiter="\t" if ".tsv" in _ending(file) else ",", newlines_in_values=True)
    with pacsv.open_csv(file, parse_options=parse) as reader:
        by, value = _columns(file, reader.schema.names, name, on, joins)
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
    return _table(file, by, value, table, 0)


def _read_lines(file: str, name: str | None, on: str | None, joins: Sequence[str]) -> Table:
    names: list[Any] = []
    values: list[Any] = []
    by: str | None = None
    value: str | None = None
    for place, entry in _entries(file):
        if by is None:
            by, value = _columns(file, entry, name, on, joins)
        of = entry.get(by)
        if not isinstance(of, str | int) or isinstance(of, bool):
            raise SourceError(f"{shlex.quote(file)}, {place}: {by} is {of!r:.40}, not a string")
        names.append(str(of))
        values.append(entry.get(value) if value else None)
    if by is None:
        raise SourceError(f"{shlex.quote(file)} holds no objects")
    column, invalid = typed(values, value) if value else (pa.chunked_array([pa.nulls(len(values))]), 0)
    table = pa.Table.from_arrays([pa.chunked_array([pa.array(names, pa.string())]), column], names=[by, value or ""])
    return _table(file, by, value, table, invalid)


def _entries(file: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """The objects of a JSON lines file or a JSON list, and the place of each."""
    opened = gzip.open if file.lower().endswith(".gz") else open
    with cast(Any, opened)(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            text = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
            if not text:
                continue
            place = f"line {number}"
            try:
                entry = json.loads(text if number > 1 or text[:1] != b"[" else text + lines.read())
            except (ValueError, RecursionError) as error:
                raise SourceError(f"{shlex.quote(file)}, {place}: not JSON: {error}") from None
            listed = isinstance(entry, list) and number == 1
            for at, each in enumerate(entry if listed else [entry], 1):
                if not isinstance(each, dict):
                    where = f"entry {at}" if listed else place
                    raise SourceError(f"{shlex.quote(file)}, {where}: not an object, {each!r:.40}")
                yield f"entry {at}" if listed else place, each


def tables_in(folder: str) -> list[str]:
    """Files directly in a folder that hold tables, by name."""
    names = [entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith(".")]
    return [os.path.join(folder, name) for name in sorted(names) if name.lower().endswith(KNOWN)]
