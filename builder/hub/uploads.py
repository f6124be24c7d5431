"""Send several files at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from builder.hub.items import Item


class Uploads:
    """Threads that send files until one fails. They are daemon threads: Ctrl-C does not wait for an upload to end."""

    def __init__(self, send: Callable[[Item], None], threads: int) -> None:
        """``send``: each thread calls it for one file at a time."""
        self._send = send
        self._waiting: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[tuple[Item, BaseException | None]] = queue.SimpleQueue()
        self._threads = threads
        self._stopped = threading.Event()
        self._failed: BaseException | None = None
        self.pending = 0
        for number in range(threads):
            threading.Thread(target=self._work, name=f"laion6m-push-{number}", daemon=True).start()

    def submit(self, item: Item) -> None:
        self.pending += 1
        self._waiting.put(item)

    def take(self, wait: bool = True) -> Item | None:
        """The next file that has been sent, in any order. None if none is left, or (without ``wait``) none is ready.
        Raises what ``send`` raised, from then on at each call."""
        if self._failed is not None:
            raise self._failed
        if not self.pending:
            return None
        try:
            item, error = self._ended.get(block=wait)
        except queue.Empty:
            return None
        self.pending -= 1
        if error is not None:
            self._failed = error
            raise error
        return item

    def stop(self) -> None:
        """Start no further file."""
        self._stopped.set()
        for _ in range(self._threads):
            self._waiting.put(None)

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None and not self._stopped.is_set():
            try:
                self._send(item)
            except BaseException as error:  # noqa: BLE001, PERF203 - raised where the file is taken
                self._stopped.set()
                self._ended.put((item, error))
            else:
                self._ended.put((item, None))
