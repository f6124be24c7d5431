"""Peers that need a hand before they can be imported."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def import_streaming() -> Any:
    """mosaicml-streaming. Its package imports torchvision for datasets of images that nothing here uses: without
    torchvision, an empty module stands there."""
    if find_spec("torchvision") is None:
        sys.modules.setdefault("streaming.vision", ModuleType("streaming.vision"))
    return importlib.import_module("streaming")
