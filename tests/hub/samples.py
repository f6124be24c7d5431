"""A repository to begin with, a push to repeat, and plain HTTP requests, for the tests of the Hub itself."""

from __future__ import annotations

import hashlib
import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from tests.hub.server import WRITE_TOKEN, HubServer
from tests.hub.storage import File

LARGE = bytes(range(256)) * 100  # binary, so that it goes to the large-file storage
LARGE_ID = hashlib.sha256(LARGE).hexdigest()
ROOT, API = "/datasets/user/x", "/api/datasets/user/x"

PUSH = """
    import sys
    from huggingface_hub import HfApi, CommitOperationAdd as Add
    name = "user/NAME"
    api = HfApi()
    api.create_repo(name, repo_type="dataset", exist_ok=True)
    files = [Add("README.md", b"card"), Add("a.bin", bytes(range(256)) * 100 + name.encode())]
    print(api.create_commit(name, files, commit_message="m", repo_type="dataset").oid)
"""
PUSH_ROUTES = ["create_repo", "validate_yaml", "preupload", "lfs_batch", "put", "verify", "commit"]
EMPTY, FULL = {".gitattributes"}, {".gitattributes", "README.md", "a.bin"}


def ask(
    server: HubServer,
    method: str,
    url: str,
    body: bytes | dict[str, Any] | None = None,
    token: str | None = WRITE_TOKEN,
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    """One plain HTTP request to the Hub, or to the whole address given."""
    parts = urlsplit(url if url.startswith("http") else server.endpoint + url)
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=20)
    try:
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        connection.request(method, target, content, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def fill(server: HubServer) -> None:
    """The dataset user/x with a.bin, README.md and data/b.txt and no .gitattributes, put there without a client."""
    store = server.store
    repo = store.create("user/x")
    store.put_large(LARGE_ID, [LARGE])
    table = {
        name: store.put_blob(content) for name, content in {"README.md": b"hello", "data/b.txt": b"0123456789"}.items()
    }
    store.add_commit(
        repo,
        "refs/heads/main",
        repo.refs["refs/heads/main"],
        table | {"a.bin": File.large(LARGE_ID, len(LARGE))},
        "fill",
    )


def commit_lines(*operations: dict[str, Any], **header: str) -> bytes:
    lines = [{"key": "header", "value": {"summary": "s", "description": "", **header}}, *operations]
    return b"\n".join(json.dumps(line).encode() for line in lines)


def regular(path: str, content: str = "aGk=") -> dict[str, Any]:
    return {"key": "file", "value": {"path": path, "content": content, "encoding": "base64"}}


def large(path: str, oid: str = LARGE_ID, **size: int) -> dict[str, Any]:
    return {"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": oid, **size}}
