"""What an engine, its work and a task are. All engines run the same work: a function that can be pickled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Protocol, TypeVar

from builder.base.errors import MissingExtraError, OptionError
from builder.base.options import Slice
from builder.base.urls import NO_OPTIONS, StorageOptions

Task = TypeVar("Task")
Result = TypeVar("Result")
Report = Callable[[int, int], None]
Work = Callable[[Task, Report], Result]
AnyEngine = TypeVar("AnyEngine", bound="Engine")

ENGINES = ("local", "ray")


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The user's choice of engine. ``num_proc``: number of processes (of Ray: of tasks at a time), 1 or more; None: as
    many as there are cores. ``address``: of an existing Ray cluster; None: start one on this machine.

    Before anything is written, raises OptionError, and MissingExtraError if the engine's package is not installed.
    """

    name: str = "local"
    num_proc: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise OptionError("engine", self.name, f"give {' or '.join(ENGINES)}")
        if self.num_proc is not None and self.num_proc < 1:
            raise OptionError("num_proc", self.num_proc, "give 1 or more")
        if self.address is not None and self.name != "ray":
            raise OptionError("address", self.address, "give it only with --engine ray")
        if self.name == "ray" and find_spec("ray") is None:
            raise MissingExtraError("--engine ray", "ray", "ray")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run does its work. None of it changes a byte of what the run writes.

    ``part``: the raw tars that it takes. ``engine``: what does the work. ``storage``: options that open URLs.
    ``quiet``: show no progress.
    """

    part: Slice = field(default_factory=Slice)
    engine: EngineChoice = field(default_factory=EngineChoice)
    storage: StorageOptions = NO_OPTIONS
    quiet: bool = False


def unheard(count: int, size: int) -> None:
    """A report that does nothing."""


class Engine(Protocol):
    """Runs work on tasks; both can be pickled. Results come when they are ready, in any order. Tasks are taken from the
    iterable one at a time, when there is room. The first error ends the run, and is raised."""

    def run(self, work: Work[Task, Result], tasks: Iterable[Task], report: Report = unheard) -> Iterator[Result]:
        """``report`` is called in the calling process, sometimes with (0, 0). Its counts add up to all that the work
        reported. A task that was started twice counts once."""

    def dismiss(self) -> None:
        """No more work will come. Processes may end while the caller goes on."""
        return

    def __enter__(self: AnyEngine) -> AnyEngine:
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes that the engine started."""
        return
