"""laion6m select: which rows to train on, written down. No image is copied."""

from __future__ import annotations

import argparse

from builder.cli.arguments import add_lists, named, whole
from builder.cli.output import show
from builder.cli.parser import Parser

EXAMPLE = """laion6m select OUT sub --where 'width>=1024'
laion6m select OUT parts --without takedown.txt --split train=0.99 val=0.01"""


def declare(parser: Parser) -> None:
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="a converted folder, an index, a selection, or a URL")
    add("out", metavar="OUT", help="folder to write the selection into")
    add("--where", metavar="SQL", help="condition in DuckDB's SQL over caption, width … and added columns")
    add_lists(parser, "rows")
    add("--unique", action="store_true", help="take one row of each group of duplicates (run laion6m duplicates first)")
    add("--sample", type=whole, metavar="N", help="take N rows at random")
    parser.add_several(
        "--split",
        like=lambda word: "=" in word,
        type=_share,
        metavar="NAME=SHARE",
        help="divide the rows into selections OUT/NAME: train=0.99 val=0.01",
    )
    add("--seed", type=whole, default=0, metavar="S", help="seed of --sample and --split (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    from builder.curate.select import describe_selection, select

    chosen = named(arguments, "where", "keys", "without", "unique", "sample", "seed")
    summary = select(arguments.dataset, arguments.out, split=dict(arguments.split), **chosen)
    return show(arguments, summary.to_json(), describe_selection(summary, arguments.out))


def _share(text: str) -> tuple[str, float]:
    name, equals, share = text.partition("=")
    try:
        return (name, float(share)) if equals else ("", float(""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=SHARE, such as val=0.01") from None
