"""Routes of the test Hub that show what a commit holds: listings, paths, file contents, and the CDN's side of them."""

from __future__ import annotations

import hashlib
import json
import posixpath
from typing import Any
from urllib.parse import parse_qs, quote

from tests.hub.api import need_repo, paged
from tests.hub.storage import Commit, File, HubError, Repo
from tests.hub.wire import Request, Response, ranged


def folders_of(files: dict[str, File]) -> set[str]:
    folders = set()
    for name in files:
        while name := posixpath.dirname(name):
            folders.add(name)
    return folders


def _entry(repo: Repo, commit: Commit, path: str, expand: bool) -> dict[str, Any]:
    file = commit.files.get(path)
    if file is None:
        entry: dict[str, Any] = {"type": "directory", "oid": _folder_oid(commit, path), "size": 0, "path": path}
    else:
        entry = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
        if file.sha256:
            entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    if expand:
        last = commit
        for older in repo.history(commit.oid):
            if _folder_oid(older, path) != _folder_oid(commit, path):
                break
            last = older
        entry["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
        entry["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
    return entry


def _folder_oid(commit: Commit, path: str) -> str:
    """An id that changes when anything at or below the path does."""
    below = [(name, f.oid) for name, f in commit.files.items() if name == path or name.startswith(path + "/")]
    return hashlib.sha1(json.dumps(below).encode()).hexdigest()


def list_tree(request: Request) -> Response:
    repo = need_repo(request)
    commit = repo.commit(request.groups["revision"])
    expand = request.query.get("expand", "false").lower() == "true"
    recursive = request.query.get("recursive", "false").lower() == "true"
    path = request.groups["path"].strip("/")
    folders = folders_of(commit.files)
    if path in commit.files:
        names = [path]
    elif path and path not in folders:
        raise missing_entry(commit, f"{path} does not exist on {request.groups['revision']}")
    else:
        prefix = path + "/" if path else ""
        below = [name for name in {*commit.files, *folders} if name.startswith(prefix)]
        names = sorted(name for name in below if recursive or "/" not in name[len(prefix) :])
    rows = [_entry(repo, commit, name, expand) for name in names]
    return paged(request, rows, request.hub.expanded_page_size if expand else request.hub.page_size)


def paths_info(request: Request) -> Response:
    """The body is a form: `paths` repeated, `expand`. Paths that are not there are left out."""
    repo = need_repo(request)
    commit = repo.commit(request.groups["revision"])
    form = parse_qs(request.body().decode())
    known = {*commit.files, *folders_of(commit.files)}
    expand = form.get("expand", ["false"])[-1].lower() == "true"
    paths = [path.strip("/") for path in form.get("paths", [])]
    return Response.json([_entry(repo, commit, path, expand) for path in paths if path in known])


def missing_entry(commit: Commit, message: str) -> HubError:
    # the commit is named with the refusal: clients remember that the file is not there in this commit
    return HubError(404, "EntryNotFound", message, headers={"X-Repo-Commit": commit.oid})


def resolve(request: Request) -> Response:
    repo = need_repo(request, content=True)
    commit = repo.commit(request.groups["revision"])
    path = request.groups["path"]
    file = commit.files.get(path)
    if file is None:
        raise missing_entry(commit, "Entry not found")
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.oid}"', "Accept-Ranges": "bytes"}
    if file.sha256 is None:
        return ranged(request, request.hub.store.path_of(file), file.size, headers)
    linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    location = request.hub.signed(f"/lfs/{file.sha256}", filename=posixpath.basename(path))
    return Response(302, {**headers, **linked, "Location": location})


def cdn_get(request: Request) -> Response:
    request.hub.check_signature(request)
    path = request.hub.store.large_path(request.groups["sha256"])
    if not path.is_file():
        raise HubError(404, "", "No such object")
    headers = {
        "ETag": f'"{request.groups["sha256"]}"',
        "Content-Disposition": f'inline; filename="{quote(request.query.get("filename", ""))}"',
    }
    return ranged(request, path, path.stat().st_size, headers)
