"""laion6m view: look at a dataset in the browser."""

from __future__ import annotations

import argparse
import json

from builder.cli.arguments import whole
from builder.cli.output import DONE, say, write
from builder.cli.parser import Parser

EXAMPLE = "laion6m view OUT"


def declare(parser: Parser) -> None:
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="a converted folder, an index, a selection, or a URL")
    add("--host", default="127.0.0.1", metavar="H", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=whole, default=0, metavar="N", help="port to listen on; 0 takes a free one (default: 0)")
    add("--no-browser", action="store_true", help="only print the address, do not open a browser")
    add("--source", metavar="SOURCE", help="folder of the tars, to show images that were rejected")
    add("--save", metavar="FOLDER", help="let the page save selections, in FOLDER only")


def run(arguments: argparse.Namespace) -> int:
    from builder.view.server import Server
    from builder.view.view import Options, view

    def announce(server: Server) -> None:
        facts = {"url": server.url, "dataset": arguments.dataset}
        write(json.dumps(facts) if arguments.json else f"{server.url}  (Ctrl-C ends it)")

    options = Options(arguments.host, arguments.port, arguments.source, arguments.save, not arguments.no_browser)
    view(arguments.dataset, options, show=announce, say=say)
    return DONE
