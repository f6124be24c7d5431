"""Peers that need a hand before they can be imported."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


def import_streaming() -> Any:
    """mosaicml-streaming. Its package imports torchvision for datasets of images, which nothing here uses. So an empty
    module stands in their place: torchvision is often missing, or built for another torch."""
    sys.modules.setdefault("streaming.vision", ModuleType("streaming.vision"))
    return importlib.import_module("streaming")
