"""laion6m view: look at a dataset in the browser."""

from __future__ import annotations

import argparse
import json

from builder.cli.output import DONE, say, write
from builder.cli.parser import Parser

EXAMPLE = "laion6m view OUT"


def declare(parser: Parser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="a converted folder, an index, a selection, or a URL")
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="port to listen on; 0 takes a free one (0)")
    parser.add_argument("--no-browser", action="store_true", help="print the address, open no browser")
    parser.add_argument("--source", metavar="SOURCE", help="the folder of tars, to show what was rejected")
    parser.add_argument("--save", metavar="FOLDER", help="allow the page to save selections, into this folder only")


def run(arguments: argparse.Namespace) -> int:
    from builder.view.server import Server
    from builder.view.view import Options, view

    def announce(server: Server) -> None:
        facts = {"url": server.url, "dataset": arguments.dataset}
        write(json.dumps(facts) if arguments.json else f"{server.url}  (Ctrl-C ends it)")

    options = Options(arguments.host, arguments.port, arguments.source, arguments.save, not arguments.no_browser)
    view(arguments.dataset, options, show=announce, say=say)
    return DONE
