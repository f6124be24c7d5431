"""huggingface_hub, as far as this project uses it: the one module that knows how its versions (0.30 to 2.x) differ.

Which of its calls repeat themselves: before 1.0 only the PUTs, on 5xx; from 1.0 on also preupload, LFS batch, verify
and pages of a listing. Creating a repository, asking about one and the commit never do. So whoever calls this repeats
(publish/patience.py), and is told by :func:`explain` whether that can help.
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any

from builder.errors import OptionError
from builder.urls import say

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

_REPO_TYPE = "dataset"
_PASSING = {408, 409, 412, 425, 429, 500, 502, 503, 504}
"""Statuses that may be over when the call is made again. 409 and 412: somebody else has committed."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the Hub states it. ``sha256``: of its content where it is a large file, else ""; ``blob``: its git blob
    id (of the pointer, where it is a large file)."""

    size: int
    sha256: str
    blob: str


@dataclass(frozen=True, slots=True)
class Remote:
    """A revision of a repository. ``private``: whether the repository is."""

    sha: str
    files: dict[str, RemoteFile]
    private: bool


@dataclass(frozen=True, slots=True)
class Commit:
    """``pull_request``: its ref ("refs/pr/3") and its address, where the commit made one."""

    sha: str
    pull_request: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call came to nothing. ``status``: of HTTP, 0 where no answer came. ``code``: the Hub's own word for it
    ("RepoNotFound"). ``wait``: seconds that it asks for. ``passing``: another try may do."""

    status: int
    code: str
    said: str
    wait: float
    passing: bool


class HubClient:
    """One dataset repository. Raises what the client library raises; see :func:`explain`."""

    def __init__(self, repo: str, token: str | None) -> None:
        """``token``: None takes the one that the client finds (HF_TOKEN, or of ``hf auth login``). Raises OptionError
        for what cannot be a repository's name, or a token."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError

        try:
            _utils().validate_repo_id(repo)
        except HFValidationError as error:
            raise OptionError("repo_id", repo, str(error)) from None
        if token is not None:
            token = token.strip()  # the end of a line, of ``--token "$(cat file)"`` elsewhere
            if not token or not token.isascii() or not token.isprintable():
                raise OptionError("token", "(not shown)", "printable ASCII, and not empty")
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
        """Leaves a repository that is there as it is."""
        try:
            self._api.create_repo(**self._where, private=private, exist_ok=True)
        except KeyError as error:  # a 409 that does not name the repository that is there, as the client expects
            raise ConnectionError("HTTP 409, and no repository is named") from error

    def create_branch(self, name: str) -> None:
        self._api.create_branch(**self._where, branch=name, exist_ok=True)

    def look(self, revision: str) -> Remote:
        """All files of a revision, of one commit."""
        from huggingface_hub.hf_api import RepoFile

        info = self._api.dataset_info(self.repo, revision=revision)
        tree = self._api.list_repo_tree(**self._where, recursive=True, revision=info.sha)
        files = {
            entry.path: RemoteFile(entry.size, entry.lfs.sha256 if entry.lfs else "", entry.blob_id)
            for entry in tree
            if isinstance(entry, RepoFile)
        }
        return Remote(str(info.sha), files, bool(info.private))

    def pull_requests(self) -> list[str]:
        """Refs ("refs/pr/3"), newest first."""
        refs = self._api.list_repo_refs(**self._where, include_pull_requests=True).pull_requests or []
        return sorted((ref.ref for ref in refs), key=lambda ref: -int(ref.rpartition("/")[2]))

    def read(self, path: str, revision: str) -> bytes:
        """A small file. Nothing of it stays in the client's cache."""
        with tempfile.TemporaryDirectory() as folder:
            copy: Any = self._api.hf_hub_download(**self._where, filename=path, revision=revision, cache_dir=folder)
            with open(copy, "rb") as file:
                return file.read()

    def addition(
        self, path: str, content: str | bytes, told: Callable[[int], None] | None = None
    ) -> CommitOperationAdd:
        """A file to commit: a path on this machine, or bytes. ``told``: called with the place reached, while it is
        sent by LFS (Xet does not say). Reads the whole file before 1.0, to know its sha256."""
        return _counting_operation()(path, content, told)

    def store(self, addition: CommitOperationAdd, revision: str, create_pr: bool) -> None:
        """Send a large file's content, unless the Hub has it. Small ones travel with the commit."""
        self._api.preupload_lfs_files(**self._where, additions=[addition], revision=revision, create_pr=create_pr)

    def deletion(self, path: str) -> CommitOperationDelete:
        from huggingface_hub import CommitOperationDelete

        return CommitOperationDelete(path, is_folder=False)

    def check_card(self, content: str) -> None:
        """Let the Hub look at a card's metadata, as the client does once more before it commits. Raises ValueError with
        what it says. (DatasetCard.validate knows no other endpoint than huggingface.co before 1.0.)"""
        utils = _utils()
        answer = utils.get_session().post(
            f"{self._api.endpoint}/api/validate-yaml",
            json={"content": content, "repoType": _REPO_TYPE},
            headers=utils.build_hf_headers(token=self._api.token),
        )
        if answer.status_code == 400:
            raise ValueError("; ".join(str(error["message"]) for error in answer.json()["errors"]))
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


def explain(error: BaseException) -> Refusal | None:
    """What an exception of the client says; None for one that is not about the Hub or the way to it."""
    chain = _chain(error)
    for each in chain:
        response = getattr(each, "response", None)
        if response is not None and hasattr(response, "status_code"):
            headers, status = response.headers, int(response.status_code)
            said = say(f"{getattr(each, 'server_message', None) or headers.get('X-Error-Message') or each}")
            wait = _asked_wait(headers, status)
            return Refusal(status, headers.get("X-Error-Code", ""), f"HTTP {status}, {said}", wait, status in _PASSING)
    said = say(f"{type(chain[-1]).__name__}: {chain[-1]}")
    stated = re.search(r"(?:status client error|HTTP status) \((\d{3})", said)  # as hf_xet puts it
    if stated:
        return Refusal(int(stated[1]), "", said, 0, int(stated[1]) in _PASSING)
    if any(type(each).__name__ == "OfflineModeIsEnabled" for each in chain):
        return Refusal(0, "", said, 0, False)
    broken = (_transport_error(), ConnectionError, TimeoutError, json.JSONDecodeError)
    if any(isinstance(each, broken) for each in chain):
        return Refusal(0, "", said, 0, True)
    if any(type(each).__name__ == "XetAuthenticationError" for each in chain):
        return Refusal(401, "", said, 0, False)
    if isinstance(error, RuntimeError):  # hf_xet's failures; a connection pool that another thread has just closed
        return Refusal(0, "", said, 0, True)
    if isinstance(error, ValueError):  # a card that is refused, an answer that is none
        return Refusal(0, "", said, 0, False)
    return None


@contextmanager
def quiet_client() -> Iterator[None]:
    """Without the client's own progress bars, one for each file: there is one of ours for all."""
    from huggingface_hub import constants

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or _utils().are_progress_bars_disabled():
        yield  # the user has said what they want
        return
    _utils().disable_progress_bars()
    try:
        yield
    finally:
        _utils().enable_progress_bars()


def _utils() -> Any:
    """Looked up by name, since not every version declares what it exports there."""
    return import_module("huggingface_hub.utils")


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and those that it was raised from, first cause last. (What was merely being handled meanwhile may
    be another call's failure.)"""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _transport_error() -> type[BaseException]:
    """The base of all that the client's HTTP library raises: requests' before 1.0, then httpx's, then httpx2's."""
    from huggingface_hub.errors import HfHubHTTPError

    return [base for base in HfHubHTTPError.__mro__ if base.__name__ in ("RequestException", "HTTPError")][-1]


def _asked_wait(headers: Any, status: int) -> float:
    """Seconds, from ``RateLimit: "api";r=0;t=5`` of a 429, or ``Retry-After``, a number or a date, of a 429 or a 503;
    else 0. Every answer has a RateLimit: it is why only where nothing remains."""
    limit = re.search(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("RateLimit", ""))
    if status == 429 and limit:
        return float(limit[1])
    after = headers.get("Retry-After", "").strip() if status in (429, 503) else ""
    if re.fullmatch(r"[0-9]+", after):
        return float(after)
    try:
        date = parsedate_to_datetime(after)
    except (ValueError, TypeError):
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or timezone.utc) - datetime.now(timezone.utc)).total_seconds())


_operation: type[CommitOperationAdd] | None = None


def _counting_operation() -> Callable[..., CommitOperationAdd]:
    """CommitOperationAdd whose file says how far it has been read. Both clients read by ``as_file`` when they send."""
    global _operation
    if _operation is not None:
        return _operation
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

    _operation = Counting
    return Counting


class _CountingFile(io.BufferedReader):
    def __init__(self, raw: io.FileIO, told: Callable[[int], None]) -> None:
        super().__init__(raw, buffer_size=1 << 20)
        self._told = told

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._told(self.tell())
        return data
