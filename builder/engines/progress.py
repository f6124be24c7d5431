"""How far a run is, on stderr: a bar on a terminal and in notebooks, else a line now and then.

    stage → Progress (counts) → a thread, now and then → Snapshot → views: bar, lines or JSON lines; and the log

Counting is one addition. A thread shows the counts. So a stage that reports nothing for a while still shows that it
runs. If the terminal goes away, only the showing ends, not the run.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

from builder.engines.views import STYLES, Bar, Log, Snapshot, View, view_of

_log = logging.getLogger(__name__)

_drawing = threading.RLock()
"""Held while anything is written or imported for writing. A fork waits for it: the child would inherit it locked."""
os.register_at_fork(before=_drawing.acquire, after_in_parent=_drawing.release, after_in_child=_drawing.release)

_style = "auto"


def show_progress(style: str) -> None:
    """Set how this process shows progress: one of STYLES. "auto": a bar on a terminal and in notebooks, else lines."""
    global _style
    assert style in STYLES, style
    _style = style


def say(text: str, *, quiet: bool = False) -> None:
    """Show a message above the bar, if there is one, and log it. ``quiet``: only log it."""
    _log.info("%s", text)
    if quiet or sys.stderr is None:
        return
    with _drawing, suppress(OSError, ValueError):  # the terminal went away, or the log's disk is full
        if Bar.shown is not None:
            Bar.shown.clear()
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def announce(sentences: Iterable[str], *, quiet: bool) -> None:
    """Show notes, such as how a source was read. ``quiet``, or a process that shows no progress: only log them."""
    for sentence in sentences:
        say(sentence, quiet=quiet or _style == "none")


class Progress:
    """One stage of a run. Use it as a context manager, or end it with ``finish``. Thread-safe.

    ``total``: number of ``unit`` in all; None if unknown. Then ``size``, the bytes in all, gives the share. ``done``:
    done by earlier runs; the bar begins there. Rates are of this run only. ``quiet``: show nothing. ``total`` and
    ``size`` may be set while it runs.
    """

    def __init__(
        self,
        stage: str,
        total: int | None = None,
        size: int = 0,
        *,
        unit: str = "images",
        done: int = 0,
        quiet: bool = False,
    ) -> None:
        self.stage, self.unit = stage, unit
        self.total, self.size = total, size
        self._first = done
        self.images = 0
        """Units counted by this run, whatever ``unit`` is."""
        self.bytes = 0
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._ended = threading.Event()
        self._views: list[View] = [] if quiet else view_of(_style)
        if _log.isEnabledFor(logging.INFO):
            self._views.append(Log(_log))
        self._thread = threading.Thread(target=self._show_on, daemon=True) if self._views else None
        if self._thread:
            self._due = [view.first for view in self._views]
            self._show(0.0)
            self._thread.start()

    def update(self, images: int, size: int = 0) -> None:
        """Add to the counts."""
        with self._lock:
            self.images += images
            self.bytes += size

    def finish(self) -> None:
        """End the stage and leave the terminal's line clean. A second call does nothing."""
        if self._thread is None or self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        with _drawing:
            snapshot = self.snapshot()
            for view in self._views:
                with suppress(OSError, ValueError):
                    view.close(snapshot)

    def snapshot(self) -> Snapshot:
        with self._lock:
            counts = (self.total, self.size, self.images, self.bytes, self._first)
            return Snapshot(self.stage, self.unit, *counts, self._age())

    def _age(self) -> float:
        return time.monotonic() - self._started

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def _show_on(self) -> None:
        """The thread's loop, until the stage ends or nothing can be shown any more."""
        while self._views and not self._ended.wait(max(0.0, min(self._due) - self._age())):
            self._show(self._age())

    def _show(self, age: float) -> None:
        with _drawing:
            for number, view in reversed(list(enumerate(self._views))):
                if age < self._due[number]:
                    continue
                try:
                    view.show(self.snapshot())
                    self._due[number] = age + view.pause(age)
                except (OSError, ValueError):  # ValueError: the file is closed
                    del self._views[number], self._due[number]
