"""convert: a source's samples as Parquet or Arrow shards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from builder.base.options import ConvertOptions, Slice
from builder.base.urls import StorageOptions
from builder.conversion.build import Kind, Summary, build, refuse_overlap
from builder.conversion.finish import finish_dataset
from builder.conversion.shard import write_shard
from builder.engines.contract import EngineChoice
from builder.plan.survey import Survey
from builder.store.ledger import Ledger, Receipt


def convert(
    source: str,
    out: str,
    options: ConvertOptions | None = None,
    *,
    part: Slice | None = None,
    num_proc: int | None = None,
    engine: str = "local",
    address: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Summary:
    """Convert a source into the folder OUT, or go on where an earlier run stopped. Either may be a URL that fsspec
    knows (``s3://``, ``gs://``, ``hf://datasets/…``; a source also ``https://``), opened with ``storage_options``: of
    one file system, or by scheme (``{"s3": {…}, "hf": {…}}``).

    ``part``: which of the sorted raw tars this run takes, so that many can share the work. ``num_proc``: processes, by
    default the cores there are to use. ``engine``: "local", or "ray" for a cluster at ``address`` (without: one of its
    own on this machine). ``quiet``: no progress on stderr. The bytes of
    OUT depend on the source and on ``options`` alone. Raises SourceError, OutputError, OptionError, WorkerDiedError,
    InterruptedRunError.
    """
    refuse_overlap(source, out)
    return build(
        CONVERT,
        source,
        out,
        options or ConvertOptions(),
        part=part or Slice(),
        engine=EngineChoice(engine, num_proc, address),
        storage=StorageOptions.of(storage_options),
        quiet=quiet,
    )


def _stands(ledger: Ledger, receipt: Receipt, name: str, sizes: Mapping[str, int]) -> bool:
    """Whether a receipt's shard is there, with the size it was given."""
    return sizes.get(name) == receipt.size


def _accept(survey: Survey) -> None:
    """Any source will do."""


CONVERT = Kind("convert", write_shard, _stands, _accept, finish_dataset, lasting=True)
