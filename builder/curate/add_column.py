"""add-column: values or arrays for the rows of a dataset, kept beside its images. No image is written."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Sequence

from builder.base import schema
from builder.base.arrays import number_array
from builder.base.errors import OptionError, SourceError
from builder.base.names import SELECTION
from builder.base.paths import StrPath, paths_of, require_folder
from builder.base.urls import refuse_url
from builder.base.words import counted
from builder.curate.arrays import add_arrays
from builder.curate.columns import ColumnSummary, plain_column, refuse_made, write_column
from builder.curate.documents import field_values
from builder.curate.lists import join, names_of
from builder.curate.tables import JOINS, Table, read_tables, tables_in, typed
from builder.read.columns import check_name
from builder.read.opening import open_dataset
from builder.read.reader import Reader


def add_column(
    path: StrPath,
    name: str,
    source: StrPath | Sequence[StrPath] | None = None,
    *,
    field: str | None = None,
    on: str | None = None,
    missing_ok: bool = False,
    num_proc: int | None = None,
    engine: str = "local",
    quiet: bool = False,
) -> ColumnSummary:
    """Add the column ``name`` to a converted folder or an index.

    ``source``: a folder with one array file per row, named after the image path (``<image path>.pt``, ``.npy``,
    ``.safetensors``). Or Parquet, CSV or JSON lines files whose values are joined by ``on``: "key", "path", "url" or
    "sha256"; None: by what the files have. ``field``: a field of the annotations instead. A row without a value is
    null. A row without an array is an error unless ``missing_ok``.

    Raises SourceError (nothing matches, a file cannot be read), OutputError (the column exists), OptionError,
    JobMismatchError, LockedError, MissingExtraError (.pt files need torch), InterruptedRunError.
    """
    started = time.monotonic()
    sources = paths_of(source or ())
    for each in sources:
        refuse_url(each, "add-column")
    places = [os.path.abspath(each) for each in sources]
    if (field is None) == (not places):
        raise OptionError(
            "field", field, "give either files or a folder (--from), or a field of the annotations (--field)"
        )
    if on is not None and on not in JOINS:
        raise OptionError("on", on, f"give one of {', '.join(JOINS)}")
    check_name(name)
    folder = dataset_folder(path, "add-column")
    refuse_made(folder, name)
    if field is None and len(places) == 1 and os.path.isdir(places[0]):
        tables = tables_in(places[0])
        if not tables:
            return add_arrays(
                folder, name, places[0], missing_ok=missing_ok, num_proc=num_proc, engine=engine, quiet=quiet
            )
        places = tables
    reader = open_dataset(folder).reader
    if field is not None:
        values = field_values(reader, field, quiet=quiet)
        missing = values.count(None)
        if missing == len(values):
            raise SourceError(f"no annotation of {shlex.quote(folder)} has the field {field}")
        column, invalid = typed(values, f"the field {field}")
        by, stray, repeated = "row", 0, 0
    else:
        table = read_tables(places, name, on)
        joined = join(reader, table.on, table.names, quiet=quiet)
        if not joined.found:
            raise _nothing(reader, table, places)
        without = joined.places < 0
        column = plain_column(name, table.values).take(number_array(joined.places, without))
        by, stray, repeated, invalid = table.on, joined.names - joined.found, joined.repeated, table.invalid
        missing = int(without.sum())
    shards = write_column(folder, name, column)
    return ColumnSummary(
        out=folder,
        name=name,
        rows=len(column),
        shards=shards,
        bytes=column.nbytes,
        seconds=time.monotonic() - started,
        type=str(column.type),
        on=by,
        matched=len(column) - missing,
        missing=missing,
        stray=stray,
        repeated=repeated,
        invalid=invalid,
    )


def describe_column(summary: ColumnSummary) -> str:
    """The summary in words."""
    if summary.matched is None:
        size = counted(summary.bytes, "byte")
        return f"{summary.name}: {counted(summary.rows, 'row')} in {counted(summary.shards, 'shard')}, {size} of arrays"
    lines = [f"{summary.name}: {summary.type}, {summary.matched:,} of {counted(summary.rows, 'row')} with a value"]
    for count, words, more in (
        (summary.missing, ("row has", "rows have"), "no value (null)"),
        (summary.stray, ("value belongs", "values belong"), f"to no row ({summary.on} not found)"),
        (summary.repeated, ("value repeats", "values repeat"), f"the {summary.on} of an earlier one, which counts"),
        (summary.invalid, ("value has", "values have"), "another type (null)"),
    ):
        if count:
            lines.append(f"  {counted(count, *words)} {more}")
    return "\n".join(lines)


def _nothing(reader: Reader, table: Table, places: Sequence[str]) -> SourceError:
    names = names_of(reader, table.on) if table.on in ("key", "path") else None
    theirs = next((name.as_py() for name in table.names if name.is_valid), None)
    ours = f", the dataset has {names[0].as_py()}" if names is not None and len(names) else ""
    values = counted(len(table.names), "value")
    where = shlex.quote(places[0]) + (f" and {len(places) - 1:,} more" if len(places) > 1 else "")
    return SourceError(
        f"none of {values} in {where} belongs to a row of {shlex.quote(reader.folder)}. They are joined by {table.on}: "
        f"the files have {theirs}{ours}, for example. To join by another column: --on {', '.join(JOINS)}"
    )


def dataset_folder(path: StrPath, command: str) -> str:
    """The folder that ``command`` can add a column to. Raises SourceError."""
    refuse_url(os.fspath(path), command)
    folder = os.path.abspath(os.path.expanduser(os.fspath(path)))
    if os.path.exists(os.path.join(folder, SELECTION)):
        from builder.curate.selection import dataset_of, read_selection

        at = shlex.quote(dataset_of(folder, read_selection(folder)))
        raise SourceError(f"{shlex.quote(folder)} is a selection. Columns belong to its dataset: give {at}")
    require_folder(folder)
    if not os.path.exists(os.path.join(folder, schema.INDEX)):
        at = shlex.quote(folder)
        raise SourceError(f"{at} has no {schema.INDEX}. Convert it, or make an index: laion6m index {at}")
    return folder
