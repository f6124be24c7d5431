"""What verification finds wrong: the place, the problem, the rows, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from builder.base.words import printable

MOST_NAMED = 20
"""Rows that one finding names. It counts the others: a whole damaged shard would fill screens."""

MAKE_SHARD = (
    "Restore the file from a copy, or remove it and run the same laion6m convert again: only this shard is made anew."
)
UNDECODABLE = (
    "If verify does not say that its checksum is wrong, the source has it like that: leave it out of the listing and "
    "convert again, or have training skip it."
)
MAKE_META = "Run the same laion6m convert (or index) again. It makes meta/ anew and keeps finished shards."
INDEX_AGAIN = "Restore the source's files, or run laion6m index again."
OTHER_SOURCE = "Give the source that OUT was made from, unchanged. Or convert this source into another OUT."


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
        text = f"{self.place}: {self.problem}"
        if self.count:
            rows = ", ".join(f"row {row} ({key})" for row, key in self.named)
            more = self.count - len(self.named)
            text += f": {rows}" + (f" and {more:,} more" if more else "")
        return printable(f"{text}. {self.remedy}".rstrip())


class Findings:
    """Collects findings about consecutive rows. ``first``: number of their first row. ``key_of``: row, counted from
    ``first``, to key."""

    def __init__(self, place: str, remedy: str, first: int = 0, key_of: Callable[[int], str] | None = None) -> None:
        self.found: list[Finding] = []
        self._noted: dict[tuple[str, str | None], list[int]] = {}
        self._place, self._remedy, self._first, self._key_of = place, remedy, first, key_of

    def add(self, problem: str, remedy: str | None = None) -> None:
        """Add a problem that affects no row."""
        self.found.append(Finding(self._place, problem, self._remedy if remedy is None else remedy))

    def rows(self, problem: str, rows: Iterable[int] | Sequence[int], remedy: str | None = None) -> None:
        """Add a problem of these rows, counted from ``first``. No rows: no problem."""
        numbers = [int(row) for row in rows]
        if numbers:
            key_of = self._key_of or (lambda row: "?")
            named = tuple((self._first + row, key_of(row)) for row in numbers[:MOST_NAMED])
            remedy = self._remedy if remedy is None else remedy
            self.found.append(Finding(self._place, problem, remedy, named, len(numbers)))

    def note(self, problem: str, row: int, remedy: str | None = None) -> None:
        """Note a problem of one row. ``result`` makes one finding of all rows with the same problem."""
        self._noted.setdefault((problem, remedy), []).append(row)

    def result(self) -> list[Finding]:
        """All findings, the noted ones last."""
        for (problem, remedy), rows in self._noted.items():
            self.rows(problem, rows, remedy)
        self._noted.clear()
        return self.found


def in_file_order(found: list[Finding]) -> list[Finding]:
    """The same findings whatever worker was first: by place, then by row."""
    return sorted(found, key=lambda finding: (finding.place, finding.named, finding.problem))
