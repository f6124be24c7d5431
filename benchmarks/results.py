"""What the benchmarks share: works timed in turn, figures as data, versions of packages, the machine.

A script prints its figures. With ``--json FILE`` it writes them too, one row for each figure::

    {"rows": [{"name": "files", "value": 35.4, "unit": "µs a row"}, …]}

A table has a line for each name and a column for each unit, in the order in which they come.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

OURS = "this project"


@dataclass(frozen=True)
class Row:
    name: str
    value: float | str
    unit: str


class Results:
    """The figures of one run of a script."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.rows = list(rows)

    def add(self, name: str, figures: Mapping[str, float | str]) -> None:
        """A line of the table. ``figures``: unit → value."""
        self.rows += [Row(name, value, unit) for unit, value in figures.items()]

    def compare(self, unit: str, base: str) -> None:
        """A column more: the values of ``unit`` as multiples of that of the line ``base``."""
        values = {row.name: row.value for row in self.rows if row.unit == unit and not isinstance(row.value, str)}
        if base in values:
            self.rows += [Row(name, value / values[base], f"× {base}") for name, value in values.items()]

    def table(self) -> list[list[str]]:
        """The heads of the columns, then the lines; the first column has the names."""
        units = list(dict.fromkeys(row.unit for row in self.rows))
        lines: dict[str, list[str]] = {}
        for row in self.rows:
            lines.setdefault(row.name, [""] * len(units))[units.index(row.unit)] = words(row.value)
        return [["", *units], *([name, *cells] for name, cells in lines.items())]

    def finish(self, file: str | None) -> None:
        """Print the table, and write the rows to ``file`` if there is one."""
        table = self.table()
        widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
        for name, *cells in table:
            padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
            print("  ".join([f"{name:{widths[0]}}", *padded]).rstrip(), flush=True)
        if file:
            with open(file, "w") as handle:
                json.dump({"rows": [asdict(row) for row in self.rows]}, handle, ensure_ascii=False, indent=1)


def words(value: float | str) -> str:
    """Three digits that count, or all of a whole number's."""
    if isinstance(value, str):
        return value
    if value != value:  # not a number: nothing was measured
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE too")


def in_turn(
    works: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each work in each round. All take their turn within a round, so that what disturbs one round disturbs
    all of them alike."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            started = clock()
            work()
            taken[name].append(clock() - started)
    return taken


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Package → its version, None where it is not installed."""
    return {package: installed(package) for package in packages}


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine(folder: str) -> dict[str, str]:
    """What the figures depend on. ``folder``: where the scripts work."""
    with open("/proc/cpuinfo") as info:
        models = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": f"{models[0] if models else platform.processor()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{memory / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "scratch": file_system(folder),
        "Python": platform.python_version(),
    }


def file_system(folder: str) -> str:
    """The kind of file system that holds the folder, such as ext4 or tmpfs."""
    place, best = os.path.realpath(folder), ("", "unknown")
    with open("/proc/mounts") as mounts:
        for line in mounts:
            _, point, kind = line.split()[:3]
            if (place + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best[0]):
                best = (point, kind)
    return best[1]
