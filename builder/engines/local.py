"""The engine that the user chose. Here: this process, or several worker processes on this machine."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from builder.base.errors import OptionError, WorkerDiedError
from builder.base.options import default_num_proc
from builder.base.words import counted
from builder.engines.contract import Engine, EngineChoice, Report, Result, Task, Work, unheard
from builder.engines.messages import answer_to, describe, out_of_memory, pack, unpack

_TICK = 0.2  # seconds between checks of progress, and between a worker's reports
_STOPS = {signal.SIGINT, signal.SIGTERM}


def make_engine(choice: EngineChoice) -> Engine:
    """Make the chosen engine and start its processes. Raises ClusterError."""
    if choice.name == "ray":
        from builder.engines.ray import RayEngine

        return RayEngine(choice.num_proc, choice.address)
    workers = choice.num_proc or default_num_proc()
    return SerialEngine() if workers == 1 else LocalEngine(workers)


class SerialEngine(Engine):
    """Runs everything in this process."""

    def run(self, work: Work[Task, Result], tasks: Iterable[Task], report: Report = unheard) -> Iterator[Result]:
        for task in tasks:
            try:
                result = work(task, report)
            except MemoryError:
                raise out_of_memory(task) from None
            yield result


class LocalEngine(Engine):
    """Worker processes on this machine. Each has one task at a time and a pipe of its own. So if a worker dies, its
    task is known."""

    def __init__(self, num_proc: int) -> None:
        import multiprocess
        import multiprocess.connection

        # fork makes starting cheap: a worker has everything imported already.
        # Not on macOS: its system libraries have threads that do not survive a fork.
        self._context = multiprocess.get_context("fork" if sys.platform == "linux" else "spawn")
        self._wait = multiprocess.connection.wait
        self._workers: list[_Worker] = []
        try:
            for _ in range(num_proc):
                self._workers.append(_Worker(self._context))
        except OSError as error:
            for worker in self._workers:
                worker.stop()
            allowed = f"the system allows {counted(len(self._workers), 'process', 'processes')} ({error.strerror})"
            raise OptionError("num_proc", num_proc, f"{allowed}. Give a smaller number") from error

    def run(self, work: Work[Task, Result], tasks: Iterable[Task], report: Report = unheard) -> Iterator[Result]:
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
        """Tell the workers to end. They take 10 ms; ``__exit__`` waits for them."""
        for worker in self._workers:
            worker.dismiss()

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
        with suppress(OSError):  # closing the pipe is not enough: later forked workers hold copies of it
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
            time.sleep(0.5)  # if all of the job's processes are being stopped, our own SIGTERM comes now
        ending = f"exit code {code}" if code is None or code >= 0 else f"signal {signal.Signals(-code).name}"
        return WorkerDiedError(describe(self.task), ending)


@contextmanager
def stops_held() -> Iterator[None]:
    """Block SIGINT and SIGTERM while a process starts. It inherits the block and must call :func:`stop_when_told`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop_when_told() -> None:
    """In a process started under :func:`stops_held`: drop the parent's handlers, let SIGTERM end it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)


def _serve(theirs: Any, connection: Any, parent: int) -> None:
    """A worker's loop: task in, result out, until the parent closes the pipe or is gone."""
    stop_when_told()
    gc.freeze()  # the collector skips what the fork brought along,
    gc.set_threshold(20_000)  # and rarely runs over rows, which have no cycles: saves 6 % of an index's time
    theirs.close()  # the fork's copy of the parent's end: while it is open, a send after the parent died hangs
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
    os._exit(0)  # do not run the parent's atexit handlers again
