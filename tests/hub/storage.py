"""What the test Hub remembers, all of it on disk: repositories, refs, commits, file contents.

A store that is opened again on the same folder continues where the last process stopped, also after SIGKILL: every file
appears under its final name only when whole, and a ref moves after the commit it points to is on disk.

    ROOT/blobs/<git sha1>                     contents of regular files
    ROOT/lfs/<sha256>                         contents of large files
    ROOT/uploads/<id>/<part number>           parts of multipart uploads that are not completed
    ROOT/repos/<type>/<user>/<name>/repo.json       settings and refs
    ROOT/repos/<type>/<user>/<name>/commits/<oid>   one commit with its whole file table
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

from tests.hub.rules import INITIAL_GITATTRIBUTES

CHUNK = 1 << 20


class HubError(Exception):
    """An answer that is not 2xx: HTTP status, `X-Error-Code` (may be empty), message, further JSON keys and headers."""

    def __init__(
        self, status: int, code: str, message: str, *, headers: dict[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message
        self.headers = headers or {}
        self.extra = extra


def git_blob_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class File:
    """One file of a commit. `oid` is the git blob id: of the content, or of the pointer file when `sha256` is set."""

    oid: str
    size: int
    sha256: str | None = None

    @property
    def pointer_size(self) -> int:
        return len(pointer(self.sha256 or "", self.size))

    @classmethod
    def large(cls, sha256: str, size: int) -> File:
        return cls(git_blob_oid(pointer(sha256, size)), size, sha256)


def pointer(sha256: str, size: int) -> bytes:
    """The text that git keeps in place of a large file (git-lfs spec, "The Pointer")."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    message: str
    date: str
    author: str
    files: dict[str, File]


@dataclass
class Repo:
    """Settings and refs of one repository; `save` writes them. `gated` is False, "auto" or "manual"; `closed`: refs of
    pull requests that are."""

    folder: Path
    type: str
    id: str
    private: bool = False
    gated: bool | str = False
    granted: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    created: str = ""
    refs: dict[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    def save(self) -> None:
        values = {k: v for k, v in asdict(self).items() if k != "folder"}
        write_whole(self.folder / "repo.json", json.dumps(values).encode())

    def ref_of(self, revision: str) -> str | None:
        """The full name of the ref that `revision` means: of a branch, a tag, or already one (refs/pr/1). Or None."""
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in self.refs:
                return name
        return None

    def commit(self, revision: str) -> Commit:
        """The commit that a branch, tag, full ref name or 40-digit commit id means."""
        ref = self.ref_of(revision)
        path = self.folder / "commits" / (self.refs[ref] if ref else revision)
        if not ref and ("/" in revision or not path.is_file()):
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        values = json.loads(path.read_bytes())
        return Commit(**{**values, "files": {name: File(**file) for name, file in values["files"].items()}})

    def history(self, revision: str) -> Iterator[Commit]:
        oid: str | None = revision
        while oid is not None:
            commit = self.commit(oid)
            yield commit
            oid = commit.parent


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()
        self.moved: dict[str, str] = {}  # old names of repositories → new ones
        for name in ("blobs", "lfs", "uploads", "repos", "incoming"):
            (root / name).mkdir(parents=True, exist_ok=True)

    # repositories -----------------------------------------------------------------------------------------------------

    def _folder(self, repo_type: str, repo_id: str) -> Path:
        return self.root / "repos" / repo_type / repo_id

    def find(self, repo_type: str, repo_id: str) -> Repo | None:
        folder = self._folder(repo_type, repo_id)
        with self.lock:
            if not (folder / "repo.json").is_file():
                return None
            return Repo(folder=folder, **json.loads((folder / "repo.json").read_bytes()))

    def repo(self, repo_id: str, repo_type: str = "dataset") -> Repo:
        found = self.find(repo_type, repo_id)
        if found is None:
            raise HubError(404, "RepoNotFound", "Repository not found")
        return found

    def create(self, repo_id: str, repo_type: str = "dataset", *, private: bool = False) -> Repo:
        """As on the Hub, a new repository already has one commit, with a .gitattributes."""
        with self.lock:
            folder = self._folder(repo_type, repo_id)
            (folder / "commits").mkdir(parents=True, exist_ok=True)
            repo = Repo(folder=folder, type=repo_type, id=repo_id, private=private, created=now())
            content = INITIAL_GITATTRIBUTES.encode()
            self.add_commit(repo, "refs/heads/main", None, {".gitattributes": self.put_blob(content)}, "initial commit")
            return repo

    def rename(self, repo: Repo, repo_id: str) -> None:
        """The old name leads to the new one, until another repository takes it."""
        with self.lock:
            folder = self._folder(repo.type, repo_id)
            folder.parent.mkdir(parents=True, exist_ok=True)
            repo.folder.rename(folder)
            self.moved[repo.id] = repo_id
            repo.id, repo.folder = repo_id, folder
            repo.save()

    def delete(self, repo: Repo) -> None:
        with self.lock:
            (repo.folder / "repo.json").unlink()
            shutil.rmtree(repo.folder)

    def add_commit(
        self,
        repo: Repo,
        ref: str,
        parent: str | None,
        files: dict[str, File],
        title: str,
        message: str = "",
        author: str = "user",
    ) -> Commit:
        table = {name: asdict(file) for name, file in sorted(files.items())}
        values = {"parent": parent, "title": title, "message": message, "date": now(), "author": author, "files": table}
        # A nonce: two commits with equal values within a millisecond are still two commits.
        oid = hashlib.sha1(json.dumps([values, secrets.token_hex(8)]).encode()).hexdigest()
        with self.lock:
            write_whole(repo.folder / "commits" / oid, json.dumps({"oid": oid, **values}).encode())
            repo.refs[ref] = oid
            repo.save()
        return repo.commit(oid)

    # contents ---------------------------------------------------------------------------------------------------------

    def put_blob(self, content: bytes) -> File:
        file = File(git_blob_oid(content), len(content))
        write_whole(self.root / "blobs" / file.oid, content)
        return file

    def large_path(self, sha256: str) -> Path:
        return self.root / "lfs" / sha256

    def has_large(self, sha256: str) -> bool:
        return self.large_path(sha256).is_file()

    def path_of(self, file: File) -> Path:
        return self.large_path(file.sha256) if file.sha256 else self.root / "blobs" / file.oid

    def put_large(self, sha256: str, chunks: Iterable[bytes]) -> None:
        """Keep a large file. The object store of the Hub refuses bytes that are not what the client said."""
        digest = hashlib.sha256()
        with tempfile.NamedTemporaryFile(dir=self.root / "incoming", delete=False) as out:
            try:
                for chunk in chunks:
                    digest.update(chunk)
                    out.write(chunk)
                if digest.hexdigest() != sha256:
                    raise HubError(400, "", f"The content has sha256 {digest.hexdigest()}, not {sha256}")
            except BaseException:
                os.unlink(out.name)
                raise
        os.replace(out.name, self.large_path(sha256))

    def new_upload(self) -> str:
        upload = secrets.token_hex(8)
        (self.root / "uploads" / upload).mkdir()
        return upload

    def put_part(self, upload: str, number: int, content: bytes) -> str:
        """Keep one part of a multipart upload and return its ETag."""
        folder = self.root / "uploads" / upload
        if not folder.is_dir():
            raise HubError(404, "", "No such upload")
        write_whole(folder / str(number), content)
        return hashlib.md5(content).hexdigest()

    def complete_upload(self, upload: str, sha256: str, etags: list[str]) -> None:
        """Join the parts 1..n, whose ETags the client must name in order."""
        folder = self.root / "uploads" / upload
        parts = [folder / str(number) for number in range(1, len(etags) + 1)]
        for part, etag in zip(parts, etags, strict=True):
            if not part.is_file() or hashlib.md5(part.read_bytes()).hexdigest() != etag.strip('"'):
                raise HubError(400, "", f"Part {part.name} is missing or has another ETag")
        self.put_large(sha256, (part.read_bytes() for part in parts))
        shutil.rmtree(folder)

    # for tests --------------------------------------------------------------------------------------------------------

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "dataset") -> dict[str, File]:
        return self.repo(repo_id, repo_type).commit(revision).files

    def read(self, repo_id: str, path: str, revision: str = "main", repo_type: str = "dataset") -> bytes:
        return self.path_of(self.files(repo_id, revision, repo_type)[path]).read_bytes()

    def commits(self, repo_id: str, revision: str = "main", repo_type: str = "dataset") -> list[Commit]:
        """Newest first, the "initial commit" included."""
        return list(self.repo(repo_id, repo_type).history(revision))


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def write_whole(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as out:
        out.write(content)
    os.replace(out.name, path)


def copy_bytes(source: BinaryIO, length: int) -> Iterator[bytes]:
    """Exactly `length` bytes of `source`, in pieces; EOFError if it ends before."""
    while length:
        chunk = source.read(min(CHUNK, length))
        if not chunk:
            raise EOFError(length)
        length -= len(chunk)
        yield chunk
