"""laion6m report: what a dataset is, in one HTML file."""

from __future__ import annotations

import argparse

from builder.cli.output import show
from builder.cli.parser import Parser

EXAMPLE = "laion6m report OUT\nlaion6m report OUT report.html --source SOURCE"


def declare(parser: Parser) -> None:
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="a converted folder, an index, a selection, or a URL")
    add("file", metavar="FILE", nargs="?", help="file to write (default: report.html; with --json no file)")
    add("--source", metavar="SOURCE", help="folder of the tars, to show images that were rejected")


def run(arguments: argparse.Namespace) -> int:
    from builder.view.report import report

    file = arguments.file or (None if arguments.json else "report.html")
    made = report(arguments.dataset, file, source=arguments.source)
    return show(arguments, made.to_json(), str(made))
