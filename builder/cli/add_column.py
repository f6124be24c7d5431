"""laion6m add-column: one array for each image, packed beside the images."""

from __future__ import annotations

import argparse

from builder.cli.arguments import add_processes
from builder.cli.output import DONE, show
from builder.cli.parser import Parser

EXAMPLE = "laion6m add-column OUT latents --from latents/"


def declare(parser: Parser) -> None:
    parser.add_argument("out", metavar="DATASET", help="a converted folder")
    parser.add_argument("name", metavar="NAME", help="of the column, as CaptionDataset(image_latents=NAME) asks for it")
    parser.add_argument(
        "--from", dest="source", metavar="FOLDER", required=True, help="holds <image path>.pt and so on"
    )
    add_processes(parser)


def run(arguments: argparse.Namespace) -> int:
    from builder.jobs.add_column import add_column

    summary = add_column(arguments.out, arguments.name, arguments.source, num_proc=arguments.num_proc)
    text = f"{summary.rows:,} rows of {summary.name} in {summary.shards:,} shards, {summary.bytes:,} bytes of arrays"
    show(arguments, summary.to_json(), text)
    return DONE
