"""The card of a push. It keeps the owner's text, and states no sizes while files are missing."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from dataclasses import asdict

import xxhash

from builder.base import schema
from builder.base.errors import HubError, Laion6mError, OutputError, WriteError
from builder.curate.statistics import describe_statistics, statistics
from builder.curate.thumbnails import COLLAGE
from builder.hub.items import cannot_read
from builder.hub.parcel import Parcel
from builder.read.reader import Reader
from builder.store.card import make_card, make_interim_card
from builder.store.card_merge import Own, generated_part, made_metadata, own_part, take_apart
from builder.store.ledger import Ledger
from builder.store.output import write_file
from builder.store.pushed import PushedCard, PushRecords


class CardKeeper:
    """Makes the card of a push. It keeps what the owner wrote in it, here or on the Hub, since the last push."""

    def __init__(self, ledger: Ledger, repo: str, revision: str, parcel: Parcel) -> None:
        self._repo, self._revision, self._parcel, self._out = repo, revision, parcel, ledger.out
        self._statistics: str | None = None  # not computed yet
        self._records = PushRecords(ledger.folder)
        self._manifest = ledger.folder.read(schema.MANIFEST) or b""
        self._place = os.path.relpath(parcel.card, ledger.out).replace(os.sep, "/")
        self._last = self._records.card(self._place, repo, revision)
        self._here: Own | None = None
        try:
            with open(parcel.card, "rb") as file:
                self._here = own_part(file.read(), parcel.card)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise cannot_read(parcel.card, error) from error

    def wanted(self, there: bytes | None) -> bytes:
        """The new card. ``there``: the present one on the Hub. Raises HubError if both have been edited."""
        if self._statistics is None:
            self._statistics = statistics_of(self._out)
            if COLLAGE in self._parcel.items:
                self._statistics += f"\n\n![Rows, evenly spaced]({COLLAGE})"
        return make_card(self._parcel.facts, self._own(there), self._repo, self._statistics)

    def interim(self, there: bytes | None) -> bytes | None:
        """The present card without sizes and counts: they are not true yet."""
        return interim_card(there, self._repo, self._parcel.facts.suffix)

    def keep(self, card: bytes) -> None:
        """Write the Hub's card here, and remember it. Does nothing if the folder cannot be written."""
        note = PushedCard(
            own=asdict(own_part(card, self._repo)),
            digest=xxhash.xxh3_128_hexdigest(card),
            made=xxhash.xxh3_128_hexdigest(generated_part(card)),
            manifest=xxhash.xxh3_128_hexdigest(self._manifest),
        )
        with suppress(WriteError):
            write_file(self._parcel.card, [card])
            self._records.write_card(self._place, self._repo, note, self._revision)

    def _own(self, there: bytes | None) -> Own:
        theirs, here = own_part(there, f"{schema.CARD} of {self._repo}"), self._here
        last = asdict(Own()) if self._last is None else self._last.own  # removing text is an edit too
        if there is None:
            return here or Own()
        if here is None or here == theirs or asdict(here) == last:
            return theirs
        if asdict(theirs) == last:
            return here
        raise HubError(
            f"pushing {schema.CARD} to {self._repo}",
            f"its text was edited both on the Hub and in {shlex.quote(self._parcel.card)}",
            "Make both texts the same, with what you want to keep of each. Then run the same command again.",
        )


def statistics_of(out: str) -> str:
    """The card's section of statistics. It needs only the index: the shards may have been removed. "" if the index
    cannot be read; verify says what is wrong with it."""
    try:
        return describe_statistics(statistics(Reader(os.path.join(out, schema.INDEX), out)))
    except (Laion6mError, OSError):
        return ""


def interim_card(there: bytes | None, repo: str, suffix: str) -> bytes | None:
    """The card while shards are being pushed: the present one without sizes and counts. None if there is none."""
    if there is None or "dataset_info" not in made_metadata(take_apart(there, f"{schema.CARD} of {repo}").values):
        return there
    return make_interim_card(own_part(there, repo), repo, suffix)


def rows_of(card: bytes) -> int | None:
    """num_examples of the split in the card."""
    try:
        splits = made_metadata(take_apart(card, schema.CARD).values)["dataset_info"]["splits"]
        return next(int(split["num_examples"]) for split in splits if split["name"] == schema.SPLIT)
    except (OutputError, KeyError, TypeError, ValueError, StopIteration):
        return None
