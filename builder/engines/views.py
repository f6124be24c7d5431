"""How a stage's counts are shown: a bar, lines, JSON lines, or log lines."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from builder.base.words import duration, printable
from builder.base.words import size as in_words

STYLES = ("auto", "bar", "lines", "json", "none")

_BAR_EVERY = 0.1  # seconds
_NARROW = 10  # minimum columns of the bar itself
_MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counts of a stage. ``total``: number of ``unit`` in all; None: unknown. Then ``size``, the bytes in all, gives
    the share, unless it is 0. ``images``, ``bytes``: done by this run, in ``seconds``. ``first``: done by earlier runs,
    in the unit that gives the share."""

    stage: str
    unit: str
    total: int | None
    size: int
    images: int
    bytes: int
    first: int
    seconds: float

    @property
    def by_bytes(self) -> bool:
        return self.total is None and self.size > 0

    @property
    def done(self) -> int:
        """Done of ``all``, by this run and earlier ones."""
        return self.first + (self.bytes if self.by_bytes else self.images)

    @property
    def all(self) -> int | None:
        return self.size if self.by_bytes else self.total

    @property
    def share(self) -> float | None:
        """0 to 1; None if unknown."""
        if self.all is None:
            return None
        return min(1.0, self.done / self.all) if self.all else 1.0

    @property
    def rate(self) -> float:
        """Units per second in this run."""
        return self.images / max(self.seconds, 1e-6)

    @property
    def left(self) -> float | None:
        """Seconds left at this run's rate; None if unknown."""
        made = self.bytes if self.by_bytes else self.images
        if self.all is None or not made:
            return None
        return max(0, self.all - self.done) / made * self.seconds


def figures(now: Snapshot) -> list[str]:
    """Facts about a stage in words, the most important first."""
    facts = []
    if now.by_bytes:
        facts.append(f"{in_words(now.done)} of {in_words(now.size)}")
    elif now.total is not None:
        facts.append(f"{now.done:,}/{now.total:,} {now.unit}")
    elif now.images:
        facts.append(f"{now.images:,} {now.unit}")
    if now.left:
        facts.append(f"{duration(now.left)} left")
    elif now.left is None and now.seconds >= 1:
        facts.append(duration(now.seconds))
    if now.images:
        facts.append(f"{now.rate:,.0f} {now.unit}/s")
    if now.bytes:
        facts.append(f"{in_words(round(now.bytes / max(now.seconds, 1e-6)))}/s")
    return facts


def fitting(facts: list[str], room: int) -> str:
    """As many of the facts as fit into ``room`` columns."""
    text = ""
    for fact in facts:
        longer = f"{text}, {fact}" if text else fact
        if len(longer) > room:
            break
        text = longer
    return text


class View(Protocol):
    """Shows snapshots of one stage. ``show`` and ``close`` may raise OSError."""

    first: float = 0.0
    """Seconds from the stage's begin to the first showing."""
    every: float = _MINUTE
    """Seconds between showings."""

    def pause(self, age: float) -> float:
        """Seconds until the next showing, ``age`` seconds after the stage began."""
        return self.every

    def show(self, now: Snapshot) -> None: ...

    def close(self, now: Snapshot) -> None:
        """The stage has ended."""
        return


def view_of(style: str) -> list[View]:
    """Views on stderr in this style; none if there is no stderr."""
    if style == "none" or sys.stderr is None:
        return []
    if style == "json":
        return [JsonLines()]
    if style == "bar" or (style == "auto" and (sys.stderr.isatty() or "ipykernel" in sys.modules)):
        return [Bar()]
    return [Lines()]


class Bar(View):
    """tqdm's bar. tqdm is imported at the first showing: a quick command does without."""

    first = every = _BAR_EVERY
    shown: ClassVar[Bar | None] = None
    """The bar that is on the screen."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._columns = 0

    def show(self, now: Snapshot) -> None:
        Bar.shown = self
        if self._bar is None:
            self._bar = _make_bar(now)
        self._bar.now = now
        self._bar.total = now.all
        self._bar.n = now.done if now.all is None else min(now.done, now.all)
        terminal = sys.stderr.isatty()
        if terminal:
            self._clear_below()
        self._bar.refresh()
        if terminal:  # leave the cursor in front, so that an echoed ^C starts no new line
            sys.stderr.write("\r")
            sys.stderr.flush()

    def _clear_below(self) -> None:
        """In a terminal that was made narrower, the bar takes several lines. The cursor is at the start of the
        first."""
        with suppress(OSError, ValueError):
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
            if columns < self._columns:
                sys.stderr.write("\033[J")
            self._columns = columns

    def clear(self) -> None:
        """Remove the bar from the screen until the next showing."""
        if self._bar is not None:
            self._bar.clear()

    def close(self, now: Snapshot) -> None:
        if Bar.shown is self:
            Bar.shown = None
        if self._bar is not None:
            self._bar.close()


def _make_bar(now: Snapshot) -> Any:
    if "ipykernel" in sys.modules and not sys.stderr.isatty():
        from tqdm.auto import tqdm
    else:
        from tqdm.std import tqdm  # tqdm.auto without asyncio: 45 ms less

    class Made(tqdm):  # type: ignore[misc,type-arg,unused-ignore]
        """A bar with our figures, as many as fit. They name what is counted."""

        monitor_interval = 0  # no monitor thread: we already call it from a thread
        _lock = threading.RLock()  # else tqdm creates a multiprocessing semaphore
        now: Snapshot

        @property
        def format_dict(self) -> dict[str, Any]:
            facts = dict(super().format_dict)
            columns = facts.get("ncols") or shutil.get_terminal_size().columns
            share = self.now.share
            head = self.now.stage if share is None else f"{self.now.stage} {share:4.0%}"
            bar = 0 if share is None else _NARROW + 2
            text = fitting(figures(self.now), columns - len(head) - bar - 2)
            shown = "{head} {figures}" if share is None else "{head} {bar} {figures}"
            return facts | {"head": head, "figures": text, "bar_format": shown}

    Made.now = now
    return Made(total=now.all, initial=now.first, leave=False, dynamic_ncols=True, file=sys.stderr)


class Lines(View):
    """A line every 5 seconds at first, every minute after a minute."""

    first = 5.0

    def pause(self, age: float) -> float:
        return 5.0 if age < _MINUTE else _MINUTE

    def show(self, now: Snapshot) -> None:
        _write(line(now))


def line(now: Snapshot) -> str:
    """``converting: 45%, 7,200/15,984 images, 3 s left, 3,312 images/s, 352.10 MB/s``"""
    facts = figures(now) if now.share is None else [f"{now.share:.0%}", *figures(now)]
    return ": ".join(filter(None, (now.stage, ", ".join(facts))))


class JsonLines(View):
    """One JSON object a line: at the beginning, every second, at the end."""

    every = 1.0

    def show(self, now: Snapshot) -> None:
        rate = (now.bytes if now.by_bytes else now.images) / max(now.seconds, 1e-6)
        facts = {
            "stage": now.stage,
            "done": now.done,
            "total": now.all,
            "bytes": now.bytes,
            "rate": round(rate, 3),
            "eta": None if now.left is None else round(now.left, 3),
        }
        _write(json.dumps(facts))

    close = show


class Log(View):
    """Log a stage's beginning and end, and a line every minute, through ``logging``."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log

    def show(self, now: Snapshot) -> None:
        self._log.info("%s", line(now))

    def close(self, now: Snapshot) -> None:
        self._log.info("%s; %s", line(now), duration(now.seconds))


def _write(text: str) -> None:
    sys.stderr.write(printable(text) + "\n")
    sys.stderr.flush()
