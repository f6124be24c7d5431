"""mmengine, if it is installed."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def has_mmengine() -> bool:
    return find_spec("mmengine") is not None


def mmengine(module: str) -> Any:
    """Import ``mmengine.<module>``. Hides the deprecation warnings of its imports (torch, setuptools): users cannot act
    on them. Raises ImportError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module(f"mmengine.{module}")
