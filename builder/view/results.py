"""The rows of a query. A thread finds them. The page shows the first rows while the thread finds more."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from builder.base.arrays import bools_of
from builder.base.errors import Laion6mError
from builder.curate.measures import Numbers, Positions, captions
from builder.view.catalog import Catalog
from builder.view.query import Query, Range

Where = Callable[[str], Positions]
"""A condition in SQL → positions for which it is true, ascending. Raises Laion6mError for an invalid condition."""

_KEPT = 8  # results kept; one of six million rows takes 48 MB
_RUNNING = 4  # searches at a time; one more cancels the oldest


@dataclass(frozen=True, slots=True)
class Page:
    """``positions``: of the rows asked for, as far as found. ``total``: the number of rows found so far. ``done``: the
    search is complete."""

    positions: Positions
    total: int
    done: bool


class Result:
    """The rows of one query, in the query's order. Thread-safe."""

    def __init__(self, catalog: Catalog, query: Query, where: Where) -> None:
        self._catalog, self._query, self._where = catalog, query, where
        self._found = [np.zeros(0, np.int64)]
        self._total = 0
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self.cancelled = False
        self.done = False
        self.failed = False  # and the error was raised

    def run(self) -> None:
        try:
            found: Iterable[Positions] = self._search(self._candidates())
            if self._query.order:  # sorting needs all rows, so nothing is shown before
                found = [self._ordered(np.concatenate([np.zeros(0, np.int64), *found]))]
            for some in found:
                self._put(some)
        except Exception as error:  # noqa: BLE001 - raised to whoever asks for the rows
            self._error = error
        with self._changed:
            self.done = True
            self._changed.notify_all()

    def page(self, offset: int, limit: int, wait: float) -> Page:
        """Up to ``limit`` positions from ``offset`` on. Waits up to ``wait`` seconds for them. Raises the search's
        error."""
        end = time.monotonic() + wait
        with self._changed:
            while not self.done and self._total < offset + limit and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            if self._error is not None:
                self.failed = True
                raise self._error
            if len(self._found) > 1:
                self._found = [np.concatenate(self._found)]
            return Page(self._found[0][offset : offset + limit], self._total, self.done)

    def positions(self) -> Positions:
        """All positions. Waits until the search is complete. Raises Laion6mError after a minute."""
        page = self.page(0, len(self._catalog) + 1, 60.0)
        if not page.done:
            raise Laion6mError("the search is still running: ask again")
        return page.positions

    def _put(self, positions: Positions) -> None:
        with self._changed:
            self._found.append(positions)
            self._total += len(positions)
            self._changed.notify_all()

    def _candidates(self) -> Positions:
        """Positions that meet the condition and the ranges, ascending."""
        left = self._where(self._query.where) if self._query.where else np.arange(len(self._catalog))
        for each in self._query.filters:
            left = left[_within(self._catalog.numbers(each.column)[left], each)]
        return left

    def _search(self, candidates: Positions) -> Iterator[Positions]:
        """The candidates whose captions contain all terms, as they are found. Raises Laion6mError if cancelled."""
        if not self._query.terms:
            yield candidates
            return
        import pyarrow.compute as pc

        for some, texts in captions(self._catalog.dataset, candidates, self._catalog.captions()):
            if self.cancelled:
                raise Laion6mError("newer searches ended this one: search again")
            holds = np.ones(len(some), dtype=np.bool_)
            for term in self._query.terms:
                holds &= bools_of(pc.match_substring(texts, term, ignore_case=True))
            yield some[holds]

    def _ordered(self, positions: Positions) -> Positions:
        order = self._query.order
        if order == "random":
            return np.random.default_rng(0).permutation(positions)
        values = self._catalog.numbers(order.removeprefix("-"))[positions]
        if order.startswith("-"):
            values = -values.astype(np.float64)  # NaN stays last
        return positions[np.argsort(values, kind="stable")]


def _within(values: Numbers, wanted: Range) -> npt.NDArray[np.bool_]:
    holds: npt.NDArray[np.bool_] = np.ones(len(values), dtype=np.bool_) if wanted.low is None else values >= wanted.low
    if wanted.high is not None:
        holds &= values < wanted.high
    holds &= values == values  # NaN is in no range
    return holds


class Results:
    """Results by query. Keeps the last few. Thread-safe."""

    def __init__(self, catalog: Catalog, where: Where) -> None:
        self._catalog, self._where = catalog, where
        self._kept: OrderedDict[Query, Result] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, query: Query) -> Result:
        """The result of a query. Its search may still run. If it failed, it runs again."""
        with self._lock:
            known = self._kept.pop(query, None)
            if known is not None and not known.failed:
                self._kept[query] = known  # the last to be forgotten
                return known
            result = self._kept[query] = Result(self._catalog, query, self._where)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)[1].cancelled = True
            running = [each for each in self._kept.items() if not each[1].done]
            for name, each in running[:-_RUNNING]:
                each.cancelled = True
                del self._kept[name]
        threading.Thread(target=result.run, daemon=True).start()
        return result
