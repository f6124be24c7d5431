"""How far files are on their way, on stderr: one bar in bytes for all of them."""

from __future__ import annotations

import sys
import threading
import time
from io import StringIO
from typing import TextIO

from builder.base.words import duration
from builder.base.words import size as in_words

_BAR_EVERY, _LINE_EVERY = 0.1, 5.0  # seconds
_WIDTH = 24


class Transfer:
    """Bytes sent, by file, against a total. ``quiet`` shows and says nothing. Thread-safe."""

    def __init__(self, what: str, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr or StringIO()  # none: a daemon's, closed
        self._what, self._quiet = what, quiet
        self._terminal = self._stream.isatty()
        self._started = self._shown = time.monotonic()
        self._lock = threading.Lock()
        self._sent: dict[str, int] = {}
        self._bytes = 0
        self.total = 0
        self.hidden = False
        """No bar, while another one has the line."""

    def at(self, path: str, size: int) -> None:
        """``size`` bytes of a file have gone; fewer than before where it is sent again."""
        with self._lock:
            self._bytes += size - self._sent.get(path, 0)
            self._sent[path] = size
            now = time.monotonic()
            if not (self._quiet or self.hidden) and now - self._shown >= (
                _BAR_EVERY if self._terminal else _LINE_EVERY
            ):
                self._shown = now
                self._show(now - self._started)

    def say(self, text: str) -> None:
        """A line for a person, above the bar."""
        if not self._quiet:
            with self._lock:
                self._stream.write(("\r\033[K" if self._terminal else "") + text + "\n")
                self._stream.flush()

    def finish(self) -> None:
        """Leave the terminal's line clean."""
        if not self._quiet and self._terminal:
            with self._lock:
                self._stream.write("\r\033[K")
                self._stream.flush()

    def _show(self, passed: float) -> None:
        share = min(1.0, self._bytes / self.total) if self.total else 1.0
        left = duration(passed / share - passed) if share > 0 else "?"
        rate = in_words(round(self._bytes / max(passed, 1e-6)))
        figures = f"{in_words(self._bytes)} of {in_words(self.total)}, {rate}/s, {left} left"
        if self._terminal:
            bar = "█" * int(share * _WIDTH) + "░" * (_WIDTH - int(share * _WIDTH))
            self._stream.write(f"\r{self._what} {bar} {share:4.0%} {figures}\033[K")
        else:
            self._stream.write(f"{self._what}: {share:.0%}, {figures}\n")
        self._stream.flush()
