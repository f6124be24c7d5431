"""A small S3 of one folder, for measurements: HEAD, GET with ranges and If-Match, and ListObjectsV2.

moto spends 1 to 2 ms of processor time on each answer. Client and server share a machine here, so a measurement with
moto is one of moto. This server spends 0.1 ms.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, unquote, urlsplit


class Connection(asyncio.Protocol):
    """One client. Each answer comes ``delay`` seconds after its request. Clients do not pipeline."""

    def __init__(self, folder: str, delay: float) -> None:
        self.folder, self.delay, self.received = folder, delay, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        while b"\r\n\r\n" in self.received:
            head, _, self.received = self.received.partition(b"\r\n\r\n")
            asyncio.get_running_loop().call_later(self.delay, self.answer, head.decode("latin-1"))

    def answer(self, head: str) -> None:
        lines = head.split("\r\n")
        method, target, _ = lines[0].split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        url = urlsplit(target)
        _, _, key = unquote(url.path).lstrip("/").partition("/")
        path = os.path.join(self.folder, key)
        if not key:
            self.send(200, listing(self.folder, parse_qs(url.query)), method)
        elif not os.path.isfile(path):
            self.send(404, b"<Error><Code>NoSuchKey</Code></Error>", method)
        else:
            self.send_file(method, path, headers)

    def send_file(self, method: str, path: str, headers: dict[str, str]) -> None:
        size = os.path.getsize(path)
        tag = etag(path)
        if headers.get("if-match", tag) != tag:
            self.send(412, b"<Error><Code>PreconditionFailed</Code></Error>", method)
            return
        more = f"ETag: {tag}\r\nLast-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\nAccept-Ranges: bytes\r\n"
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        start, last = (int(match[1]), min(int(match[2] or size), size - 1)) if match else (0, size - 1)
        if match:
            more += f"Content-Range: bytes {start}-{last}/{size}\r\n"
        body = b""
        if method == "GET":
            with open(path, "rb", buffering=0) as file:
                body = os.pread(file.fileno(), last - start + 1, start)
        self.send(206 if match else 200, body, method, more, last - start + 1)

    def send(self, status: int, body: bytes, method: str, more: str = "", length: int | None = None) -> None:
        length = len(body) if length is None else length
        head = f"HTTP/1.1 {status} -\r\nContent-Length: {length}\r\nContent-Type: application/xml\r\n{more}\r\n"
        self.transport.write(head.encode())
        if method == "GET":
            self.transport.write(body)


def etag(path: str) -> str:
    status = os.stat(path)
    return f'"{hashlib.md5(repr((path, status.st_size, status.st_mtime_ns)).encode()).hexdigest()}"'


def listing(folder: str, query: dict[str, list[str]]) -> bytes:
    """ListObjectsV2 of all keys that begin with a prefix, in one page."""
    prefix, delimiter = (query.get(name, [""])[0] for name in ("prefix", "delimiter"))
    found, folders = "", set()
    for where, _, names in os.walk(folder):
        for path in (os.path.join(where, name) for name in names):
            key = os.path.relpath(path, folder)
            rest = key[len(prefix) :]
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            facts = f"<Size>{os.path.getsize(path)}</Size><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
            found += f"<Contents><Key>{key}</Key><ETag>{etag(path)}</ETag>{facts}</Contents>"
    found += "".join(f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in sorted(folders))
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>".encode()


@contextmanager
def serve_folder(folder: str, delay: float) -> Iterator[int]:
    """Serve a folder as any bucket, from a thread. Gives the port."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(lambda: Connection(folder, delay), "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()
