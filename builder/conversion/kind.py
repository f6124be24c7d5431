"""What a job makes (Parquet, an index …), and what receives its finished shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from builder.base.options import ConvertOptions
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


def same_size(ledger: Ledger, receipt: Receipt, name: str, sizes: Mapping[str, int]) -> bool:
    """Whether a receipt's shard is there, with the size it was given."""
    return sizes.get(name) == receipt.size


@dataclass(frozen=True, slots=True)
class Kind:
    """What a job makes.

    ``stage``: the name of its progress bar.
    ``work``: does one unit and returns its receipt.
    ``finish``: writes the files that span all shards.
    ``stands``: whether a receipt's output still exists. It gets the shard's name and the sizes of the files in data/.
    ``accept``: refuses a source that it cannot use.
    ``lasting``: whether unfinished work is kept for the next run.
    ``shapes``: whether the work skips images of which the scan already knows enough.
    ``outlet``: receives the finished shards.
    """

    stage: str
    work: Callable[[Unit, Report], Receipt]
    finish: Callable[[Ledger, Survey, dict[int, Receipt], ConvertOptions], None]
    stands: Callable[[Ledger, Receipt, str, Mapping[str, int]], bool] = same_size
    accept: Callable[[Survey], None] | None = None
    lasting: bool = True
    shapes: bool = False
    outlet: Outlet | None = None
