"""push: upload a converted folder to a dataset repository on the Hub."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import builder
from builder.base import schema
from builder.base.errors import HubError, InterruptedRunError, OptionError
from builder.base.names import SELECTION
from builder.base.paths import StrPath, path_of, require_folder
from builder.base.urls import refuse_url
from builder.base.words import counted, duration
from builder.base.words import size as in_words
from builder.curate.thumbnails import COLLAGE
from builder.hub.captions_only import captions_parcel
from builder.hub.chosen import chosen_folder
from builder.hub.client import HubClient, Remote, quiet_client
from builder.hub.items import Digests, Item
from builder.hub.parcel import SAVED_DATASET, Parcel, dataset_parcel, is_ours, with_collage
from builder.hub.patience import Patience
from builder.hub.publisher import SOMEBODY_ELSE, Publisher, Wanted
from builder.hub.push_card import CardKeeper, rows_of
from builder.hub.selection_parcel import selection_parcel
from builder.hub.transfer import Transfer
from builder.hub.uploads import Uploads
from builder.read.columns import columns_of
from builder.store.card import make_card
from builder.store.card_merge import Own, generated_part
from builder.store.ledger import Ledger
from builder.store.manifest import read_manifest, require_made

THREADS = 4
"""Files sent at a time: one connection does not fill a fast line, and many would be impolite."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """The result of a push. ``sha``: the repository's commit. ``pull_request``: its address, if one was made.
    ``files``: number of files in the dataset. ``changed``, ``bytes``: number and size of the files that were sent.
    ``problems``: how the repository differs from the files here (a push that returns has none)."""

    repo: str
    url: str
    revision: str
    sha: str
    pull_request: str | None
    private: bool
    rows: int
    files: int
    changed: int
    bytes: int
    problems: tuple[str, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        """The result in words."""
        if self.problems:
            return "\n".join(
                [f"{self.repo} differs from the files here:", *(f"  {problem}" for problem in self.problems)]
            )
        what = f"{counted(self.rows, 'row')} in {counted(self.files, 'file')}"
        sent = f"{self.changed:,} sent ({in_words(self.bytes)})" if self.changed else "nothing to send"
        where = self.pull_request or self.url
        return f"{where}: {what}, {sent}, all sizes and checksums match; {duration(self.seconds)}"

    def to_json(self) -> dict[str, Any]:
        """The contract of ``--json``."""
        return {"ok": self.ok, **asdict(self), "problems": list(self.problems), "seconds": round(self.seconds, 3)}


def push(
    out: StrPath,
    repo_id: str,
    *,
    public: bool = False,
    captions_only: bool = False,
    without_columns: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    num_proc: int | None = None,
    token: str | None = None,
    verify_only: bool = False,
    quiet: bool = False,
    keys: StrPath | None = None,
    without: StrPath | None = None,
) -> Pushed:
    """Upload a converted folder or a selection, and check the result. Run it again to upload only changes, or to go on
    after a stop. Of a selection: which rows it is, with keys, captions and annotations; no image.

    ``repo_id``: USER/NAME, or NAME for the token's owner. ``public``: make a new repository public; an existing one
    stays as it is. ``captions_only``: leave out the image bytes, and added columns. ``without_columns``: leave out
    added columns. ``revision``: the branch (main); made if it is missing. ``create_pr``: open a pull request instead.
    ``num_proc``: files sent at a time (4). ``token``: use it instead of the one that huggingface_hub finds.
    ``verify_only``: compare and change nothing. ``quiet``: write nothing to stderr. ``keys``, ``without``: files that
    name the samples to push or to leave out, as for :func:`select`; what is pushed is first written to
    OUT/.laion6m/chosen.

    Raises HubError, SourceError, OutputError, DamagedFileError, OptionError, InterruptedRunError.
    """
    if num_proc is not None and num_proc < 1:
        raise OptionError("num_proc", num_proc, "1 or more")
    out = path_of(out)
    refuse_url(out, "push")
    require_folder(out)
    if not os.path.exists(os.path.join(out, SELECTION)):
        require_made(out)
    branch = revision or "main"
    if create_pr and branch != "main":
        raise OptionError(
            "create_pr", create_pr, f"a pull request always goes to main. Leave out the revision {branch}"
        )
    if keys is not None or without is not None:
        out = chosen_folder(out, keys, without, num_proc, quiet=quiet)
    manifest = None if os.path.exists(os.path.join(out, SELECTION)) else read_manifest(out)
    repo_id = full_name(repo_id, token)
    if manifest is None:
        parcel = selection_parcel(out, quiet=quiet)
    elif captions_only:
        parcel = captions_parcel(out, manifest, digests_in(out), num_proc, quiet=quiet)
    else:
        parcel = dataset_parcel(out, manifest, repo_id, branch, columns=not without_columns)
        if public and not verify_only:  # pictures in the card only where the owner says that all may see them
            parcel = with_collage(parcel, out)
    with quiet_client(quiet):
        session = Session(out, repo_id, branch, create_pr, token, quiet)
        left_out = columns_of(out) if (manifest and captions_only) or without_columns else []
        if left_out:
            session.meter.say(f"This push leaves out the columns {', '.join(left_out)}.")
        if verify_only:
            return session.verify(parcel, num_proc or THREADS)
        session.open(public)
        return session.push(parcel, num_proc or THREADS)


def digests_in(out: str) -> Digests:
    return Digests(Ledger(out).path("sha256.jsonl"))


def full_name(repo_id: str, token: str | None) -> str:
    """NAME → USER/NAME of the token's owner: the Hub needs the user to look at a repository. Raises OptionError, and
    HubError if the Hub does not say whose the token is."""
    if "/" in repo_id:
        return repo_id
    client = HubClient(repo_id, token)
    patience = Patience(lambda: "Give the repository as USER/NAME.", lambda text: None)
    return f"{patience.ride_out(f'asking the Hub for the owner of {repo_id}', client.account)}/{repo_id}"


class Session:
    """One push: from a folder to one revision of a repository."""

    def __init__(self, out: str, repo: str, revision: str, create_pr: bool, token: str | None, quiet: bool) -> None:
        self._started = time.monotonic()
        self.ledger = Ledger(out)
        self.digests = digests_in(out)
        self.meter = Transfer("pushing", quiet=quiet)
        self.repo, self.revision, self._create_pr = repo, revision, create_pr
        self._there = self._files = 0
        self._made = self._warned = False
        self._saved: list[str] | None = None  # files of --format arrow that are there
        self._lock = threading.Lock()
        client = HubClient(repo, token)
        patience = Patience(self._way_on, self.meter.say)
        self.publisher = Publisher(client, revision, create_pr, self.digests, patience, self.meter.at)

    def open(self, public: bool) -> None:
        """Make the repository if it is missing."""
        self._made = self.publisher.open(private=not public)
        self._note_name()

    def push(self, parcel: Parcel, threads: int) -> Pushed:
        """Bring the repository to the state of ``parcel``, and check it."""
        card = CardKeeper(self.ledger, self.repo, self.revision, parcel)
        fresh = card.wanted(self.publisher.card())
        if fresh != self.publisher.card():
            self.publisher.check_card(fresh)
        self._run(parcel.items, partial(self.send, images=parcel.facts.images), threads)
        wanted = Wanted(parcel.items, card.wanted, card.interim, self.keeps)
        title = f"Push {counted(parcel.rows, 'row')} with laion6m {builder.__version__}"
        remote = self.publisher.settle(wanted, title)
        there = self.publisher.card()
        problems = self._problems(parcel, remote, there)
        if problems:
            raise HubError(
                f"checking {self.repo} after the push",
                f"{problems[0]}" + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""),
                SOMEBODY_ELSE,
            )
        if not self._create_pr and there is not None:
            card.keep(there)
        return self._pushed(parcel, remote, problems)

    def verify(self, parcel: Parcel, threads: int) -> Pushed:
        """Compare only. A file that is damaged here counts as different."""
        items = {path: replace(item, checked=False) for path, item in parcel.items.items()}
        parcel = replace(parcel, items=items)
        remote = self.publisher.look()
        self._note_name()
        self._run(parcel.items, self.digests.of, threads)
        problems = self._problems(parcel, remote, self.publisher.card(), picture=True)
        return self._pushed(parcel, remote, problems)

    def keeps(self, path: str) -> bool:
        """Whether a file that is not part of the dataset may stay in the repository."""
        if path not in SAVED_DATASET:
            return not is_ours(path)
        if self._saved is None:  # asked once: the manifest may go before they do
            self._saved = _saved_by(self.publisher.manifest() or b"")
        return path not in self._saved

    def send(self, item: Item, *, images: bool = True) -> None:
        """Send a file, unless the Hub has it. ``images``: say once whose images these are."""
        if images and not self._warned and self.publisher.differing([item]):
            self._note_licence()
        self.publisher.send(item)

    def _note_licence(self) -> None:
        with self._lock:
            warned, self._warned = self._warned, True
        if not warned:
            remote = self.publisher.remote
            state = f"{'is' if self._made else 'already exists and is'} {'private' if remote.private else 'public'}"
            self.meter.say(
                f"{self.repo} {state}. The images belong to their owners. Upstream's authors say that they may not "
                "redistribute the images. Keep the repository private unless you know that you may publish it."
            )

    def _note_name(self) -> None:
        name = self.publisher.remote.name
        if name not in ("", self.repo):
            self.meter.say(
                f"{self.repo} is now called {name}. The old name works until another repository takes it. The "
                "records of deleted shards use the old name."
            )

    def _run(self, items: Mapping[str, Item], work: Callable[[Item], object], threads: int) -> None:
        self._files, self._there = len(items), 0
        self.meter.begin(sum(item.size for item in items.values()))

        def measured(item: Item) -> None:
            work(item)
            self.meter.at(item.path, item.size)

        uploads = Uploads(measured, max(1, min(threads, len(items))))
        try:
            for item in items.values():
                uploads.submit(item)
            while uploads.take() is not None:
                self._there += 1
        except KeyboardInterrupt:
            raise InterruptedRunError(self._there, self._files) from None
        finally:
            uploads.stop()
            self.meter.finish()

    def _problems(self, parcel: Parcel, remote: Remote, card: bytes | None, *, picture: bool = False) -> list[str]:
        """How the repository differs: each file by size and sha256, the number of rows by the card. ``picture``: the
        card's picture may be there, since a push with --public sent it."""

        def keeps(path: str) -> bool:
            return (picture and path == COLLAGE) or self.keeps(path)

        found = self.publisher.problems(parcel.items, keeps, remote)
        if card is None:
            return [*found, f"{schema.CARD} is missing"]
        rows = rows_of(card)
        if rows != parcel.rows:
            stated = "no number of rows" if rows is None else counted(rows, "row")
            found.append(f"{schema.CARD} says {stated}, but the dataset has {parcel.rows:,}")
        if generated_part(card) != generated_part(make_card(parcel.facts, Own(), self.repo)):
            found.append(f"{schema.CARD} belongs to another dataset")
        return found

    def _pushed(self, parcel: Parcel, remote: Remote, problems: list[str]) -> Pushed:
        publisher = self.publisher
        pull = publisher.pull_request
        return Pushed(
            repo=self.repo,
            url=publisher.client.url,
            revision=publisher.revision if pull is None else pull[0],
            sha=remote.sha,
            pull_request=None if pull is None else pull[1],
            private=remote.private,
            rows=parcel.rows,
            files=len(parcel.items) + 1,
            changed=len(publisher.changed),
            bytes=sum(publisher.changed.values()),
            problems=tuple(problems),
            seconds=time.monotonic() - self._started,
        )

    def _way_on(self) -> str:
        return f"{self._there:,} of {counted(self._files, 'file')} sent. Run the same command again to go on."


def _saved_by(manifest: bytes) -> list[str]:
    """The files of --format arrow that a manifest lists."""
    try:
        files = json.loads(manifest)["files"]
        return [path for path in SAVED_DATASET if path in files]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
