"""The engine that the user chose."""

from __future__ import annotations

from builder.base.options import default_num_proc
from builder.engines.contract import Engine, EngineChoice
from builder.engines.local import LocalEngine, SerialEngine


def make_engine(choice: EngineChoice) -> Engine:
    """Make the chosen engine and start its processes. Raises ClusterError."""
    if choice.name == "ray":
        from builder.engines.ray import RayEngine

        return RayEngine(choice.num_proc, choice.address)
    workers = choice.num_proc or default_num_proc()
    return SerialEngine() if workers == 1 else LocalEngine(workers)
