"""push --keys, --without: write the samples to push as a dataset."""

from __future__ import annotations

import os
import shutil

from builder.base import schema
from builder.base.errors import JobMismatchError
from builder.base.names import SELECTION
from builder.base.options import ConvertOptions
from builder.base.paths import StrPath
from builder.conversion.selected import convert_rows
from builder.curate.select import choose
from builder.engines.contract import EngineChoice, RunOptions
from builder.read.opening import open_dataset
from builder.store.manifest import read_manifest


def chosen_folder(out: str, keys: StrPath | None, without: StrPath | None, num_proc: int | None, *, quiet: bool) -> str:
    """Write the chosen rows of OUT to OUT/.laion6m/chosen, and return that folder.

    Of a selection, it holds a selection. Else it holds shards, which need disk space for the chosen rows. With the same
    lists, the next push uses these shards again. Raises what ``select`` and ``convert`` raise.
    """
    folder = os.path.join(out, schema.WORK, "chosen")
    rows, _ = choose(open_dataset(out), keys=keys, without=without, quiet=quiet)
    if os.path.exists(os.path.join(out, SELECTION)):
        shutil.rmtree(folder, ignore_errors=True)
        rows.save(folder)
        return folder
    kind = read_manifest(out).kind
    options = ConvertOptions(format=kind if kind in schema.SUFFIXES else "parquet")
    how = RunOptions(engine=EngineChoice(num_proc=num_proc), quiet=quiet)
    try:
        convert_rows(rows, folder, options, how)
    except JobMismatchError:  # of other lists
        shutil.rmtree(folder)
        convert_rows(rows, folder, options, how)
    return folder
