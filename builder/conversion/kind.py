"""What a job makes (Parquet, an index …), and what receives its finished shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from builder.base.options import ConvertOptions
from builder.base.records import Totals
from builder.conversion.shard import Unit
from builder.engines.contract import Report
from builder.plan.survey import Survey
from builder.store.ledger import Ledger, Receipt


class Outlet(Protocol):
    """Receives finished shards while others are still being made."""

    def put(self, receipt: Receipt, shards: int) -> None:
        """A shard is whole on disk. ``shards``: how many there are in all. Called once for each shard. Shards of
        earlier runs come first. Called again for a shard that had to be made again."""

    def room(self) -> None:
        """Wait until there is room for another shard."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a job makes.

    ``stage``: the name of its progress bar.
    ``work``: does one unit and returns its receipt.
    ``stands``: whether a receipt's output still exists. It gets the shard's name and the sizes of the files in data/.
    ``accept``: refuses a source that it cannot use.
    ``finish``: writes the files that span all shards.
    ``lasting``: whether unfinished work is kept for the next run.
    ``shapes``: whether the work skips images of which the scan already knows enough.
    ``outlet``: receives the finished shards.
    """

    stage: str
    work: Callable[[Unit, Report], Receipt]
    stands: Callable[[Ledger, Receipt, str, Mapping[str, int]], bool]
    accept: Callable[[Survey], None]
    finish: Callable[[Ledger, Survey, dict[int, Receipt], ConvertOptions], Totals]
    lasting: bool
    shapes: bool = False
    outlet: Outlet | None = None
