"""python tests/torchvision_cpu.py SCRIPT … runs a script that imports torchvision, also beside a torch for CPUs."""

from __future__ import annotations

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch


def torchvision_operators() -> Any:
    """Declare the operator that torchvision registers a kernel for. mmengine and xtuner import torchvision; its wheel
    on the registry is built for CUDA, and its library does not load beside a torch for CPUs. Returns what keeps the
    declaration alive."""
    if find_spec("torchvision") is None:
        return None
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


if __name__ == "__main__":
    OPERATORS = torchvision_operators()
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)  # as Python itself has it for a script
    runpy.run_path(sys.argv[0], run_name="__main__")
