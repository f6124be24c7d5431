"""view(DATASET): open the dataset, listen, print the address, open a browser, answer until Ctrl-C."""

from __future__ import annotations

import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import numpy as np

from builder.base.errors import OptionError
from builder.curate.measures import Positions
from builder.curate.sql import find_rows
from builder.read.opening import open_dataset
from builder.read.view import Rows
from builder.view.api import Viewer
from builder.view.catalog import Catalog
from builder.view.facts import facts_of, rejects_of
from builder.view.groups import Groups
from builder.view.results import Results
from builder.view.server import Server

_SQL_SECONDS = 30.0  # most seconds of a query; some would never end
_LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Options:
    """``port``: 0 takes any free port. ``source``: the folder of tars from which rejects are shown. ``save``: the
    folder into which the page may save selections. None: it may not save. ``browser``: whether to open a browser."""

    host: str = "127.0.0.1"
    port: int = 0
    source: str | None = None
    save: str | None = None
    browser: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise OptionError("port", self.port, "0 to 65535")


def open_server(path: str, options: Options) -> Server:
    """A server for the dataset at ``path`` (as for ``open_dataset``). It listens but does not answer yet. Raises
    OptionError if the address cannot be used, and what ``open_dataset`` raises."""
    dataset = open_dataset(path)
    catalog = Catalog(dataset, path)
    threading.Thread(target=catalog.warm, daemon=True).start()
    results = Results(catalog, partial(_where, dataset))
    facts = {
        "name": os.path.basename(path.rstrip("/")) or path,
        "path": path,
        "sql": find_spec("duckdb") is not None,
        "save": options.save,
        **facts_of(dataset),
    }
    viewer = Viewer(catalog, results, rejects_of(dataset, options.source), Groups(dataset), facts)
    try:
        return Server(viewer, options.host, options.port)
    except OSError as error:
        place = f"{options.host}:{options.port}"
        raise OptionError("host", place, f"{error.strerror}. Give another --host or --port") from None


def view(path: str, options: Options, *, show: Callable[[Server], None], say: Callable[[str], None]) -> None:
    """Serve until KeyboardInterrupt. ``show`` is called with the server when it listens. ``say`` is called with
    messages for the user. Raises what ``open_server`` raises."""
    server = open_server(path, options)
    show(server)
    if options.host not in _LOCAL:
        say(
            f"Everybody who can reach {options.host} and knows this address can see the dataset. The connection is not "
            "encrypted. Without --host, only this machine can see it."
        )
    elif "SSH_CONNECTION" in os.environ:
        port = server.server_port
        host = socket.gethostname()
        say(f"Run on your own machine: ssh -L {port}:localhost:{port} {host}   Then open the address there.")
    elif options.browser and _has_screen():
        threading.Thread(target=_open_browser, args=(server.url,), daemon=True).start()
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()


def _has_screen() -> bool:
    """Whether there is a screen. Without one, Python would open a text browser in this terminal."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


def _open_browser(url: str) -> None:
    with suppress(webbrowser.Error, OSError):
        webbrowser.open(url)


def _where(dataset: Rows, condition: str) -> Positions:
    """Positions of the rows for which a condition in SQL is true, ascending."""
    found = np.asarray(find_rows(dataset, condition, timeout=_SQL_SECONDS).rows)
    if dataset is dataset.reader:
        return found
    chosen = np.zeros(len(dataset.reader), dtype=np.bool_)
    chosen[found] = True
    return np.flatnonzero(chosen[np.asarray(dataset.rows, dtype=np.int64)])
