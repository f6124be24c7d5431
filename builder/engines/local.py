"""Who does the work: one process, several, or (engines/ray.py) a cluster. All run the same unit of work."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Protocol, TypeVar

from builder.base.errors import MissingExtraError, OptionError, WorkerDiedError
from builder.base.options import default_num_proc

Task = TypeVar("Task")
Result = TypeVar("Result")
Report = Callable[[int, int], None]
Work = Callable[[Task, Report], Result]

_TICK = 0.2  # seconds between looks at progress, and between reports of a worker
_STOPS = {signal.SIGINT, signal.SIGTERM}
ENGINES = ("local", "ray")


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """Which engine, as the user says it. ``num_proc``: processes, or tasks at a time, 1 or more; None: as many as fit.
    ``address``: of a Ray cluster that is there; None: one of our own on this machine.

    Raises OptionError, and MissingExtraError where the engine's package is not installed: before anything is written.
    """

    name: str = "local"
    num_proc: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise OptionError("engine", self.name, f"one of {', '.join(ENGINES)}")
        if self.num_proc is not None and self.num_proc < 1:
            raise OptionError("num_proc", self.num_proc, "1 or more")
        if self.address is not None and self.name != "ray":
            raise OptionError("address", self.address, "goes with --engine ray")
        if self.name == "ray" and find_spec("ray") is None:
            raise MissingExtraError("--engine ray", "ray", "ray")


class Engine(Protocol):
    """Runs picklable work on picklable tasks. Results come as they are ready, in any order; tasks are taken from the
    iterable one at a time as there is room for them. The first error ends the run and is raised."""

    def run(self, work: Work[Task, Result], tasks: Iterable[Task], report: Report) -> Iterator[Result]:
        """``report`` is called in the calling process, now and then also with (0, 0). What it is told adds up to what
        the work reported, of tasks that were begun twice once."""

    def dismiss(self) -> None:
        """No more work will come: processes may end while the caller goes on."""

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class SerialEngine:
    """This process does it."""

    def run(self, work: Work[Task, Result], tasks: Iterable[Task], report: Report) -> Iterator[Result]:
        for task in tasks:
            try:
                result = work(task, report)
            except MemoryError:
                raise out_of_memory(task) from None
            yield result

    def dismiss(self) -> None:
        """There is nobody."""

    def __enter__(self) -> SerialEngine:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class LocalEngine:
    """Worker processes on this machine, each with one task at a time over a pipe of its own, so that a worker that dies
    is known together with what it was doing."""

    def __init__(self, num_proc: int) -> None:
        import multiprocess
        import multiprocess.connection

        # fork is what keeps starting cheap: a worker has everything imported already.
        # Not on macOS, whose own libraries have threads that do not outlive one.
        self._context = multiprocess.get_context("fork" if sys.platform == "linux" else "spawn")
        self._wait = multiprocess.connection.wait
        self._workers: list[_Worker] = []
        try:
            for _ in range(num_proc):
                self._workers.append(_Worker(self._context))
        except OSError as error:
            for worker in self._workers:
                worker.stop()
            allowed = f"the system allows {len(self._workers)} ({error.strerror}). Give a smaller number"
            raise OptionError("num_proc", num_proc, allowed) from error

    def run(self, work: Work[Task, Result], tasks: Iterable[Task], report: Report) -> Iterator[Result]:
        waiting = iter(tasks)
        idle = list(self._workers)
        busy: dict[Any, _Worker] = {}
        while True:
            while idle:
                try:
                    task = next(waiting)
                except StopIteration:
                    break
                worker = idle.pop()
                worker.give(work, task)
                busy[worker.connection] = worker
            if not busy:
                return
            for connection in self._wait(list(busy), timeout=_TICK):
                worker = busy[connection]
                kind, value = worker.take()
                if kind == "progress":
                    report(*value)
                elif kind == "error":
                    raise value
                else:
                    del busy[connection]
                    idle.append(worker)
                    yield value
            report(0, 0)

    def dismiss(self) -> None:
        """They take 10 ms to end, and are waited for in ``__exit__``."""
        for worker in self._workers:
            worker.dismiss()

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()


class _Worker:
    def __init__(self, context: Any) -> None:
        self.connection, theirs = context.Pipe()
        self.task: Any = None
        self.process = context.Process(target=_serve, args=(self.connection, theirs, os.getpid()), daemon=True)
        with stops_held():
            self.process.start()
        theirs.close()

    def give(self, work: Any, task: Any) -> None:
        self.task = task
        try:
            self.connection.send_bytes(pack((work, task)))
        except OSError:
            raise self._death() from None

    def take(self) -> tuple[str, Any]:
        try:
            kind, value = unpack(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise self._death() from None
        if kind != "progress":
            self.task = None
        return kind, value

    def dismiss(self) -> None:
        with suppress(OSError):  # closing the pipe would not do: workers forked later hold copies of its end
            self.connection.send_bytes(b"")

    def stop(self) -> None:
        if self.task is None:
            self.dismiss()
        else:
            self.process.kill()
        self.connection.close()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def _death(self) -> WorkerDiedError:
        self.process.join(timeout=5)
        code = self.process.exitcode
        if code == -signal.SIGTERM:
            time.sleep(0.5)  # whoever stops all of a job's processes may reach us second: then that is what happened
        ending = f"exit code {code}" if code is None or code >= 0 else f"signal {signal.Signals(-code).name}"
        return WorkerDiedError(describe(self.task), ending)


def describe(task: Any) -> str:
    """What a task is about, for messages: shards and archives have names."""
    for attribute in ("name", "archive"):
        if hasattr(task, attribute):
            value = getattr(task, attribute)
            return str(getattr(value, "path", value))
    return type(task).__name__


@contextmanager
def stops_held() -> Iterator[None]:
    """SIGINT and SIGTERM wait. For starting a process, which inherits that and is to call :func:`stop_when_told`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop_when_told() -> None:
    """In a process started by :func:`stops_held`: not the parent's handlers, but the end by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)


def _serve(theirs: Any, connection: Any, parent: int) -> None:
    """A worker's life: task in, result out, until the parent closes the pipe or is gone."""
    stop_when_told()
    gc.freeze()  # what came along with the fork is not to be looked through again and again,
    gc.set_threshold(20_000)  # nor are ten thousands of rows, which have no circles among them: 6 % of an index's time
    theirs.close()  # the parent's end, which a forked worker has too: while it is open, a send to nobody only waits
    send = connection.send_bytes
    pending = [0, 0]
    last = 0.0

    def report(images: int, size: int) -> None:
        nonlocal last
        pending[0] += images
        pending[1] += size
        now = time.monotonic()
        if now - last > _TICK:
            last = now
            if os.getppid() != parent:
                os._exit(1)
            send(pack(("progress", tuple(pending))))
            pending[:] = [0, 0]

    with suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            while not connection.poll(1.0):
                if os.getppid() != parent:
                    os._exit(1)
            message = connection.recv_bytes()
            if not message:
                break
            answer = answer_to(message, report)
            if pending != [0, 0]:
                send(pack(("progress", tuple(pending))))
                pending[:] = [0, 0]
            send(answer)
    os._exit(0)  # no atexit handlers of the parent's run twice


def pack(value: Any) -> bytes:
    """For another process of this run."""
    return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)


def unpack(message: bytes) -> Any:
    """What :func:`pack` made of it, in this run's own processes."""
    return pickle.loads(message)  # noqa: S301 - from our own parent or worker


def answer_to(message: bytes, report: Report) -> bytes:
    """Do the work in a message of (work, task); the answer, packed: ("result", what it gave) or ("error", what it
    raised)."""
    work, task = unpack(message)
    try:
        return pack(("result", work(task, report)))
    except MemoryError:
        return pack(("error", out_of_memory(task)))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the parent's to raise
        return pack(("error", _portable(error)))


def out_of_memory(task: Any) -> WorkerDiedError:
    """However it was noticed."""
    return WorkerDiedError(describe(task), "it ran out of memory")


def _portable(error: Exception) -> Exception:
    """The error itself if it survives pickling, else one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:  # noqa: BLE001 - an error that cannot travel must not hide itself
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def make_engine(choice: EngineChoice) -> Engine:
    """The engine of that name, with its processes started. Raises ClusterError."""
    if choice.name == "ray":
        from builder.engines.ray import RayEngine

        return RayEngine(choice.num_proc, choice.address)
    workers = choice.num_proc or default_num_proc()
    return SerialEngine() if workers == 1 else LocalEngine(workers)
