"""Work for the tests of the Ray engine: a module of its own, which nodes can import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from builder.base.errors import WriteError
from builder.engines.contract import Report


def counted(task: int, report: Report) -> int:
    report(task, task * 10)
    return task * task


def refused(task: str, report: Report) -> None:
    raise WriteError(task, "No space left on device")


def suicidal(task: str, report: Report) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stuck_at_first(task: tuple[str, int], report: Report) -> str:
    """Says where it is; on the node that is going to be lost, waits for that to happen."""
    import ray

    folder, number = task
    node = str(ray.get_runtime_context().get_node_id())
    Path(folder, f"{number}.{node}").touch()
    if Path(folder, node).exists():
        time.sleep(120)
    return node


def endless(task: str, report: Report) -> None:
    """Says which process it is in, and waits."""
    Path(task).write_text(str(os.getpid()))
    time.sleep(120)
