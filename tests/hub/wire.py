"""HTTP as the test Hub speaks it: one request read, logged, made to fail where ordered, handled, answered."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.faults import Fault
from tests.hub.storage import HubError, copy_bytes

if TYPE_CHECKING:
    from tests.hub.server import Account, HubServer


@dataclass
class Record:
    """One line of the request log. `status` is None until answered, and stays so if there was no answer."""

    index: int  # from 1, in order of arrival
    origin: str  # "hub" or "cdn"
    method: str
    route: str  # a name of the route table, or "unknown"
    path: str  # quoted, with the query
    authenticated: bool  # an Authorization header was there
    account: str | None = None
    bytes_in: int = 0  # of the body
    bytes_out: int = 0  # of the body
    status: int | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Slice:
    """A part of a file as the body of an answer."""

    path: Path
    offset: int
    length: int


@dataclass
class Response:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Slice = b""

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        return cls(
            status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})}, json.dumps(value).encode()
        )

    @classmethod
    def error(cls, error: HubError) -> Response:
        headers = {"X-Error-Message": error.message.replace("\n", " "), "X-Request-Id": "Root=test", **error.headers}
        if error.code:
            headers["X-Error-Code"] = error.code
        return cls.json({"error": error.message, **error.extra}, error.status, headers)

    @property
    def length(self) -> int:
        return len(self.body) if isinstance(self.body, bytes) else self.body.length

    def pieces(self) -> Iterator[bytes]:
        if isinstance(self.body, bytes):
            yield self.body
            return
        with self.body.path.open("rb") as file:
            file.seek(self.body.offset)
            yield from copy_bytes(file, self.body.length)


class Request:
    """What a route sees. Groups of the route's pattern are unquoted; `revision` in the URL is quoted as one segment."""

    def __init__(self, handler: Handler, groups: dict[str, str | None], record: Record) -> None:
        self.hub = handler.server.hub
        self.method = handler.command
        self.headers = handler.headers
        self.groups = {name: unquote(value or "") for name, value in groups.items()}
        self.query = {name: values[-1] for name, values in parse_qs(urlsplit(handler.path).query).items()}
        self.url_path = urlsplit(handler.path).path
        self.account: Account | None = None
        self.record = record
        self._stream = handler.rfile
        self._left = int(self.headers.get("Content-Length") or 0)

    def chunks(self, limit: int | None = None) -> Iterator[bytes]:
        """The rest of the body, or at most `limit` bytes of it. EOFError if the client goes away before its end."""
        for chunk in copy_bytes(self._stream, self._left if limit is None else min(limit, self._left)):
            self._left -= len(chunk)
            self.record.bytes_in += len(chunk)
            yield chunk

    def body(self) -> bytes:
        return b"".join(self.chunks())

    def json(self) -> Any:
        try:
            return json.loads(self.body())
        except ValueError:
            raise HubError(400, "", "The body is not JSON") from None

    def skip_body(self, limit: int | None = None) -> None:
        for _ in self.chunks(limit):
            pass


Work = Callable[[Request], Response]


@dataclass(frozen=True)
class Route:
    name: str
    method: str  # "GET" is HEAD too
    pattern: re.Pattern[str]
    work: Work


class Origin(ThreadingHTTPServer):
    """One listening port: the Hub itself, or the CDN and object store beside it."""

    daemon_threads = False  # so that server_close waits for the handlers, and no test sees the tail of another one
    request_queue_size = 64

    def __init__(self, hub: HubServer, name: str, port: int, routes: list[Route]) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.hub, self.name, self.routes = hub, name, routes
        self._live: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop listening and cut the connections that are open, as a server that dies does."""
        self.shutdown()
        self._thread.join()
        for connection in list(self._live):
            hang_up(connection)
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._live.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._live.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed leave broken connections; anything else is a defect of this server or of a hook."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            self.hub.crashes.append(repr(error))


def hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # the other side was first
        connection.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Origin

    def log_message(self, format: str, *args: Any) -> None:
        """The log is `HubServer.log`."""

    def exchange(self) -> None:
        hub, method = self.server.hub, "GET" if self.command == "HEAD" else self.command
        path = urlsplit(self.path).path
        found = [
            (route, m)
            for route in self.server.routes
            if route.method == method and (m := route.pattern.fullmatch(path))
        ]
        route, groups = (found[0][0], found[0][1].groupdict()) if found else (None, {})
        name = route.name if route else "unknown"
        record = hub.open_record(self.server.name, self.command, name, self.path, "Authorization" in self.headers)
        request = Request(self, groups, record)
        fault = hub.faults.take(name, self.command, self.path)
        record.fault = fault.kind if fault else None
        try:
            if hub.on_request:
                hub.on_request(record)
            response = self._answer(route, request, fault)
            if hub.on_response and response is not None:
                hub.on_response(record)
        except (EOFError, ConnectionError):
            response = None  # the client went away while it sent the body, or a hook wants it so
        if response is None:
            self.close_connection = True
            hang_up(self.connection)
            return
        self._send(response, record, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = exchange  # noqa: N815  (the base class looks for these names)

    def _answer(self, route: Route | None, request: Request, fault: Fault | None) -> Response | None:
        """The answer, or None to close the connection without one."""
        kind = fault.kind if fault else None
        if fault and kind == "delay":
            self.server.hub.stopping.wait(fault.seconds)
        if fault and kind == "drop":
            request.skip_body(fault.at or 0)
            return None
        if fault and kind in ("fail_before", "status"):
            request.skip_body()
            return None if fault.status is None else injected(fault)
        response = self._work(route, request)
        request.skip_body()
        if fault and kind == "fail_after":
            return None if fault.status is None else injected(fault)
        return response

    def _work(self, route: Route | None, request: Request) -> Response:
        hub = self.server.hub
        try:
            if "Transfer-Encoding" in self.headers:
                hub.violations.append(f"{self.command} {request.url_path}: chunked body")
                self.close_connection = True
                raise HubError(501, "", "A body needs a Content-Length")
            if self.server.name == "hub":
                request.account = hub.account_of(self.headers.get("Authorization"))
                request.record.account = request.account.name if request.account else None
            elif request.record.authenticated:
                hub.violations.append(f"{self.command} {request.url_path}: the token was sent to the CDN")
            if route is None:
                raise HubError(404, "", "Sorry, we can't find the page you are looking for.")
            return route.work(request)
        except HubError as error:
            return Response.error(error)
        except (EOFError, ConnectionError):
            raise
        except Exception as error:  # noqa: BLE001  (a defect of this server: the client gets a 500, the test its text)
            hub.crashes.append(f"{self.command} {request.url_path}: {error!r}")
            return Response.error(HubError(500, "", "Internal error of the test server"))

    def _send(self, response: Response, record: Record, fault: Fault | None) -> None:
        record.status = response.status
        self.send_response_only(response.status)
        for name, value in {"Content-Length": str(response.length), **response.headers}.items():
            self.send_header(name, value)
        end = response.length
        if fault and fault.kind == "truncate":
            end = response.length // 2 if fault.at is None else fault.at
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        for piece in response.pieces():
            piece = piece[: end - record.bytes_out]
            self.wfile.write(piece)
            record.bytes_out += len(piece)
            if record.bytes_out == end:
                break


def injected(fault: Fault) -> Response:
    answer = Response.error(HubError(fault.status or 503, "", f"Injected {fault.status}"))
    return Response(answer.status, {**answer.headers, **fault.headers}, answer.body)


def ranged(request: Request, path: Path, size: int, headers: dict[str, str]) -> Response:
    """A file, or the one range of it that the client asks for (RFC 9110, section 14); several ranges give it whole."""
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if match is None or match.group(0) == "bytes=-":
        return Response(200, headers, Slice(path, 0, size))
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        return Response(416, {**headers, "Content-Range": f"bytes */{size}"}, b"")
    return Response(
        206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}, Slice(path, start, stop - start)
    )
