"""convert: a source's samples as Parquet or Arrow shards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from builder.base.options import ConvertOptions, OptionFields, Slice, options_by_name
from builder.base.paths import StrPath, path_of
from builder.base.urls import StorageOptions
from builder.conversion.before import refuse_overlap
from builder.conversion.build import build, is_dataset
from builder.conversion.finish import finish_dataset
from builder.conversion.kind import Kind
from builder.conversion.shard import write_shard
from builder.conversion.summary import Summary
from builder.engines.contract import EngineChoice, RunOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack


def convert(
    source: StrPath,
    out: StrPath,
    options: ConvertOptions | None = None,
    *,
    start: int = 0,
    end: int = -1,
    num_proc: int | None = None,
    engine: str = "local",
    address: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    quiet: bool = False,
    keys: StrPath | None = None,
    without: StrPath | None = None,
    **named: Unpack[OptionFields],
) -> Summary:
    """Convert a source, a selection or a converted folder into OUT, or go on where an earlier run stopped.

    ``source``, ``out``: folders, or URLs that fsspec knows (``s3://``, ``gs://``, ``hf://datasets/…``; a source also
    ``https://``). ``storage_options`` open them: of one file system, or by scheme (``{"s3": {…}, "hf": {…}}``).
    Options go by name (``convert("SRC", "OUT", min_side=512)``), or as ``options``; names win.
    ``start`` (inclusive), ``end`` (exclusive; -1: all): the sorted raw tars of this run, so that many runs can share
    the work. ``num_proc``: processes (default: the cores of this machine). ``engine``: "local", or "ray" for a cluster
    at ``address`` (without: one made here). ``quiet``: no progress on stderr. ``keys``, ``without``: files that name
    the samples to take or to leave out, as for :func:`select`.

    The bytes of OUT depend on the source and the options alone. Raises SourceError, OutputError, OptionError,
    WorkerDiedError, InterruptedRunError; TypeError for an option that does not exist.
    """
    source, out = path_of(source), path_of(out)
    options = options_by_name(options, named)
    crew = EngineChoice(engine, num_proc, address)
    how = RunOptions(Slice(start, end), crew, StorageOptions.of(storage_options), quiet)
    if keys is not None or without is not None or is_dataset(source):
        from builder.conversion.selected import convert_selected

        return convert_selected(source, out, options, how, keys=keys, without=without)
    refuse_overlap(source, out)
    return build(CONVERT, source, out, options, how)


CONVERT = Kind("converting", write_shard, finish_dataset)
