"""laion6m duplicates: find images that occur twice, and which one of each group to keep."""

from __future__ import annotations

import argparse

from builder.cli.arguments import add_workers, how, whole
from builder.cli.output import show
from builder.cli.parser import Parser

EXAMPLE = "laion6m duplicates OUT --num-proc 8"


def declare(parser: Parser) -> None:
    add = parser.add_argument
    add("out", metavar="DATASET", help="a converted folder, or an index")
    add(
        "--distance",
        type=whole,
        default=10,
        metavar="D",
        help="how many of 64 bits may differ between two fingerprints: 0 to 16; fewer is stricter (default: 10)",
    )
    add_workers(parser)


def run(arguments: argparse.Namespace) -> int:
    from builder.curate.duplicates import describe_duplicates, duplicates

    summary = duplicates(arguments.out, distance=arguments.distance, **how(arguments))
    return show(arguments, summary.to_json(), describe_duplicates(summary, arguments.out))
