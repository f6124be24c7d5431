"""A query as the command that selects the same rows."""

from __future__ import annotations

import shlex
from typing import Any

from builder.view.query import Query

_SQL = {
    "megapixels": "width * height / 1e6",
    "ratio": "width / height",
    "caption_length": "length(caption)",
    "caption_words": r"len(regexp_extract_all(caption, '\S+'))",
}
"""Measures in the words of DuckDB; the others are columns."""


def condition(query: Query) -> str:
    """What ``--where`` says for it; "" for all rows. An order has no place in a selection."""
    parts = [f"({query.where})"] if query.where else []
    parts += [f"contains(lower(caption), {_text(term.lower())})" for term in query.terms]
    for each in query.filters:
        name = _SQL.get(each.column, each.column)
        parts += [f"{name} >= {each.low:.12g}"] if each.low is not None else []
        parts += [f"{name} < {each.high:.12g}"] if each.high is not None else []
    return parts[0][1:-1] if parts == [f"({query.where})"] else " and ".join(parts)


def select_command(path: str, query: Query) -> dict[str, Any]:
    """The command to type, and a note on what it leaves out."""
    where = condition(query)
    command = f"laion6m select {shlex.quote(path)} OUT" + (f" --where {shlex.quote(where)}" if where else "")
    return {"command": command, "note": "A selection keeps the dataset's order." if query.order else ""}


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
