"""What a run did, and what it came upon."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from builder.base.records import Totals
from builder.conversion.finish import totals_json
from builder.source.endings import TROUBLE
from builder.source.layout import Unread


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did. ``totals`` are of the slice that was asked for; ``complete``: OUT is whole. ``did``: shards
    made by this run (the others were there); ``missing``: shards still to do. ``damage``: archive → what is wrong
    with it. ``unread``: files and folders of the source that are not read, by kind; ``examples_unread``: one of each
    kind. ``replaced``: members that a later one of the same name took the place of. ``notes``: sentences on how the
    source was read."""

    out: str
    totals: Totals
    examples: dict[str, str]
    damage: dict[str, list[str]]
    complete: bool
    did: int
    missing: int
    seconds: float
    unread: dict[str, int] = field(default_factory=dict)
    examples_unread: dict[str, str] = field(default_factory=dict)
    replaced: int = 0
    notes: tuple[str, ...] = ()

    @property
    def trouble(self) -> tuple[str, ...]:
        """Why the source wants a look although the run is done, in words; none where all of it was sound and read."""
        found = []
        if self.damage:
            found.append(f"{len(self.damage):,} damaged archive{'s' if len(self.damage) > 1 else ''}")
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


def examples_of_unread(unread: tuple[Unread, ...]) -> dict[str, str]:
    return {each.kind: each.example for each in unread}
