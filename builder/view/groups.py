"""Groups of duplicates. They come from the column ``duplicate_of`` if there is one. Otherwise a group is rows whose
images have the same bytes."""

from __future__ import annotations

import threading

import numpy as np

from builder.base.arrays import bools_of
from builder.curate.fingerprints import digests_of
from builder.curate.measures import Positions
from builder.curate.split import DUPLICATE_OF, group_hashes
from builder.read.view import Rows


class Groups:
    """Rows by group. Computed at the first call. Thread-safe."""

    def __init__(self, dataset: Rows) -> None:
        self._dataset = dataset
        self._lock = threading.Lock()
        self._looked_for = DUPLICATE_OF in dataset.added_columns()
        self._found: tuple[Positions, Positions] | None = None

    def _find(self) -> tuple[Positions, Positions]:
        """Positions in the order of their groups, and the start of each group (the last start is the end). In each
        group the row to keep comes first."""
        with self._lock:
            if self._found is None:
                self._found = (_looking_alike if self._looked_for else _equal_images)(self._dataset)
            return self._found

    def __len__(self) -> int:
        return len(self._find()[1]) - 1

    @property
    def rows(self) -> int:
        """The number of rows in all groups."""
        return len(self._find()[0])

    @property
    def note(self) -> str:
        """A note on the kind of duplicates, and on how to find more."""
        if self._looked_for:
            return ""
        return "These images have the same bytes. To find pictures that look the same, run laion6m duplicates DATASET."

    def page(self, offset: int, limit: int) -> list[list[int]]:
        """``limit`` groups from number ``offset`` on, the largest first. A group is positions, the row to keep
        first."""
        rows, starts = self._find()
        last = min(offset + limit, len(starts) - 1)
        return [rows[starts[at] : starts[at + 1]].tolist() for at in range(min(offset, last), last)]

    def of(self, position: int) -> list[int]:
        """The group of one row. Empty if it has no duplicates."""
        rows, starts = self._find()
        found = np.flatnonzero(rows == position)
        if not len(found):
            return []
        at = int(np.searchsorted(starts, found[0], side="right")) - 1
        return self.page(at, 1)[0]


def _looking_alike(dataset: Rows) -> tuple[Positions, Positions]:
    groups = group_hashes(dataset.reader)[np.asarray(dataset.rows, dtype=np.int64)]
    named = [bools_of(chunk.is_valid()) for chunk in dataset.column(DUPLICATE_OF).chunks]
    others = np.concatenate([np.zeros(0, np.bool_), *named])
    order = np.lexsort((np.arange(len(groups)), others, groups))  # the one to keep names no other
    return in_groups(order, groups[order][1:] == groups[order][:-1])


def _equal_images(dataset: Rows) -> tuple[Positions, Positions]:
    digests = digests_of(dataset.reader._index)
    if digests is None:
        return np.zeros(0, np.int64), np.zeros(1, np.int64)
    mine = digests[np.asarray(dataset.rows, dtype=np.int64)]
    order = np.lexsort((mine["low"], mine["high"]))
    return in_groups(order, mine[order][1:] == mine[order][:-1])


def in_groups(order: Positions, same: np.ndarray) -> tuple[Positions, Positions]:
    """Sort rows into groups, the largest first, and drop rows that are alone. ``same[i]``: ``order[i]`` and
    ``order[i + 1]`` are in one group."""
    starts = np.concatenate([[0], np.flatnonzero(~same) + 1, [len(order)]]).astype(np.int64)
    sizes = np.diff(starts)
    kept = np.flatnonzero(sizes > 1)
    kept = kept[np.lexsort((order[starts[kept]], -sizes[kept]))]
    parts = [order[starts[each] : starts[each + 1]] for each in kept]
    rows = np.concatenate([np.zeros(0, np.int64), *parts])
    return rows, np.concatenate([[0], np.cumsum(sizes[kept])]).astype(np.int64)
