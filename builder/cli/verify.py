"""laion6m verify: whether a converted folder is whole, and what its source holds."""

from __future__ import annotations

import argparse

from builder.base.errors import SourceError
from builder.cli.arguments import add_recaptions, add_storage, add_workers, how, named
from builder.cli.output import out_of_files, show
from builder.cli.parser import Parser

EXAMPLE = "laion6m verify OUT --source data/laion6m"


def declare(parser: Parser) -> None:
    add = parser.add_argument
    add("out", metavar="DATASET", help="folder or URL that convert, index or select made")
    add("--source", metavar="SOURCE", help="also compare every row with its image and caption in SOURCE")
    add("--decode", action="store_true", help="also decode every image")
    add_recaptions(parser, "recaption files of the source, if they were moved")
    add_storage(parser)
    add_workers(parser)


def run(arguments: argparse.Namespace) -> int:
    from builder.verification.verify import describe_verification, verify

    result = verify(arguments.out, **named(arguments, "source", "decode", "recaptions"), **how(arguments))
    if unread := next(filter(out_of_files, result.problems), None):  # a file that could not be opened is not damaged
        raise SourceError(f"not all was verified: {unread}")
    return show(arguments, result.to_json(), describe_verification(result), ok=result.ok)
