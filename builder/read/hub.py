"""Files in repositories on the Hub: the commit of a branch, the address of a file's bytes, the local cache.

Only this module of builder/read imports huggingface_hub.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from huggingface_hub import (
    HfApi,
    HfFileMetadata,
    constants,
    get_hf_file_metadata,
    get_token,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

from builder.base import schema
from builder.base.errors import ChangedFileError, SourceError
from builder.base.storage import NO_RANGES, persist
from builder.read.remote import RemoteFile, RemoteStorage, complete
from builder.read.threads import ForkLock

Answer = TypeVar("Answer")

_KINDS = {"datasets": "dataset", "spaces": "space", "models": "model"}
_URL = re.compile(
    r"hf://(?:(?P<kind>datasets|spaces|models)/)?(?!buckets/)(?P<repo>[^/@]+(?:/[^/@]+)?)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?P<path>/.*)?"
)
_REFUSED = (400, 401, 403, 404, 410)
"""HTTP statuses with which object stores refuse an expired address."""


@dataclass(frozen=True, slots=True)
class HubPlace:
    """A folder or file in a repository. ``kind``: "datasets", "spaces" or "models". ``path``: "" or "/…"."""

    kind: str
    repo: str
    revision: str
    path: str

    @classmethod
    def of(cls, url: str) -> HubPlace | None:
        """Parse a URL. None if it is in no repository, such as ``hf://buckets/…``."""
        match = _URL.fullmatch(url)
        if match is None:
            return None
        return cls(match["kind"] or "models", match["repo"], unquote(match["revision"] or "main"), match["path"] or "")

    @property
    def url(self) -> str:
        return f"hf://{self.kind}/{self.repo}@{quote(self.revision, safe='')}{self.path}"


def pinned(url: str, options: Mapping[str, Any]) -> str:
    """The same place at the current commit of its branch. With HF_HUB_OFFLINE: the folder in the Hub's cache. Raises
    SourceError if the repository or the branch does not exist, or may not be read."""
    if constants.HF_HUB_OFFLINE:
        return _cached(url)
    place = HubPlace.of(url)
    if place is None or re.fullmatch("[0-9a-f]{40}", place.revision):
        return url
    api = HfApi(endpoint=options.get("endpoint"), token=options.get("token"))
    kind, revision = _KINDS[place.kind], place.revision
    look = partial(api.repo_info, place.repo, repo_type=kind, revision=revision)
    found = persist(url, lambda: _ask(url, place, options, look))
    return replace(place, revision=found.sha or place.revision).url


def _cached(url: str) -> str:
    """The folder in the Hub's local cache with the downloaded files of a place. Raises SourceError if it has no
    index."""
    place = HubPlace.of(url)
    if place is None:
        raise SourceError(f"{url} is in no repository, so the Hub's cache cannot have it. Unset HF_HUB_OFFLINE")
    try:
        folder = snapshot_download(
            place.repo,
            repo_type=_KINDS[place.kind],
            revision=place.revision,
            local_files_only=True,
            allow_patterns=[f"{place.path}/{schema.INDEX}".lstrip("/")],  # the only file that must be there
        )
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise SourceError(
            f"{url}: HF_HUB_OFFLINE is set, and the Hub's cache ({constants.HF_HUB_CACHE}) does not have it. Unset "
            f"HF_HUB_OFFLINE, or download it first: hf download {place.repo} --repo-type dataset"
        ) from error
    return f"{folder}{place.path}"


class HubFile(RemoteFile):
    """One file of a repository at a commit, which does not change. The address of its bytes is looked up once, and
    again when it has expired. Thread-safe: each read is a separate request. Connections are reused."""

    def __init__(self, storage: RemoteStorage, url: str, place: HubPlace) -> None:
        """``url``: as it was given. Raises SourceError."""
        self._place, self._options = place, storage.options.for_scheme("hf")
        self._url = hf_hub_url(
            place.repo,
            place.path.lstrip("/"),
            repo_type=_KINDS[place.kind],
            revision=place.revision,
            endpoint=self._options.get("endpoint"),
        )
        self._lock = ForkLock()
        self._address: str | None = None
        super().__init__(storage, url)

    @property
    def state(self) -> tuple[object, ...]:
        return self.size, self._tag  # of its content: the same in every commit that has the file unchanged

    def _info(self) -> Mapping[str, Any]:
        found = _ask(self.name, self._place, self._options, self._resolve)
        return {"name": self.name, "size": found.size, "ETag": found.etag}

    def _range(self, start: int, end: int) -> bytes:
        return _ask(self.name, self._place, self._options, lambda: self._part(start, end), opened=True)

    def _resolve(self) -> HfFileMetadata:
        """Look up the address of the file's bytes."""
        with self._lock:
            found = get_hf_file_metadata(self._url, token=self._options.get("token"))
            self._address = found.location
        return found

    def _part(self, start: int, end: int) -> bytes:
        for last in (False, True):
            if self._address is None:
                self._resolve()
            address = self._address or self._url
            headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
            if urlsplit(address).netloc == urlsplit(self._url).netloc:  # object stores get no token
                headers |= build_hf_headers(token=self._options.get("token"))
            answer = get_session().get(address, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            if answer.status_code not in _REFUSED or last:
                break
            self._address = None
        if answer.status_code == 416:
            raise ChangedFileError(self.name, f"it has no bytes {start:,} to {end:,}")
        if answer.status_code == 200:
            raise NotImplementedError(NO_RANGES)
        answer.raise_for_status()
        return complete(answer.content, end - start)


def _ask(
    url: str, place: HubPlace, options: Mapping[str, Any], what: Callable[[], Answer], *, opened: bool = False
) -> Answer:
    """Ask the Hub once. If the repository, revision or file is missing: raises SourceError, or ChangedFileError if the
    file was ``opened`` before."""
    try:
        return what()
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, HFValidationError) as error:
        said = _words(place, options, error)
        if opened:
            raise ChangedFileError(url, said) from error
        raise SourceError(f"{url}: {said}") from None


def _words(place: HubPlace, options: Mapping[str, Any], error: Exception) -> str:
    """The text of an error: what is missing, and what to do."""
    page = f"{options.get('endpoint') or constants.ENDPOINT}/{'' if place.kind == 'models' else f'{place.kind}/'}"
    if isinstance(error, GatedRepoError):
        return f"the repository is gated. Ask for access at {page}{place.repo}, and give a token that has it"
    if isinstance(error, RepositoryNotFoundError):
        if options.get("token") or get_token():
            return f"there is no repository {place.repo} in {place.kind}, or this token may not read it"
        return (
            f"there is no repository {place.repo} in {place.kind}, or it is private. Check the name; for a private one "
            'run hf auth login, or give storage_options={"token": …}'
        )
    if isinstance(error, RevisionNotFoundError):
        there = _revisions(place, options)
        return f"the repository has no branch, tag or commit {shlex.quote(place.revision)}{there}"
    if isinstance(error, HFValidationError):
        return f"{shlex.quote(place.repo)} cannot be a repository. Give hf://datasets/USER/NAME"
    return "the repository has no such file"


def _revisions(place: HubPlace, options: Mapping[str, Any]) -> str:
    try:
        api = HfApi(endpoint=options.get("endpoint"), token=options.get("token"))
        refs = api.list_repo_refs(place.repo, repo_type=_KINDS[place.kind])
    except Exception:  # noqa: BLE001 - this only adds a detail
        return ""
    return f". It has: {', '.join(ref.name for ref in [*refs.branches, *refs.tags][:8])}"
