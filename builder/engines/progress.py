"""How far a run is, on stderr: a bar on a terminal, a line every few seconds elsewhere. Of the whole job, not by
worker."""

from __future__ import annotations

import sys
import time
from io import StringIO
from typing import TextIO

from builder.base.words import duration

_BAR_EVERY, _LINE_EVERY = 0.1, 5.0  # seconds


class Progress:
    """Counts images and bytes against totals and shows them. ``images``: None where nobody knows how many there are.
    ``quiet`` shows nothing."""

    def __init__(
        self, what: str, images: int | None, size: int, *, quiet: bool = False, stream: TextIO | None = None
    ) -> None:
        self._stream = stream or sys.stderr or StringIO()  # none: a daemon's, closed
        self._what, self._images_total, self._bytes_total = what, images, size
        self._quiet = quiet
        self._terminal = self._stream.isatty()
        self._every = _BAR_EVERY if self._terminal else _LINE_EVERY
        self._started = time.monotonic()
        self._shown = self._started
        self.images = 0
        self.bytes = 0

    def update(self, images: int, size: int) -> None:
        """Count on; shows at most every so often."""
        self.images += images
        self.bytes += size
        now = time.monotonic()
        if not self._quiet and now - self._shown >= self._every:
            self._shown = now
            self._show(now)

    def finish(self) -> None:
        """Leave the terminal's line clean."""
        if not self._quiet and self._terminal:
            self._write("\r\033[K")

    def _show(self, now: float) -> None:
        passed = max(now - self._started, 1e-6)
        done, total = (
            (self.bytes, self._bytes_total) if self._images_total is None else (self.images, self._images_total)
        )
        share = min(1.0, done / total) if total else 1.0
        left = passed / share - passed if share > 0 else 0.0
        of_all = "" if self._images_total is None else f"/{self._images_total:,}"
        figures = (
            f"{self.images:,}{of_all} images, {self.images / passed:,.0f} images/s, "
            f"{self.bytes / passed / 1e6:,.0f} MB/s, {duration(left)} left"
        )
        if self._terminal:
            width = 24
            bar = "█" * int(share * width) + "░" * (width - int(share * width))
            self._write(f"\r{self._what} {bar} {share:4.0%} {figures}\033[K")
        else:
            self._write(f"{self._what}: {share:.0%}, {figures}\n")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:  # a terminal that went away, a log on a full disk: no reason to stop a week's work
            self._quiet = True
