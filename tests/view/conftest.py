"""A dataset to look at, and a viewer of it that listens."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from builder.jobs.demo import demo
from builder.view.server import Server
from builder.view.view import Options, open_server


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Visitor:
    """Asks a viewer, as a browser that has its cookie unless told otherwise."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.host = f"127.0.0.1:{server.server_port}"
        self.cookie = f"{server.cookie}={server.secret}"

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, cookie: str | None = None, **headers: str
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=20)
        sent = {"Host": self.host, "Cookie": self.cookie if cookie is None else cookie}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers=sent)
        response = connection.getresponse()
        reply = Reply(response.status, response.headers, response.read())
        connection.close()
        return reply


Visit = Callable[..., Visitor]


@pytest.fixture
def visit() -> Iterator[Visit]:
    """Opens a viewer of a folder: ``visit(path, source=…)``."""
    servers: list[Server] = []

    def start(path: str | Path, **options: Any) -> Visitor:
        server = open_server(str(path), Options(browser=False, **options))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return Visitor(server)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DIR/source and DIR/out of ``laion6m demo``: 291 rows, 10 rejects."""
    folder = tmp_path_factory.mktemp("view") / "demo"
    demo(str(folder))
    return folder


@pytest.fixture
def visitor(demo_folder: Path, visit: Visit) -> Visitor:
    return visit(demo_folder / "out")
