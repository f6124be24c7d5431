"""A query as a selection: the command that makes it, and a function that makes it here."""

from __future__ import annotations

import os
import shlex
from typing import Any

from builder.base.errors import OptionError
from builder.curate.split import check_split
from builder.read.view import Rows
from builder.view.query import Query

_SQL = {
    "megapixels": "width * height / 1e6",
    "ratio": "width / height",
    "caption_length": "length(caption)",
    "caption_words": r"len(regexp_extract_all(caption, '\S+'))",
}
"""Measures as DuckDB expressions. All other measures are columns."""


def condition(query: Query) -> str:
    """The query as the argument of ``--where``. "" for all rows. The order is left out: a selection has none."""
    parts = [f"({query.where})"] if query.where else []
    parts += [f"contains(lower(caption), {_text(term.lower())})" for term in query.terms]
    for each in query.filters:
        name = _SQL.get(each.column, f'"{each.column}"')
        parts += [f"{name} >= {each.low!r}"] if each.low is not None else []
        parts += [f"{name} < {each.high!r}"] if each.high is not None else []
    return query.where if len(parts) == 1 and query.where else " and ".join(parts)


def select_command(path: str, query: Query) -> dict[str, Any]:
    """The command to type, and a note on the parts of the query that it leaves out."""
    where = condition(query)
    command = f"laion6m select {shlex.quote(path)} OUT" + (f" --where {shlex.quote(where)}" if where else "")
    return {"command": command, "note": "A selection keeps the dataset's order." if query.order else ""}


def save_selection(dataset: Rows, query: Query, folder: str | None, name: str) -> dict[str, Any]:
    """Write the selection ``folder``/``name``, as ``laion6m select`` would. Raises OptionError if ``folder`` is None or
    ``name`` is not a folder name, OutputError if it exists already, SqlError, MissingExtraError."""
    if folder is None:
        raise OptionError("save", None, "start the viewer with a folder to save in: laion6m view DATASET --save FOLDER")
    out = os.path.join(os.path.abspath(os.path.expanduser(folder)), check_split(name))
    where = condition(query)
    rows = dataset.where(where) if where else dataset
    rows.save(out)
    return {"out": out, "rows": len(rows), "command": select_command(dataset.folder, query)["command"]}


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
