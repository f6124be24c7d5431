"""Arguments: every command has a module, options stand anywhere, mistakes are answered in three lines at most."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from builder.cli import commands
from builder.cli.commands import COMMANDS, load, make_parser, read
from tests.outputs import run_python


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_shows_an_example_that_parses(name: str) -> None:
    text = make_parser(name).format_help()
    example = text.partition("example:\n")[2].splitlines()
    assert example
    for line in example:
        program, command, *rest = line.partition(" >> ")[0].split()
        assert (program, command) == ("laion6m", name)
        make_parser(name).read(rest)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_of_a_command_has_a_help(name: str) -> None:
    assert [action.dest for action in make_parser(name)._actions if not action.help] == []


@pytest.mark.parametrize("argv", [["--help"], ["-h"]])
def test_the_help_names_all_commands_and_imports_none(argv: list[str], tmp_path: Path) -> None:
    script = f"""
import sys
from builder.cli.commands import COMMANDS, main
try:
    main({argv})
except SystemExit as error:
    print(error.code)
print(*(name for name in COMMANDS if "builder.cli." + name.replace("-", "_") in sys.modules), sep=",")
"""
    ran = run_python(script, tmp_path)
    *text, code, imported = ran.stdout.splitlines()
    assert set(COMMANDS) <= set(" ".join(text).split())
    assert (code, imported) == ("0", "")


def test_a_command_imports_no_other_s_module() -> None:
    before = {name: sys.modules.pop(f"builder.cli.{name}", None) for name in ("info", "demo")}
    try:
        read(["info", "here"])
        assert "builder.cli.info" in sys.modules
        assert "builder.cli.demo" not in sys.modules
    finally:
        sys.modules.update({f"builder.cli.{name}": module for name, module in before.items() if module})


@pytest.mark.parametrize(
    "argv",
    [
        ["--num-proc", "2", "SRC", "OUT"],
        ["SRC", "--num-proc", "2", "OUT"],  # argparse by itself gives an optional OUT away here
        ["SRC", "OUT", "--num-proc", "2"],
        ["--num-proc=2", "--", "SRC", "OUT"],
    ],
)
@pytest.mark.parametrize("name", ["convert", "index"])
def test_options_stand_before_between_and_behind_the_places(name: str, argv: list[str]) -> None:
    _, arguments = read([name, *argv])
    assert (arguments.source, arguments.out, arguments.num_proc) == ("SRC", "OUT", 2)


@pytest.mark.parametrize(
    ("argv", "files"),
    [
        (["SRC", "OUT", "--recaptions", "a.parquet", "b.parquet"], ["a.parquet", "b.parquet"]),
        (["--recaptions", "a.parquet", "b.PARQUET", "SRC", "OUT"], ["a.parquet", "b.PARQUET"]),
        (["--recaptions", "a", "SRC", "--digest", "OUT"], ["a"]),  # the first may have any name
        (["--recaptions", "a.parquet", "--recaptions", "b", "SRC", "OUT"], ["a.parquet", "b"]),
        (["--recaptions=a", "SRC", "OUT"], ["a"]),
        (["--recaptions", "a.jsonl.gz", "./b.csv", "SRC", "OUT"], ["a.jsonl.gz", "./b.csv"]),
        (["SRC", "OUT"], []),
    ],
)
def test_an_option_of_several_values_swallows_no_place(argv: list[str], files: list[str]) -> None:
    _, arguments = read(["index", *argv])
    assert (arguments.recaptions, arguments.source, arguments.out) == (files, "SRC", "OUT")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "give a command: convert, index"),
        (["convrt", "SRC", "OUT"], "there is no command convrt. Did you mean convert?"),
        (["add_column", "SRC"], "Did you mean add-column?"),
        (["zzz"], "there is no command zzz.\n"),
        (["--json", "info", "SRC"], "give the command first: laion6m COMMAND --json"),
        (["convert", "--num_proc", "2", "SRC", "OUT"], "there is no option --num_proc. Did you mean --num-proc?"),
        (["convert", "--min_side=2"], "there is no option --min_side. Did you mean --min-side?"),  # before what lacks
        (["convert", "--num", "2", "SRC", "OUT"], "there is no option --num."),  # abbreviations would break one day
        (["convert", "SRC"], "required: OUT"),
        (["convert", "SRC", "OUT", "MORE"], "unrecognized arguments: MORE"),
    ],
)
def test_a_mistake_is_answered_in_three_lines(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        read(argv)
    captured = capsys.readouterr()
    assert (raised.value.code, captured.out) == (2, "")
    assert words in captured.err
    assert captured.err.count("\n") <= 3
    assert "--help" in captured.err


def test_a_command_that_is_named_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("info")
    monkeypatch.setattr(module, "run", lambda arguments: 7 if arguments.path == "here" else 1)
    assert commands.main(["info", "here"]) == 7


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_script_for_the_shell_names_every_command_and_option(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert "num-proc" in script
    assert "dry-run" in script


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_completes_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    words = "COMP_WORDS=(laion6m convert --dry); COMP_CWORD=2; _shtab_laion6m; echo ${COMPREPLY[@]}"
    done = subprocess.run(["bash", "-c", f"{script}\n{words}"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "--dry-run"
