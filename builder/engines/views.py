"""What a stage's counts look like: a bar, lines, JSON lines, or a log's."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from builder.base.words import duration, printable
from builder.base.words import size as in_words

STYLES = ("auto", "bar", "lines", "json", "none")

_BAR_EVERY = 0.1  # seconds
_NARROW = 10  # columns of the bar itself, at least
_MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counts of a stage. ``total``: of ``unit``; None: unknown, ``size`` (bytes) tells the share where it is not 0.
    ``images``, ``bytes``: by this run, in ``seconds``. ``first``: done before it, of what tells the share."""

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
        """Of ``all``, earlier runs' work included."""
        return self.first + (self.bytes if self.by_bytes else self.images)

    @property
    def all(self) -> int | None:
        return self.size if self.by_bytes else self.total

    @property
    def share(self) -> float | None:
        """0 to 1; None where it is not known."""
        if self.all is None:
            return None
        return min(1.0, self.done / self.all) if self.all else 1.0

    @property
    def rate(self) -> float:
        """Units a second, of this run."""
        return self.images / max(self.seconds, 1e-6)

    @property
    def left(self) -> float | None:
        """Seconds, by this run's rate; None while it cannot be known."""
        made = self.bytes if self.by_bytes else self.images
        if self.all is None or not made:
            return None
        return max(0, self.all - self.done) / made * self.seconds


def figures(now: Snapshot) -> list[str]:
    """Facts about a stage in words, the most telling first."""
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
    """As many of the facts as there is room for, in columns."""
    text = ""
    for fact in facts:
        longer = f"{text}, {fact}" if text else fact
        if len(longer) > room:
            break
        text = longer
    return text


class View(Protocol):
    """Shows snapshots of one stage. ``show`` and ``close`` may raise OSError."""

    first: float
    """Seconds after the stage's begin at which it is shown first."""

    def pause(self, age: float) -> float:
        """Seconds until it is to be shown again, ``age`` seconds after the stage began."""

    def show(self, now: Snapshot) -> None: ...

    def close(self, now: Snapshot) -> None:
        """The stage has ended."""


def view_of(style: str) -> list[View]:
    """A view on stderr of this style; none where there is no stderr."""
    if style == "none" or sys.stderr is None:
        return []
    if style == "json":
        return [JsonLines()]
    if style == "bar" or (style == "auto" and (sys.stderr.isatty() or "ipykernel" in sys.modules)):
        return [Bar()]
    return [Lines()]


class Bar:
    """tqdm's bar. It is imported when a stage is shown first: a command that is done by then does not pay for it."""

    first = _BAR_EVERY

    def __init__(self) -> None:
        self._bar: Any = None
        self._columns = 0

    def pause(self, age: float) -> float:
        return _BAR_EVERY

    def show(self, now: Snapshot) -> None:
        if self._bar is None:
            self._bar = _make_bar(now)
        self._bar.now = now
        self._bar.total = now.all
        self._bar.n = now.done if now.all is None else min(now.done, now.all)
        terminal = sys.stderr.isatty()
        if terminal:
            self._clear_below()
        self._bar.refresh()
        if terminal:  # leave the cursor in front: what the terminal echoes of a ^C shall not begin another line
            sys.stderr.write("\r")
            sys.stderr.flush()

    def _clear_below(self) -> None:
        """In a terminal that was made narrower the bar takes several lines, the cursor in front of the first."""
        with suppress(OSError, ValueError):
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
            if columns < self._columns:
                sys.stderr.write("\033[J")
            self._columns = columns

    def clear(self) -> None:
        """Take it off the screen until it is shown again."""
        if self._bar is not None:
            self._bar.clear()

    def close(self, now: Snapshot) -> None:
        if self._bar is not None:
            self._bar.close()


def _make_bar(now: Snapshot) -> Any:
    if "ipykernel" in sys.modules and not sys.stderr.isatty():
        from tqdm.auto import tqdm
    else:
        from tqdm.std import tqdm  # tqdm.auto without asyncio: 45 ms less

    class Made(tqdm):  # type: ignore[misc,type-arg,unused-ignore]
        """With our figures, which name what is counted, as many as fit."""

        monitor_interval = 0  # no thread of its own: this one comes from one
        _lock = threading.RLock()  # else tqdm makes a semaphore for processes
        now: Snapshot

        @property
        def format_dict(self) -> dict[str, Any]:
            facts = dict(super().format_dict)
            columns = facts.get("ncols") or shutil.get_terminal_size().columns
            share = self.now.share
            head = self.now.stage if share is None else f"{self.now.stage} {share:4.0%}"
            bar = 0 if share is None else _NARROW + 2
            text = fitting(figures(self.now), columns - len(head) - bar - 2)
            return facts | {"head": head, "figures": text, "bar_format": _format(share)}

    Made.now = now
    return Made(total=now.all, initial=now.first, leave=False, dynamic_ncols=True, file=sys.stderr)


def _format(share: float | None) -> str:
    return "{head} {figures}" if share is None else "{head} {bar} {figures}"


class Lines:
    """A line at first every 5 seconds, after a minute every minute."""

    first = 5.0

    def pause(self, age: float) -> float:
        return 5.0 if age < _MINUTE else _MINUTE

    def show(self, now: Snapshot) -> None:
        _write(line(now))

    def close(self, now: Snapshot) -> None:
        """What comes next is said by whoever comes next."""


def line(now: Snapshot) -> str:
    """``converting: 45%, 7,200/15,984 images, 3 s left, 3,312 images/s, 352.10 MB/s``"""
    facts = figures(now) if now.share is None else [f"{now.share:.0%}", *figures(now)]
    return ": ".join(filter(None, (now.stage, ", ".join(facts))))


class JsonLines:
    """One object a line: at the begin, every second, at the end."""

    first = 0.0

    def pause(self, age: float) -> float:
        return 1.0

    def show(self, now: Snapshot) -> None:
        rate = (now.bytes if now.by_bytes else now.images) / max(now.seconds, 1e-6)
        _write(
            json.dumps(
                {
                    "stage": now.stage,
                    "done": now.done,
                    "total": now.all,
                    "bytes": now.bytes,
                    "rate": round(rate, 3),
                    "eta": None if now.left is None else round(now.left, 3),
                }
            )
        )

    close = show


class Log:
    """Begin and end of a stage, and a line every minute, through ``logging``."""

    first = 0.0

    def __init__(self, log: logging.Logger) -> None:
        self._log = log

    def pause(self, age: float) -> float:
        return _MINUTE

    def show(self, now: Snapshot) -> None:
        self._log.info("%s", line(now))

    def close(self, now: Snapshot) -> None:
        self._log.info("%s; %s", line(now), duration(now.seconds))


def _write(text: str) -> None:
    sys.stderr.write(printable(text) + "\n")
    sys.stderr.flush()
