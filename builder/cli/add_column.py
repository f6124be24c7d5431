"""laion6m add-column: values or arrays for the rows of a dataset, kept beside its images."""

from __future__ import annotations

import argparse

from builder.cli.arguments import add_processes, named
from builder.cli.output import show
from builder.cli.parser import Parser

EXAMPLE = "laion6m add-column OUT aesthetic --from scores.parquet"


def declare(parser: Parser) -> None:
    add = parser.add_argument
    add("out", metavar="DATASET", help="a converted folder, or an index")
    add("name", metavar="NAME", help="name of the new column")
    what = parser.add_mutually_exclusive_group(required=True)
    parser.add_several(
        "--from",
        like=lambda word: "." in word,
        group=what,
        dest="source",
        metavar="PATH",
        help="Parquet, CSV or JSON lines with a column NAME, or a folder with <image path>.pt, .npy, .safetensors",
    )
    what.add_argument("--field", metavar="F", help="take the values from field F of the annotations")
    add(
        "--on",
        choices=["key", "path", "url", "sha256"],
        help="column that joins the files with the rows (default: the first of these that the file has)",
    )
    add("--missing-ok", action="store_true", help="allow rows without an array; they become null")
    add_processes(parser)


def run(arguments: argparse.Namespace) -> int:
    from builder.curate.add_column import add_column, describe_column

    joined = named(arguments, "field", "on", "missing_ok", "num_proc")
    summary = add_column(arguments.out, arguments.name, arguments.source or None, **joined)
    return show(arguments, summary.to_json(), describe_column(summary))
