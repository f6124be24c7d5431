"""What the test Hub takes and refuses: commits, uploads, and from whom."""

from __future__ import annotations

import base64
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.hub.samples import (
    API,
    LARGE,
    LARGE_ID,
    ROOT,
    ask,
    commit_lines,
    fill,
    large,
    regular,
)
from tests.hub.server import OTHER_TOKEN, READ_TOKEN, WRITE_TOKEN, HubServer


@pytest.mark.parametrize(("token", "status"), [(None, 401), (READ_TOKEN, 403), (OTHER_TOKEN, 403), (WRITE_TOKEN, 200)])
def test_changes_need_a_write_token_of_the_owner(hub: HubServer, token: str | None, status: int) -> None:
    fill(hub)
    assert ask(hub, "POST", f"{API}/commit/main", commit_lines(), token)[0] == status
    assert ask(hub, "POST", f"{API}/branch/b", {}, token)[0] == status
    assert (
        ask(hub, "DELETE", "/api/repos/delete", {"name": "x", "organization": "user", "type": "dataset"}, token)[0]
        == status
    )


def test_a_stranger_may_make_a_pull_request_and_nothing_else(hub: HubServer) -> None:
    fill(hub)
    batch = {"operation": "upload", "objects": [{"oid": "1" * 64, "size": 5}]}
    assert ask(hub, "POST", f"{ROOT}.git/info/lfs/objects/batch", batch, OTHER_TOKEN)[0] == 200
    batch["ref"] = {"name": "main"}
    assert ask(hub, "POST", f"{ROOT}.git/info/lfs/objects/batch", batch, OTHER_TOKEN)[0] == 403
    status, _, body = ask(hub, "POST", f"{API}/commit/main?create_pr=1", commit_lines(regular("n.txt")), OTHER_TOKEN)
    assert (status, json.loads(body)["pullRequestUrl"]) == (200, f"{hub.endpoint}{ROOT}/discussions/1")
    assert "n.txt" in hub.store.files("user/x", "refs/pr/1")
    assert "n.txt" not in hub.store.files("user/x")


@pytest.mark.parametrize(
    ("operations", "status", "message"),
    [
        ([], 200, ""),  # an empty commit is a commit
        ([regular("new.txt")], 200, ""),
        ([large("new.bin", size=len(LARGE))], 200, ""),
        ([large("new.bin")], 200, ""),  # copies state no size
        ([large("new.bin", size=1)], 400, "does not exist"),
        ([large("new.bin", oid="0" * 64, size=1)], 400, "does not exist"),
        ([regular("x.bin", "AAAA")], 400, "binary"),
        ([regular("README.md", "LS0tCmxpY2Vuc2U6IG5vCi0tLQo=")], 400, "license"),
        ([regular("")], 400, "Invalid path"),
        ([regular("a//b")], 400, "Invalid path"),
        ([regular("../b")], 400, "Invalid path"),
        ([regular("dir/")], 400, "Invalid path"),
        ([regular("data")], 400, "same name"),  # a folder is there
        ([{"key": "deletedFile", "value": {"path": "nothing"}}], 404, "A file with this name doesn't exist"),
        ([{"key": "deletedFolder", "value": {"path": "data/"}}], 200, ""),
        ([{"key": "renamed", "value": {"path": "a"}}], 400, "Unknown operation"),
    ],
)
def test_a_commit_is_done_whole_or_refused_whole(
    hub: HubServer, operations: list[dict[str, Any]], status: int, message: str
) -> None:
    fill(hub)
    before = hub.store.commits("user/x")
    got, _, body = ask(hub, "POST", f"{API}/commit/main", commit_lines(*operations, parentCommit=before[0].oid))
    after = hub.store.commits("user/x")
    assert got == status, body
    assert message in json.loads(body).get("error", "")
    assert len(after) == len(before) + (status == 200)
    if status == 200:
        assert json.loads(body)["commitOid"] == after[0].oid
        stale = ask(hub, "POST", f"{API}/commit/main", commit_lines(parentCommit=before[0].oid))
        assert stale[0] == 412


def test_the_object_store_takes_only_what_was_announced(hub: HubServer) -> None:
    url = hub.signed(f"/lfs/{LARGE_ID}")
    assert ask(hub, "PUT", url, b"something else", token=None)[0] == 400
    assert ask(hub, "PUT", url.replace("signature=", "signature=0"), LARGE, token=None)[0] == 403
    assert not hub.store.has_large(LARGE_ID)
    assert ask(hub, "PUT", url, LARGE, token=None)[0] == 200
    assert hub.store.has_large(LARGE_ID)


def test_a_token_sent_to_the_cdn_and_a_chunked_body_are_violations(hub: HubServer) -> None:
    url = hub.signed(f"/lfs/{LARGE_ID}")
    ask(hub, "PUT", url, LARGE)
    assert ask(hub, "PUT", url, None, token=None, Transfer_Encoding="chunked")[0] == 501
    path = urlsplit(url).path
    assert hub.violations == [f"PUT {path}: the token was sent to the CDN", f"PUT {path}: chunked body"]
    hub.violations.clear()


@pytest.mark.parametrize(
    ("path", "size", "sample", "expected"),
    [
        ("README.md", 100, b"text", "regular"),
        ("data/a.parquet", 4, b"text", "lfs"),  # by its name
        ("a.data", 100, b"\x00\x01", "lfs"),  # by its first bytes
        ("a.txt", 512, "ü".encode() * 255 + b"a\xc3", "regular"),  # the sample ends inside a character
        ("a.txt", 100, b"\xff\xfe", "lfs"),
        ("a.txt", 10 << 20, b"text", "regular"),
        ("a.txt", (10 << 20) + 1, b"text", "lfs"),
        ("ignored.txt", 4, b"text", "ignored"),
        ("folder/deep/a.txt", 4, b"text", "ignored"),
    ],
)
def test_preupload_says_how_each_file_goes(hub: HubServer, path: str, size: int, sample: bytes, expected: str) -> None:
    hub.store.create("user/x")
    file = {"path": path, "size": size, "sample": base64.b64encode(sample).decode()}
    values = {"files": [file], "gitIgnore": "# all of it\nignored.*\n/folder/\n"}
    _, _, body = ask(hub, "POST", f"{API}/preupload/main", values)
    answer = json.loads(body)["files"][0]
    assert ("ignored" if answer["shouldIgnore"] else answer["uploadMode"]) == expected
    assert "oid" not in answer


def test_preupload_names_what_is_there_and_the_batch_asks_only_for_what_is_not(hub: HubServer) -> None:
    fill(hub)
    files = [{"path": path, "size": 5, "sample": ""} for path in ("README.md", "a.bin", "new.txt")]
    _, _, body = ask(hub, "POST", f"{API}/preupload/main", {"files": files})
    oids = [file.get("oid") for file in json.loads(body)["files"]]
    assert oids == [hub.store.files("user/x")["README.md"].oid, LARGE_ID, None]
    objects = [{"oid": LARGE_ID, "size": len(LARGE)}, {"oid": "1" * 64, "size": 7}, {"oid": "2" * 64, "size": 0}]
    _, _, body = ask(hub, "POST", f"{ROOT}.git/info/lfs/objects/batch", {"operation": "upload", "objects": objects})
    there, new, empty = json.loads(body)["objects"]
    assert set(there) == {"oid", "size"}
    assert set(new["actions"]) == {"upload", "verify"}
    assert empty["error"]["code"] == 422


def test_an_upload_whose_client_goes_away_leaves_nothing(hub: HubServer) -> None:
    target = hub.signed(f"/lfs/{LARGE_ID}").removeprefix(hub.cdn)
    with socket.create_connection(("127.0.0.1", hub.cdn_port)) as client:
        head = f"PUT {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(LARGE)}\r\n\r\n"
        client.sendall(head.encode() + LARGE[:5000])
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b""  # no answer
    assert [(r.route, r.status, r.bytes_in) for r in hub.log] == [("put", None, 5000)]
    assert list((hub.store.root / "incoming").iterdir()) == []
    assert not hub.store.has_large(LARGE_ID)
