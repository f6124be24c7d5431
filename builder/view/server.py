"""The viewer's web server. It checks who may ask, limits requests, and sets the security headers of every answer. It
uses only the standard library.

A page on the Internet can make a browser send requests to this machine, under any name that its DNS gives out. So a
request is answered only if

* its Host is one of ours (against DNS rebinding);
* it has the cookie that only the printed address gives (against other people and other pages);
* it comes from our own page, if it writes.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote

MOST_CONNECTIONS = 200
"""The most connections at a time. Each has a thread. A browser opens six."""
MOST_BODY = 64 << 10  # most bytes of a request's body, which is a query and a folder's name
_PATIENCE = 20.0  # seconds that a connection may be silent
_SENDING = 120.0  # seconds that sending an answer may take, such as a large image over a slow tunnel
_MOST_VALUES = 20  # parameters of a request; the page sends seven
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_ANYWHERE = frozenset({"0.0.0.0", "::", ""})

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
"""Headers of every answer. The page may load nothing from other hosts and send nothing to them. No picture stays in a
disk cache."""


@dataclass(frozen=True, slots=True)
class Request:
    """``path``: decoded, begins with "/". ``query``: on duplicate names the last value wins. ``body``: of a POST."""

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(document: Any, status: int = 200) -> Answer:
        """An answer in JSON."""
        return Answer(status, json.dumps(document, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace"))

    @staticmethod
    def error(status: int, words: str) -> Answer:
        return Answer.of({"error": words}, status)

    @staticmethod
    def not_allowed(method: str) -> Answer:
        return replace(Answer.error(405, f"only {method}"), headers={"Allow": method})


Application = Callable[[Request], Answer]
"""Thread-safe. Raises nothing."""


class Server(ThreadingHTTPServer):
    """Listens as soon as it is constructed. ``serve_forever`` answers. ``url``: the address to open, with its token."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, application: Application, host: str = "127.0.0.1", port: int = 0) -> None:
        """Raises OSError if it cannot listen at that address."""
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)
        self.application = application
        self.token, self.secret = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self.cookie = f"laion6m-{self.server_port}"  # the port is in the name: browsers share cookies between ports
        self.hosts = hosts(host, self.server_port)
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)

    @property
    def url(self) -> str:
        host = str(self.server_address[0])
        if host in _ANYWHERE:
            host = socket.gethostname()
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/?token={self.token}"

    def server_bind(self) -> None:
        """Like HTTPServer's, but does not look up this machine's name: that can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints nothing for a browser that closes the connection during an answer."""


def hosts(host: str, port: int) -> frozenset[str]:
    """Values of the Host header that a server on ``host`` answers to."""
    names = {f"[{host}]" if ":" in host else host.lower()}
    if host in _LOOPBACK | _ANYWHERE:
        names |= {"127.0.0.1", "localhost", "[::1]"}
    if host in _ANYWHERE:
        names.add(socket.gethostname().lower())
    return frozenset({f"{name}:{port}" for name in names} | (names if port == 80 else set()))


class Handler(BaseHTTPRequestHandler):
    """One connection: first the checks, then the application."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "laion6m", ""
    timeout = _PATIENCE
    wbufsize = 1 << 16  # sends head and body together
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._send(self._guarded())

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = do_GET  # noqa: N815

    def _guarded(self) -> Answer:
        length = self.headers.get("Content-Length", "0")
        if length != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # an unread body must not be parsed as the next request
        path, _, query = self.path.partition("?")
        given = dict(parse_qsl(query))
        named = self.headers.get_all("Host") or []
        if len(named) != 1 or not self._is_ours(named[0].lower()):
            here = f"127.0.0.1:{self.server.server_port}"
            return Answer.error(421, f"this server answers only to {here}. Through ssh, forward the same port number.")
        entering = hmac.compare_digest(given.pop("token", "").encode(), self.server.token.encode())
        if not entering and not self._has_cookie():
            return Answer.error(403, "open the whole address that laion6m view printed: it holds a token")
        if not path.startswith("/") or len(given) > _MOST_VALUES:
            return Answer.error(400, f"a path begins with / and has at most {_MOST_VALUES} values")
        body = self._body(named[0], length)
        if isinstance(body, Answer):
            return body
        answer = self.server.application(Request(self.command, unquote(path), given, body))
        if entering:
            cookie = f"{self.server.cookie}={self.server.secret}; Path=/; HttpOnly; SameSite=Strict"
            answer = replace(answer, headers={**answer.headers, "Set-Cookie": cookie})
        return answer

    def _is_ours(self, host: str) -> bool:
        """Whether a Host is ours. The IP address that the connection arrived at is ours too: DNS cannot give it to
        somebody else."""
        address = self.connection.getsockname()[0]
        return (
            host in self.server.hosts
            or host == f"{f'[{address}]' if ':' in address else address}:{self.server.server_port}"
        )

    def _has_cookie(self) -> bool:
        try:
            found = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
        except CookieError:
            return False
        return found is not None and hmac.compare_digest(found.value.encode(), self.server.secret.encode())

    def _body(self, host: str, length: str) -> bytes | Answer:
        """The body of a POST, or an answer that says what is wrong with it."""
        if "Transfer-Encoding" in self.headers or not re.fullmatch("[0-9]{1,12}", length):
            return Answer.error(400, "a body needs its Content-Length")
        if self.command != "POST":
            return Answer.error(400, f"a {self.command} request may have no body") if int(length) else b""
        if self.headers.get("Origin") != f"http://{host}":
            return Answer.error(403, "only this server's own page may send this")
        if self.headers.get_content_type() != "application/json":
            return Answer.error(415, "the body must be JSON")
        if int(length) > MOST_BODY:
            return Answer.error(413, f"the body may have at most {MOST_BODY:,} bytes")
        return self.rfile.read(int(length))

    def _send(self, answer: Answer) -> None:
        self.connection.settimeout(_SENDING)
        self.send_response(answer.status)
        for name, value in {**_HEADERS, **answer.headers, "Content-Type": answer.media_type}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        self.wfile.flush()
        self.connection.settimeout(_PATIENCE)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers requests that http.server cannot parse. The answer has our form instead of its HTML page."""
        self.close_connection = True
        if not hasattr(self, "headers"):  # the request line itself is invalid
            self.request_version, self.command = "HTTP/1.1", ""
        self._send(Answer.error(code, message or "cannot be read"))

    def log_message(self, format: str, *values: Any) -> None:
        """Logs nothing: addresses hold the token, and searches are private."""
