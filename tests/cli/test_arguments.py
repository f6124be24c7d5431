"""The command line is the same whether the commands that were not asked for are known or not."""

from __future__ import annotations

import argparse

import pytest

from builder.cli.arguments import make_parser

NAMES = ("convert", "index", "verify", "extract", "push", "add-column", "info", "demo")
RUNS = {name: (lambda arguments, code=code: code) for code, name in enumerate(NAMES)}


def subparser(parser: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    (commands,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    found: argparse.ArgumentParser = commands.choices[name]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_command_has_the_same_arguments_alone_as_among_all(name: str) -> None:
    alone, among = make_parser(RUNS, [name, "--help"]), make_parser(RUNS, [])
    assert subparser(alone, name).format_help() == subparser(among, name).format_help()


@pytest.mark.parametrize("argv", [[], ["--help"], ["--version"], ["transmute"], ["--json", "index"]])
def test_whoever_names_no_command_is_told_of_all(argv: list[str]) -> None:
    text = make_parser(RUNS, argv).format_help()
    assert set(NAMES) <= set(text.split())


def test_a_command_runs_what_it_was_given() -> None:
    for name in NAMES[2:3] + NAMES[6:7]:
        argv = [name, "here"]
        arguments = make_parser(RUNS, argv).parse_args(argv)
        assert arguments.run(arguments) == RUNS[name](arguments)
