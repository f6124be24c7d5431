"""laion6m: pair image tars with recaption tars, convert them to Parquet or Arrow, index, read and publish them.

    from builder import convert, verify, push, open_dataset, load_dataset

Everything is imported when it is first asked for, so that the command line does not pay for ``datasets`` (0.7 s).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "ConvertOptions": "builder.base.options",
    "Laion6mError": "builder.base.errors",
    "Reader": "builder.read.reader",
    "Sample": "builder.read.sample",
    "SamplePolicy": "builder.base.options",
    "Slice": "builder.base.options",
    "add_column": "builder.curate.add_column",
    "convert": "builder.conversion.convert",
    "duplicates": "builder.curate.duplicates",
    "extract": "builder.jobs.extract",
    "index": "builder.conversion.index",
    "info": "builder.jobs.info",
    "load_dataset": "builder.hf.builder",
    "load_dataset_builder": "builder.hf.builder",
    "open_dataset": "builder.read.opening",
    "push": "builder.hub.push",
    "report": "builder.view.report",
    "select": "builder.curate.select",
    "verify": "builder.verification.verify",
}
"""Public names, and the modules they live in."""

__all__ = [*sorted(_HOMES), "__version__"]

if TYPE_CHECKING:
    from builder.base.errors import Laion6mError as Laion6mError
    from builder.base.options import ConvertOptions as ConvertOptions
    from builder.base.options import SamplePolicy as SamplePolicy
    from builder.base.options import Slice as Slice
    from builder.conversion.convert import convert as convert
    from builder.conversion.index import index as index
    from builder.curate.add_column import add_column as add_column
    from builder.curate.duplicates import duplicates as duplicates
    from builder.curate.select import select as select
    from builder.hf.builder import load_dataset as load_dataset
    from builder.hf.builder import load_dataset_builder as load_dataset_builder
    from builder.hub.push import push as push
    from builder.jobs.extract import extract as extract
    from builder.jobs.info import info as info
    from builder.read.opening import open_dataset as open_dataset
    from builder.read.reader import Reader as Reader
    from builder.read.sample import Sample as Sample
    from builder.verification.verify import verify as verify
    from builder.view.report import report as report


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'builder' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
