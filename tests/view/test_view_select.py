"""SQL and selections: what the page shows is what select gives, and nothing else can be reached or written."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode

import pytest

from builder import open_dataset
from builder.curate.sql import SqlError
from builder.view.query import Query
from builder.view.results import Results
from builder.view.selection import condition
from tests.outputs import wait_until
from tests.view.asked import get, rows
from tests.view.conftest import Visit, Visitor


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"where": "width > height"},
        {"where": "width > height and caption like '%Teal%'", "search": "apart"},
        {"where": "length(caption) > 90 -- so"},
        {"filter": "width:100:130"},
        {"filter": "width::100;height:80:"},
        {"filter": "megapixels:0.0092160000000000002:;caption_words:10:"},
        {"filter": "ratio:1.3333333333333333:", "search": "red"},
        {"filter": "caption_length:90:95", "search": "it's"},
        {"filter": "size:2000:4000", "search": "Red wide"},
    ],
)
def test_the_command_that_is_shown_selects_the_rows_that_are_shown(given: dict[str, str], visitor: Visitor) -> None:
    pytest.importorskip("duckdb")
    shown = [row["row"] for row in rows(visitor, **given)["rows"]]
    dataset = open_dataset(get(visitor, "/api/dataset")["path"])
    assert shown == dataset.where(condition(Query.parse(given))).rows.tolist()
    assert "laion6m select" in get(visitor, "/api/selection", **given)["command"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "where",
    [
        "width >",
        "nothing = 1",
        "1; drop table dataset",
        "key in (select filename from glob('/etc/*'))",
        "key in (select content from read_text('/etc/passwd'))",
        "caption = getenv('HOME')",
        "true; copy (select 1) to '/tmp/laion6m-was-here'",
        "true) or (true; attach '/etc/passwd' as x",
        "width > (select sum(range) from range(10)) union select 1",
        "'",
        "\x00",
    ],
)
def test_a_condition_that_is_none_or_reaches_out_is_told_in_words(where: str, visitor: Visitor) -> None:
    pytest.importorskip("duckdb")
    reply = visitor.ask(f"/api/rows?{urlencode({'where': where})}")
    assert reply.status == 400
    assert reply.json["error"].startswith("error: ")
    assert "Traceback" not in reply.json["error"]
    assert rows(visitor)["total"] == 291


def test_a_condition_that_never_ends_is_ended(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("duckdb")
    monkeypatch.setattr("builder.view.view._SQL_SECONDS", 0.5)
    where = "(select count(*) from range(1000000000) a, range(1000000) b where a.range % 7 = b.range % 5) > 0"
    reply = visitor.ask(f"/api/rows?{urlencode({'where': where})}")
    while reply.status == 200 and not reply.json["done"]:
        reply = visitor.ask(f"/api/rows?{urlencode({'where': where})}")
    assert reply.status == 400
    assert "ended after 0.5 seconds" in reply.json["error"]


def test_an_error_that_comes_while_nobody_waits_is_told_to_the_next_who_asks() -> None:
    asked: list[str] = []

    def where(condition: str) -> Any:
        asked.append(condition)
        raise SqlError(condition, "ended")

    before = threading.active_count()
    results, query = Results(cast(Any, []), where), Query(where="x")
    for searches in (1, 2):  # once it is told, the search may run again
        results.get(query)
        wait_until(lambda searches=searches: len(asked) >= searches and threading.active_count() <= before, 10)
        with pytest.raises(SqlError, match="ended"):
            results.get(query).page(0, 10, 1.0)
        assert len(asked) == searches


def test_without_duckdb_the_error_says_what_to_install(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
    reply = visitor.ask("/api/rows?where=width+%3E+1")
    assert reply.status == 400
    assert "pip install 'laion6m[sql]'" in reply.json["error"]


def save(visitor: Visitor, given: object, **headers: str) -> Any:
    sent = {"Origin": f"http://{visitor.host}", "Content_Type": "application/json"} | headers
    return visitor.ask("/api/selections", "POST", json.dumps(given).encode(), **sent)


def test_a_selection_is_saved_where_the_command_line_says_and_nowhere_else(
    demo_folder: Path, visit: Visit, tmp_path: Path
) -> None:
    pytest.importorskip("duckdb")
    assert save(visit(demo_folder / "out"), {"name": "red", "search": "red"}).status == 400
    visitor = visit(demo_folder / "out", save=str(tmp_path / "saved"))
    reply = save(visitor, {"name": "red", "search": "red", "filter": "width:90:", "where": "height > 50"})
    assert reply.status == 200, reply.body
    saved = open_dataset(tmp_path / "saved" / "red")
    shown = rows(visitor, search="red", filter="width:90:", where="height > 50")
    assert len(saved) == reply.json["rows"] == shown["total"] > 0
    assert [sample.row for sample in saved] == [row["row"] for row in shown["rows"]]
    assert save(visitor, {"name": "red", "search": "red"}).status == 400, "it is there already"
    for name in ("../out", "/tmp/x", "", ".", "..", "a/b", "a\0b", None, 7.5, ["x"]):
        assert save(visitor, {"name": name}).status == 400
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["red"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Length": "9999999"}, 413),
    ],
)
def test_only_the_page_itself_may_save(
    headers: dict[str, str], status: int, demo_folder: Path, visit: Visit, tmp_path: Path
) -> None:
    visitor = visit(demo_folder / "out", save=str(tmp_path / "saved"))
    assert save(visitor, {"name": "red"}, **headers).status == status
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"[" * 50_000, b'{"search": "x"}', b"\xff"])
def test_what_is_no_query_is_not_saved(body: bytes, demo_folder: Path, visit: Visit, tmp_path: Path) -> None:
    visitor = visit(demo_folder / "out", save=str(tmp_path / "saved"))
    headers = {"Origin": f"http://{visitor.host}", "Content_Type": "application/json"}
    assert visitor.ask("/api/selections", "POST", body, **headers).status == 400
