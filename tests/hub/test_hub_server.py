"""Answers of the test Hub that a client would hide, its rules, and its storage."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.hub.client import PROJECT
from tests.hub.samples import (
    API,
    LARGE,
    LARGE_ID,
    ROOT,
    ask,
    commit_lines,
    fill,
    regular,
)
from tests.hub.server import OTHER_TOKEN, READ_TOKEN, WRITE_TOKEN, HubServer


@pytest.mark.parametrize(
    ("wanted", "status", "content_range", "expected"),
    [
        (None, 200, None, slice(None)),
        ("bytes=0-0", 206, "bytes 0-0/{size}", slice(0, 1)),
        ("bytes=5-8", 206, "bytes 5-8/{size}", slice(5, 9)),
        ("bytes=5-", 206, "bytes 5-{last}/{size}", slice(5, None)),
        ("bytes=-4", 206, "bytes {tail}-{last}/{size}", slice(-4, None)),
        ("bytes=8-99999999", 206, "bytes 8-{last}/{size}", slice(8, None)),  # past the end: what is there
        ("bytes=99999999-", 416, "bytes */{size}", slice(0, 0)),
        ("bytes=0-1,4-5", 200, None, slice(None)),  # several ranges: the whole
    ],
)
@pytest.mark.parametrize("path", ["a.bin", "data/b.txt"])
def test_ranges_are_served_by_both_origins(
    hub: HubServer, path: str, wanted: str | None, status: int, content_range: str | None, expected: slice
) -> None:
    fill(hub)
    content = hub.store.read("user/x", path)
    url, token = f"/datasets/user/x/resolve/main/{path}", WRITE_TOKEN
    headers = {"Range": wanted} if wanted else {}
    if path == "a.bin":
        redirected, redirect, _ = ask(hub, "GET", url, **headers)
        assert redirected == 302
        assert redirect["x-linked-etag"] == f'"{LARGE_ID}"'
        assert redirect["x-linked-size"] == str(len(LARGE))
        assert redirect["location"].startswith(hub.cdn)
        url, token = redirect["location"], None
    got, answer, body = ask(hub, "GET", url, token=token, **headers)
    size = len(content)
    stated = content_range and content_range.format(size=size, last=size - 1, tail=size - 4)
    assert (got, answer.get("content-range"), body) == (status, stated, content[expected])


@pytest.mark.parametrize(
    ("method", "url", "status", "code"),
    [
        ("GET", f"{API}/revision/main", 200, None),
        ("GET", f"{API}/revision/nothing", 404, "RevisionNotFound"),
        ("GET", f"{API}/revision/..%2F..%2Frepo.json", 404, "RevisionNotFound"),
        ("GET", "/api/datasets/user/nothing", 404, "RepoNotFound"),
        ("GET", "/api/models/user/x", 404, "RepoNotFound"),  # it is a dataset
        ("GET", f"{API}/tree/main", 200, None),
        ("GET", f"{API}/tree/main/data%2Fb.txt", 200, None),
        ("GET", f"{API}/tree/main/nothing", 404, "EntryNotFound"),
        ("GET", f"{API}/tree/nothing", 404, "RevisionNotFound"),
        ("HEAD", f"{ROOT}/resolve/main/README.md", 200, None),
        ("HEAD", f"{ROOT}/resolve/refs%2Fheads%2Fmain/README.md", 200, None),
        ("HEAD", f"{ROOT}/resolve/main/nothing", 404, "EntryNotFound"),
        ("HEAD", f"{ROOT}/resolve/main/data", 404, "EntryNotFound"),  # a folder
        ("GET", f"{API}/auth-check", 200, None),
        ("GET", "/api/agent-harnesses", 200, None),
        ("GET", f"{API}/likers", 404, None),  # a route that this server does not have: no code
    ],
)
def test_what_is_not_there_is_named_in_the_error_code(
    hub: HubServer, method: str, url: str, status: int, code: str | None
) -> None:
    fill(hub)
    got, headers, _ = ask(hub, method, url)
    assert (got, headers.get("x-error-code")) == (status, code)
    if code == "EntryNotFound" or "/resolve/" in url:
        assert headers["x-repo-commit"] == hub.store.commits("user/x")[0].oid
    assert [r.route for r in hub.requests("unknown")] == (["unknown"] if "likers" in url else [])


FILE = f"{ROOT}/resolve/main/README.md"


@pytest.mark.parametrize(
    ("setting", "url", "token", "status", "code"),
    [
        ({}, FILE, None, 200, None),
        ({}, FILE, "hf_unknown", 401, None),  # a wrong token is refused even where none is needed
        ({"private": True}, FILE, WRITE_TOKEN, 200, None),
        ({"private": True}, FILE, READ_TOKEN, 200, None),
        ({"private": True}, FILE, OTHER_TOKEN, 404, "RepoNotFound"),
        ({"private": True}, FILE, None, 401, "RepoNotFound"),
        ({"private": True}, API, OTHER_TOKEN, 404, "RepoNotFound"),
        ({"gated": "manual"}, FILE, None, 401, "GatedRepo"),
        ({"gated": "manual"}, FILE, OTHER_TOKEN, 403, "GatedRepo"),
        ({"gated": "manual", "granted": ["stranger"]}, FILE, OTHER_TOKEN, 200, None),
        ({"gated": "manual"}, FILE, READ_TOKEN, 200, None),  # the owner
        ({"gated": "manual"}, f"{API}/tree/main", None, 200, None),  # the list of files is no secret
        ({"gated": "manual"}, f"{API}/auth-check", OTHER_TOKEN, 403, "GatedRepo"),
    ],
)
def test_private_and_gated_repositories_are_shown_to_whom_they_may(
    hub: HubServer, setting: dict[str, Any], url: str, token: str | None, status: int, code: str | None
) -> None:
    fill(hub)
    repo = hub.store.repo("user/x")
    for name, value in setting.items():
        setattr(repo, name, value)
    repo.save()
    got, headers, _ = ask(hub, "GET", url, token=token)
    assert (got, headers.get("x-error-code")) == (status, code)


def test_a_repository_that_exists_is_refused_with_its_address(hub: HubServer) -> None:
    values = {"name": "x", "organization": None, "type": "dataset", "visibility": "private"}
    first, _, _ = ask(hub, "POST", "/api/repos/create", values)
    second, _, body = ask(hub, "POST", "/api/repos/create", values)
    assert (first, second, json.loads(body)["url"]) == (200, 409, f"{hub.endpoint}/datasets/user/x")
    assert hub.store.repo("user/x").private


def test_a_server_on_the_same_folder_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    with HubServer(tmp_path / "root", part_size=10_000) as first:
        fill(first)
        values = {"operation": "upload", "transfers": ["multipart"], "objects": [{"oid": "1" * 64, "size": 10_001}]}
        _, _, body = ask(first, "POST", f"{ROOT}.git/info/lfs/objects/batch", values)
        upload = json.loads(body)["objects"][0]["actions"]["upload"]
        before = first.store.commits("user/x")
    with HubServer(tmp_path / "root", port=first.port, cdn_port=first.cdn_port) as second:
        assert second.store.commits("user/x") == before
        assert second.store.read("user/x", "a.bin") == LARGE
        # addresses that the first one gave out still hold
        assert ask(second, "PUT", upload["header"]["00001"], b"part", token=None)[0] == 200


def test_a_server_process_that_is_killed_has_kept_what_it_confirmed(tmp_path: Path) -> None:
    port_file = tmp_path / "ports"
    command = [
        sys.executable,
        "-m",
        "tests.hub.server",
        "--root",
        str(tmp_path / "root"),
        "--port-file",
        str(port_file),
    ]

    def start(*options: str) -> tuple[subprocess.Popen[bytes], str]:
        port_file.unlink(missing_ok=True)
        process = subprocess.Popen([*command, *options], cwd=PROJECT)
        while not port_file.is_file():
            assert process.poll() is None
            time.sleep(0.01)
        return process, json.loads(port_file.read_text())["endpoint"]

    with HubServer(tmp_path / "unused") as elsewhere:  # for its helpers only: the addresses below are whole
        process, endpoint = start()
        body = {"name": "x", "organization": None, "type": "dataset"}
        assert ask(elsewhere, "POST", f"{endpoint}/api/repos/create", body)[0] == 200
        assert ask(elsewhere, "POST", f"{endpoint}{API}/commit/main", commit_lines(regular("new.txt")))[0] == 200
        process.kill()
        process.wait()
        process, again = start("--port", endpoint.rpartition(":")[2])
        assert again == endpoint
        assert ask(elsewhere, "GET", f"{endpoint}{ROOT}/resolve/main/new.txt")[2] == b"hi"
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
