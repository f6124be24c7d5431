"""Bring a repository to a wanted state: look, send what differs, commit, look again.

Each round compares the wanted files with those that the Hub lists, and remembers nothing of the round before. So a
killed run, a lost answer and somebody else's commit are all the same case.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from builder.base import schema
from builder.base.errors import HubError
from builder.base.words import counted
from builder.hub.client import HubClient, Remote
from builder.hub.items import LEAVE_ALONE, Digests, Item, bytes_item, git_blob
from builder.hub.patience import Patience
from builder.hub.refusals import explain

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

COMMIT_FILES = 1000
"""Most files in one commit: the Hub answers within a minute or not at all. More files go in several commits; until the
last one the card states no sizes."""

SOMEBODY_ELSE = "Somebody else may be pushing to the same repository. Wait for them, then run the same command again."

Told = Callable[[str, int], None]
"""Hears a file's path, and how many of its bytes have been sent so far."""

_PULLS_LOOKED_AT = 10  # the user's newest open pull requests: one may hold these files already


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a repository shall hold. ``items``: files by path, without the card. ``card``: makes the new card from the
    present one (None: there is none). ``interim``: the same while files are still missing. ``keeps``: whether a file
    that is not wanted may stay."""

    items: Mapping[str, Item]
    card: Callable[[bytes | None], bytes | None]
    interim: Callable[[bytes | None], bytes | None]
    keeps: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class _Changes:
    card: Item | None
    items: list[Item]
    stale: list[str]

    @property
    def added(self) -> list[Item]:
        """The files to send, the card last."""
        return [*self.items, self.card] if self.card else self.items

    @property
    def paths(self) -> list[str]:
        return [item.path for item in self.added] + self.stale

    def __bool__(self) -> bool:
        return bool(self.paths)


class Publisher:
    """Pushes to one revision of one repository. ``send`` may be called by several threads, the rest by one."""

    def __init__(
        self, client: HubClient, revision: str, create_pr: bool, digests: Digests, patience: Patience, told: Told
    ) -> None:
        self.client, self.revision = client, revision
        self.pull_request: tuple[str, str] | None = None
        self.changed: dict[str, int] = {}  # path → bytes, of the files that differed
        self._create_pr = create_pr
        self._digests, self._patience, self._told = digests, patience, told
        self.remote = Remote("", {}, True)  # as last seen
        self._cards: dict[str, bytes] = {}  # by blob id
        self._additions: dict[tuple[str, str], CommitOperationAdd] = {}
        self._lock = threading.Lock()

    def open(self, private: bool) -> bool:
        """Look at the repository and the branch; make what is missing. Returns whether the repository is new. Raises
        HubError, also if the revision exists but is not a branch."""
        missing = self._missing()
        named = self.revision != "main" and not self.revision.startswith("refs/")
        if missing == "RepoNotFound":
            making = f"making the repository {self.client.repo}"
            self._patience.ride_out(making, lambda: self.client.create(private))
        if named and not missing:
            # The Hub refuses a tag or a commit too, but only after everything has been sent.
            asking = f"listing the branches of {self.client.repo}"
            if self.revision not in self._patience.ride_out(asking, self.client.branches):
                pushing = f"pushing to {self.client.repo}"
                raise HubError(pushing, f"{self.revision} is not a branch", "Give the name of a branch.")
        if named and missing:
            making = f"making the branch {self.revision} of {self.client.repo}"
            self._patience.ride_out(making, lambda: self.client.create_branch(self.revision))
        if missing:
            self.look()
        return missing == "RepoNotFound"

    def _missing(self) -> str:
        """Look. Returns what is missing, in the Hub's words: "RepoNotFound", "RevisionNotFound", or ""."""
        try:
            self.look()
        except HubError as error:
            refusal = explain(error.__cause__) if error.__cause__ else None
            if refusal is None or refusal.code not in ("RepoNotFound", "RevisionNotFound"):
                raise
            return refusal.code
        return ""

    def look(self) -> Remote:
        """List the repository's files. Raises HubError if the repository or the revision is missing."""
        looking = f"looking at {self.client.repo}"
        self.remote = self._patience.ride_out(looking, lambda: self.client.look(self.revision))
        return self.remote

    def differing(self, items: Iterable[Item], remote: Remote | None = None) -> list[Item]:
        """Items that the Hub lacks, or has with other content. Reads files whose sha256 is not known."""
        files = (remote or self.remote).files
        return [item for item in items if not self._digests.same(item, files.get(item.path))]

    def card(self, remote: Remote | None = None) -> bytes | None:
        """The card in the repository."""
        remote = remote or self.remote
        found = remote.files.get(schema.CARD)
        if found is None:
            return None
        if found.blob not in self._cards:
            self._cards[found.blob] = self._read(schema.CARD, remote)
        return self._cards[found.blob]

    def manifest(self) -> bytes | None:
        """The manifest in the repository."""
        return self._read(schema.MANIFEST, self.remote) if schema.MANIFEST in self.remote.files else None

    def _read(self, path: str, remote: Remote) -> bytes:
        reading = f"reading {path} of {self.client.repo}"
        return self._patience.ride_out(reading, lambda: self.client.read(path, remote.sha))

    def check_card(self, card: bytes) -> None:
        """Raises HubError if the Hub would refuse this card."""
        checking = f"checking {schema.CARD}"
        self._patience.ride_out(checking, lambda: self.client.check_card(card.decode("utf-8")))

    def send(self, item: Item) -> None:
        """Send a file's content, unless the Hub has it. A commit puts it into the repository later."""
        if item.data is None and not item.file:
            return
        if self.differing([item]):
            sending = f"sending {item.path} to {self.client.repo}"
            self._patience.ride_out(sending, lambda: self._store(item))
        self._told(item.path, item.size)

    def settle(self, wanted: Wanted, title: str) -> Remote:
        """Commit until the repository holds what is wanted. Returns its last state. Raises HubError."""
        committing = f"committing to {self.client.repo}"
        left = None
        while True:
            before = left
            left = self._patience.ride_out(committing, lambda: self._round(wanted, title))
            if not left:
                return self.remote
            if left == before:
                said = f"the Hub took a commit, but {left[0]} still differs"
                raise HubError(committing, said, SOMEBODY_ELSE)

    def problems(self, items: Mapping[str, Item], keeps: Callable[[str], bool], remote: Remote) -> list[str]:
        """How the Hub's files differ from those here, by size and sha256 (small files: by git's blob id)."""
        found = []
        for item in self.differing(items.values(), remote):
            there = remote.files.get(item.path)
            if there is None:
                found.append(f"{item.path} is missing")
            elif there.size != item.size:
                found.append(f"{item.path} has {counted(there.size, 'byte')} on the Hub, {item.size:,} here")
            else:
                found.append(f"{item.path} has another checksum on the Hub")
        stale = _stale(remote, items, keeps)
        return found + [f"{path} is on the Hub but not part of the dataset" for path in stale]

    def _round(self, wanted: Wanted, title: str) -> list[str]:
        """Look once, and commit if anything differs. Returns the paths that differed."""
        remote = self.client.look(self.revision)
        changes = self._compare(wanted, remote)
        if changes and self._create_pr:
            remote, changes = self._proposed(wanted, changes, remote)
        self.remote = remote
        if not changes:
            return []
        if len(changes.items) + len(changes.stale) > COMMIT_FILES:
            early = wanted.interim(self.card(remote))
            first = None if early is None or early == self.card(remote) else bytes_item(schema.CARD, early)
            stale = changes.stale[:COMMIT_FILES]
            changes = _Changes(first, changes.items[: COMMIT_FILES - len(stale)], stale)
        self._commit(changes, title, remote)
        return changes.paths

    def _proposed(self, wanted: Wanted, changes: _Changes, remote: Remote) -> tuple[Remote, _Changes]:
        """What to change, and where: in an open proposal of the user's that holds some of these changes and no others,
        as an interrupted run leaves it; else in the branch."""
        for ref in self.client.pull_requests()[:_PULLS_LOOKED_AT]:
            proposed = self.client.look(ref)
            left = self._compare(wanted, proposed)
            if set(left.paths) < set(changes.paths):
                self._go_on_in(ref, f"{self.client.url}/discussions/{ref.rpartition('/')[2]}")
                return proposed, left
        return remote, changes

    def _go_on_in(self, ref: str, address: str) -> None:
        self.pull_request = ref, address
        self.revision, self._create_pr = ref, False

    def _compare(self, wanted: Wanted, remote: Remote) -> _Changes:
        there = self.card(remote)
        card = wanted.card(there)
        changed = None if card is None or card == there else bytes_item(schema.CARD, card)
        items = self.differing(wanted.items.values(), remote)
        gone = [item.path for item in items if item.data is None and not item.file]
        if gone:
            raise HubError(
                f"pushing to {self.client.repo}",
                f"{gone[0]} was deleted here after a push, and the Hub no longer has it",
                "Run the same laion6m convert command again. It makes the shard again.",
            )
        return _Changes(changed, items, _stale(remote, wanted.items, wanted.keeps))

    def _commit(self, changes: _Changes, title: str, remote: Remote) -> None:
        additions = []
        committed = []
        for item in changes.added:
            if item.data is None:
                self._store(item)  # returns at once if it was sent before
                additions.append(self._addition(item))
                committed.append((item.path, self._digests.of(item)))
            else:
                additions.append(self.client.addition(item.path, item.data))
                self._hand_over(additions[-1], item)
        operations = [*additions, *map(self.client.deletion, changes.stale)]
        self.changed |= {item.path: item.size for item in changes.added}
        done = self.client.commit(operations, title, self.revision, remote.sha, self._create_pr)
        if changes.card is not None and changes.card.data is not None:
            self._cards[git_blob(changes.card)] = changes.card.data  # no need to read back what we wrote
        with self._lock:  # an operation serves one commit; keep those of the next commits
            for key in committed:
                self._additions.pop(key, None)
        if done.pull_request is not None:
            self._go_on_in(*done.pull_request)

    def _store(self, item: Item) -> None:
        addition = self._addition(item)
        self._hand_over(addition, item)
        if addition.upload_info.sha256.hex() != self._digests.of(item):
            said = "the file changed after it was first read"
            raise HubError(f"sending {item.path}", said, LEAVE_ALONE)

    def _hand_over(self, addition: CommitOperationAdd, item: Item) -> None:
        self.client.store(addition, self.revision, self._create_pr)
        if self.client.ignored(addition):
            said = "the repository's .gitignore excludes this file"
            way_on = "Remove that line from .gitignore on the repository's page. Then run the same command again."
            raise HubError(f"sending {item.path} to {self.client.repo}", said, way_on)

    def _addition(self, item: Item) -> CommitOperationAdd:
        key = item.path, self._digests.of(item)
        with self._lock:
            found = self._additions.get(key)
        if found is None:
            found = self.client.addition(item.path, item.file, lambda place: self._told(item.path, place))
            with self._lock:
                self._additions[key] = found
        return found


def _stale(remote: Remote, items: Mapping[str, Item], keeps: Callable[[str], bool]) -> list[str]:
    return [path for path in remote.files if path not in items and path != schema.CARD and not keeps(path)]
