"""The viewer's HTTP API: paths → answers. For the page and for scripts. docs/howto/look.md lists the paths."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import resources
from typing import Any

import numpy as np

from builder.base.errors import DamagedFileError, IndexMismatchError, Laion6mError, OptionError
from builder.base.records import SampleProblem
from builder.curate.measures import bar_counts
from builder.curate.statistics import phrases
from builder.view.catalog import Catalog
from builder.view.formats import OTHER, media_type
from builder.view.groups import Groups
from builder.view.query import Query
from builder.view.rejects import Rejects
from builder.view.results import Page, Results
from builder.view.selection import save_selection, select_command
from builder.view.server import Answer, Request
from builder.view.thumbnails import SIDES, Thumbnails

MOST_ROWS = 500
"""The most rows of one answer."""
_WAIT = 0.4  # seconds to wait for a full page of hits; then answer with the hits so far
_MOST_ANNOTATION = 1 << 20  # most characters of an annotation that are sent to the page

_STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("app", "dom", "gallery", "detail", "tabs", "plots")
    },
}
"""The page's files. Only these can be requested: a request's path never becomes a path on this machine."""

Route = Callable[..., Answer]
"""Arguments: the Request; then the number or name in the path, if there is one."""


class NotThereError(Exception):
    """The row, reject or file does not exist."""


class Viewer:
    """Answers for one dataset. Thread-safe."""

    def __init__(
        self, catalog: Catalog, results: Results, rejects: Rejects, groups: Groups, facts: Mapping[str, Any]
    ) -> None:
        """``facts``: what the page shows about the dataset besides its rows."""
        self._catalog, self._results, self._rejects, self._groups = catalog, results, rejects, groups
        self._facts = facts
        self._thumbnails = Thumbnails()
        self._phrases: Any = None
        self._routes: tuple[tuple[str, str, Route], ...] = (
            ("GET", r"/api/dataset", self._dataset),
            ("GET", r"/api/rows", self._rows),
            ("GET", r"/api/rows/(\d{1,15})", self._row),
            ("GET", r"/api/rows/(\d{1,15})/similar", self._similar),
            ("GET", r"/api/histograms/(\w+)", self._histogram),
            ("GET", r"/api/phrases", self._frequent),
            ("GET", r"/api/rejects", self._rejected),
            ("GET", r"/api/duplicates", self._duplicates),
            ("GET", r"/api/selection", self._selection),
            ("POST", r"/api/selections", self._save),
            ("GET", r"/images/(\d{1,15})", self._image),
            ("GET", r"/thumbnails/(\d{1,15})", self._thumbnail),
            ("GET", r"/rejects/(\d{1,15})", self._reject_image),
        )

    def __call__(self, request: Request) -> Answer:
        try:
            return self._answer(request)
        except (NotThereError, IndexError):
            return Answer.error(404, f"{request.path[:100]} is not there")
        except SampleProblem as problem:
            return Answer.error(415, problem.detail)
        except (IndexMismatchError, DamagedFileError) as error:
            return Answer.error(409, str(error))
        except Laion6mError as error:
            return Answer.error(400, f"error: {error}")
        except Exception as error:  # noqa: BLE001 - an error in the answer is better than a closed connection
            return Answer.error(500, f"{type(error).__name__}: {error}")

    def _answer(self, request: Request) -> Answer:
        if static := _STATIC.get(request.path):
            return _file(*static) if request.method in ("GET", "HEAD") else Answer.not_allowed("GET, HEAD")
        for method, pattern, route in self._routes:
            if found := re.fullmatch(pattern, request.path, re.ASCII):
                if request.method not in ((method, "HEAD") if method == "GET" else (method,)):
                    return Answer.not_allowed(method)
                return route(request, *(int(each) if each.isdigit() else each for each in found.groups()))
        raise NotThereError

    def _dataset(self, request: Request) -> Answer:
        measures = [
            {"name": name, "label": label, "unit": unit} for name, (label, unit) in self._catalog.measures.items()
        ]
        return Answer.of({**self._facts, "rows": len(self._catalog), "measures": measures})

    def _rows(self, request: Request) -> Answer:
        offset, limit = _span(request)
        query = Query.parse(request.query)
        page = self._page(query, offset, limit)
        rows = [self._brief(int(position)) for position in page.positions]
        return Answer.of({"total": page.total, "done": page.done, "offset": offset, "terms": query.terms, "rows": rows})

    def _page(self, query: Query, offset: int, limit: int) -> Page:
        if query.is_everything:
            end = min(offset + limit, len(self._catalog))
            return Page(np.arange(min(offset, end), end), len(self._catalog), True)
        return self._results.get(query).page(offset, limit, _WAIT)

    def _brief(self, position: int) -> dict[str, Any]:
        """The facts that a tile shows."""
        sample = self._catalog.sample(position)
        return {"row": position} | {name: sample[name] for name in ("key", "caption", "width", "height", "size")}

    def _row(self, request: Request, row: int) -> Answer:
        """All facts of one row."""
        sample = self._catalog.sample(row)
        batch, at = sample._batch, sample._at
        file = self._catalog.dataset.shards[batch.file[at]]
        digest = sample.digest
        problem = ""
        try:
            annotation = sample.annotation
        except Laion6mError as error:
            annotation, problem = "", str(error)
        return Answer.of(
            {
                **self._brief(row),
                "path": sample.path,
                "annotation_path": sample.annotation_path,
                "annotation": _annotation(annotation),
                "problem": problem,
                "position": sample.position,
                "digest": digest.hex() if digest else None,
                "columns": self._catalog.added(row),
                "place": {"file": file.path, "offset": batch.offset[at], "size": batch.size[at]},
            }
        )

    def _similar(self, request: Request, row: int) -> Answer:
        """A row's group of duplicates. Empty if it has none."""
        return Answer.of(self._group(self._groups.of(row)))

    def _histogram(self, request: Request, name: str) -> Answer:
        """The histogram of all rows. ``selected``: that of the query's rows, null if the query selects all."""
        query = Query.parse(request.query)
        if name not in self._catalog.measures:
            raise NotThereError
        bars = self._catalog.histogram(name)
        selected = None
        if not query.is_everything and bars.edges:
            values = self._catalog.numbers(name)[self._results.get(query).positions()]
            selected = bar_counts(values[values == values], bars.edges).tolist()
        return Answer.of({**asdict(bars), "selected": selected})

    def _frequent(self, request: Request) -> Answer:
        if self._phrases is None:
            self._phrases = asdict(phrases(self._catalog.dataset))
        return Answer.of(self._phrases)

    def _rejected(self, request: Request) -> Answer:
        reason = request.query.get("reason", "")
        offset, limit = _span(request)
        total, rows = self._rejects.page(reason, offset, limit)
        return Answer.of({"reasons": self._rejects.counts(), "total": total, "rows": rows})

    def _duplicates(self, request: Request) -> Answer:
        offset, limit = _span(request, "20", most=100)
        groups = [self._group(each) for each in self._groups.page(offset, limit)]
        facts = {"total": len(self._groups), "rows": self._groups.rows, "note": self._groups.note}
        return Answer.of({**facts, "groups": groups})

    def _group(self, positions: list[int]) -> list[dict[str, Any]]:
        shown = [self._brief(each) for each in positions[:MOST_ROWS]]
        return [{**each, "kept": not number} for number, each in enumerate(shown)]

    def _selection(self, request: Request) -> Answer:
        return Answer.of(select_command(self._catalog.path, Query.parse(request.query)))

    def _save(self, request: Request) -> Answer:
        """Save a selection into the folder named on the command line, as ``laion6m select`` would. Only this route
        writes."""
        try:
            given = json.loads(request.body)
            fields = {name: str(given.get(name, "")) for name in ("search", "where", "filter", "sort")}
            name = str.strip(given["name"])
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
            raise OptionError("selection", None, "send a JSON object with name, search, where and filter") from None
        folder = self._facts.get("save")
        return Answer.of(save_selection(self._catalog.dataset, Query.parse(fields), folder, name))

    def _image(self, request: Request, row: int) -> Answer:
        return _bytes(self._catalog.sample(row).image, f"{row}")

    def _thumbnail(self, request: Request, row: int) -> Answer:
        side = _number(request.query.get("side", "320"), "side")
        if side not in SIDES:
            raise OptionError("side", side, f"one of {', '.join(map(str, SIDES))}")
        sample = self._catalog.sample(row)
        made = self._thumbnails.get(sample.digest or row, side, lambda: sample.image)
        return Answer(200, made.data, made.media_type)

    def _reject_image(self, request: Request, number: int) -> Answer:
        data = self._rejects.image(number)
        if data is None:
            raise NotThereError
        return _bytes(data, f"reject-{number}")


def _annotation(text: str) -> Any:
    """The document as JSON. As text if it is too long or too deep for a tree, or is not JSON."""
    if len(text) > _MOST_ANNOTATION:
        return text[:_MOST_ANNOTATION]
    try:
        document = json.loads(text, parse_constant=str, parse_int=_whole, parse_float=_real)
        json.dumps(document)  # if it is nested too deeply for this, it stays text
        return document
    except (ValueError, RecursionError):
        return text


def _whole(digits: str) -> int | str:
    """A whole number. Beyond 2**53 JavaScript would round it, so it stays text."""
    return int(digits) if len(digits) < 16 else digits


def _real(digits: str) -> float | str:
    """A float. Python reads ``1e999`` as infinity, which JSON cannot express."""
    return float(digits) if math.isfinite(float(digits)) else digits


def _number(text: str, name: str) -> int:
    """Parse a whole number of up to 15 digits. Raises OptionError for anything else."""
    if not re.fullmatch(r"\d{1,15}", text, re.ASCII):
        raise OptionError(name, text[:40], "a whole number, 0 or more")
    return int(text)


def _span(request: Request, limit: str = "60", most: int = MOST_ROWS) -> tuple[int, int]:
    """``offset`` and ``limit`` of a request. Raises OptionError."""
    offset, wanted = (_number(request.query.get(*each), each[0]) for each in (("offset", "0"), ("limit", limit)))
    return offset, min(wanted, most)


def _bytes(data: bytes, name: str) -> Answer:
    """An image's bytes as they are. If a browser might run them, they are sent as a download."""
    kind = media_type(data)
    headers = {"Content-Security-Policy": "default-src 'none'; sandbox"}
    if kind == OTHER:
        headers["Content-Disposition"] = f'attachment; filename="{name}.bin"'
    return Answer(200, data, kind, headers)


def _file(name: str, kind: str) -> Answer:
    return Answer(200, (resources.files("builder.view") / "page" / name).read_bytes(), kind)
