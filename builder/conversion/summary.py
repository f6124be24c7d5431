"""What a run did, and what it found."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from builder.base.options import Slice
from builder.base.records import Totals
from builder.base.words import counted
from builder.conversion.finish import totals_json
from builder.source.endings import TROUBLE


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did.

    ``totals``: counts of the slice that was asked for. ``complete``: OUT is whole. ``did``: number of shards that this
    run made; the others were there. ``missing``: number of shards still to do. ``seconds``: the run's time.
    ``examples``: one reject in words for each reason. ``damage``: archive → what is wrong with it. ``unread``: number
    of files and folders of the source that were not read, by kind. ``examples_unread``: one of each kind. ``replaced``:
    number of members that a later one of the same name replaced. ``notes``: sentences on how the source was read, and
    on what a slice made. ``read_images``, ``read_bytes``: what this run read."""

    out: str
    totals: Totals
    complete: bool
    did: int
    missing: int
    seconds: float
    examples: dict[str, str] = field(default_factory=dict)
    damage: dict[str, list[str]] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    examples_unread: dict[str, str] = field(default_factory=dict)
    replaced: int = 0
    notes: tuple[str, ...] = ()
    read_images: int = 0
    read_bytes: int = 0

    @property
    def trouble(self) -> tuple[str, ...]:
        """Why somebody should look at the source although the run is done, in words. Empty if all of it was sound and
        read."""
        found = []
        if self.damage:
            found.append(counted(len(self.damage), "damaged archive"))
        kinds = sorted(TROUBLE & self.unread.keys())
        return (*found, *(f"{self.unread[kind]:,} × {kind} not read" for kind in kinds))

    def to_json(self) -> dict[str, Any]:
        """The contract of ``--json``."""
        return {
            **totals_json(self.totals),
            "unread": self.unread,
            "replaced": self.replaced,
            "damage": self.damage,
            "seconds": round(self.seconds, 3),
            "out": self.out,
        }


def slice_notes(part: Slice, tars: Sequence[str], owners: Sequence[int]) -> tuple[str, ...]:
    """Which shards a slice made, and which it left to another, in words. ``tars``: names of the raw tars. ``owners``:
    for each shard, the number of the tar where it begins."""
    if part == Slice():
        return ()
    taken = part.of(len(tars))
    mine = [shard for shard, owner in enumerate(owners) if owner in taken]
    what = f"tars {taken.start} to {taken.stop - 1}" if len(taken) > 1 else f"tar {taken.start}"
    made = f"{_span(mine)} of {len(owners):,}" if mine else f"no shard of {len(owners):,}"
    notes = [f"this slice, {what} of {len(tars):,}, makes {made}"]
    shared = "tars that fit together share a shard (--max-shard-size)"
    shard = bisect_right(owners, taken.start) - 1
    if taken and owners[shard] < taken.start:
        tar, first = tars[taken.start], tars[owners[shard]]
        notes.append(f"{tar} lies in shard {shard}, which the slice with {first} makes: {shared}")
    if mine:
        end = owners[mine[-1] + 1] if mine[-1] + 1 < len(owners) else len(tars)
        if end > taken.stop:
            notes.append(f"shard {mine[-1]} also holds {tars[end - 1]}, which is behind the slice: {shared}")
    return tuple(notes)


def _span(shards: list[int]) -> str:
    return f"shard {shards[0]}" if len(shards) == 1 else f"shards {shards[0]} to {shards[-1]}"
