"""convert --push-to: push shards while they are made and, if asked to, delete them here."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import builder
from builder.base import schema
from builder.base.errors import HubError, InterruptedRunError, OptionError, OutputError, WriteError
from builder.base.options import ConvertOptions, Slice
from builder.base.paths import StrPath, path_of
from builder.base.urls import StorageOptions, is_url
from builder.base.words import counted
from builder.conversion.before import refuse_overlap
from builder.conversion.build import build
from builder.conversion.convert import CONVERT
from builder.conversion.kind import Outlet
from builder.conversion.summary import Summary
from builder.engines.contract import EngineChoice, RunOptions
from builder.hub.client import quiet_client
from builder.hub.items import Item
from builder.hub.parcel import dataset_parcel, is_shard, shard_of
from builder.hub.publisher import Wanted
from builder.hub.push import THREADS, Pushed, Session, full_name
from builder.hub.push_card import interim_card
from builder.hub.uploads import Uploads
from builder.source.layouts import recognise
from builder.store.ledger import Ledger, Receipt
from builder.store.manifest import read_manifest
from builder.store.pushed import PushedMark, PushRecords
from builder.store.seals import unseal

BACKLOG_SHARDS = 16
"""With ``delete_pushed``, start no further shard while this many times the shard size lies finished on disk (8 GB by
default). Each commit takes half of it: a terabyte is 250 commits, few enough for the Hub's hourly limits."""


def convert_and_push(
    source: StrPath,
    out: StrPath,
    options: ConvertOptions | None = None,
    *,
    push_to: str,
    delete_pushed: bool = False,
    public: bool = False,
    revision: str | None = None,
    token: str | None = None,
    start: int = 0,
    end: int = -1,
    num_proc: int | None = None,
    engine: str = "local",
    address: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> tuple[Summary, Pushed | None]:
    """Convert a source into OUT, and push it to the repository ``push_to`` meanwhile. See convert and push.

    ``delete_pushed``: delete a shard here once the Hub lists its sha256, so that OUT holds a few shards at most. Run it
    again after a stop: a deleted shard counts as done while the Hub has it. The second result is None while other
    slices of the source are unfinished.

    Raises what convert and push raise.
    """
    source, out = path_of(source), path_of(out)
    refuse_overlap(source, out)
    options = options or ConvertOptions()
    branch = revision or "main"
    if is_url(out):
        place = shlex.quote(out)
        raise OptionError("push_to", push_to, f"OUT must be a local folder, not {place}. Convert into a local folder")
    storage = StorageOptions.of(storage_options)
    recognise(source, options.recaptions, storage, listing=options.listing)  # before a repository is made
    push_to = full_name(push_to, token)
    with quiet_client(quiet):
        session = Session(out, push_to, branch, create_pr=False, token=token, quiet=quiet)
        session.open(public)
        interim_card(session.publisher.card(), push_to, "")  # raises now, not at the end, if the card cannot be read
        stream = _Stream(session, options, delete_pushed)
        kind = replace(CONVERT, outlet=stream)
        try:
            how = RunOptions(Slice(start, end), EngineChoice(engine, num_proc, address), storage, quiet)
            summary = build(kind, source, out, options, how)
            stream.drain(last=not summary.complete)
            if not summary.complete:
                return summary, None
            manifest = read_manifest(out)
            parcel = dataset_parcel(out, manifest, push_to, branch)
            pushed = session.push(parcel, THREADS)
            if delete_pushed:
                stream.remove([item for item in parcel.items.values() if is_shard(item.path) and item.file])
        except KeyboardInterrupt:
            raise InterruptedRunError(*stream.progress) from None
        finally:
            stream.stop()
    return summary, pushed


class _Stream(Outlet):
    """It starts its threads at the first shard: by then the workers have been forked."""

    removes = True

    def __init__(self, session: Session, options: ConvertOptions, delete: bool) -> None:
        self._session, self._delete = session, delete
        self._suffix = schema.SUFFIXES[options.format]
        self._limit = BACKLOG_SHARDS * options.max_shard_size
        self._known: dict[int, PushedMark] = {}  # marks compared with the repository
        self._uploads: Uploads | None = None
        self._here: dict[str, Item] = {}  # finished shards on disk, by path
        self._sent: dict[str, Item] = {}  # sent, not yet committed
        self._done: set[str] = set()
        self._shards = 0

    @property
    def progress(self) -> tuple[int, int]:
        """(shards sent, shards in all)."""
        return len(self._done), self._shards

    def stands(self, ledger: Ledger, receipt: Receipt, name: str, sizes: Mapping[str, int]) -> bool:
        """Whether a receipt's shard exists: here, or on the Hub after it was deleted here."""
        if super().stands(ledger, receipt, name, sizes):
            return True
        mark = PushRecords(ledger.folder).mark(receipt.number, self._session.repo, self._session.revision)
        if mark is None or mark.digest != receipt.digest:
            return False
        if receipt.number not in self._known:  # deleted by this run or by another slice's
            self._known[receipt.number] = mark
            if mark.path not in self._session.publisher.remote.files:
                self._session.publisher.look()
        gone = Item(mark.path, mark.size, sha256=mark.sha256)
        return self._session.digests.same(gone, self._session.publisher.remote.files.get(mark.path))

    def put(self, receipt: Receipt, shards: int) -> None:
        if shards != self._shards:  # all names have changed
            for known in (self._here, self._sent, self._done):
                known.clear()
        self._shards = shards
        path = schema.ShardName(receipt.number, shards, self._suffix).path
        file = os.path.join(self._session.ledger.out, path)
        for earlier in (self._here, self._sent):  # the shard was made again with other rows
            earlier.pop(path, None)
        self._done.discard(path)
        if not os.path.exists(file):  # deleted by an earlier run
            self._done.add(path)
            return
        if self._uploads is None:
            self._uploads = Uploads(self._send, THREADS)
        self._here[path] = Item(path, receipt.size, file=file, digest=receipt.digest, checked=True)
        self._uploads.submit(self._here[path])
        self._collect(wait=False)

    def room(self) -> None:
        self._collect(wait=False)
        while self._delete and _bytes(self._here) > self._limit:
            waiting = _bytes(self._sent)
            if waiting * 2 >= self._limit or not self._collect(wait=True):
                self._commit()

    def drain(self, *, last: bool) -> None:
        """Wait for all files being sent. ``last``: commit them, since no push follows."""
        while self._collect(wait=True):
            pass
        if last and self._delete and self._sent:
            self._commit()

    def stop(self) -> None:
        if self._uploads is not None:
            self._uploads.stop()

    def remove(self, items: list[Item]) -> None:
        """Delete shards that the Hub has, after writing a mark for each. A shard that was made again stays. Raises
        WriteError."""
        for item in items:
            name, session = shard_of(item.path), self._session
            if name is not None and not self._made_again(item):
                known = name.number, item.path, item.size, item.digest, session.digests.of(item)
                PushRecords(session.ledger.folder).write_mark(PushedMark(*known, session.repo, session.revision))
                try:
                    os.unlink(item.file)
                except OSError as error:
                    raise WriteError(item.file, error.strerror) from error
            self._here.pop(item.path, None)

    def _send(self, item: Item) -> None:
        try:
            self._session.send(item)
        except (HubError, OutputError):
            if self._here.get(item.path) is item and not self._made_again(item):
                raise

    def _made_again(self, item: Item) -> bool:
        """Whether the shard has a later receipt. Then the file is a new one, and is put later. (A shard made on a guess
        has no receipt of its own.)"""
        name = shard_of(item.path)
        with suppress(ValueError, KeyError):
            receipt = self._session.ledger.read(f"receipts/{name.number if name else 0:05d}.json")
            return bool(unseal(receipt or b"")["digest"] != item.digest)
        return False

    def _collect(self, *, wait: bool) -> bool:
        """Collect one sent shard (``wait``), or all that are ready. Returns whether there was one. Raises HubError."""
        found = False
        while self._uploads is not None and (item := self._uploads.take(wait)) is not None:
            if self._here.get(item.path) is item:
                if self._made_again(item):
                    del self._here[item.path]
                else:
                    self._sent[item.path] = item
                    self._done.add(item.path)
            found = True
            if wait:
                break
        return found

    def _commit(self) -> None:
        """Commit what was sent, check that the Hub lists it, then delete it here."""
        publisher = self._session.publisher
        items = {path: item for path, item in self._sent.items() if not self._made_again(item)}
        if publisher.differing(items.values(), publisher.look()):
            wanted = Wanted(items, self._interim, self._interim, self._keeps)
            publisher.settle(wanted, f"Add {counted(len(items), 'shard')} with laion6m {builder.__version__}")
        self.remove(list(self._sent.values()))
        self._sent = {}

    def _interim(self, there: bytes | None) -> bytes | None:
        return interim_card(there, self._session.repo, self._suffix)

    def _keeps(self, path: str) -> bool:
        """Whether a file may stay in the repository: files of others, and this job's other shards."""
        name = shard_of(path)
        return self._session.keeps(path) or (
            name is not None and (name.total, name.suffix) == (self._shards, self._suffix)
        )


def _bytes(items: Mapping[str, Item]) -> int:
    return sum(item.size for item in items.values())
