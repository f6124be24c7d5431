"""laion6m demo: a small source made here, converted, verified and read."""

from __future__ import annotations

import argparse

from builder.base.names import DEMO
from builder.cli.output import DONE, FAILED, say, show, write
from builder.cli.parser import Parser

EXAMPLE = "laion6m demo"


def declare(parser: Parser) -> None:
    parser.add_argument("dir", metavar="DIR", nargs="?", default=DEMO, help=f"folder to make it in (default: {DEMO})")


def run(arguments: argparse.Namespace) -> int:
    from builder.jobs.demo import demo

    result = demo(arguments.dir, say=say if arguments.json else write)
    if arguments.json:
        show(arguments, result.to_json(), "")
    return DONE if result.ok else FAILED
