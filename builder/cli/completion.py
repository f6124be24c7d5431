"""laion6m completion: a script that completes commands, options and paths in a shell."""

from __future__ import annotations

import argparse

from builder.cli.commands import COMMANDS, make_parser
from builder.cli.output import DONE, write
from builder.cli.parser import Parser

EXAMPLE = "laion6m completion bash >> ~/.bash_completion"

_PATHS = {"SOURCE", "OUT", "DATASET", "PATH", "DIR", "FILE", "FOLDER"}


def declare(parser: Parser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"], metavar="SHELL", help="your shell: bash, zsh or tcsh")


def run(arguments: argparse.Namespace) -> int:
    import shtab

    whole = argparse.ArgumentParser(prog="laion6m")
    commands = whole.add_subparsers(parser_class=Parser)
    for name, help in COMMANDS.items():
        for action in make_parser(name, commands.add_parser(name, help=help))._actions:
            if action.metavar in _PATHS:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    write(shtab.complete(whole, shell=arguments.shell))
    return DONE
