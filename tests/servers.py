"""Servers on this machine's loopback for the tests: files over HTTP with ranges and faults, and moto's S3."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REGION = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


class FileServer:
    """Serves a folder with HEAD and GET, single ranges and lists of its folders included. ``requests``: (method, path,
    range) of all requests so far. ``break_next``: how many of the next GETs lose the connection after half their
    body. ``busy_next``: how many of the next requests are answered with 503. ``states``: whether it says by an ETag
    which file it has. ``ranges``: whether it knows them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, str, str | None]] = []
        self.break_next = 0
        self.busy_next = 0
        self.states = False
        self.ranges = True
        handler = type("Handler", (_Handler,), {"files": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    files: FileServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        wanted = self.headers.get("Range")
        self.files.requests.append((self.command, self.path, wanted))
        if self.files.busy_next:
            self.files.busy_next -= 1
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path = self.files.folder / self.path.lstrip("/")
        if path.is_dir():
            links = "".join(f'<a href="{name}">{name}</a>' for name in sorted(map(_listed, path.iterdir())))
            body = f"<html><body>{links}</body></html>".encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)
            return
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        status, first, last = 200, 0, len(data) - 1
        if (match := re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")) and self.files.ranges:
            status, first = 206, int(match[1])
            last = min(int(match[2] or last), last)
        body = data[first : last + 1]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes" if self.files.ranges else "none")
        if self.files.states:
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if with_body and self.files.break_next:
            self.files.break_next -= 1
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *_: Any) -> None:
        """Tests read ``requests`` instead."""


def _listed(path: Path) -> str:
    return f"{path.name}/" if path.is_dir() else path.name


class Weather:
    """What lies between S3 and its clients: ``delay`` seconds before each answer, and one in ``every`` requests that
    fails, by turns with 503, with 500 and with half of its body. ``requests``: (method, path, range) of all so far."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.delay = 0.0
        self.every = 0
        self.failed = 0
        self.requests: list[tuple[str, str, str | None]] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE")))
        number = len(self.requests)
        if self.delay:
            time.sleep(self.delay)
        if not self.every or number % self.every:
            answer: Iterable[bytes] = self._app(environ, start_response)
            return answer
        self.failed += 1
        if self.failed % 3 == 0 and environ["REQUEST_METHOD"] == "GET":
            whole = b"".join(self._app(environ, start_response))  # its headers say more than comes
            return [whole[: len(whole) // 2]]
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))  # else a client still sending meets a reset
        status, code = (("503 Slow Down", "SlowDown"), ("500 Error", "InternalError"))[self.failed % 2]
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as ordered</Message></Error>".encode()
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]


class InMemory:
    """Keeps the objects that moto gives and answers GETs of them, ranges too: moto copies a whole object for each range
    of it, which no store does, and which would be all that a measurement shows. For objects that do not change."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._kept: dict[str, tuple[list[tuple[str, str]], memoryview]] = {}

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] != "GET" or environ.get("QUERY_STRING") or not path.endswith((".tar", ".parquet")):
            answer: Iterable[bytes] = self._app(environ, start_response)
            return answer
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", environ.pop("HTTP_RANGE", ""))
        if path not in self._kept:
            told: list[list[tuple[str, str]]] = []
            body = b"".join(self._app(environ, lambda status, headers, *_: told.append(headers)))
            own = [
                (name, value) for name, value in told[0] if not name.lower().startswith(("content-l", "x-amz-checksum"))
            ]
            self._kept[path] = own, memoryview(body)
        headers, whole = self._kept[path]
        first, last = (int(match[1]), int(match[2] or len(whole) - 1)) if match else (0, len(whole) - 1)
        part = whole[first : last + 1]
        length = ("Content-Length", str(len(part)))
        if not match:
            start_response("200 OK", [*headers, length])
        else:
            place = ("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(whole)}")
            start_response("206 Partial Content", [*headers, length, place])
        return [bytes(part)]  # werkzeug takes nothing else


@dataclass(frozen=True)
class S3:
    """A running S3. ``options``: what s3fs takes to reach it."""

    options: dict[str, Any]
    weather: Weather


@contextlib.contextmanager
def s3_server(bucket: str) -> Iterator[dict[str, Any]]:
    """moto's S3 with one bucket; gives the storage options that s3fs takes. Credentials are in the environment."""
    with s3(bucket) as server:
        yield server.options


@contextlib.contextmanager
def s3(bucket: str, *, in_memory: bool = False) -> Iterator[S3]:
    """The same, with weather; ``in_memory``: with tars as a store of its own size would serve them."""
    import s3fs
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.server import MotoRequestHandler
    from werkzeug.serving import make_server

    class Handler(MotoRequestHandler):
        def log(self, *_: Any, **__: Any) -> None:
            """Tests read ``requests`` instead."""

    before = {name: os.environ.get(name) for name in REGION}
    os.environ.update(REGION)
    moto = DomainDispatcherApplication(create_backend_app)
    weather = Weather(InMemory(moto) if in_memory else moto)
    server = make_server("127.0.0.1", 0, weather, threaded=True, request_handler=Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        options = {"client_kwargs": {"endpoint_url": f"http://127.0.0.1:{server.server_address[1]}"}}
        s3fs.S3FileSystem(**options, skip_instance_cache=True).mkdir(bucket)
        weather.requests.clear()
        yield S3(options, weather)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
