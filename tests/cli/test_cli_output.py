"""Where a command says what: progress in every style, the log, colour, and commands that are refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.cli import output
from tests.outputs import Ran, run_command
from tests.sources import Source, make_source


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
        ("extract {src} {out} --start 9", "start 9: there are 3 raw tars, numbered 0 to 2"),
        ("convert {src} {out} --start 9", "start 9: there are 3 raw tars, numbered 0 to 2"),
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


def test_a_warning_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        output.say_warnings()
        warnings.simplefilter("always")
        warnings.warn("a column has no name\033[31m", stacklevel=1)
    assert capsys.readouterr().err == "warning: a column has no name\\x1b[31m\n"


def test_notes_on_the_source_are_shown_unless_the_command_is_quiet(tmp_path: Path, run: Callable[..., Ran]) -> None:
    source = make_source(tmp_path / "src", layout="img2dataset")
    command = ("convert", source.path, tmp_path / "out", "--num-proc", 1, "--recaptions", *source.recaptions)
    assert "recaptions belong to an image" in run(*command, "--limit", 5).stderr
    assert run("convert", source.path, tmp_path / "again", *command[3:], "-q").stderr == ""
    assert run("convert", source.path, tmp_path / "third", *command[3:], "--progress", "none").stderr == ""


def test_options_that_do_not_go_together_are_told_in_the_words_of_the_command(
    source: Source, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    for options in (["--dry-run"], ["--push-to", "user/name"]):
        ran = run("convert", source.path, tmp_path / "out", "--keys", "keys.txt", *options)
        assert ran.code == 2
        assert "goes without --keys and --without" in ran.stderr
        assert "True" not in ran.stderr
    assert not (tmp_path / "out").exists()


def test_a_dry_run_ends_with_what_to_run(source: Source, tmp_path: Path, run: Callable[..., Ran]) -> None:
    ran = run("convert", source.path, tmp_path / "out", "--dry-run", "--num-proc", 1)
    assert ran.stdout.splitlines()[-1] == "nothing was written. To convert, run the same command without --dry-run."


def test_an_out_whose_bookkeeping_is_gone_is_refused_with_a_way_out(
    source: Source, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    out = tmp_path / "an out"
    assert run("convert", source.path, out, "--num-proc", 1, "-q").code == 0
    shutil.rmtree(out / ".laion6m")
    ran = run("convert", source.path, out, "--num-proc", 1, "-q")
    assert ran.code == 1
    assert f"'{out}' holds data/, but not .laion6m/" in ran.stderr
    assert f"Choose another OUT, or remove '{out}/data'." in ran.stderr
    shutil.rmtree(out / "data")
    assert run("convert", source.path, out, "--num-proc", 1, "-q").code == 0
