"""laion6m select and add-column as scripts use them: JSON, exit codes, nothing left of what failed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from builder.read.opening import open_dataset
from tests.curate.shelf import keys_of, make, write_lines
from tests.outputs import run_command

pytest.importorskip("duckdb")


def test_the_json_of_select_and_of_its_splits(tmp_path: Path) -> None:
    out = make(tmp_path)
    ran = run_command("select", out, tmp_path / "sub", "--where", "width > 1 and position < 9", "--sample", 5, "--json")
    assert ran.code == 0, ran.stderr
    facts = json.loads(ran.stdout)
    assert facts.pop("seconds") >= 0
    assert facts == {
        "rows": 5,
        "of": 24,
        "funnel": [
            {"condition": "width > 1", "rows": 24},
            {"condition": "position < 9", "rows": 9},
            {"condition": "sample 5, seed 0", "rows": 5},
        ],
        "out": str(tmp_path / "sub"),
    }
    ran = run_command("select", out, tmp_path / "parts", "--split", "train=0.75", "val=0.25", "--seed", 3, "--json")
    splits = json.loads(ran.stdout)["splits"]
    assert splits == {name: len(open_dataset(tmp_path / "parts" / name)) for name in ("train", "val")}


WRONG = [
    (["--where", "key in (select content from read_text('/etc/passwd'))"], 1, "Permission Error"),
    (["--where", "1=1; copy (select 1) to 'evil.csv'"], 1, "one condition"),
    (["--where", "width >"], 1, "Parser Error"),
    (["--sample", "25"], 2, "1 to 24"),
    (["--split", "train=0.9", "val=0.2"], 2, "1.1"),
    (["--split", "train"], 2, "NAME=SHARE"),
    (["--keys", "missing.txt"], 1, "missing.txt"),
    (["--unique"], 1, "laion6m duplicates"),
    ([], 2, "say which rows"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "code", "words"), WRONG, ids=[" ".join(each[0]) for each in WRONG])
def test_what_cannot_be_selected_is_an_error_that_leaves_nothing(
    arguments: list[str], code: int, words: str, tmp_path: Path
) -> None:
    out = make(tmp_path)
    before = sorted(os.listdir(tmp_path))
    ran = run_command("select", out, tmp_path / "sub", *arguments, cwd=tmp_path)
    assert (ran.code, ran.stdout) == (code, "")
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.slow
def test_a_column_by_the_command_line_and_one_whose_keys_are_in_no_row(tmp_path: Path) -> None:
    out = make(tmp_path)
    keys = keys_of(open_dataset(out))
    good = write_lines(tmp_path / "good.jsonl", [{"key": key, "n": 1} for key in keys[:20]])
    bad = write_lines(tmp_path / "bad.jsonl", [{"key": f"{key}x", "m": 1} for key in keys[:10]])
    facts = json.loads(run_command("add-column", out, "n", "--from", good, "--json").stdout)
    assert (facts["type"], facts["on"], facts["matched"], facts["missing"]) == ("int64", "key", 20, 4)
    ran = run_command("add-column", out, "m", "--from", bad)
    assert ran.code == 1
    assert "none of 10 values" in ran.stderr
    assert open_dataset(out).added_columns() == ["n"]
