"""Routes of the test Hub that say what is there: accounts, repositories, refs, trees, files."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import parse_qs, urlencode

import yaml

from tests.hub.rules import card_problems, front_matter
from tests.hub.storage import File, HubError, Repo
from tests.hub.wire import Request, Response

# who may what --------------------------------------------------------------------------------------------------------


def need_account(request: Request) -> Any:
    if request.account is None:
        raise HubError(401, "", "Invalid username or password.")
    return request.account


def need_repo(request: Request, *, write: bool = False, content: bool = False) -> Repo:
    """The repository of the URL, if the caller may see it, change it (`write`) or read its files (`content`).

    What one may not see is not there: 404 RepoNotFound, or 401 RepoNotFound for somebody without a token. A gated
    repository shows its name and its file list to everybody.
    """
    account = request.account
    repo_type = request.groups.get("type") or "models"
    name = request.groups["repo"]
    repo = request.hub.store.find(repo_type.rstrip("s"), name)
    if repo is None and name in request.hub.store.moved:
        address = request.record.path.replace(f"/{name}", f"/{request.hub.store.moved[name]}", 1)
        raise HubError(307, "", "Moved", headers={"Location": address})
    mine = repo is not None and account is not None and repo.owner in (account.name, *account.orgs)
    if repo is None or (repo.private and not mine):
        raise HubError(404 if account else 401, "RepoNotFound", "Repository not found")
    if write:
        need_write(request, repo.owner)
    if content and repo.gated and not mine:
        text = f"Access to {repo.type} {repo.id} is restricted"
        if account is None:
            raise HubError(401, "GatedRepo", f"{text}. You must be authenticated to access it. Please log in.")
        if account.name not in repo.granted:
            raise HubError(403, "GatedRepo", f"{text} and you are not in the authorized list.")
    return repo


def need_write(request: Request, namespace: str) -> None:
    account = need_account(request)
    if account.role != "write":
        raise HubError(403, "", "Forbidden: you must use a write token to perform this operation.")
    if namespace not in (account.name, *account.orgs):
        raise HubError(403, "", f'You don\'t have the rights to change anything under the namespace "{namespace}"')


def web_url(request: Request, repo: Repo) -> str:
    return f"{request.hub.endpoint}/{'' if repo.type == 'model' else repo.type + 's/'}{repo.id}"


def auth_check(request: Request) -> Response:
    need_repo(request, content=True)
    return Response.json({})


def whoami(request: Request) -> Response:
    account = need_account(request)
    token = {"role": account.role, "displayName": "test"}
    orgs = [{"type": "org", "name": name, "fullname": name} for name in account.orgs]
    user = {"type": "user", "id": account.name, "name": account.name, "fullname": account.name, "orgs": orgs}
    return Response.json({**user, "auth": {"type": "access_token", "accessToken": token}})


# repositories --------------------------------------------------------------------------------------------------------


def _named_repo(request: Request) -> tuple[dict[str, Any], str, str]:
    values = request.json()
    namespace = values.get("organization") or need_account(request).name
    return values, values.get("type") or "model", f"{namespace}/{values['name']}"


def create_repo(request: Request) -> Response:
    values, repo_type, repo_id = _named_repo(request)
    need_write(request, repo_id.split("/")[0])
    private = values.get("private") or values.get("visibility") == "private"
    with request.hub.store.lock:
        found = request.hub.store.find(repo_type, repo_id)
        repo = found or request.hub.store.create(repo_id, repo_type, private=bool(private))
    url = web_url(request, repo)
    if found:
        # create_repo(exist_ok=True) reads the url of the refusal
        raise HubError(409, "", f"You already created this {repo_type} repo: {repo_id}", url=url)
    return Response.json({"url": url, "name": repo_id, "id": repo_id, "private": repo.private})


def delete_repo(request: Request) -> Response:
    _, repo_type, repo_id = _named_repo(request)
    request.groups.update(type=repo_type + "s", repo=repo_id)
    request.hub.store.delete(need_repo(request, write=True))
    return Response.json({})


def repo_info(request: Request) -> Response:
    repo = need_repo(request)
    commit = repo.commit(request.groups.get("revision") or "main")
    blobs = request.query.get("blobs", "false").lower() in ("true", "1")
    card = commit.files.get("README.md")
    try:
        metadata = front_matter(request.hub.store.path_of(card).read_text("utf-8")) if card else None
    except (yaml.YAMLError, TypeError):
        metadata = None
    info: dict[str, Any] = {
        "author": repo.owner,
        "sha": commit.oid,
        "lastModified": commit.date,
        "createdAt": repo.created,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [_sibling(name, file, blobs) for name, file in commit.files.items()],
        **({"cardData": metadata} if metadata else {}),
    }
    wanted = parse_qs(request.record.path.partition("?")[2]).get("expand")
    if wanted:
        info["xetEnabled"] = True  # told only when asked for; clients around 0.30 do ask before an upload
        info = {name: value for name, value in info.items() if name in wanted}
    return Response.json({"_id": hashlib.sha1(repo.id.encode()).hexdigest()[:24], "id": repo.id, **info})


def _sibling(name: str, file: File, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": name}
    lfs = {"lfs": {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}} if file.sha256 else {}
    return {"rfilename": name, "size": file.size, "blobId": file.oid, **lfs}


def paged(request: Request, rows: list[dict[str, Any]], size: int) -> Response:
    start = int(request.query.get("cursor", "0"))
    headers = {}
    if start + size < len(rows):
        query = urlencode({**request.query, "cursor": start + size})
        headers["Link"] = f'<{request.hub.endpoint}{request.url_path}?{query}>; rel="next"'
    return Response.json(rows[start : start + size], headers=headers)


# refs and commits ----------------------------------------------------------------------------------------------------


def list_refs(request: Request) -> Response:
    repo = need_repo(request)

    def under(prefix: str, cut: str) -> list[dict[str, str]]:
        refs = [(ref, oid) for ref, oid in repo.refs.items() if ref.startswith(prefix)]
        return [{"name": ref.removeprefix(cut), "ref": ref, "targetCommit": oid} for ref, oid in refs]

    answer = {
        "branches": under("refs/heads/", "refs/heads/"),
        "converts": [],
        "tags": under("refs/tags/", "refs/tags/"),
    }
    pulls = {"pullRequests": under("refs/pr/", "refs/pr/")} if request.query.get("include_prs") else {}
    return Response.json({**answer, **pulls})


def list_discussions(request: Request) -> Response:
    """Pull requests, newest first; there are no other discussions. Of one `author` and `status`, where those are
    given."""
    repo = need_repo(request)
    rows = []
    for ref in sorted((ref for ref in repo.refs if ref.startswith("refs/pr/")), key=lambda ref: -int(ref[8:])):
        base = {commit.oid for commit in repo.history(repo.refs["refs/heads/main"])}
        first = [commit for commit in repo.history(repo.refs[ref]) if commit.oid not in base][-1]
        rows.append(
            {
                "num": int(ref[8:]),
                "title": first.title,
                "author": {"name": first.author},
                "createdAt": first.date,
                "status": "closed" if ref in repo.closed else "open",
                "repo": {"name": repo.id, "type": repo.type},
                "isPullRequest": True,
            }
        )
    author, status = request.query.get("author"), request.query.get("status", "all")
    rows = [row for row in rows if author in (None, row["author"]["name"]) and status in ("all", row["status"])]
    start = int(request.query.get("p", "0")) * 10
    return Response.json({"discussions": rows[start : start + 10], "count": len(rows), "start": start})


def create_ref(request: Request) -> Response:
    """POST branch/NAME with a startingPoint, or tag/REVISION with the tag's name."""
    repo_lock = request.hub.store.lock
    values = request.json()
    with repo_lock:
        repo = need_repo(request, write=True)
        if branch := request.groups.get("branch"):
            ref, start = f"refs/heads/{branch}", values.get("startingPoint") or "main"
        else:
            ref, start = f"refs/tags/{values['tag']}", request.groups["revision"]
        if ref in repo.refs:
            raise HubError(409, "", f"Reference already exists: {ref}")
        repo.refs[ref] = repo.commit(start).oid
        repo.save()
    return Response.json({})


def delete_ref(request: Request) -> Response:
    with request.hub.store.lock:
        repo = need_repo(request, write=True)
        branch, tag = request.groups.get("branch"), request.groups.get("revision")
        ref = f"refs/heads/{branch}" if branch else f"refs/tags/{tag}"
        if ref not in repo.refs:
            raise HubError(404, "RevisionNotFound", f"Reference does not exist: {ref}")
        if ref == "refs/heads/main":
            raise HubError(403, "", "The main branch cannot be deleted")
        del repo.refs[ref]
        repo.save()
    return Response.json({})


def list_commits(request: Request) -> Response:
    repo = need_repo(request)
    history = repo.history(repo.commit(request.groups["revision"]).oid)
    rows = [
        {"id": c.oid, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
        for c in history
    ]
    return paged(request, rows, request.hub.page_size)


# the rest -----------------------------------------------------------------------------------------------------------


def validate_yaml(request: Request) -> Response:
    errors, warnings = card_problems(request.json()["content"])
    answer = {"errors": [{"message": m} for m in errors], "warnings": [{"message": m} for m in warnings]}
    return Response.json(answer, 400 if errors else 200)


def agent_harnesses(request: Request) -> Response:
    return Response.json({"standardEnvVars": [], "harnesses": {}})
