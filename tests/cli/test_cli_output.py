"""Where a command says what: progress in every style, the log, colour, and commands that are refused."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.cli import output
from builder.cli.commands import main
from builder.engines.progress import show_progress
from tests.outputs import Ran, run_command
from tests.sources import Source, make_source


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return make_source(tmp_path / "src")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """The command line, in this process."""

    def command(*arguments: object) -> Ran:
        capsys.readouterr()
        try:
            code = main(list(map(str, arguments)))
        finally:
            show_progress("auto")
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return command


def test_json_progress_names_every_stage(source: Source, tmp_path: Path, run: Callable[..., Ran]) -> None:
    ran = run("convert", source.path, tmp_path / "out", "--num-proc", 1, "--progress", "json")
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert list(dict.fromkeys(line["stage"] for line in lines)) == [
        "finding",
        "scanning",
        "planning",
        "saving the plan",
        "converting",
        "finishing",
    ]
    last = {line["stage"]: line for line in lines}
    assert (last["scanning"]["done"], last["scanning"]["total"]) == (6, 6)
    assert (last["converting"]["done"], last["converting"]["total"]) == (24, 24)
    assert "24 rows" in ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("quiet", [["-q"], ["--quiet"], ["--progress", "none"]])
def test_quiet_says_nothing_but_the_result_and_the_log_has_it_all(
    quiet: list[str], source: Source, tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    for _ in range(2):  # it is appended to
        ran = run_command("convert", source.path, tmp_path / "out", "--num-proc", 1, *quiet, "--log", log)
        assert (ran.code, ran.stderr) == (0, "")
        assert "24 rows" in ran.stdout
    lines = log.read_text().splitlines()
    dated = [line for line in lines if re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", line)]
    assert len(dated) > 10
    assert sum(" laion6m convert " in line for line in dated) == 2
    assert any("converting: 100%, 24/24 images" in line for line in dated)


def test_a_log_has_errors_and_no_secrets(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    ran = run_command("push", tmp_path / "nowhere", "user/x", "--token", "hf_abcdefghijklmnop", "--log", log)
    assert ran.code == 1
    assert "nowhere is not there" in log.read_text()
    assert "abcdefghijklmnop" not in log.read_text()


def test_a_log_that_cannot_be_written_is_an_error_before_the_work(
    source: Source, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    ran = run("convert", source.path, tmp_path / "out", "--log", tmp_path)
    assert ran.code == 1
    assert f"cannot write the log {tmp_path}" in ran.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("terminal", "environment", "red"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_trouble_is_red_on_a_terminal_that_wants_colour(
    terminal: bool, environment: dict[str, str], red: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert ("\033[31m" in output._red("laion6m:")) == red


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("verify {src}", "src is not a converted folder: it has no meta/manifest.json. It looks like a source"),
        ("push {src} user/name", "src is not a converted folder"),
        ("verify {empty}", "Give the folder that laion6m convert or index made."),
        ("push {empty} user/name", "is not a converted folder"),
        ("info user/name", "If it is a repository on the Hub, give hf://datasets/user/name"),
        ("convert user/name {out}", "give hf://datasets/user/name"),
        ("extract user/name {out}", "give hf://datasets/user/name"),
        ("push {nowhere} user/name", "nowhere is not there"),
        ("index {src}/raw/00000.tar {out}", "is not a folder"),
        ("extract {src} {out} --start 9", "start=9: there are 3 raw tars, numbered 0 to 2"),
        ("convert {src} {out} --start 9", "start=9: there are 3 raw tars, numbered 0 to 2"),
        ("convert {src} {src}", "lies in the source"),
    ],
)
def test_a_wrong_turn_is_one_line_and_leaves_nothing(
    command: str, words: str, source: Source, tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    names = {"src": source.path, "out": tmp_path / "out", "empty": tmp_path / "empty", "nowhere": tmp_path / "nowhere"}
    ran = run(*(word.format(**names) for word in command.split()))
    assert ran.code in (1, 2)
    assert ran.stdout == ""
    assert ran.stderr.count("\n") == 1
    assert words in ran.stderr
    assert "run it again" not in ran.stderr
    assert sorted(os.listdir(tmp_path)) == ["empty", "src"]
