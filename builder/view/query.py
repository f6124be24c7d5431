"""A query: words in captions, a condition in SQL, ranges of numbers, an order."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from builder.base.errors import OptionError

MOST_TEXT = 4000
"""The most characters of a search or a condition. Nobody types more, and each word scans all captions."""
_MOST_TERMS = 20
_TERM = re.compile(r'"([^"]*)"|(\S+)')


@dataclass(frozen=True, slots=True)
class Range:
    """A range of a column: ``low`` ≤ value < ``high``. None means no limit."""

    column: str
    low: float | None = None
    high: float | None = None

    @staticmethod
    def parse(text: str) -> Range:
        """Parse a range such as ``"width:512:768"`` or ``"width:768:"``. Raises OptionError."""
        column, _, bounds = text.rpartition(":")
        column, _, first = column.rpartition(":")
        try:
            low, high = (float(each) if each else None for each in (first, bounds))
        except ValueError:
            column, low, high = "", None, None
        if not column or not all(each is None or math.isfinite(each) for each in (low, high)):
            raise OptionError("filter", text[:60], "COLUMN:LOW:HIGH, with numbers or nothing for LOW and HIGH")
        return Range(column, low, high)


@dataclass(frozen=True, slots=True)
class Query:
    """``terms``: the caption must contain all of them, in upper or lower case. ``where``: a condition in SQL.
    ``order``: "" (the dataset's order), "random", or a measure. A "-" before the measure means descending."""

    terms: tuple[str, ...] = ()
    where: str = ""
    filters: tuple[Range, ...] = field(default=())
    order: str = ""

    @staticmethod
    def parse(given: Mapping[str, str]) -> Query:
        """Parse ``search``, ``where``, ``filter`` (ranges separated by semicolons) and ``sort``. Raises OptionError."""
        for name in ("search", "where", "filter", "sort"):
            if len(given.get(name, "")) > MOST_TEXT:
                raise OptionError(name, f"{given[name][:40]}…", f"at most {MOST_TEXT:,} characters")
        ranges = tuple(Range.parse(each) for each in given.get("filter", "").split(";") if each)
        terms = search_terms(given.get("search", ""))
        return Query(terms, given.get("where", "").strip(), ranges, given.get("sort", ""))

    @property
    def is_everything(self) -> bool:
        return self == Query()


def search_terms(text: str) -> tuple[str, ...]:
    """The terms of a search. Words between double quotes are one term: ``'red "on a bench"'`` → ``("red", "on a
    bench")``. Raises OptionError."""
    found = tuple(phrase or word for phrase, word in _TERM.findall(text) if phrase or word.strip('"'))
    if len(found) > _MOST_TERMS:
        raise OptionError("search", f"{text[:40]}…", f"at most {_MOST_TERMS} words; put phrases between double quotes")
    return found
