"""What a job makes (Parquet, an index …), and what receives its finished shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from builder.base import schema
from builder.base.options import ConvertOptions
from builder.conversion.shard import Unit
from builder.engines.contract import Report
from builder.plan.survey import Survey
from builder.store.ledger import Ledger, Receipt


class Outlet(Protocol):
    """Receives finished shards while others are still being made."""

    def put(self, receipt: Receipt, shards: int) -> None:
        """A shard is whole on disk. ``shards``: number of shards in all. Called once for each shard, and again if it
        had to be made again. Shards of earlier runs come first."""

    def room(self) -> None:
        """Wait until there is room for another shard."""


def same_size(ledger: Ledger, receipt: Receipt, name: str, sizes: Mapping[str, int]) -> bool:
    """Whether a receipt's shard is there with the size in the receipt."""
    return sizes.get(name) == receipt.size


Stands = Callable[[Ledger, Receipt, str, Mapping[str, int]], bool]
"""Whether a receipt's output still exists. It gets the shard's name and the sizes of the files in data/."""


def standing(
    ledger: Ledger, receipts: Iterable[Receipt], shards: int, options: ConvertOptions, stands: Stands = same_size
) -> dict[int, Receipt]:
    """The receipts whose output still exists, by number. ``shards``: the total in the shards' names."""
    sizes, suffix = ledger.folder.sizes(schema.DATA), schema.SUFFIXES[options.format]
    named = ((each, str(schema.ShardName(each.number, shards, suffix))) for each in receipts)
    return {receipt.number: receipt for receipt, name in named if stands(ledger, receipt, name, sizes)}


@dataclass(frozen=True, slots=True)
class Kind:
    """What a job makes.

    ``stage``: the name of its progress bar.
    ``work``: does one unit and returns its receipt.
    ``finish``: writes the files that span all shards.
    ``stands``: see Stands.
    ``accept``: refuses a source that it cannot use.
    ``lasting``: whether unfinished work is kept for the next run.
    ``shapes``: whether the work skips images if the scan has seen enough of them.
    ``outlet``: receives the finished shards, if anything does.
    """

    stage: str
    work: Callable[[Unit, Report], Receipt]
    finish: Callable[[Ledger, Survey, dict[int, Receipt], ConvertOptions], None]
    stands: Stands = same_size
    accept: Callable[[Survey], None] | None = None
    lasting: bool = True
    shapes: bool = False
    outlet: Outlet | None = None
