"""Strangers stay out: tokens, Hosts, methods, paths, sizes, and many connections at once."""

from __future__ import annotations

import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from builder.cli.commands import main
from builder.view.server import Server, hosts
from tests.view.conftest import Visitor

PATHS = ["/", "/app.js", "/style.css", "/api/dataset", "/api/rows", "/images/0", "/thumbnails/0", "/nothing"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cookie", ["", "laion6m=x", "laion6m-1=x; theme=dark", "=;;=\\", "\x7f"])
def test_without_the_token_every_path_answers_403(path: str, cookie: str, visitor: Visitor) -> None:
    assert visitor.ask(path, cookie=cookie).status == 403
    assert visitor.ask(f"{path}?token=wrong", cookie=cookie).status == 403


@pytest.mark.parametrize("path", PATHS[:-1])
def test_the_cookie_opens_every_path(path: str, visitor: Visitor) -> None:
    assert visitor.ask(path).status == 200


def test_the_printed_address_gives_a_cookie_that_scripts_and_other_sites_do_not_get(visitor: Visitor) -> None:
    address = urlsplit(visitor.server.url)
    reply = visitor.ask(f"{address.path}?{address.query}", cookie="")
    assert reply.status == 200
    cookie = reply.headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert visitor.server.token not in cookie
    assert visitor.ask("/api/rows", cookie=cookie.split(";")[0]).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}", "", "[::1]"],
)
def test_another_host_is_refused_even_with_the_token(host: str, visitor: Visitor) -> None:
    """DNS rebinding: a stranger's name that leads to this machine, in a browser that has the cookie."""
    host = host.format(port=visitor.server.server_port)
    assert visitor.ask("/api/rows", Host=host).status == 421
    assert visitor.ask(f"/?token={visitor.server.token}", Host=host).status == 421


def test_two_hosts_or_none_are_refused(visitor: Visitor) -> None:
    ours = f"Host: {visitor.host}\r\nCookie: {visitor.cookie}\r\n"
    assert raw(visitor, f"GET / HTTP/1.1\r\n{ours}Host: evil.example\r\n\r\n").startswith(b"HTTP/1.1 421")
    assert raw(visitor, f"GET / HTTP/1.1\r\nCookie: {visitor.cookie}\r\n\r\n").startswith(b"HTTP/1.1 421")


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "127.0.0.1"])
def test_our_own_names_are_answered(name: str, visitor: Visitor) -> None:
    assert visitor.ask("/api/rows", Host=f"{name}:{visitor.server.server_port}").status == 200


def test_a_server_for_all_answers_to_this_machines_name_and_no_other() -> None:
    found = hosts("0.0.0.0", 8000)
    assert f"{socket.gethostname().lower()}:8000" in found
    assert "evil.example:8000" not in found
    assert "localhost" not in found
    assert "localhost" in hosts("127.0.0.1", 80), "browsers leave the usual port out"


def test_every_answer_tells_the_browser_to_be_careful(visitor: Visitor) -> None:
    for path in [*PATHS, "/api/rows?where=%27"]:
        for cookie in (None, ""):
            headers = visitor.ask(path, cookie=cookie).headers
            assert "default-src 'none'" in headers["Content-Security-Policy"]
            assert "unsafe" not in headers["Content-Security-Policy"]
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"
            assert headers["Cache-Control"] == "no-store"
            assert not [name for name in headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize("path", ["/", "/api/rows", "/images/0"])
def test_only_get_and_head_read(method: str, path: str, visitor: Visitor) -> None:
    headers = {"Origin": f"http://{visitor.host}", "Content_Type": "application/json"} if method == "POST" else {}
    assert visitor.ask(path, method, **headers).status in (405, 501)


def test_head_has_no_body(visitor: Visitor) -> None:
    reply = visitor.ask("/images/0", "HEAD")
    assert reply.status == 200
    assert reply.body == b""
    assert int(reply.headers["Content-Length"]) == len(visitor.ask("/images/0").body)


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/page/../api.py",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/images/..%2f0",
        "/images/0%00.jpg",
        "/%00",
        "//evil.example/",
        "/api.py",
        "/thumbnails/-1",
        "/images/٣",
        "/images/0/",
        "/%ff%fe",
    ],
)
def test_paths_lead_nowhere_but_where_they_are_named(path: str, visitor: Visitor) -> None:
    line = f"GET {path} HTTP/1.1\r\nHost: {visitor.host}\r\nCookie: {visitor.cookie}\r\nConnection: close\r\n\r\n"
    answer = raw(visitor, line)
    assert re.match(rb"HTTP/1.1 (404|400) ", answer), answer[:80]
    assert b"root:" not in answer


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("offset=999999999999999", 200),
        ("offset=9999999999999999", 400),
        ("offset=-1", 400),
        ("offset=1e3", 400),
        ("offset=%D9%A3", 400),
        ("limit=999999999", 200),
        ("limit=x", 400),
        ("search=" + "x" * 5000, 400),
        ("search=" + "+".join("abcdefghijklmnopqrstuvwxyz"), 400),
        ("filter=width:x:1", 400),
        ("filter=nothing:1:2", 400),
        ("filter=width:nan:inf", 400),
        ("sort=caption", 400),
        ("sort=-", 400),
        ("search=%00", 200),
        ("search=%ff", 200),
    ],
)
def test_limits_on_what_is_asked_for(query: str, status: int, visitor: Visitor) -> None:
    reply = visitor.ask(f"/api/rows?{query}")
    assert reply.status == status, reply.body
    assert len(reply.json.get("rows", [])) <= 500
    if status == 400:
        assert "error" in reply.json["error"]


@pytest.mark.parametrize("path", ["/images/291", "/thumbnails/99999999", "/api/rows/291", "/rejects/10"])
def test_rows_that_do_not_exist_are_404(path: str, visitor: Visitor) -> None:
    assert visitor.ask(path).status == 404


@pytest.mark.parametrize(
    "request_text",
    [
        b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ],
)
def test_what_is_no_request_harms_nobody(request_text: bytes, visitor: Visitor) -> None:
    answer = raw(visitor, request_text)
    assert not answer or re.match(rb"HTTP/1.1 4\d\d |HTTP/1.1 5\d\d ", answer), answer[:100]
    assert b"<" not in answer
    assert visitor.ask("/api/rows").status == 200


@pytest.mark.parametrize(
    "extra",
    [
        "Content-Length: 5\r\n\r\nhello",
        "Content-Length: " + "9" * 5000 + "\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Content-Length: x\r\n\r\n",
    ],
)
def test_a_get_with_a_body_is_refused_and_its_connection_closed(extra: str, visitor: Visitor) -> None:
    """Else the body would be read as the next request."""
    answer = raw(visitor, f"GET /api/rows HTTP/1.1\r\nHost: {visitor.host}\r\nCookie: {visitor.cookie}\r\n{extra}")
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1


def test_a_hundred_visitors_at_once_are_all_answered(visitor: Visitor) -> None:
    with ThreadPoolExecutor(100) as pool:
        replies = list(pool.map(lambda row: visitor.ask(f"/thumbnails/{row}"), range(100)))
    assert [reply.status for reply in replies] == [200] * 100


def test_connections_beyond_the_limit_are_closed_and_the_others_served(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [socket.create_connection(("127.0.0.1", visitor.server.server_port)) for _ in range(220)]
    try:
        request = f"GET /api/dataset HTTP/1.1\r\nHost: {visitor.host}\r\nCookie: {visitor.cookie}\r\n\r\n"
        held[0].sendall(request.encode())
        assert held[0].recv(20).startswith(b"HTTP/1.1 200")
        held[-1].settimeout(10)
        assert held[-1].recv(1) == b""
    finally:
        for each in held:
            each.close()


def raw(visitor: Visitor, text: str | bytes) -> bytes:
    """Bytes as they are, and all that is answered until the other side closes or is silent."""
    with socket.create_connection(("127.0.0.1", visitor.server.server_port)) as connection:
        connection.sendall(text if isinstance(text, bytes) else text.encode())
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(10)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
        return answer


@pytest.mark.parametrize(
    ("arguments", "environment", "opened", "said"),
    [
        ([], {"DISPLAY": ":0"}, True, ""),
        ([], {}, False, ""),  # no screen: a browser of text would take the terminal
        (["--no-browser"], {"DISPLAY": ":0"}, False, ""),
        ([], {"DISPLAY": ":0", "SSH_CONNECTION": "a b"}, False, "ssh -L"),
        (["--host", "0.0.0.0", "--no-browser"], {}, False, "not encrypted"),
    ],
)
def test_the_command_prints_the_address_and_opens_it_where_that_helps(
    arguments: list[str],
    environment: dict[str, str],
    opened: bool,
    said: str,
    demo_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    urls: list[str] = []
    monkeypatch.setattr("webbrowser.open", urls.append)

    def interrupted(server: Server, poll_interval: float = 0.5) -> None:
        while opened and not urls:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)
    assert main(["view", str(demo_folder / "out"), *arguments]) == 0
    output = capsys.readouterr()
    address = output.out.split()[0]
    assert re.fullmatch(r"http://[\w.-]+:\d+/\?token=[\w-]{32}", address)
    assert urls == ([address] if opened else [])
    assert said in output.err
    assert bool(output.err) == bool(said)


@pytest.mark.parametrize("cookie", [True, False])
def test_the_body_of_a_refused_request_is_not_the_next_request(cookie: bool, visitor: Visitor) -> None:
    inner = f"GET /api/dataset HTTP/1.1\r\nHost: {visitor.host}\r\nCookie: {visitor.cookie}\r\n\r\n"
    head = f"POST /api/selections HTTP/1.1\r\nHost: {visitor.host}\r\nContent-Length: {len(inner)}\r\n"
    answer = raw(visitor, head + (f"Cookie: {visitor.cookie}\r\n" if cookie else "") + "\r\n" + inner)
    assert answer.startswith(b"HTTP/1.1 403")
    assert answer.count(b"HTTP/1.1") == 1


def test_connections_are_kept_as_http_says(visitor: Visitor) -> None:
    ask = f"GET /api/phrases HTTP/1.{{}}\r\nHost: {visitor.host}\r\nCookie: {visitor.cookie}\r\n\r\n"
    assert raw(visitor, ask.format(1) * 3).count(b"HTTP/1.1 200") == 3
    assert raw(visitor, ask.format(0) * 3).count(b"HTTP/1.1 200") == 1


def test_a_thousand_values_are_refused(visitor: Visitor) -> None:
    query = "&".join(f"a{number}=1" for number in range(1000))
    assert visitor.ask(f"/api/rows?{query}").status == 400
    assert visitor.ask(f"/api/rows?{query}", cookie="").status == 403
