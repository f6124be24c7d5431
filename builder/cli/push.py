"""laion6m push: a converted folder as a dataset repository on the Hub."""

from __future__ import annotations

import argparse

from builder.cli.arguments import add_hub, add_lists, named, positive
from builder.cli.output import show
from builder.cli.parser import Parser

EXAMPLE = "laion6m push OUT user/name"


def declare(parser: Parser) -> None:
    add = parser.add_argument
    add("out", metavar="DATASET", help="a converted folder, or a selection")
    add("repo_id", metavar="REPO_ID", help="repository on the Hub: user/name")
    add("--captions-only", action="store_true", help="upload everything but the image bytes")
    add("--without-columns", action="store_true", help="leave out columns that add-column added")
    add("--create-pr", action="store_true", help="open a pull request instead of pushing to the branch")
    add("--verify-only", action="store_true", help="only compare with what the Hub has, change nothing")
    add_lists(parser, "samples")
    add("--num-proc", type=positive, metavar="N", help="files to upload at the same time (default: 4)")
    add_hub(parser)


def run(arguments: argparse.Namespace) -> int:
    from builder.hub.push import push

    what = named(arguments, "captions_only", "without_columns", "keys", "without", "verify_only", "num_proc", "quiet")
    where = named(arguments, "public", "revision", "create_pr", "token")
    pushed = push(arguments.out, arguments.repo_id, **what, **where)
    return show(arguments, pushed.to_json(), str(pushed), ok=pushed.ok)
