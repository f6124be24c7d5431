"""What a job makes (Parquet, an index …), and what receives its finished shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from builder.base import schema
from builder.base.options import ConvertOptions
from builder.conversion.shard import Unit
from builder.engines.contract import Report
from builder.plan.survey import Survey
from builder.store.ledger import Ledger, Receipt


class Outlet:
    """Receives finished shards while others are still being made. This one leaves them in OUT."""

    removes = False
    """Whether it may remove shards from OUT."""

    def put(self, receipt: Receipt, shards: int) -> None:
        """A shard is whole on disk. ``shards``: number of shards in all. Called once for each shard, and again if it
        had to be made again. Shards of earlier runs come first."""

    def room(self) -> None:
        """Wait until there is room for another shard."""

    def stands(self, ledger: Ledger, receipt: Receipt, name: str, sizes: Mapping[str, int]) -> bool:
        """Whether a receipt's shard still exists. ``name``: of its file. ``sizes``: of the files in data/."""
        return sizes.get(name) == receipt.size

    def standing(
        self, ledger: Ledger, receipts: Iterable[Receipt], shards: int, options: ConvertOptions
    ) -> dict[int, Receipt]:
        """The receipts whose shards still exist, by number. ``shards``: the total in the shards' names."""
        sizes, suffix = ledger.folder.sizes(schema.DATA), schema.SUFFIXES[options.format]
        named = ((each, str(schema.ShardName(each.number, shards, suffix))) for each in receipts)
        return {receipt.number: receipt for receipt, name in named if self.stands(ledger, receipt, name, sizes)}


@dataclass(frozen=True, slots=True)
class Kind:
    """What a job makes.

    ``stage``: the name of its progress bar.
    ``work``: does one unit and returns its receipt.
    ``finish``: writes the files that span all shards.
    ``accept``: refuses a source that it cannot use.
    ``lasting``: whether unfinished work is kept for the next run.
    ``shapes``: whether the work skips images if the scan has seen enough of them.
    ``outlet``: receives the finished shards.
    """

    stage: str
    work: Callable[[Unit, Report], Receipt]
    finish: Callable[[Ledger, Survey, dict[int, Receipt], ConvertOptions], None]
    accept: Callable[[Survey], None] | None = None
    lasting: bool = True
    shapes: bool = False
    outlet: Outlet = field(default_factory=Outlet)
