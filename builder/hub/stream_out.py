"""convert --push-to: shards go to the Hub as they are made and, where they are to be, away from here."""

from __future__ import annotations

import os
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
from builder.conversion.build import Summary, build, refuse_overlap
from builder.conversion.convert import CONVERT
from builder.engines.contract import EngineChoice
from builder.hub.client import quiet_client
from builder.hub.items import Item, same
from builder.hub.parcel import dataset_parcel, is_shard
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
"""With ``delete_pushed``, no further shard is begun while this many times the shard size lies finished on disk: 8 GB
unless asked otherwise, beside what is being made. Half of it goes into one commit: a terabyte is 250 commits, few
enough for limits that are counted by the hour."""


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
    """Convert a source into OUT and push it to the repository ``push_to`` meanwhile; see convert and push.

    ``delete_pushed``: remove a shard once the Hub states its sha256, so that OUT never holds more than a few. Killed
    and run again, it goes on: a removed shard stands for as long as the Hub has it. The second result is None while
    other slices of the source are still to be converted.

    Raises what convert and push raise.
    """
    source, out = path_of(source), path_of(out)
    refuse_overlap(source, out)
    options = options or ConvertOptions()
    branch = revision or "main"
    if is_url(out):
        raise OptionError(
            "push_to", push_to, f"goes with an OUT on this machine, which {out} is not; push it afterwards"
        )
    storage = StorageOptions.of(storage_options)
    recognise(source, options.recaptions, storage)  # no repository for what is no source
    push_to = full_name(push_to, token)
    with quiet_client(quiet):
        session = Session(out, push_to, branch, create_pr=False, token=token, quiet=quiet)
        session.open(public)
        interim_card(session.publisher.card(), push_to, "")  # one that cannot be read: now, not when all is made
        stream = _Stream(session, out, options, push_to, branch, delete_pushed)
        kind = replace(CONVERT, stands=stream.stands, outlet=stream)
        try:
            summary = build(
                kind,
                source,
                out,
                options,
                part=Slice(start, end),
                engine=EngineChoice(engine, num_proc, address),
                storage=storage,
                quiet=quiet,
            )
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


class _Stream:
    """An Outlet (conversion/build.py). Its threads begin with the first shard: worker processes must have been forked
    by then."""

    def __init__(
        self, session: Session, out: str, options: ConvertOptions, repo: str, revision: str, delete: bool
    ) -> None:
        self._session, self._out, self._repo, self._revision, self._delete = session, out, repo, revision, delete
        self._suffix = schema.SUFFIXES[options.format]
        self._limit = BACKLOG_SHARDS * options.max_shard_size
        self._known: dict[int, PushedMark] = {}  # marks that a look at the repository has been compared with
        self._uploads: Uploads | None = None
        self._here: dict[str, Item] = {}  # finished shards on disk, by path
        self._sent: dict[str, Item] = {}  # of these, to be committed
        self._done: set[str] = set()
        self._shards = 0
        session.meter.hidden = True

    @property
    def progress(self) -> tuple[int, int]:
        """Shards sent, of how many."""
        return len(self._done), self._shards

    def stands(self, ledger: Ledger, receipt: Receipt, name: str, sizes: Mapping[str, int]) -> bool:
        """Whether a receipt's shard is there: here, or, removed here, on the Hub."""
        if CONVERT.stands(ledger, receipt, name, sizes):
            return True
        mark = PushRecords(ledger.folder).mark(receipt.number, self._repo, self._revision)
        if mark is None or mark.digest != receipt.digest:
            return False
        if receipt.number not in self._known:  # removed by this run, or by that of another slice
            self._known[receipt.number] = mark
            if mark.path not in self._session.publisher.remote.files:
                self._session.publisher.look()
        gone = Item(mark.path, mark.size, sha256=mark.sha256)
        return same(gone, mark.sha256, self._session.publisher.remote.files.get(mark.path))

    def put(self, receipt: Receipt, shards: int) -> None:
        if shards != self._shards:  # all names are others now
            for known in (self._here, self._sent, self._done):
                known.clear()
        self._shards = shards
        path = schema.ShardName(receipt.number, shards, self._suffix).path
        file = os.path.join(self._out, *path.split("/"))
        for earlier in (self._here, self._sent):  # of other rows: it was made again
            earlier.pop(path, None)
        self._done.discard(path)
        if not os.path.exists(file):  # removed by an earlier run
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
        """Wait for all that is on its way. ``last``: and have it committed, as no push follows."""
        while self._collect(wait=True):
            pass
        if last and self._delete and self._sent:
            self._commit()

    def stop(self) -> None:
        if self._uploads is not None:
            self._uploads.stop()

    def remove(self, items: list[Item]) -> None:
        """Remove shards that the Hub has, each after a mark that says so. One that was made again since stays. Raises
        WriteError."""
        for item in items:
            name = schema.ShardName.parse(os.path.basename(item.path))
            if name is None or self._made_again(item):
                self._here.pop(item.path, None)
                continue
            sha256 = self._session.digests.of(item)
            mark = PushedMark(name.number, item.path, item.size, item.digest, sha256, self._repo, self._revision)
            PushRecords(self._session.ledger.folder).write_mark(mark)
            try:
                os.unlink(item.file)
            except OSError as error:
                raise WriteError(item.file, error.strerror) from error
            self._here.pop(item.path, None)

    def _send(self, item: Item) -> None:
        try:
            if self._session.publisher.differing([item]):
                self._session.note_licence()
            self._session.publisher.send(item)
        except (HubError, OutputError):
            if self._here.get(item.path) is item and not self._made_again(item):
                raise

    def _made_again(self, item: Item) -> bool:
        """Whether a shard has a later receipt: then the file is another, and is put when its turn comes. (One that was
        made on a guess has none of its own.)"""
        name = schema.ShardName.parse(os.path.basename(item.path))
        with suppress(ValueError, KeyError):
            receipt = self._session.ledger.read(f"receipts/{name.number if name else 0:05d}.json")
            return bool(unseal(receipt or b"")["digest"] != item.digest)
        return False

    def _collect(self, *, wait: bool) -> bool:
        """Take in a shard that has been sent (``wait``), or all that have. Whether there was one. Raises HubError."""
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
        """Have the Hub state what was sent, then remove it here."""
        publisher = self._session.publisher
        items = {path: item for path, item in self._sent.items() if not self._made_again(item)}
        if publisher.differing(items.values(), publisher.look()):
            wanted = Wanted(items, self._interim, self._interim, self._keeps)
            publisher.settle(wanted, f"Add {len(items):,} shards with laion6m {builder.__version__}")
        self.remove(list(self._sent.values()))
        self._sent = {}

    def _interim(self, there: bytes | None) -> bytes | None:
        return interim_card(there, self._repo, self._suffix)

    def _keeps(self, path: str) -> bool:
        """Whether a file of the repository may stay: what is not of ours, and this job's other shards."""
        name = schema.ShardName.parse(os.path.basename(path)) if is_shard(path) else None
        return self._session.keeps(path) or (
            name is not None and (name.total, name.suffix) == (self._shards, self._suffix)
        )


def _bytes(items: Mapping[str, Item]) -> int:
    return sum(item.size for item in items.values())
