"""view(DATASET): open it, listen, print the address, open the browser, answer until Ctrl-C."""

from __future__ import annotations

import os
import webbrowser
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from builder.base import schema
from builder.base.errors import DamagedFileError, OptionError
from builder.base.urls import is_url
from builder.read.reader import open_dataset
from builder.read.view import Rows
from builder.store.manifest import read_manifest
from builder.view.api import Viewer
from builder.view.catalog import Catalog
from builder.view.groups import Groups
from builder.view.rejects import Rejects
from builder.view.results import Results
from builder.view.server import Server

_LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Options:
    """``port``: 0 takes any that is free. ``source``: the folder of tars that rejects are shown from. ``save``: the
    folder that the page may save selections into; without it, none. ``browser``: open one."""

    host: str = "127.0.0.1"
    port: int = 0
    source: str | None = None
    save: str | None = None
    browser: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise OptionError("port", self.port, "0 to 65535")


def open_server(path: str, options: Options) -> Server:
    """A server for the dataset at ``path`` (whatever ``open_dataset`` takes), listening, not answering yet. Raises
    OptionError for an address that cannot be had, and what ``open_dataset`` raises."""
    dataset = open_dataset(path)
    catalog = Catalog(dataset, path)
    folder = "" if is_url(path) else os.path.abspath(os.path.expanduser(path))
    rejects = Rejects(folder, _sources(dataset, options.source))
    viewer = Viewer(catalog, Results(catalog, None), rejects, Groups(dataset), _facts(path, folder, options))
    try:
        return Server(viewer, options.host, options.port)
    except OSError as error:
        raise OptionError("host and port", f"{options.host}:{options.port}", f"free here ({error.strerror})") from None


def view(
    path: str, options: Options | None = None, *, show: Callable[[Server], None], say: Callable[[str], None]
) -> None:
    """Serve until KeyboardInterrupt. ``show`` is given the server once it listens, ``say`` what a person should know.
    Raises what ``open_server`` does."""
    options = options or Options()
    server = open_server(path, options)
    show(server)
    if options.host not in _LOCAL:
        say(
            f"Everybody who can reach {options.host} and knows this address sees the dataset. What is sent is not "
            "encrypted. Without --host, only this machine can."
        )
    elif "SSH_CONNECTION" in os.environ:
        port = server.server_port
        say(f"From your own machine: ssh -L {port}:localhost:{port} THIS_HOST, then open the address there.")
    elif options.browser:
        with suppress(webbrowser.Error):
            webbrowser.open(server.url)
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()


def _sources(dataset: Rows, source: str | None) -> list[str]:
    """Folders that raw tars may lie in: the one that was named, and that of an index over tars."""
    over_tars = any(file.kind == "tar" for file in dataset.shards)
    return [
        *([os.path.abspath(os.path.expanduser(source))] if source else []),
        *([dataset.reader._index.root] if over_tars else []),
    ]


def _facts(path: str, folder: str, options: Options) -> Mapping[str, Any]:
    """What the page says of the dataset. Of somebody else's files there is no manifest: then less."""
    facts: dict[str, Any] = {
        "name": os.path.basename(path.rstrip("/")) or path,
        "path": path,
        "kind": "",
        "totals": None,
        "image_bytes": None,
        "rejects": 0,
        "duplicates": 0,
        "sql": False,
        "save": options.save,
    }
    if folder and os.path.exists(os.path.join(folder, *schema.MANIFEST.split("/"))):
        with suppress(DamagedFileError):
            manifest = read_manifest(folder)
            facts |= {
                "kind": manifest.kind,
                "totals": manifest.totals,
                "image_bytes": manifest.totals.get("image_bytes"),
                "rejects": sum(manifest.totals.get("rejected", {}).values()),
            }
    return facts
