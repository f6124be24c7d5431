"""What verification finds wrong: the place, the problem, the rows, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from builder.base.errors import DamagedFileError
from builder.base.words import printable

MOST_NAMED = 20
"""Rows that one finding names. It counts the others: a whole damaged shard would fill screens."""


class Remedy:
    """What to do about a problem."""

    SHARD = "Restore it from a copy. Or remove it and run the same laion6m convert again: it makes only this shard."
    IMAGE = (
        "If verify does not report its checksum too, the source has the image like that. Then leave it out of the "
        "listing and convert again. Or let training skip it."
    )
    META = "Run the same laion6m convert (or index) again. It makes meta/ anew and keeps finished shards."
    INDEX = "Restore the source's files, or run laion6m index again."
    SOURCE = "Give the source that OUT was made from, unchanged. Or convert this source into another OUT."


@dataclass(frozen=True, slots=True)
class Finding:
    """``place``: a file, or a part of the folder. ``named``: (row number, key) of the first MOST_NAMED of ``count``
    affected rows. ``count`` is 0 if the problem affects no row."""

    place: str
    problem: str
    remedy: str = ""
    named: tuple[tuple[int, str], ...] = ()
    count: int = 0

    def __str__(self) -> str:
        text = f"{self.place}: {self.problem.rstrip('.')}"
        if self.count:
            rows = ", ".join(f"row {row} ({key})" for row, key in self.named)
            more = self.count - len(self.named)
            text += f": {rows}" + (f" and {more:,} more" if more else "")
        return printable(f"{text}. {self.remedy}".rstrip())


class Findings:
    """Collects problems of consecutive rows. One finding holds all rows with the same problem. ``first``: number of the
    first row. ``key_of``: row, counted from ``first``, to key."""

    def __init__(self, place: str, remedy: str, first: int = 0, key_of: Callable[[int], str] = lambda row: "?") -> None:
        self._place, self._remedy, self._first, self._key_of = place, remedy, first, key_of
        self._rows: dict[tuple[str, str], list[int]] = {}

    def add(self, problem: str) -> None:
        """Add a problem that affects no row."""
        self._rows.setdefault((problem, self._remedy), [])

    def rows(self, problem: str, rows: Iterable[int], remedy: str | None = None) -> None:
        """Add a problem of these rows, counted from ``first``. No rows: no problem."""
        if numbers := [int(row) for row in rows]:
            remedy = self._remedy if remedy is None else remedy
            self._rows.setdefault((problem, remedy), []).extend(numbers)

    @property
    def found(self) -> list[Finding]:
        """What was added, in this order."""
        return [
            Finding(self._place, problem, remedy, tuple(map(self._named, rows[:MOST_NAMED])), len(rows))
            for (problem, remedy), rows in self._rows.items()
        ]

    def _named(self, row: int) -> tuple[int, str]:
        return self._first + row, self._key_of(row)


def told(error: Exception) -> str:
    """An error as a problem of its file: one line, without the file's name. The other lines are addresses and
    traces."""
    if isinstance(error, DamagedFileError):
        return f"{error.args[1]}: {error.args[2]}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]


def in_file_order(found: Iterable[Finding]) -> list[Finding]:
    """The same findings whatever worker was first: by place, then by row."""
    return sorted(found, key=lambda finding: (finding.place, finding.named, finding.problem))
