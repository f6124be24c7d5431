"""Conditions in SQL: the rows that Python finds, nothing else reached, DuckDB's words in one line."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from builder.base.errors import MissingExtraError
from builder.curate import sql
from builder.curate.columns import write_column
from builder.curate.sql import SqlError, find_rows
from builder.read.opening import open_dataset
from builder.read.sample import Sample
from builder.read.view import Rows
from tests.curate.shelf import KINDS, keys_of, make, opened
from tests.outputs import run_python

pytest.importorskip("duckdb")


@pytest.fixture(scope="module", params=KINDS)
def rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return opened(tmp_path_factory.mktemp("sql"), request.param)


CONDITIONS: list[tuple[str, Callable[[Sample], bool]]] = [
    ("width >= 40", lambda s: s.width >= 40),
    ("width >= 40 AND length(caption) > 12", lambda s: s.width >= 40 and len(s.caption) > 12),
    ("key like '00001/%'", lambda s: s.key.startswith("00001/")),
    ("size % 2 = 0 and position < 10", lambda s: s.size % 2 == 0 and s.position < 10),
    ("path = key || '.jpg' or width < 30", lambda s: s.path == f"{s.key}.jpg" or s.width < 30),
    ("annotation like '%1%'", lambda s: "1" in s.annotation),
    ("json_extract_string(annotation, '$.url') is not null", lambda s: '"url"' in s.annotation),
    ("digest is null", lambda s: s.digest is None),
    ("null", lambda s: False),
    ("WIDTH between 1 and 50 -- and a remark", lambda s: 1 <= s.width <= 50),
]


@pytest.mark.slow
@pytest.mark.parametrize(("condition", "true"), CONDITIONS, ids=[condition for condition, _ in CONDITIONS])
def test_the_rows_are_those_that_python_finds(rows: Rows, condition: str, true: Callable[[Sample], bool]) -> None:
    assert keys_of(rows.where(condition)) == [sample.key for sample in rows if true(sample)]


def test_a_view_is_searched_in_its_own_order_and_subqueries_see_its_rows_alone(rows: Rows) -> None:
    view = rows[20:2:-1]
    assert keys_of(view.where("width > 0")) == keys_of(view)
    widest = max(view.widths())
    found = view.where("width = (select max(width) from dataset)")
    assert keys_of(found) == [sample.key for sample in view if sample.width == widest]
    assert len(rows[:0].where("width > 0")) == 0


def test_where_on_where_joins_the_conditions_and_keeps_all_steps(rows: Rows) -> None:
    first = rows.where("width >= 40")
    both = first.where("height >= 30")
    assert keys_of(both) == keys_of(rows.where("width >= 40 and height >= 30"))
    assert both.steps == rows.where("width >= 40 and height >= 30").steps
    assert [step.condition for step in both.steps] == ["width >= 40", "height >= 30"]
    again = pickle.loads(pickle.dumps(both))
    assert keys_of(again) == keys_of(both)
    assert again.steps == both.steps


FUNNELS = [
    ("width > 1", ["width > 1"]),
    ("width > 1 and height > 1 AND size>1", ["width > 1", "height > 1", "size>1"]),
    ("width between 1 and 90 and height > 1", ["width between 1 and 90", "height > 1"]),
    ("(width > 1 and height > 1) and size > 1", ["(width > 1 and height > 1)", "size > 1"]),
    ("width > 1 and height > 1 or size > 1", ["width > 1 and height > 1 or size > 1"]),
    ("case when width > 1 and height > 1 then true end and size > 1",
     ["case when width > 1 and height > 1 then true end", "size > 1"]),
    ("caption <> 'a and b' and size > 1", ["caption <> 'a and b'", "size > 1"]),
    ("width in (select width from dataset where size > 1 and height > 1) and size > 1",
     ["width in (select width from dataset where size > 1 and height > 1)", "size > 1"]),
]  # fmt: skip


@pytest.mark.parametrize(("condition", "parts"), FUNNELS)
def test_the_funnel_has_one_step_for_each_condition_that_and_joins_at_the_top(
    rows: Rows, condition: str, parts: list[str]
) -> None:
    steps = find_rows(rows, condition).steps
    assert [step.condition for step in steps] == parts
    counts = [len(rows.where(" and ".join(f"({part})" for part in parts[: n + 1]))) for n in range(len(parts))]
    assert [step.rows for step in steps] == counts


def test_a_condition_that_fails_on_rows_already_left_out_is_not_run_on_them(rows: Rows) -> None:
    """As a reader of SQL expects of AND, and DuckDB does not promise."""
    found = find_rows(rows, "key like '00000/%' and (case when key like '00000/%' then 1 else error('no') end) = 1")
    assert len(found.rows) == sum(key.startswith("00000/") for key in keys_of(rows))


REFUSED = [
    ("key in (select content from read_text('/etc/passwd'))", "Permission Error"),
    ("key in (select * from '/etc/passwd')", "Error"),
    ("exists (select * from glob('/*'))", "Permission Error"),
    ("exists (select * from read_csv('https://example.org/x.csv'))", "Error"),
    ("1=1; copy (select 1) to 'evil.csv'", "one condition"),
    ("1=1; attach 'evil.db'", "one condition"),
    ("true; select 1", "one condition"),
    ("true limit 1", "one condition"),
    ("true group by width", "one condition"),
    ("true union select 1", "one condition"),
    ("true) union (select 1 from dataset where (true", "Error"),
    ("getenv('HOME') = 'x'", "getenv"),
    ("exists (select 1 from rows)", "does not exist"),  # a variable of this process
    ("width >", "Parser Error"),
    ("", "Parser Error"),
    ("wdith > 1", '"width"'),
    ("count(*) > 1", "aggregates"),
    ("unnest([1, 2]) = 1", "rows into"),
    ("'a' = 1", "Conversion Error"),
    ("width > $1", "one condition|parameter|Parser"),
]


@pytest.mark.parametrize(("condition", "words"), REFUSED)
def test_what_is_no_condition_over_the_dataset_is_refused_in_one_line(
    condition: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shelf: Rows
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SqlError, match=words) as caught:
        shelf.where(condition)
    assert "\n" not in str(caught.value)
    assert "LINE 1" not in str(caught.value)
    assert os.listdir(tmp_path) == []
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return opened(tmp_path_factory.mktemp("shelf"))


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["caption = '\ud800'", "+".join(["width"] * 5000) + " > 1", "(" * 3000, "a\0b"])
def test_text_that_no_parser_takes_is_an_error_too(condition: str, shelf: Rows) -> None:
    with pytest.raises(SqlError) as caught:
        shelf.where(condition)
    assert str(caught.value).isprintable() or "\0" in condition


def test_memory_is_limited(shelf: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sql._SANDBOX, "memory_limit", "20MB")
    with pytest.raises(SqlError, match="Out of Memory"):
        shelf.where("(select string_agg(repeat('x', 1000000) || range, '') from range(100)) = 'y'")


SETTINGS = ["set threads = 1", "set enable_external_access = true", "pragma enable_external_access = true",
            "install httpfs", "load httpfs", "reset lock_configuration", "attach 'x.db'", "copy (select 1) to 'x.csv'",
            "create secret (type s3)", "export database 'x'"]  # fmt: skip


@pytest.mark.parametrize("statement", SETTINGS)
def test_even_a_statement_could_change_nothing(statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    connection = sql._Connection()
    with pytest.raises(SqlError):
        connection._run("", statement, lambda result: result.fetchall())
    connection.close()
    assert os.listdir(tmp_path) == []


_ENDLESS = "(select count(*) from range(1000000000) a, range(1000000) b where a.range * b.range % 7 = 3) = 1"


def test_a_query_that_takes_too_long_is_ended(shelf: Rows) -> None:
    started = time.monotonic()
    with pytest.raises(SqlError, match="ended after"):
        find_rows(shelf, _ENDLESS, timeout=0.2)
    assert time.monotonic() - started < 30


def test_ctrl_c_ends_a_query(shelf: Rows) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            shelf.where(_ENDLESS)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(shelf.where("width > 0")) == len(shelf)


def test_without_duckdb_the_error_says_what_to_install(shelf: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(sql, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'laion6m\[sql\]'"):
        shelf.where("width > 1")


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    out = make(tmp_path)
    count = len(open_dataset(out))
    write_column(str(out), "score", pa.array([None if row % 3 == 0 else float(row) for row in range(count)]))
    write_column(str(out), "tags", pa.array([["a", f"t{row}"] for row in range(count)]))
    return out


def test_added_columns_are_columns_of_sql(scored: Path) -> None:
    rows = open_dataset(scored)
    assert [s.row for s in rows.where("score > 3.5 and SCORE < 9")] == [4, 5, 7, 8]
    assert [s.row for s in rows.where("list_contains(tags, 't5')")] == [5]
    assert len(rows.where("score is null")) == 8
    assert [s.row for s in rows[::-1].where("score > 3.5 and score < 9")] == [8, 7, 5, 4]
    assert len(rows.where("exists (select * from dataset d where d.score > 1)")) == len(rows)


def test_documents_are_read_some_at_a_time_and_all_where_rows_look_at_each_other(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "INDEX_BATCH_ROWS", 7)
    assert keys_of(rows.where("annotation like '%1%'")) == [s.key for s in rows if "1" in s.annotation]
    longest = max(len(s.annotation) for s in rows)
    found = rows.where("length(annotation) = (select max(length(annotation)) from dataset)")
    assert keys_of(found) == [s.key for s in rows if len(s.annotation) == longest]


def test_a_first_query_imports_no_pandas(tmp_path: Path) -> None:
    """It would take three times as long as the query itself on a million rows."""
    script = """
import sys
from builder import open_dataset
found = open_dataset(sys.argv[1]).where("width >= 1 and length(caption) > 1")
print(len(found), [name for name in ("pandas", "pyarrow.dataset") if name in sys.modules])
"""
    ran = run_python(script, make(tmp_path))
    assert ran.stdout == "24 []\n", ran.stderr
