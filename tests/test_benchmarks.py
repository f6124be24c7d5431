"""The page of figures that benchmarks/all.py writes, of made results; marked slow: of two scripts that it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.all import SUBJECTS, page
from benchmarks.results import Results, Row, words
from tests.outputs import ROOT

MACHINE = {
    "processor": "Some processor, 2 cores",
    "memory": "24 GB",
    "system": "Linux 6",
    "scratch": "ext4",
    "Python": "3.11",
}


def record(*outcomes: dict[str, Any], date: str = "2026-11-30") -> dict[str, Any]:
    """A record of the subject "resuming" or "choosing", which have one step."""
    found = {"laion6m": "1.0", "pyarrow": "26.0", "duckdb": "1.5", "polars": None, "datasets": "5.2"}
    steps = [{"command": SUBJECTS["choosing"].steps[0].command} | outcome for outcome in outcomes]
    return {"date": date, "machine": MACHINE, "versions": found, "steps": steps}


def made() -> Results:
    results = Results()
    results.add("cp", {"s": 2.0, "MB": 26.1})
    results.add("convert", {"s": 3.0})
    results.compare("s", "cp")
    return results


def test_a_table_has_a_line_for_each_name_and_a_column_for_each_unit() -> None:
    assert made().table() == [["", "s", "MB", "× cp"], ["cp", "2", "26.1", "1"], ["convert", "3", "", "1.5"]]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123"), (35.44, "35.4"), (1234567.8, "1,234,568"), (0, "0"), ("yes", "yes"), (float("nan"), "")],
)
def test_a_figure_has_three_digits(value: float | str, text: str) -> None:
    assert words(value) == text


def test_rows_are_kept_as_data(tmp_path: Path) -> None:
    made().finish(str(tmp_path / "rows.json"))
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert rows[0] == {"name": "cp", "value": 2.0, "unit": "s"}
    assert [Row(**row) for row in rows] == made().rows


def test_the_page_has_every_subject_and_says_what_is_missing() -> None:
    rows = [{"name": "ours", "value": 52.1, "unit": "ms"}]
    text = page({"choosing": record({"rows": rows})})
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [s.title for s in SUBJECTS.values()]
    assert "| ours | 52.1 |" in text
    assert "polars is not installed here" in text
    assert "Some processor, 2 cores" in text
    assert text.count("Not measured yet.") == len(SUBJECTS) - 1


def test_a_script_that_fails_is_named_and_the_rest_stays() -> None:
    rows = [{"name": "ours", "value": 52.1, "unit": "ms"}]
    failed = record({"failed": "ImportError: no module"})
    text = page(
        {
            "choosing": record({"rows": rows}),
            "viewer": failed
            | {
                "steps": [{"command": SUBJECTS["viewer"].steps[0].command, "failed": "no browser"}],
                "versions": {**failed["versions"], "selenium": "4"},
            },
        }
    )
    assert "No figures: no browser" in text
    assert "| ours | 52.1 |" in text


def test_a_subject_of_another_day_says_its_own_date() -> None:
    text = page({"choosing": record({"rows": []}, date="2026-11-29"), "planning": record(date="2026-11-30")})
    assert "2026-11-29" in text.partition("## Choosing rows")[2]


@pytest.mark.slow
def test_scripts_run_and_their_figures_stand_on_the_page(tmp_path: Path) -> None:
    from tests.sources import make_source

    source = make_source(tmp_path / "source", layout="card")
    line = [sys.executable, str(ROOT / "benchmarks" / "all.py"), str(source.path), "--scratch", str(tmp_path / "work")]
    done = subprocess.run(
        [*line, "--quick", "--only", "choosing", "memory"], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert "No figures" not in (tmp_path / "work" / "README.md").read_text()
    assert not list((tmp_path / "work").glob("laion6m-all-*"))
