"""laion6m: pair image tars with recaption tars, convert them to Parquet or Arrow, index, read and publish them.

    from builder import convert, verify, push, open_dataset, load_dataset

Everything is imported when it is first asked for, so that the command line does not pay for ``datasets`` (0.7 s).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "ConvertOptions": "builder.options",
    "Laion6mError": "builder.errors",
    "Reader": "builder.read.reader",
    "Sample": "builder.read.reader",
    "SamplePolicy": "builder.options",
    "Slice": "builder.options",
    "convert": "builder.run.convert",
    "extract": "builder.run.extract",
    "index": "builder.run.index",
    "info": "builder.run.info",
    "load_dataset": "builder.hf",
    "load_dataset_builder": "builder.hf",
    "open_dataset": "builder.read.reader",
    "push": "builder.run.push",
    "verify": "builder.run.verify",
}
"""Public names, and the modules they live in."""

__all__ = [*sorted(_HOMES), "__version__"]

if TYPE_CHECKING:
    from builder.errors import Laion6mError as Laion6mError
    from builder.hf import load_dataset as load_dataset
    from builder.hf import load_dataset_builder as load_dataset_builder
    from builder.options import ConvertOptions as ConvertOptions
    from builder.options import SamplePolicy as SamplePolicy
    from builder.options import Slice as Slice
    from builder.read.reader import Reader as Reader
    from builder.read.reader import Sample as Sample
    from builder.read.reader import open_dataset as open_dataset
    from builder.run.convert import convert as convert
    from builder.run.extract import extract as extract
    from builder.run.index import index as index
    from builder.run.info import info as info
    from builder.run.push import push as push
    from builder.run.verify import verify as verify


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'builder' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}")
    return getattr(importlib.import_module(home), name)
