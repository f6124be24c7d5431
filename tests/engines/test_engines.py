"""One suite for every engine; what only processes can do to each other stands below it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from builder.base.errors import OptionError, SourceChangedError, WorkerDiedError
from builder.engines import local as engines
from builder.engines.contract import Engine, EngineChoice, Report
from builder.engines.local import LocalEngine, SerialEngine, make_engine
from builder.engines.messages import describe
from builder.source.layout import Archive
from tests.outputs import ROOT, environment, group_members, wait_until

# From 3.12 on, forking a process that has other threads warns; those here are pyarrow's, left by other tests.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

ENGINES: dict[str, Callable[[], Engine]] = {
    "serial": SerialEngine,
    "one worker": lambda: LocalEngine(1),
    "three workers": lambda: LocalEngine(3),
}
LOCAL = [name for name in ENGINES if name != "serial"]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with ENGINES[request.param]() as crew:
        yield crew


@dataclass(frozen=True)
class Task:
    number: int
    name: str = "shard 7 of 9 (00042.tar)"


def double(task: int, report: Report) -> int:
    report(1, 10)
    report(1, 10)
    return task * 2


def answer_at_length(task: bytes, report: Report) -> bytes:
    return task * 2


def fail_at_three(task: int, report: Report) -> int:
    if task == 3:
        raise SourceChangedError("raw/00003.tar", "it shrank")
    return task


class Unportable(Exception):  # noqa: N818
    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} because of {why}")


def fail_unportably(task: int, report: Report) -> int:
    raise Unportable("no", "reason")


def run_out_of_memory(task: Task, report: Report) -> int:
    raise MemoryError


def die(signal_number: int, task: Task, report: Report) -> int:
    if task.number == 2:
        os.kill(os.getpid(), signal_number)
        time.sleep(30)
    time.sleep(0.01)
    return task.number


def leave(task: Task, report: Report) -> int:
    os._exit(3)


def linger(task: Any, report: Report) -> None:
    for _ in range(300):
        report(1, 1)
        time.sleep(0.1)


def nothing(images: int, size: int) -> None:
    pass


def test_every_task_gives_one_result_and_reports_add_up(engine: Engine) -> None:
    reported = [0, 0]

    def report(images: int, size: int) -> None:
        reported[0] += images
        reported[1] += size

    assert sorted(engine.run(double, range(25), report)) == [2 * number for number in range(25)]
    assert reported == [50, 500]


def test_an_engine_runs_again_and_again_also_on_nothing(engine: Engine) -> None:
    assert list(engine.run(double, [], nothing)) == []
    assert sorted(engine.run(double, [1, 2], nothing)) == [2, 4]
    assert sorted(engine.run(double, iter([5]), nothing)) == [10]


def test_tasks_are_taken_only_as_there_is_room_for_them(engine: Engine) -> None:
    taken = []

    def tasks() -> Iterator[int]:
        for number in range(50):
            taken.append(number)
            yield number

    for done, _ in enumerate(engine.run(double, tasks(), nothing), start=1):
        assert len(taken) <= done + 3  # one for each of the three workers at most


def test_tasks_and_results_may_be_larger_than_a_pipe_holds(engine: Engine) -> None:
    large = [os.urandom(1000) * 2000, b"", os.urandom(1000) * 1500]
    assert sorted(engine.run(answer_at_length, large, nothing)) == sorted(each * 2 for each in large)


@pytest.mark.parametrize("tasks", [[], [1]])
def test_an_engine_may_be_dismissed_whether_it_has_worked_or_not(engine: Engine, tasks: list[int]) -> None:
    processes = [worker.process for worker in engine._workers] if isinstance(engine, LocalEngine) else []
    assert list(engine.run(double, tasks, nothing)) == [task * 2 for task in tasks]
    engine.dismiss()
    wait_until(lambda: not any(process.is_alive() for process in processes))
    engine.dismiss()


def test_an_error_arrives_as_it_was_raised_and_ends_the_run(engine: Engine) -> None:
    with pytest.raises(SourceChangedError) as caught:
        list(engine.run(fail_at_three, range(1000), nothing))
    assert caught.value.args == ("raw/00003.tar", "it shrank")


def test_running_out_of_memory_names_the_work(engine: Engine) -> None:
    with pytest.raises(WorkerDiedError, match=r"shard 7 of 9 \(00042\.tar\).*smaller --num-proc"):
        list(engine.run(run_out_of_memory, [Task(1)], nothing))


@pytest.mark.parametrize("name", LOCAL)
def test_an_error_that_cannot_be_pickled_says_the_same_as_another_one(name: str) -> None:
    with ENGINES[name]() as crew, pytest.raises(RuntimeError, match="Unportable: no because of reason"):
        list(crew.run(fail_unportably, [1], nothing))


@pytest.mark.slow
@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize(
    ("work", "ending"),
    [
        (partial(die, signal.SIGKILL), "signal SIGKILL"),
        (partial(die, signal.SIGTERM), "signal SIGTERM"),
        (leave, "exit code 3"),
    ],
)
def test_a_worker_that_dies_is_an_error_that_names_its_work(name: str, work: Any, ending: str) -> None:
    crew = ENGINES[name]()
    with crew, pytest.raises(WorkerDiedError) as caught:
        list(crew.run(work, map(Task, range(1, 200)), nothing))
    assert caught.value.args == ("shard 7 of 9 (00042.tar)", ending)
    assert "(00042.tar)" in str(caught.value)


@pytest.mark.parametrize("name", LOCAL)
def test_leaving_an_engine_ends_its_processes_busy_or_not(name: str) -> None:
    started = time.monotonic()
    with ENGINES[name]() as crew:
        processes = [worker.process for worker in crew._workers]  # type: ignore[attr-defined]
        running = crew.run(linger, [1], lambda images, size: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            list(running)
    assert not any(process.is_alive() for process in processes)
    assert time.monotonic() - started < 12  # of the 30 that the work would take


SCRIPT = """
import os, sys, time
sys.path.insert(0, {root!r})
from builder.engines.local import LocalEngine

def linger(task, report):
    for _ in range(300):
        report(1, 1)
        time.sleep(0.05)

def wait(task, report):
    time.sleep(task)

def answer_at_length(task, report):
    time.sleep(0.5)
    return bytes(8 << 20)

def stand_still(images, size):
    print("busy", flush=True)
    time.sleep(60)

with LocalEngine(3) as crew:
    for _ in crew.run({work}, {tasks}, stand_still):
        pass
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "tasks"),
    [
        ("linger", "[1, 2, 3]"),
        ("wait", "[0.05]"),  # two workers that wait for work, and one that comes to it
        ("answer_at_length", "[1, 2, 3]"),  # more than a pipe holds: a worker must not wait for ever to be read
    ],
)
def test_orphans_end_when_their_parent_is_killed(work: str, tasks: str) -> None:
    import subprocess

    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(root=str(ROOT), work=work, tasks=tasks)],
        stdout=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == b"busy\n"
        assert len(group_members(process.pid)) == 4
        process.kill()
        process.wait()
        wait_until(lambda: not group_members(process.pid))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if group_members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def wait_a_little(task: int, report: Report) -> str:
    time.sleep(0.4)
    return "done"


def test_an_interrupt_of_the_whole_group_is_left_to_the_parent() -> None:
    with LocalEngine(1) as crew:
        worker = crew._workers[0]
        sender = threading.Timer(0.1, lambda: os.kill(worker.process.pid, signal.SIGINT))
        sender.start()
        assert list(crew.run(wait_a_little, [1], nothing)) == ["done"]
        sender.join()


def test_when_all_of_a_job_is_told_to_stop_no_worker_is_said_to_have_died() -> None:
    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    def worker_first() -> None:
        os.kill(crew._workers[0].process.pid, signal.SIGTERM)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with LocalEngine(1) as crew:
            sender = threading.Timer(0.05, worker_first)
            sender.start()
            with pytest.raises(KeyboardInterrupt):
                list(crew.run(linger, [1], nothing))
            sender.join()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (Task(1), "shard 7 of 9 (00042.tar)"),
        (type("Scan", (), {"archive": Archive("a.tar", "/raw/a.tar", False, 1, 2)})(), "/raw/a.tar"),
        (12, "int"),
    ],
)
def test_work_is_described_by_its_name_or_its_archive(task: object, text: str) -> None:
    assert describe(task) == text


def test_workers_that_the_system_does_not_allow_are_an_error_and_leave_none(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []

    class Refused(engines._Worker):
        def __init__(self, context: Any) -> None:
            if len(begun) == 2:
                raise OSError(24, "Too many open files")
            super().__init__(context)
            begun.append(self)

    monkeypatch.setattr(engines, "_Worker", Refused)
    with pytest.raises(OptionError, match=r"num_proc 5: the system allows 2 processes \(Too many open files\)"):
        engines.LocalEngine(5)
    assert [worker.process.is_alive() for worker in begun] == [False, False]


def test_one_process_needs_no_workers() -> None:
    assert isinstance(make_engine(EngineChoice(num_proc=1)), SerialEngine)
    with make_engine(EngineChoice(num_proc=2)) as crew:
        assert isinstance(crew, LocalEngine)
        assert len(crew._workers) == 2
