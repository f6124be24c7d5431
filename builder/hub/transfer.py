"""How far files are on their way: one bar in bytes for all of them."""

from __future__ import annotations

import threading

from builder.engines.progress import Progress, say


class Transfer:
    """Bytes sent, by file, against a total. ``quiet`` shows and says nothing. Thread-safe.

    What is sent before ``begin`` is counted and not shown: another bar has the line.
    """

    def __init__(self, stage: str, *, quiet: bool = False) -> None:
        self._stage, self._quiet = stage, quiet
        self._lock = threading.Lock()
        self._sent: dict[str, int] = {}
        self._progress: Progress | None = None

    def begin(self, total: int) -> None:
        """Show from now on. ``total``: bytes, what was sent before included."""
        self.finish()
        with self._lock:
            self._progress = Progress(self._stage, None, total, done=sum(self._sent.values()), quiet=self._quiet)

    def at(self, path: str, size: int) -> None:
        """``size`` bytes of a file have gone; fewer than before where it is sent again."""
        with self._lock:
            more = size - self._sent.get(path, 0)
            self._sent[path] = size
            if self._progress is not None:
                self._progress.update(0, more)

    def say(self, text: str) -> None:
        """A line for a person, above the bar."""
        say(text, quiet=self._quiet)

    def finish(self) -> None:
        """Leave the terminal's line clean."""
        with self._lock:
            progress, self._progress = self._progress, None
        if progress is not None:
            progress.finish()
