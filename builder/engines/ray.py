"""The Ray engine: each task of a job is a Ray task, on any node with room. Only this module imports ray.

    driver: task → message ──▶ node: answer_to(message) ──▶ driver: result, and what the task reported

Messages and answers are those of engines/local.py, so the output has the same bytes. This module starts tasks again,
not Ray. So it knows why each try ended, and says it if it gives up. Progress moves when a task returns.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import dataclass, field
from typing import Any

from builder.base.errors import ClusterError, MissingExtraError, WorkerDiedError
from builder.base.options import default_num_proc
from builder.base.schema import versions
from builder.engines.contract import Engine, Report, Result, Task, Work, unheard
from builder.engines.messages import answer_to, describe, pack, unpack
from builder.engines.progress import say

TRIES = 3
"""How often a task is started if its node or worker dies. One death is an accident. Three are the task's fault: it
needs more memory than a node has."""
_PER_CPU = 2  # tasks sent per CPU, so that the next task of a node is already there
_TICK = 0.2  # seconds between checks for ready results
_LOOK = 10.0  # seconds between checks of the cluster's size
_TIMEOUT = 120.0  # seconds a node may take to answer
_STORE = 256 << 20  # bytes of our own cluster's object store: messages and answers pass through it, images do not


@dataclass(slots=True)
class _Flight:
    """A started task. ``reasons``: what ended each earlier try."""

    task: Any
    message: bytes
    reasons: list[str] = field(default_factory=list)


class RayEngine(Engine):
    """Runs work on a cluster. Every node needs laion6m and pyarrow in the driver's versions. OUT must be on a disk that
    all nodes share, or behind a URL."""

    def __init__(self, num_proc: int | None, address: str | None) -> None:
        """``num_proc``: tasks at a time; None: as many as the cluster has CPUs. ``address``: of an existing cluster;
        None: start our own on this machine. Raises MissingExtraError, ClusterError."""
        if (address or "").startswith("ray://"):
            way_out = "Give HOST:PORT of its head, or auto, on a machine of the cluster."
            raise ClusterError(str(address), "Ray Client hides the cluster's nodes", way_out)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else each start prints a warning
        if address is None and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:  # ray reads it at import
            # Our cluster's ports are open to the network. By default Ray keeps a token in the home folder.
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        try:
            import ray
            import ray.exceptions
        except ImportError as error:
            raise MissingExtraError("--engine ray", "ray", "ray") from error
        self._ray = ray
        self._num_proc = num_proc
        self._address = address or "this machine"
        self._flying: dict[Any, _Flight] = {}
        self._mine = not ray.is_initialized()
        self._stdout = ExitStack()
        if self._mine:
            self._connect(address)
            # Ray prints messages about dead nodes, and stdout is for --json.
            self._stdout.enter_context(redirect_stdout(sys.stderr))
        try:
            self._compare_versions()
            self._setting = (os.getcwd(), versions())
            self._do = ray.remote(num_cpus=1, max_retries=0)(do)
        except BaseException:
            self._disconnect()
            raise

    def _connect(self, address: str | None) -> None:
        own: dict[str, Any] = {"address": address}
        if address is not None and address.startswith("127."):  # else Ray looks for it at this machine's address
            own["_node_ip_address"] = address.partition(":")[0]
        if address is None:
            own = {
                "address": "local",
                "num_cpus": self._num_proc or default_num_proc(),
                "object_store_memory": _STORE,
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
            }
        before = signal.getsignal(signal.SIGTERM)
        try:
            _knock(address)
            self._ray.init(configure_logging=False, log_to_driver=False, **own)
        except Exception as error:  # errors of Ray and grpc, ConnectionError …
            raise ClusterError(
                self._address, f"{type(error).__name__}: {error}", "Check that the cluster runs: ray status --address …"
            ) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray's own handler ends Python at once

    def _compare_versions(self) -> None:
        """Raise ClusterError if a node has other versions: they could write other bytes."""
        ray, errors = self._ray, self._ray.exceptions
        mine = versions()
        ask = ray.remote(num_cpus=0, max_retries=0)(versions)
        near = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        nodes = [(node["NodeID"], node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]]
        answers = [(place, ask.options(scheduling_strategy=near(node, soft=False)).remote()) for node, place in nodes]
        died = (errors.WorkerCrashedError, errors.NodeDiedError, errors.TaskUnschedulableError)
        lost = (*died, errors.OutOfMemoryError)
        for place, answer in answers:
            try:
                theirs = ray.get(answer, timeout=_TIMEOUT)
            except lost:
                continue  # node just left, or has no memory for this task; each task checks again
            except errors.RayError as error:
                said = str(error).strip().splitlines()[-1]
                way_out = f"Install laion6m {mine['laion6m']} on every node."
                raise ClusterError(self._address, f"node {place} cannot do the work: {said}", way_out) from error
            if theirs != mine:
                raise ClusterError(
                    self._address,
                    f"node {place} has {_said(theirs)}, this process has {_said(mine)}. Their files could differ",
                    "Install the same versions on every node.",
                )

    def run(self, work: Work[Task, Result], tasks: Iterable[Task], report: Report = unheard) -> Iterator[Result]:
        waiting = iter(tasks)
        looked, room = 0.0, 1
        while True:
            if time.monotonic() - looked > _LOOK:
                looked, room = time.monotonic(), self._room()
            while len(self._flying) < room:
                try:
                    task = next(waiting)
                except StopIteration:
                    break
                self._send(_Flight(task, pack((work, task))))
            if not self._flying:
                return
            ready, _ = self._ray.wait(list(self._flying), num_returns=1, timeout=_TICK)
            for reference in ready:
                flight = self._flying.pop(reference)
                answer = self._answer(reference, flight)
                if answer is None:
                    self._send(flight)
                    continue
                kind, value, images, size = answer
                report(images, size)
                if kind == "error":
                    raise value
                yield value
            report(0, 0)

    def _room(self) -> int:
        """How many tasks may be started at a time. Their plans are all in memory."""
        if self._num_proc is not None:
            return self._num_proc
        return max(1, int(_PER_CPU * self._ray.cluster_resources().get("CPU", 1)))

    def _send(self, flight: _Flight) -> None:
        """Start a task, or start it again."""
        self._flying[self._do.remote(flight.message, self._setting)] = flight

    def _answer(self, reference: Any, flight: _Flight) -> tuple[str, Any, int, int] | None:
        """A task's outcome; None if it must be started again. Raises WorkerDiedError, ClusterError."""
        errors = self._ray.exceptions
        try:
            message, images, size = self._ray.get(reference)
        except errors.RayTaskError as error:  # not an error of the work: those come as answers
            said = str(error).strip().splitlines()[-1]
            raise ClusterError(self._address, f"{describe(flight.task)}: {said}", "See Ray's logs.") from error
        except errors.RayError as error:
            out_of_memory = isinstance(error, errors.OutOfMemoryError)
            name = "its node ran out of memory" if out_of_memory else type(error).__name__
            flight.reasons.append(name)
            if len(flight.reasons) < TRIES:
                say(f"{describe(flight.task)}: {name}. It is started again.")
                return None
            reasons = f"started {TRIES} times: {', '.join(flight.reasons)}"
            raise WorkerDiedError(describe(flight.task), reasons) from error
        kind, value = unpack(message)
        return kind, value, images, size

    def __exit__(self, *_: object) -> None:
        for reference in self._flying:
            with suppress(self._ray.exceptions.RayError):
                self._ray.cancel(reference, force=True)
        self._flying.clear()
        self._disconnect()

    def _disconnect(self) -> None:
        self._stdout.close()
        if self._mine:
            self._ray.shutdown()


def do(message: bytes, setting: tuple[str, dict[str, str]]) -> tuple[bytes, int, int]:
    """On a node: do the work in a message. Returns the packed answer, and the images and bytes that the work reported.
    ``setting``: the driver's working folder, where relative paths start, and its versions. Raises RuntimeError if the
    node has other versions: it may have joined after the start."""
    folder, theirs = setting
    if versions() != theirs:
        raise RuntimeError(f"a node has {_said(versions())}, the driver has {_said(theirs)}. Their files could differ")
    with suppress(OSError):  # without that folder, URLs and absolute paths still work
        os.chdir(folder)
    done = [0, 0]

    def report(images: int, size: int) -> None:
        done[0] += images
        done[1] += size

    return answer_to(message, report), done[0], done[1]


def _knock(address: str | None) -> None:
    """Try to connect: Ray takes minutes to report that nothing answers. Raises OSError."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _said(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())
