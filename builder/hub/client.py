"""The calls of huggingface_hub that this project uses. Only this module and refusals.py know how versions 0.30 to 2.x
differ.

Few of the library's calls retry by themselves, so patience.py retries them; refusals.py says how often.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from builder.base.errors import OptionError
from builder.base.urls import say

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

_REPO_TYPE = "dataset"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the Hub lists it. ``sha256``: of a large file's content, else "". ``blob``: git blob id (of the
    pointer, for a large file)."""

    size: int
    sha256: str
    blob: str


@dataclass(frozen=True, slots=True)
class Remote:
    """A revision of a repository. ``private``: whether the repository is. ``name``: what the Hub calls it, or ""."""

    sha: str
    files: dict[str, RemoteFile]
    private: bool
    name: str = ""


@dataclass(frozen=True, slots=True)
class Commit:
    """``pull_request``: ref ("refs/pr/3") and address of the pull request that the commit opened, if any."""

    sha: str
    pull_request: tuple[str, str] | None


class HubClient:
    """One dataset repository. Raises what huggingface_hub raises; refusals.py explains those."""

    def __init__(self, repo: str, token: str | None) -> None:
        """``token``: None uses HF_TOKEN or the one of ``hf auth login``. Raises OptionError for an invalid repository
        name or token."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError

        try:
            _utils().validate_repo_id(repo)
        except HFValidationError as error:
            raise OptionError("repo_id", repo, str(error)) from None
        if token is not None:
            token = token.strip()  # the end of a line, of ``--token "$(cat file)"`` elsewhere
            if not token or not token.isascii() or not token.isprintable():
                raise OptionError("token", None, "give printable ASCII characters, at least one")
        # Before 1.0 each upload runs tqdm's thread_map, which takes its lock from the class and then deletes it there:
        # of two at a time one fails. A lock that was there before stays.
        _utils().tqdm.get_lock()
        self.repo = repo
        self._api = HfApi(token=token)
        self._where: dict[str, Any] = {"repo_id": repo, "repo_type": _REPO_TYPE}

    @property
    def url(self) -> str:
        return f"{self._api.endpoint}/datasets/{self.repo}"

    def create(self, private: bool) -> None:
        """Make the repository. An existing one stays as it is."""
        try:
            self._api.create_repo(**self._where, private=private, exist_ok=True)
        except KeyError as error:  # a 409 that does not name the repository that is there, as the client expects
            raise ConnectionError("HTTP 409, but the answer does not name the repository") from error

    def branches(self) -> list[str]:
        return [branch.name for branch in self._api.list_repo_refs(**self._where).branches]

    def create_branch(self, name: str) -> None:
        self._api.create_branch(**self._where, branch=name, exist_ok=True)

    def look(self, revision: str) -> Remote:
        """All files of a revision, at one commit."""
        from huggingface_hub.hf_api import RepoFile

        info = self._api.dataset_info(self.repo, revision=revision)
        tree = self._api.list_repo_tree(**self._where, recursive=True, revision=info.sha)
        files = {
            entry.path: RemoteFile(entry.size, entry.lfs.sha256 if entry.lfs else "", entry.blob_id)
            for entry in tree
            if isinstance(entry, RepoFile)
        }
        return Remote(str(info.sha), files, bool(info.private), str(info.id))

    def account(self) -> str:
        """The name of the token's owner."""
        return str(self._api.whoami()["name"])

    def pull_requests(self) -> list[str]:
        """Refs ("refs/pr/3") of open pull requests by the token's owner, newest first."""
        me = self.account()
        found = self._api.get_repo_discussions(**self._where, author=me, discussion_type="pull_request")
        mine = [each.num for each in found if each.author == me and each.status in ("open", "draft")]
        return [f"refs/pr/{number}" for number in sorted(mine, reverse=True)]

    def read(self, path: str, revision: str) -> bytes:
        """Read a small file, without leaving a copy in the library's cache."""
        with tempfile.TemporaryDirectory() as folder:
            copy: Any = self._api.hf_hub_download(**self._where, filename=path, revision=revision, cache_dir=folder)
            with open(copy, "rb") as file:
                return file.read()

    def addition(
        self, path: str, content: str | bytes, told: Callable[[int], None] | None = None
    ) -> CommitOperationAdd:
        """A file to commit: a local path, or bytes. ``told``: called with the position reached while LFS sends the file
        (Xet does not say). Before 1.0, reads the whole file for its sha256."""
        return _counting_operation()(path, content, told)

    def store(self, addition: CommitOperationAdd, revision: str, create_pr: bool) -> None:
        """Send a large file's content, unless the Hub has it. Small files travel with the commit."""
        if getattr(addition, "_upload_mode", None) == "regular":
            return  # as the Hub has said: before 0.36 the client would ask again
        self._api.preupload_lfs_files(**self._where, additions=[addition], revision=revision, create_pr=create_pr)

    def ignored(self, addition: CommitOperationAdd) -> bool:
        """Whether the repository's .gitignore excludes the file, as the Hub said when it was stored. huggingface_hub
        silently leaves such a file out of the commit."""
        return bool(getattr(addition, "_should_ignore", False))

    def deletion(self, path: str) -> CommitOperationDelete:
        from huggingface_hub import CommitOperationDelete

        return CommitOperationDelete(path, is_folder=False)

    def check_card(self, content: str) -> None:
        """Let the Hub check a card's metadata. Raises ValueError with its message. (Before 1.0, DatasetCard.validate
        knows no endpoint but huggingface.co.)"""
        utils = _utils()
        answer = utils.get_session().post(
            f"{self._api.endpoint}/api/validate-yaml",
            json={"content": content, "repoType": _REPO_TYPE},
            headers=utils.build_hf_headers(token=self._api.token),
        )
        errors = answer.json().get("errors") if answer.status_code == 400 else None
        if errors:
            raise ValueError("Invalid metadata in README.md: " + "; ".join(str(error["message"]) for error in errors))
        utils.hf_raise_for_status(answer)

    def commit(self, operations: list[Any], title: str, revision: str, parent: str, create_pr: bool) -> Commit:
        done = self._api.create_commit(
            **self._where,
            operations=operations,
            commit_message=title,
            revision=revision,
            parent_commit=parent,
            create_pr=create_pr,
        )
        pull = (str(done.pr_revision), str(done.pr_url)) if create_pr else None
        return Commit(str(done.oid), pull)


@contextmanager
def quiet_client(silent: bool = False) -> Iterator[None]:
    """Turn off huggingface_hub's progress bars, one for each file: we show one for all. Mask signed addresses in its
    log of retries: whoever reads one may use it. ``silent``: no log either."""
    from huggingface_hub import constants

    def masked_line(record: logging.LogRecord) -> bool:
        record.msg, record.args = say(record.getMessage()), ()
        return not silent

    # The user's own setting counts.
    bars = constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not _utils().are_progress_bars_disabled()
    log = logging.getLogger("huggingface_hub.utils._http")
    log.addFilter(masked_line)
    if bars:
        _utils().disable_progress_bars()
    try:
        yield
    finally:
        log.removeFilter(masked_line)
        if bars:
            _utils().enable_progress_bars()


def _utils() -> Any:
    """By name, since not every version declares these exports."""
    return import_module("huggingface_hub.utils")


@cache
def _counting_operation() -> Callable[..., CommitOperationAdd]:
    """CommitOperationAdd that reports how far its file has been read. LFS and Xet both read through ``as_file``."""
    from huggingface_hub import CommitOperationAdd

    class Counting(CommitOperationAdd):
        def __init__(self, path: str, content: str | bytes, told: Callable[[int], None] | None) -> None:
            self._told = told
            super().__init__(path_in_repo=path, path_or_fileobj=content)

        @contextmanager
        def as_file(self, with_tqdm: bool = False) -> Iterator[Any]:
            if self._told is None or not isinstance(self.path_or_fileobj, str | os.PathLike):
                with super().as_file() as file:
                    yield file
                return
            with _CountingFile(io.FileIO(self.path_or_fileobj), self._told) as file:
                yield file

    return Counting


class _CountingFile(io.BufferedReader):
    def __init__(self, raw: io.FileIO, told: Callable[[int], None]) -> None:
        super().__init__(raw, buffer_size=1 << 20)
        self._told = told

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._told(self.tell())
        return data
