"""SQL over a dataset's rows: which rows meet a condition, and how many rows each part of it left.

The condition is DuckDB SQL over ``key``, ``path``, ``caption``, ``width``, ``height``, ``size``, ``position``,
``digest``, ``annotation`` and all added columns. DuckDB scans the memory-mapped index: nothing is copied.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import closing, suppress
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from builder.base.arrays import number_array, numbers_of
from builder.base.errors import Laion6mError, MissingExtraError
from builder.base.names import is_utf8
from builder.base.records import Step
from builder.base.schema import INDEX_BATCH_ROWS, INDEX_TABLE
from builder.base.words import counted, printable
from builder.curate.documents import documents
from builder.read.columns import Values
from builder.read.reader import Reader
from builder.read.view import Rows, View

INDEX_COLUMNS = ("key", "path", "caption", "width", "height", "size", "position", "digest", "annotation_path")
"""Columns of the index that SQL sees, besides ``annotation``."""

MEMORY = "2GB"
"""Memory limit of a query. The mapped index does not count. Sorting 6 million captions needs about this much."""

_SANDBOX = {
    "memory_limit": MEMORY,
    "enable_progress_bar": False,  # an older DuckDB draws it on stdout
    "temp_directory": "",  # nothing is spilled to disk
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,  # variables of this process are no tables
    "enable_external_access": False,  # no files, no network, no ATTACH, COPY, INSTALL, LOAD
    "lock_configuration": True,  # must be last: it refuses later settings
}
_NEEDED = ("enable_external_access", "lock_configuration")
_TABLE, _ROW, _CHOSEN = "dataset", "row number", "is chosen"  # no added column's name can contain a space
_ONE = "give one condition, as it stands after WHERE in SQL, and nothing else"
_AGAIN = 0.1  # seconds


class SqlError(Laion6mError, ValueError):
    """A condition cannot be run. Args: the condition, DuckDB's message in one line."""

    def _words(self) -> str:
        condition, words = self.args
        text = printable(" ".join(condition.split()))
        shown = text if len(text) <= 200 else f"{text[:200]}…"
        return f'where "{shown}": {words}'


def find_rows(rows: Rows, condition: str, *, timeout: float | None = None) -> View:
    """The rows for which a SQL condition is true, in their order. One step for each condition that AND joins at the top
    level says how many rows were left. ``timeout``: seconds until the query is stopped.
    Raises SqlError, MissingExtraError, DamagedFileError, KeyboardInterrupt (Ctrl-C stops the query)."""
    if not is_utf8(condition):
        raise SqlError(condition, "not UTF-8 text")
    passed, numbers = [], []
    with closing(_Connection()) as connection:
        try:
            parts, syntax = connection.conditions(condition)
            nodes = list(_nodes(syntax))
        except RecursionError:
            raise SqlError(condition, "nested too deeply") from None
        whole = any(node.get("class") in ("SUBQUERY", "WINDOW") for node in nodes)
        for table in _tables(rows, _names_in(nodes, rows.reader.added_columns()), whole=whole):
            try:
                some = connection.judge(condition, table, parts, timeout, once=not whole)
            except SqlError as error:
                if error.args[1].startswith("Binder Error"):
                    connection.bind(condition, _empty(rows.reader))  # gives a better message, as it knows all columns
                raise
            numbers.append(some[_ROW])
            passed.append(some["passed"])
    chosen = (some[level == len(parts)] for some, level in zip(numbers, passed, strict=True))
    found = np.concatenate([np.zeros(0, np.int64), *chosen])
    left = [sum(np.count_nonzero(level >= number) for level in passed) for number in range(1, len(parts) + 1)]
    steps = tuple(Step(part, int(count)) for part, count in zip(parts, left, strict=True))
    return View(rows.reader, _in_order(rows, found), (*rows.steps, *steps))


def _empty(reader: Reader) -> pa.Table:
    """All columns that SQL sees, with no rows."""
    kinds = {name: INDEX_TABLE.field(name).type for name in INDEX_COLUMNS} | {"annotation": pa.string()}
    for name in reader.added_columns():
        with suppress(Laion6mError):  # a stale column, which the condition does not name
            if isinstance(values := reader._column(name), Values):
                kinds[name] = values.column.type
    return pa.schema(list(kinds.items())).empty_table()


def _in_order(rows: Rows, found: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The same numbers in the order of ``rows``."""
    if isinstance(rows.rows, range) and rows.rows.step > 0:
        return found if (found[:-1] <= found[1:]).all() else np.sort(found)
    chosen = np.zeros(len(rows.reader), dtype=np.bool_)
    chosen[found] = True
    numbers = np.asarray(rows.rows, dtype=np.int64)
    return numbers[chosen[numbers]]


def _tables(rows: Rows, names: set[str], *, whole: bool) -> Iterator[pa.Table]:
    """The tables the condition runs over: columns it may name, row numbers, and which rows count.

    Usually one table. If documents must be read, several tables of one batch each: all documents would not fit in
    memory. A condition that looks at other rows than its own (``whole``) needs one table all the same."""
    reader = rows.reader
    chosen = None
    if rows is not reader:
        chosen = np.zeros(len(reader), dtype=np.uint8)
        chosen[np.asarray(rows.rows, dtype=np.int64)] = 1
    columns: dict[str, pa.ChunkedArray] = {}
    wanted = [name for name in INDEX_COLUMNS if name in names]
    if wanted:
        table = reader._index.table(wanted)
        columns.update(zip(table.column_names, table.columns, strict=True))
    for name in reader.added_columns():
        if name.lower() in names and isinstance(values := reader._column(name), Values):
            columns[name] = values.column
    # DuckDB returns 64-bit numbers in one thread. Columns of 32 bits take a quarter less time (1 million rows).
    row_type = np.int32 if len(reader) < 1 << 31 else np.int64
    step = max(1, len(reader)) if whole or "annotation" not in names else INDEX_BATCH_ROWS
    for first in range(0, max(1, len(reader)), step):
        count = min(step, len(reader) - first)
        if chosen is not None and step < len(reader) and not chosen[first : first + count].any():
            continue
        some = {name: column.slice(first, count) for name, column in columns.items()}
        if "annotation" in names:
            some["annotation"] = documents(reader, range(first, first + count))
        some[_ROW] = number_array(np.arange(first, first + count, dtype=row_type))
        if chosen is not None:
            some[_CHOSEN] = number_array(chosen[first : first + count])
        yield pa.Table.from_arrays(list(some.values()), names=list(some))


class _Connection:
    """A DuckDB in memory that can reach only what it is given."""

    def __init__(self) -> None:
        try:
            self._duckdb: Any = import_module("duckdb")
        except ImportError as error:
            raise MissingExtraError("choosing rows by SQL", "DuckDB", "sql") from error
        self._connection = self._duckdb.connect(":memory:")
        known = {name for (name,) in self._connection.execute("SELECT name FROM duckdb_settings()").fetchall()}
        for name, value in _SANDBOX.items():
            if name in known or name in _NEEDED:  # an older DuckDB may lack a setting and the feature it turns off
                self._connection.execute(f"SET {name} = '{value}'")

    def close(self) -> None:
        self._connection.close()

    def conditions(self, condition: str) -> tuple[list[str], Any]:
        """The conditions joined by AND at the top level, as written, and the syntax tree of all. Raises SqlError for
        anything that is no condition: another statement, a second one, a clause after it."""
        template = self._syntax("true")
        tree = self._syntax(condition)
        if tree["error"]:
            parser = tree["error_type"] == "parser"
            raise SqlError(condition, _one_line(f"Parser Error: {tree['error_message']}") if parser else _ONE)
        where, _ = _where_of(tree), _where_of(template)
        if tree != template:
            raise SqlError(condition, _ONE)
        return self._split(condition, where), where

    def _syntax(self, condition: str) -> dict[str, Any]:
        """DuckDB's syntax tree of a query with this condition, without text positions."""
        query = f"SELECT 1 FROM {_TABLE} WHERE {condition}\n".replace("'", "''")
        [(text,)] = self._run(condition, f"SELECT json_serialize_sql('{query}')", lambda result: result.fetchall())
        tree: dict[str, Any] = json.loads(text, object_hook=_without_places)
        return tree

    def _split(self, condition: str, where: Any) -> list[str]:
        """Cut the text at AND. From each cut the shortest stretch that is a condition by itself is taken (``a BETWEEN
        1`` is none). If DuckDB does not read the pieces as it reads the whole, the whole is one piece."""
        if not _is_and(where):
            return [condition.strip()]
        cuts = [*self._ands(condition), (len(condition), len(condition))]
        pieces: list[str] = []
        trees: list[Any] = []
        start = 0
        for end, following in cuts:
            piece = condition[start:end].strip()
            tree = self._syntax(piece)
            if piece and not tree["error"]:
                found = _where_of(tree)
                pieces.append(piece)
                trees += found["children"] if _is_and(found) else [found]
                start = following
        return pieces if trees == where["children"] and start == len(condition) else [condition.strip()]

    def _ands(self, condition: str) -> list[tuple[int, int]]:
        """Each AND outside of brackets: its first byte, and the byte after it."""
        depth, found = 0, []
        for place, kind in self._duckdb.tokenize(condition):
            if kind == self._duckdb.token_type.operator:
                depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(condition[place : place + 1], 0)
            elif (
                depth == 0 and condition[place : place + 3].lower() == "and" and kind == self._duckdb.token_type.keyword
            ):
                found.append((place, place + 3))
        return found

    def judge(
        self, condition: str, table: pa.Table, parts: list[str], timeout: float | None, *, once: bool
    ) -> dict[str, Any]:
        """For each row its number, and how many conditions it meets before the first that it fails. ``once``: the query
        reads the table once, so a stream will do. For a table, DuckDB imports pyarrow.dataset and with it pandas: 0.3 s
        at the first query of a process."""
        self._connection.register("given", table.__arrow_c_stream__() if once else table)
        columns = ", ".join(f'"{name}"' for name in table.column_names if name != _CHOSEN)
        only = f' WHERE "{_CHOSEN}" = 1' if _CHOSEN in table.column_names else ""
        cases = str(len(parts))
        for number, part in reversed(list(enumerate(parts))):
            cases = f"CASE WHEN (\n{part}\n) THEN {cases} ELSE {number} END"
        query = (
            f"WITH {_TABLE} AS NOT MATERIALIZED (SELECT {columns} FROM given{only}) "
            f'SELECT "{_ROW}", CAST({cases} AS UTINYINT) AS passed FROM {_TABLE}'
        )
        found: dict[str, Any] = self._run(condition, query, lambda result: result.fetchnumpy(), timeout)
        expected = int(numbers_of(table.column(_CHOSEN)).sum()) if only else len(table)
        if len(found[_ROW]) != expected:
            raise SqlError(condition, f"it turns {counted(expected, 'row')} into {len(found[_ROW]):,}")
        return found

    def bind(self, condition: str, empty: pa.Table) -> None:
        """Check the names in a condition by running it over no rows. Raises SqlError."""
        self._connection.register(_TABLE, empty)
        self._run(condition, f"SELECT 1 FROM {_TABLE} WHERE (\n{condition}\n)", lambda result: result.fetchall())

    def _run(self, condition: str, query: str, fetch: Callable[[Any], Any], timeout: float | None = None) -> Any:
        """Run a query and fetch its rows in a thread. This one waits for it, and for Ctrl-C, which not every
        DuckDB notices."""
        answer: futures.Future[Any] = futures.Future()

        def work() -> None:
            try:
                answer.set_result(fetch(self._connection.execute(query)))
            except Exception as error:  # noqa: BLE001 - the waiting thread raises it
                answer.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            if not futures.wait([answer], timeout).done:
                raise SqlError(condition, f"ended after {timeout:g} seconds")
        finally:
            while not answer.done():  # again and again: a query that has not started yet misses the call
                self._connection.interrupt()
                futures.wait([answer], _AGAIN)
        try:
            return answer.result()
        except self._duckdb.Error as error:
            raise SqlError(condition, _one_line(str(error))) from None


def _one_line(words: str) -> str:
    """DuckDB's message without the marked query text below it."""
    return " ".join(words.split("\nLINE ")[0].split())


def _where_of(tree: Any) -> Any:
    """The condition's tree, taken from its query's tree. None if it is no plain query."""
    try:
        return tree["statements"][0]["node"].pop("where_clause")
    except (KeyError, IndexError, TypeError):
        return None


def _is_and(tree: Any) -> bool:
    return isinstance(tree, dict) and tree.get("type") == "CONJUNCTION_AND"


def _without_places(node: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in node.items() if not name.startswith("query_location")}


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(value)


def _names_in(nodes: list[dict[str, Any]], added: list[str]) -> set[str]:
    """Lower-case names that may be columns. A star stands for all columns but ``annotation``."""
    names = {str(name).lower() for node in nodes for name in node.get("column_names") or ()}
    if any(node.get("class") == "STAR" for node in nodes):
        names.update(INDEX_COLUMNS, map(str.lower, added))
    return names
