"""Shared by all kinds of extraction: cut work into pieces of equal weight, write files, count them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.base.words import printable
from builder.engines.contract import Engine
from builder.engines.progress import Progress
from builder.jobs.existing import Listing, refuse_existing
from builder.store.tree import NameRefusedError, Tree

FORMS = ("card", "imagefolder", "captions")
PER_FILE = 32 << 10  # cost of creating one file, as equivalent bytes written
LISTED = 100  # failures kept as text
IMAGE, CAPTION, OTHER = 0, 1, 2
_PIECE = (4 << 20, 256 << 20)  # least and most weight of a piece of work

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Place:
    """The folder for the files, and whether existing files may be replaced."""

    out: str
    overwrite: bool

    def tree(self) -> Tree:
        return Tree(self.out, replace=self.overwrite)

    def refuse_existing(self, files: Iterable[str], listing: Iterable[Listing]) -> None:
        """Raise OutputError if a file exists that may not be replaced."""
        if not self.overwrite:
            refuse_existing(self.out, files, listing)


@dataclass(slots=True)
class Tally:
    """Counts of one piece of work. ``counts``: files by kind (IMAGE, CAPTION, OTHER). The others: see Extraction."""

    counts: list[int]
    bytes: int = 0
    replaced: int = 0
    failed: int = 0
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def fail(self, text: str) -> None:
        self.failed += 1
        if self.failed <= LISTED:
            self.failures += (printable(text),)


def cut_evenly(weights: Int64s, most: int) -> list[tuple[int, int]]:
    """Ranges (end exclusive) that cover all weights in order. Each weighs about ``most`` or less, or is a single
    item."""
    ends = np.cumsum(weights)
    pieces = max(1, -(-int(ends[-1]) // max(1, most))) if len(ends) else 0
    cuts = [int(np.searchsorted(ends, ends[-1] * number / pieces)) for number in range(1, pieces)]
    edges = sorted({0, *cuts, len(ends)})
    return list(pairwise(edges))


def target(total: int, workers: int) -> int:
    return min(max(total // (workers * 4), _PIECE[0]), _PIECE[1])


def write(tree: Tree, name: str, blocks: Iterable[bytes], kind: int | None, tally: Tally) -> None:
    """Write a file and count it. ``kind`` None: a file of the listing. It appears only when whole, and is not
    counted."""
    try:
        size = tree.write(name, blocks, whole=kind is None)
    except NameRefusedError as error:
        tally.fail(f"{error.args[0]}: {error.args[1]}")
        return
    if kind is not None:
        tally.bytes += size
        tally.counts[kind] += 1


def write_listing(place: Place, listing: Iterable[Listing], tally: Tally) -> None:
    """Write the listing files."""
    with place.tree() as tree:
        for name, blocks in listing:
            write(tree, name, blocks, None, tally)


def work_through(
    crew: Engine, work: Any, tasks: Iterable[Any], whole: Tally, files: int, size: int, quiet: bool
) -> Tally:
    """Run ``work`` on all tasks, and add what it counted to ``whole``."""
    with Progress("extracting", files, size, quiet=quiet) as progress:
        for tally in crew.run(work, tasks, progress.update):
            whole.counts = [a + b for a, b in zip(whole.counts, tally.counts, strict=True)]
            whole.bytes += tally.bytes
            whole.failed += tally.failed
            whole.failures = tuple(sorted({*whole.failures, *tally.failures})[:LISTED])
    return whole
