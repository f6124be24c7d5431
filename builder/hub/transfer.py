"""The progress of an upload: one bar, in bytes, for all files."""

from __future__ import annotations

import threading

from builder.engines.progress import Progress, say


class Transfer:
    """Counts the bytes sent of each file. ``quiet``: show nothing. Thread-safe.

    Bytes sent before ``begin`` are counted but not shown: until then the conversion shows its bar.
    """

    def __init__(self, stage: str, *, quiet: bool = False) -> None:
        self._stage, self._quiet = stage, quiet
        self._lock = threading.Lock()
        self._sent: dict[str, int] = {}
        self._progress: Progress | None = None

    def begin(self, total: int) -> None:
        """Show the bar from now on. ``total``: bytes, with those sent before."""
        self.finish()
        with self._lock:
            self._progress = Progress(self._stage, None, total, done=sum(self._sent.values()), quiet=self._quiet)

    def at(self, path: str, size: int) -> None:
        """``size`` bytes of a file have been sent so far. The number falls if the file is sent again."""
        with self._lock:
            more = size - self._sent.get(path, 0)
            self._sent[path] = size
            if self._progress is not None:
                self._progress.update(0, more)

    def say(self, text: str) -> None:
        """Show a line above the bar."""
        say(text, quiet=self._quiet)

    def finish(self) -> None:
        """Remove the bar from the terminal."""
        with self._lock:
            progress, self._progress = self._progress, None
        if progress is not None:
            progress.finish()
