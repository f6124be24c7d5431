"""laion6m info: what a folder is and what is in it."""

from __future__ import annotations

import argparse

from builder.cli.arguments import add_storage
from builder.cli.output import show
from builder.cli.parser import Parser

EXAMPLE = "laion6m info OUT"


def declare(parser: Parser) -> None:
    parser.add_argument(
        "path", metavar="PATH", help="folder or URL: a source, a converted folder, an index or a selection"
    )
    add_storage(parser)


def run(arguments: argparse.Namespace) -> int:
    from builder.jobs.info import describe_info, info

    result = info(arguments.path, storage_options=arguments.storage_options)
    return show(arguments, result.to_json(), describe_info(result))
