"""report(DATASET, FILE): describe a dataset in one HTML file. It needs no network and no script."""

from __future__ import annotations

import base64
import os
import shlex
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from builder.base.errors import Laion6mError
from builder.base.records import SampleProblem
from builder.base.words import counted, duration
from builder.base.words import size as in_words
from builder.curate.measures import Numbers, measure
from builder.curate.statistics import Statistics, statistics
from builder.curate.thumbnails import make_thumbnail
from builder.read.opening import open_dataset
from builder.read.view import Rows
from builder.store.output import write_file
from builder.view.facts import facts_of, rejects_of
from builder.view.groups import Groups
from builder.view.rejects import Rejects

MOST_BYTES = 8_000_000
"""The most bytes of the file. Mail and code reviews still accept it."""

_SAMPLES = 100
_EXTREME = 6  # pictures of each kind
_REJECTS = 6  # with pictures, of each reason
_GROUPS, _OF_GROUP = 15, 6
_SIDE, _QUALITY = 200, 72  # pixels, JPEG: 9 kB for a photograph, 2.5 MB for all
_PICTURES = 5_500_000  # most bytes of base64; further pictures are left out
_EXTREMES = (
    ("Smallest pictures", "megapixels", False),
    ("Largest pictures", "megapixels", True),
    ("Widest", "ratio", True),
    ("Tallest", "ratio", False),
    ("Shortest captions", "caption_length", False),
    ("Longest captions", "caption_length", True),
)


@dataclass(frozen=True, slots=True)
class Tile:
    """A picture and the text below it. ``source``: a data: URL, or "" if there is no picture."""

    source: str
    words: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """``facts``: from ``facts_of``. ``extremes``: tiles by title. ``rejects``: for each reason the number, and some
    tiles. ``groups``: some groups of duplicates. ``file``: where the report was written, None if only the numbers were
    wanted."""

    name: str
    facts: dict[str, Any]
    statistics: Statistics
    samples: list[Tile]
    extremes: dict[str, list[Tile]]
    rejects: dict[str, tuple[int, list[Tile]]]
    groups: list[list[Tile]]
    group_count: int
    group_rows: int
    group_note: str
    seconds: float
    file: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The output of ``--json`` (a contract): the numbers, no pictures."""
        return {
            "dataset": self.name,
            "kind": self.facts["kind"],
            "funnel": self.facts["funnel"],
            "formats": self.facts["formats"],
            "rejected": {reason: count for reason, (count, _) in self.rejects.items()},
            "duplicates": {"groups": self.group_count, "rows": self.group_rows},
            **self.statistics.to_json(),
            "file": self.file,
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        where = f"; open {shlex.quote(self.file)} in a browser" if self.file else ""
        return f"{self.name}: {counted(self.statistics.rows, 'row')} in {duration(self.seconds)}{where}"


def report(
    dataset: str | os.PathLike[str] | Rows, file: str | os.PathLike[str] | None = None, *, source: str | None = None
) -> Report:
    """Describe a dataset, and write the report to ``file`` (HTML, under 8 MB) if it is given.

    ``dataset``: as for ``open_dataset``, or an open dataset. ``source``: the folder of tars from which rejects are
    shown. A million rows take about ten seconds. About 200 images are read. Raises what ``open_dataset`` raises, and
    WriteError.
    """
    started = time.monotonic()
    rows = dataset if isinstance(dataset, Rows) else open_dataset(dataset)
    name = os.path.basename(str(dataset if not isinstance(dataset, Rows) else rows.folder).rstrip("/")) or "dataset"
    groups = Groups(rows)
    pictures = _Pictures(rows, wanted=file is not None)
    made = Report(
        name,
        facts_of(rows),
        statistics(rows),
        [pictures.row(row) for row in _spread(len(rows))],
        {title: _extremes(rows, pictures, by, most) for title, by, most in _EXTREMES},
        _rejects(rejects_of(rows, source), pictures),
        [[pictures.row(row) for row in group[:_OF_GROUP]] for group in groups.page(0, _GROUPS)],
        len(groups),
        groups.rows,
        groups.note,
        time.monotonic() - started,
        None if file is None else os.path.abspath(os.path.expanduser(os.fspath(file))),
    )
    if made.file is not None:
        from builder.view.report_page import page

        write_file(made.file, [page(made).encode("utf-8", "replace")])
    return made


def _spread(rows: int) -> list[int]:
    """A hundred random rows, in their order. The same rows every time."""
    chosen = (
        np.random.default_rng(0).permutation(rows)[:_SAMPLES]
        if rows < 1 << 20
        else np.unique(np.random.default_rng(0).integers(0, rows, _SAMPLES))
    )
    return sorted(int(row) for row in chosen)


def _extremes(rows: Rows, pictures: _Pictures, by: str, most: bool) -> list[Tile]:
    values: Numbers = measure(rows, by)
    if not len(values):
        return []
    order = -values.astype(np.float64) if most else values
    some = np.argpartition(order, min(_EXTREME, len(order)) - 1)[:_EXTREME]
    return [pictures.row(int(row)) for row in some[np.argsort(order[some], kind="stable")]]


def _rejects(rejects: Rejects, pictures: _Pictures) -> dict[str, tuple[int, list[Tile]]]:
    found = {}
    for reason, count in rejects.counts().items():
        shown = rejects.page(reason, 0, _REJECTS)[1]
        found[reason] = (count, [pictures.reject(rejects, each) for each in shown])
    return found


@dataclass(slots=True)
class _Pictures:
    """Thumbnails as data: URLs, until the file is full."""

    rows: Rows
    wanted: bool
    left: int = field(default_factory=lambda: _PICTURES)
    kept: dict[int, Tile] = field(default_factory=dict)

    def row(self, row: int) -> Tile:
        if row not in self.kept:
            sample = self.rows[row]
            try:
                source = self._source(sample.image) if self.wanted else ""
            except Laion6mError:
                source = ""
            note = f"{sample.width} × {sample.height}, {in_words(max(sample.size, 0))} · {sample.key}"
            self.kept[row] = Tile(source, sample.caption, note)
            return self.kept[row]
        tile = self.kept[row]  # the file will hold it once more
        return tile if self._fits(tile.source) else replace(tile, source="")

    def reject(self, rejects: Rejects, each: dict[str, Any]) -> Tile:
        data = rejects.image(each["number"]) if self.wanted and each["picture"] else None
        source = self._source(data) if data else ""
        return Tile(source, each["detail"] or "", f"{each['key'] or ''} · {each['source'] or ''}".rstrip("· "))

    def _source(self, data: bytes) -> str:
        try:
            made = make_thumbnail(data, _SIDE, quality=_QUALITY)
        except SampleProblem:
            return ""
        text = f"data:{made.media_type};base64,{base64.b64encode(made.data).decode()}"
        return text if self._fits(text) else ""

    def _fits(self, text: str) -> bool:
        """Whether a picture fits. If so, its bytes are counted. A transparent picture is a PNG, which may be large."""
        fits = len(text) <= min(self.left, 200_000)
        self.left -= len(text) if fits else 0
        return fits
