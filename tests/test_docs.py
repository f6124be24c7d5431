"""Every example in docs/howto/sql.md runs, on a converted source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from builder.conversion.convert import convert
from tests.sources import make_source

duckdb = pytest.importorskip("duckdb")
polars = pytest.importorskip("polars")

PAGE = (Path(__file__).parents[1] / "docs" / "howto" / "sql.md").read_text()


def examples(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    assert found
    return found


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sql")
    source = make_source(folder / "source", faults=("blank_caption", "surrogate"))
    convert(str(source.path), str(folder / "out"), num_proc=1, quiet=True)
    return folder / "out"


@pytest.mark.parametrize("query", examples("sql"))
def test_duckdb_answers_each_query_of_the_page(query: str, converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(converted)
    if "FORMAT blob" in query:
        duckdb.sql(query)
        assert (converted / "first.jpg").read_bytes()[:2] == b"\xff\xd8"
        return
    answer = duckdb.sql(query).fetchall()
    assert answer or ">= 1024" in query, "small images are all there are in this source"


def test_an_annotation_that_duckdb_does_not_take_costs_the_query_its_own_score_only(
    converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(converted)
    [query] = [each for each in examples("sql") if "AESTHETIC_SCORE" in each]
    bad = "SELECT count(*) FROM 'data/*.parquet' WHERE NOT json_valid(annotation)"
    assert duckdb.sql(bad).fetchall() == [(1,)], "the source no longer has such an annotation"
    scores = duckdb.sql(query.replace("LIMIT 10", "")).fetchall()
    assert len(scores) == duckdb.sql("SELECT count(*) FROM 'data/*.parquet'").fetchall()[0][0]
    assert sum(score is not None for _, score in scores) > len(scores) // 2


@pytest.mark.parametrize("code", examples("python"))
def test_polars_and_pandas_run_each_example_of_the_page(
    code: str, converted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(converted)
    exec(compile(code, "docs/howto/sql.md", "exec"), {})  # noqa: S102 - our own page
    assert "shape" in capsys.readouterr().out
