"""laion6m extract: raw/, captions/ and data.json as files."""

from __future__ import annotations

import argparse

from builder.cli.arguments import add_slice, add_workers, how, named
from builder.cli.output import show
from builder.cli.parser import Parser

EXAMPLE = "laion6m extract OUT files --num-proc 8"


def declare(parser: Parser) -> None:
    add = parser.add_argument
    add("path", metavar="PATH", help="a source, a converted folder, an index or a selection")
    add("out", metavar="OUT", help="folder for the files")
    add(
        "--as",
        dest="form",
        choices=["card", "imagefolder", "captions"],
        default="card",
        help="raw/ and captions/ as in a source (card, the default), images with metadata.jsonl, or with .txt",
    )
    add_slice(parser)
    add("--overwrite", action="store_true", help="replace files that OUT already has")
    add_workers(parser)


def run(arguments: argparse.Namespace) -> int:
    from builder.jobs.extract import describe_extraction, extract

    result = extract(arguments.path, arguments.out, **named(arguments, "form", "overwrite"), **how(arguments))
    return show(arguments, result.to_json(), describe_extraction(result), ok=not result.failed)
