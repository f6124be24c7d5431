"""select: write down which rows of a dataset to train on. No image is copied."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from builder.base.errors import OptionError, SourceError
from builder.base.paths import StrPath
from builder.base.records import Step
from builder.base.words import counted
from builder.curate.lists import read_list
from builder.curate.selection import check_free, save_all
from builder.read.opening import open_dataset
from builder.read.view import Rows, View


@dataclass(frozen=True, slots=True)
class ListCount:
    """A list of samples: its file's option and name, how many names it has, and how many were found."""

    option: str
    file: str
    names: int
    found: int


@dataclass(frozen=True, slots=True)
class SelectSummary:
    """What was selected. ``of``: rows before choosing. ``splits``: name → rows, if OUT holds several selections."""

    out: str
    rows: int
    of: int
    funnel: tuple[Step, ...]
    splits: dict[str, int]
    lists: tuple[ListCount, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "rows": self.rows,
            "of": self.of,
            "funnel": [{"condition": step.condition, "rows": step.rows} for step in self.funnel],
            "out": self.out,
            "seconds": round(self.seconds, 3),
        }
        if self.splits:
            document["splits"] = self.splits
        if self.lists:
            document["lists"] = {each.option: {"names": each.names, "found": each.found} for each in self.lists}
        return document


def select(
    dataset: StrPath,
    out: StrPath,
    *,
    where: str | None = None,
    keys: StrPath | None = None,
    without: StrPath | None = None,
    unique: bool = False,
    sample: int | None = None,
    split: Mapping[str, float] | None = None,
    seed: int = 0,
    storage_options: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> SelectSummary:
    """Write a selection of a dataset (a converted folder, an index, another selection, a URL) into the new folder OUT.

    Steps, in this order: keep rows for which the SQL condition ``where`` is true; keep rows that the file ``keys``
    names; drop rows that ``without`` names; with ``unique`` keep one row per group of duplicates; keep ``sample`` rows
    at random. ``split``: name → share; each becomes a selection OUT/NAME. ``seed``: for sample and split. Raises
    OptionError, SourceError, OutputError (OUT exists), SqlError, MissingExtraError (DuckDB), DamagedFileError.
    """
    started = time.monotonic()
    folder = os.path.abspath(os.path.expanduser(os.fspath(out)))
    if where is None and keys is None and without is None and not unique and sample is None and not split:
        raise OptionError("select", None, "say which rows: --where, --keys, --without, --unique, --sample or --split")
    check_free(folder)
    rows = open_dataset(dataset, storage_options=storage_options)
    chosen, lists = choose(rows if where is None else rows.where(where), keys, without, quiet=quiet)
    if unique:
        chosen = chosen.unique()
    if sample is not None:
        chosen = chosen.sample(sample, seed=seed)
    splits = chosen.split(split, seed=seed) if split else {}
    save_all(splits or {"": chosen}, folder)
    return SelectSummary(
        out=folder,
        rows=len(chosen),
        of=len(rows),
        funnel=chosen.steps[len(rows.steps) :],
        splits={name: len(view) for name, view in splits.items()},
        lists=lists,
        seconds=time.monotonic() - started,
    )


def choose(
    rows: Rows, keys: StrPath | None, without: StrPath | None, *, quiet: bool = True
) -> tuple[Rows, tuple[ListCount, ...]]:
    """Keep rows that the file ``keys`` names, drop those that ``without`` names. Raises SourceError."""
    lists = []
    for option, file in (("keys", keys), ("without", without)):
        if file is not None:
            rows, count = by_list(rows, option, file, quiet=quiet)
            lists.append(count)
    return rows, tuple(lists)


def by_list(rows: Rows, option: str, file: StrPath, *, quiet: bool = True) -> tuple[View, ListCount]:
    """The rows that a file names (``option`` "keys") or does not name ("without"). Raises SourceError, also if ``keys``
    leaves no row."""
    listed = read_list(rows.reader, file, quiet=quiet)
    name = os.path.basename(os.fspath(file))
    if option == "keys" and not listed.found:
        where = shlex.quote(os.fspath(file))
        raise SourceError(f"{where} has {counted(listed.names, 'name')}; none is in {shlex.quote(rows.folder)}")
    numbers = np.asarray(rows.rows, dtype=np.int64)
    mine = numbers[listed.rows[numbers] == (option == "keys")]
    view = View(rows.reader, mine, (*rows.steps, Step(f"{option} {name}", len(mine))))
    return view, ListCount(option, name, listed.names, listed.found)


def describe_selection(summary: SelectSummary, given: StrPath) -> str:
    """The summary in words: rows left by each step, what the lists found, the splits, the next step. ``given``: OUT as
    the user gave it."""
    out = os.fspath(given)
    width = len(f"{summary.of:,}")
    lines = [counted(summary.of, "row", width=width)]
    lines += [f"{step.rows:>{width},} {step.condition}" for step in summary.funnel]
    for each in summary.lists:
        lines.append(f"{each.found:,} of {counted(each.names, 'name')} in {each.file} found in the dataset")
    lines += [f"{rows:>{width},} in {shlex.quote(os.path.join(out, name))}" for name, rows in summary.splits.items()]
    left = summary.rows - sum(summary.splits.values())
    if summary.splits and left:
        lines.append(f"{left:>{width},} in no split")
    place = os.path.join(out, next(iter(summary.splits), "")).rstrip(os.sep)
    lines.append(f"next: laion6m verify {shlex.quote(place)}")
    return "\n".join(lines)
