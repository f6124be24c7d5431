"""Routes of the test Hub that change a repository: preupload, large files, Xet tokens, commits."""

from __future__ import annotations

import base64
import json
import time
from math import ceil
from pathlib import Path
from typing import Any

from tests.hub import xet
from tests.hub.api import need_account, need_repo, web_url
from tests.hub.rules import REGULAR_LIMIT, card_problems, is_binary, path_is_allowed, should_ignore, upload_mode
from tests.hub.storage import Commit, File, HubError, Repo
from tests.hub.trees import folders_of, missing_entry
from tests.hub.wire import Request, Response


def _repo_to_change(request: Request) -> Repo:
    """A pull request may come from everybody who sees the repository, a commit only from who may write to it."""
    if request.query.get("create_pr") == "1" or request.groups.get("revision", "").startswith("refs/pr/"):
        need_account(request)
        return need_repo(request, content=True)
    return need_repo(request, write=True)


def preupload(request: Request) -> Response:
    repo = _repo_to_change(request)
    files = repo.commit(request.groups["revision"]).files
    values = request.json()
    if len(values["files"]) > 256:
        raise HubError(400, "", "More than 256 files")
    rules, ignored = (
        request.hub.store.path_of(files[name]).read_text("utf-8") if name in files else ""
        for name in (".gitattributes", ".gitignore")
    )
    rows = []
    for wanted in values["files"]:
        path = wanted["path"]
        if not path_is_allowed(path):
            raise HubError(400, "", f"Invalid path: {path!r}")
        mode = upload_mode(path, wanted["size"], base64.b64decode(wanted["sample"]), rules)
        ignore = should_ignore(path, values.get("gitIgnore") or ignored)
        there = {"oid": files[path].sha256 or files[path].oid} if path in files else {}
        rows.append({"path": path, "uploadMode": mode, "shouldIgnore": ignore, **there})
    return Response.json({"files": rows, "commitOid": repo.commit(request.groups["revision"]).oid})


# large files ---------------------------------------------------------------------------------------------------------


def lfs_batch(request: Request) -> Response:
    """The git-lfs batch API. Objects above `part_size` go in parts, when the client knows how to."""
    values = request.json()
    ref = (values.get("ref") or {}).get("name", "refs/pr/")  # no ref is named where a pull request is to be made
    need_repo(request, write=not ref.startswith("refs/pr/"))
    need_account(request)
    if values["operation"] != "upload" or values.get("hash_algo", "sha256") != "sha256":
        raise HubError(422, "", "Only uploads by sha256 are served")
    if len(values["objects"]) > 256:
        raise HubError(413, "", "More than 256 objects")
    headers = {"Content-Type": "application/vnd.git-lfs+json"}
    if "xet" in values.get("transfers", []):  # asked by clients before 1.0 only; newer ones do not come here with Xet
        rows = [{"oid": o["oid"], "size": o["size"]} for o in values["objects"]]
        return Response.json({"transfer": "xet", "objects": rows}, headers=headers)
    part_size = request.hub.part_size if "multipart" in values.get("transfers", ["basic"]) else None
    multipart = part_size is not None and any(o["size"] > part_size for o in values["objects"])
    rows = [_batch_row(request, o["oid"], o["size"], part_size) for o in values["objects"]]
    answer = {"transfer": "multipart" if multipart else "basic", "objects": rows}
    return Response.json(answer, headers=headers)


def _batch_row(request: Request, sha256: str, size: int, part_size: int | None) -> dict[str, Any]:
    hub = request.hub
    row: dict[str, Any] = {"oid": sha256, "size": size}
    if size == 0:
        return {**row, "error": {"code": 422, "message": "An empty object cannot be stored"}}
    if hub.store.has_large(sha256):
        return row  # no actions: nothing to upload
    if part_size is not None and size > part_size:
        upload = hub.store.new_upload()
        count = ceil(size / part_size)
        parts = {f"{n:05d}": hub.signed(f"/parts/{upload}/{n}") for n in range(1, count + 1)}
        href = hub.signed(f"/api/complete-multipart/{upload}", origin=hub.endpoint)
        action = {"href": href, "header": {"chunk_size": str(part_size), **parts}}
    else:
        action = {"href": hub.signed(f"/lfs/{sha256}"), "header": {}}
    prefix = "" if request.groups["type"] == "" else f"{request.groups['type']}/"
    verify = f"{hub.endpoint}/{prefix}{request.groups['repo']}.git/info/lfs/objects/verify"
    return {**row, "authenticated": True, "actions": {"upload": action, "verify": {"href": verify, "header": {}}}}


def cdn_put(request: Request) -> Response:
    request.hub.check_signature(request)
    request.hub.store.put_large(request.groups["sha256"], request.chunks())
    return Response(200, {"ETag": f'"{request.groups["sha256"]}"'})


def cdn_put_part(request: Request) -> Response:
    request.hub.check_signature(request)
    etag = request.hub.store.put_part(request.groups["upload"], int(request.groups["number"]), request.body())
    return Response(200, {"ETag": f'"{etag}"'})


def complete_multipart(request: Request) -> Response:
    """Authorized by the signature of its URL alone; the client sends no token here."""
    request.hub.check_signature(request)
    values = request.json()
    if [part["partNumber"] for part in values["parts"]] != list(range(1, len(values["parts"]) + 1)):
        raise HubError(400, "", "The parts are not 1..n in order")
    if not request.hub.store.has_large(values["oid"]):  # a completion whose answer was lost is asked again
        request.hub.store.complete_upload(request.groups["upload"], values["oid"], [p["etag"] for p in values["parts"]])
    return Response.json({"success": True})


def verify(request: Request) -> Response:
    need_repo(request)
    need_account(request)
    values = request.json()
    path = request.hub.store.large_path(values["oid"])
    if not path.is_file() or path.stat().st_size != values["size"]:
        raise HubError(404, "", f"Object {values['oid']} of {values['size']} bytes is not stored")
    return Response.json({})


def xet_token(request: Request) -> Response:
    """A folder per token plays the content store: the process that opens one keeps it locked."""
    if request.groups["kind"] == "write":
        _repo_to_change(request)
    else:
        need_repo(request, content=True)
    url, token, expires = xet.new_folder(request.hub.store.root), "xet-test-token", int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
    return Response.json({"casUrl": url, "accessToken": token, "exp": expires}, headers=headers)


# commits -------------------------------------------------------------------------------------------------------------


def commit(request: Request) -> Response:
    lines = [json.loads(line) for line in request.body().splitlines() if line.strip()]
    if not lines or lines[0]["key"] != "header":
        raise HubError(400, "", "The first line must be the header")
    header, operations = lines[0]["value"], lines[1:]
    store, create_pr = request.hub.store, request.query.get("create_pr") == "1"
    with store.lock:
        repo = _repo_to_change(request)
        revision = request.groups["revision"]
        base = repo.commit(revision)
        ref = repo.ref_of(revision)
        if (ref is None or ref.startswith("refs/tags/")) and not create_pr:
            raise HubError(400, "", f"{revision} is not a branch")
        if header.get("parentCommit") not in (None, base.oid):
            raise HubError(412, "", "A commit has happened since. Please refresh and try again.")
        files = _apply(request, base, operations)
        number = 1 + sum(name.startswith("refs/pr/") for name in repo.refs)
        target = f"refs/pr/{number}" if create_pr else str(ref)
        author = need_account(request).name
        done = store.add_commit(repo, target, base.oid, files, header["summary"], header.get("description", ""), author)
    url = web_url(request, repo)
    pull = {"pullRequestUrl": f"{url}/discussions/{number}"} if create_pr else {}
    return Response.json({"success": True, "commitOid": done.oid, "commitUrl": f"{url}/commit/{done.oid}", **pull})


def _apply(request: Request, base: Commit, operations: list[dict[str, Any]]) -> dict[str, File]:
    """The file table after the operations. No operations at all give an empty commit, as on the Hub."""
    files = dict(base.files)
    for operation in operations:
        key, value = operation["key"], operation["value"]
        path = value["path"]
        if not path_is_allowed(path.rstrip("/") if key == "deletedFolder" else path):
            raise HubError(400, "", f"Invalid path: {path!r}")
        if key == "file":
            files[path] = _regular(request, path, base64.b64decode(value["content"]))
        elif key == "lfsFile":
            files[path] = _large(request, path, value["oid"], value.get("size"))
        elif key == "deletedFile" and path in files:
            del files[path]
        elif key == "deletedFolder" and path.rstrip("/") in folders_of(files):
            files = {name: file for name, file in files.items() if not name.startswith(path.rstrip("/") + "/")}
        elif key in ("deletedFile", "deletedFolder"):
            raise missing_entry(base, "A file with this name doesn't exist")
        else:
            raise HubError(400, "", f"Unknown operation {key!r}")
    both = folders_of(files) & files.keys()
    if both:
        raise HubError(400, "", f"A file and a folder have the same name: {sorted(both)}")
    return files


def _regular(request: Request, path: str, content: bytes) -> File:
    if len(content) > REGULAR_LIMIT or is_binary(content[:512]):
        raise HubError(400, "", f"Your push was rejected because {path} is binary or too large. Please use git-lfs.")
    if path == "README.md":
        errors, _ = card_problems(content.decode())
        if errors:
            raise HubError(400, "", f"Invalid metadata in README.md: {errors[0]}")
    return request.hub.store.put_blob(content)


def _large(request: Request, path: str, sha256: str, size: int | None) -> File:
    store = request.hub.store
    if not store.has_large(sha256):
        xet.recover(store, sha256)
    stored: Path = store.large_path(sha256)
    if not stored.is_file() or size not in (None, stored.stat().st_size):
        raise HubError(400, "", f"An LFS pointer pointed to a file that does not exist. Offending file: {path}")
    return File.large(sha256, stored.stat().st_size)
