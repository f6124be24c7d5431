"""laion6m index: the same rows as convert's, pointing into the source's own tars."""

from __future__ import annotations

import argparse

from builder.cli.arguments import add_policy, add_workers, convert_options, how
from builder.cli.output import show, verdict
from builder.cli.parser import Parser

EXAMPLE = "laion6m index data/laion6m"


def declare(parser: Parser) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder of a source (raw/*.tar, captions/*.tar, data.json)")
    add("out", metavar="OUT", nargs="?", help="folder for the index (default: SOURCE)")
    add("--digest", action="store_true", help="also read every image and keep its checksum")
    add_policy(parser)
    add_workers(parser)


def run(arguments: argparse.Namespace) -> int:
    from builder.conversion.index import index
    from builder.conversion.report import describe_summary

    options = convert_options(arguments, "parquet")
    summary = index(arguments.source, arguments.out, options, digest=arguments.digest, **how(arguments))
    show(arguments, summary.to_json(), describe_summary(summary))
    return verdict(arguments.max_reject_ratio, summary)
