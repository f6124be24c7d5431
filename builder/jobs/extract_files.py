"""Shared by all kinds of extraction: cut work into pieces of equal weight, write files, count them, overwrite nothing
unless told to."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice, pairwise

import numpy as np
import numpy.typing as npt

from builder.base.errors import OutputError
from builder.base.options import Slice
from builder.base.words import printable
from builder.engines.contract import Engine, Task, Work
from builder.engines.progress import Progress
from builder.source.endings import is_tar
from builder.store.tree import NameRefusedError, Tree

FORMS = ("card", "imagefolder", "captions")
PER_FILE = 32 << 10  # cost of creating one file, as equivalent bytes written
LISTED = 100  # failures kept as text
IMAGE, CAPTION, OTHER = 0, 1, 2
_PIECE = (4 << 20, 256 << 20)  # least and most weight of a piece of work
_NAMED = 3  # existing files listed in the error

Int64s = npt.NDArray[np.int64]
Listing = tuple[str, Iterable[bytes]]
"""A file of the listing: its name in OUT, and its bytes."""


@dataclass(frozen=True, slots=True)
class Place:
    """The folder for the files, and whether existing files may be replaced."""

    out: str
    overwrite: bool

    def tree(self) -> Tree:
        return Tree(self.out, replace=self.overwrite)


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


@dataclass(frozen=True, slots=True)
class Run:
    """How files are extracted: where to, which slice of the source, by whom."""

    place: Place
    part: Slice
    crew: Engine
    workers: int
    quiet: bool

    def cut(self, weights: Int64s, total: int) -> list[tuple[int, int]]:
        """Pieces of work, as ranges (end exclusive) of items. ``total``: the weight of all work."""
        return cut_evenly(weights, min(max(total // (self.workers * 4), _PIECE[0]), _PIECE[1]))

    def write(
        self,
        work: Work[Task, Tally],
        tasks: Iterable[Task],
        whole: Tally,
        paths: Iterable[str],
        listing: Callable[[], Iterable[Listing]],
        files: int,
        size: int,
    ) -> None:
        """Run ``work`` on all tasks, add what it counted to ``whole``, then write the listing. ``paths``: of all files
        that the tasks write. Raises OutputError if one exists that may not be replaced."""
        if not self.place.overwrite:
            refuse_existing(self.place.out, paths, listing())
        with Progress("extracting", files, size, quiet=self.quiet) as progress:
            for tally in self.crew.run(work, tasks, progress.update):
                whole.counts = [a + b for a, b in zip(whole.counts, tally.counts, strict=True)]
                whole.bytes += tally.bytes
                whole.failed += tally.failed
                whole.failures = tuple(sorted({*whole.failures, *tally.failures})[:LISTED])
        with self.place.tree() as tree:
            for name, blocks in listing():
                write(tree, name, blocks, None, whole)


def cut_evenly(weights: Int64s, most: int) -> list[tuple[int, int]]:
    """Ranges (end exclusive) that cover all weights in order. Each weighs about ``most`` or less, or is a single
    item."""
    ends = np.cumsum(weights)
    pieces = max(1, -(-int(ends[-1]) // max(1, most))) if len(ends) else 0
    cuts = [int(np.searchsorted(ends, ends[-1] * number / pieces)) for number in range(1, pieces)]
    edges = sorted({0, *cuts, len(ends)})
    return list(pairwise(edges))


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


def refuse_existing(out: str, files: Iterable[str], listing: Iterable[Listing]) -> None:
    """Raise OutputError, before anything is written, if OUT has one of ``files`` (paths below it), a different listing,
    or archives of a source of its own."""
    sides = [side for side in ("raw", "captions") if os.path.isdir(os.path.join(out, side))]
    archives = chain.from_iterable(_archives(out, side) for side in sides)
    if found := list(islice(archives, _NAMED)):
        raise OutputError(
            f"{shlex.quote(out)} holds a source ({', '.join(found)}). Extract would mix its files with those. Choose "
            "another OUT, or give --overwrite."
        )
    there = chain(_differing(out, listing), _existing(out, files) if os.path.isdir(out) and os.listdir(out) else ())
    if found := list(islice(there, _NAMED)):
        raise OutputError(
            f"{shlex.quote(out)} holds files that extract would overwrite: {', '.join(map(shlex.quote, found))}"
            f"{' …' if len(found) == _NAMED else ''}. Nothing was written. Choose another OUT, or give --overwrite."
        )


def _archives(out: str, side: str) -> Iterator[str]:
    for name in sorted(os.listdir(os.path.join(out, side))):
        if is_tar(name):
            yield f"{side}/{name}"


def _differing(out: str, listing: Iterable[Listing]) -> Iterator[str]:
    """Listing files that exist with other bytes. Another slice of the same job writes the same bytes."""
    for name, blocks in listing:
        path = os.path.join(out, name)
        if os.path.lexists(path) and not os.path.isdir(path) and not _holds(path, blocks):
            yield name


def _holds(path: str, blocks: Iterable[bytes]) -> bool:
    try:
        with open(path, "rb") as file:
            return all(file.read(len(block)) == block for block in blocks) and not file.read(1)
    except OSError:
        return False


def _existing(out: str, files: Iterable[str]) -> Iterator[str]:
    """The files that exist. Files that come together lie in two folders at most, so each folder is listed once."""
    listed = lru_cache(maxsize=2)(partial(_files_in, out))
    for file in files:
        folder, _, name = file.rpartition("/")
        if name in listed(folder):
            yield file


def _files_in(out: str, folder: str) -> frozenset[str]:
    try:
        with os.scandir(os.path.join(out, folder)) as entries:
            return frozenset(entry.name for entry in entries if not entry.is_dir(follow_symlinks=False))
    except (OSError, ValueError):  # missing, or a NUL in the name
        return frozenset()
