"""Messages between a run's processes: work and a task go out, a result or an error comes back."""

from __future__ import annotations

import pickle
from typing import Any

from builder.base.errors import WorkerDiedError
from builder.engines.contract import Report


def pack(value: Any) -> bytes:
    """Bytes for another process of this run."""
    return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)


def unpack(message: bytes) -> Any:
    """Undo :func:`pack`. Only for bytes from this run's own processes."""
    return pickle.loads(message)  # noqa: S301 - from our own parent or worker


def answer_to(message: bytes, report: Report) -> bytes:
    """Do the work in a message of (work, task). Returns the packed answer: ("result", value) or ("error",
    exception)."""
    work, task = unpack(message)
    try:
        return pack(("result", work(task, report)))
    except MemoryError:
        return pack(("error", out_of_memory(task)))
    except Exception as error:  # noqa: BLE001 - the parent raises it, whatever it is
        return pack(("error", _portable(error)))


def out_of_memory(task: Any) -> WorkerDiedError:
    """The error for a worker that ran out of memory, however that was noticed."""
    return WorkerDiedError(describe(task), "it ran out of memory")


def _portable(error: Exception) -> Exception:
    """The error itself if it survives pickling, else one with the same text."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:  # noqa: BLE001 - an error that cannot be pickled must still be seen
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def describe(task: Any) -> str:
    """The name of a task, for messages: shards and archives have names."""
    for attribute in ("name", "archive"):
        if hasattr(task, attribute):
            value = getattr(task, attribute)
            return str(getattr(value, "path", value))
    return type(task).__name__
