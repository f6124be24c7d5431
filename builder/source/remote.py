"""Files behind URLs as ByteFiles, read forward in blocks, with some blocks fetched ahead."""

from __future__ import annotations

import shlex
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from builder.base.errors import HubError, SourceError
from builder.base.storage import Storage, read_range
from builder.base.urls import StorageOptions

BLOCK = 8 << 20
"""Bytes per request. Long enough that a round trip of 50 ms costs less than the transfer; short enough to read again
when the connection breaks."""
AHEAD = 3
"""Blocks fetched ahead: 24 MiB, which is 50 ms at 500 MB/s."""
KEPT = 3
"""Blocks kept behind the current place. A walk over headers runs at most 2 MiB of images and 256 KiB ahead of the
reads behind it."""
KEPT_SMALL = 8
"""Blocks kept if a file is not read in its order: a captions tar, whose members may not follow the images. A tar of up
to 64 MiB (40,000 annotations) is fetched once in any order."""


class RemoteFile:
    """A ByteFile over any URL that fsspec knows (``hf://``, ``s3://``, ``https://`` …).

    Meant for reading forward. Threads fetch the next blocks while the last one is used. A place further back than the
    kept blocks costs a request. A broken request is repeated from where it broke, with growing pauses; then it is a
    SourceError. Memory: KEPT + AHEAD + 1 blocks. Not picklable, as it holds threads.
    """

    def __init__(
        self,
        url: str,
        options: Mapping[str, Any] | StorageOptions | None = None,
        *,
        block: int = BLOCK,
        ahead: int = AHEAD,
        kept: int = KEPT,
        pause: float = 1.0,
        size: int | None = None,
    ) -> None:
        """``options``: for the file system, such as ``token``. ``pause``: seconds before the second try. ``size``:
        bytes, if known; saves a request. Raises FileNotFoundError, SourceError, HubError."""
        self.name = url
        self._storage = Storage(options)
        self._block, self._ahead, self._most, self._pause = block, ahead, kept, pause
        self._held: OrderedDict[int, bytes] = OrderedDict()
        self._coming: dict[int, Future[bytes]] = {}
        length = self._storage.look(url).size if size is None else size
        if length is None:
            raise HubError(f"opening {url}", "the server does not say how long it is", "Download it first.")
        self.size: int = length
        self._threads: ThreadPoolExecutor | None = None

    def read_at(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        parts = []
        while offset < end:
            number, start = divmod(offset, self._block)
            part = self._get(number)[start : start + end - offset]
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None
        self._coming.clear()
        self._held.clear()

    def _get(self, number: int) -> bytes:
        data = self._held.get(number)
        if data is not None:
            return data
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._ahead + 1, thread_name_prefix="laion6m-read-ahead")
        wanted = range(number, min(number + self._ahead, (self.size - 1) // self._block) + 1)
        for passed in set(self._coming).difference(wanted):
            self._coming.pop(passed).cancel()
        for block in wanted:
            if block not in self._coming and block not in self._held:
                self._coming[block] = self._threads.submit(self._fetch, block)
        data = self._held[number] = self._coming.pop(number).result()
        while len(self._held) > self._most:
            self._held.popitem(last=False)
        return data

    def _fetch(self, number: int) -> bytes:
        start = number * self._block
        end = min(start + self._block, self.size)
        data = b""

        def more(system: Any, path: str) -> bytes:
            nonlocal data
            while len(data) < end - start:
                piece = read_range(system, path, start + len(data), end)
                if not piece:
                    raise EOFError(f"the server sent nothing from byte {start + len(data):,} of {self.size:,} on")
                data += piece
            return data

        try:
            return self._storage.ask(self.name, more, self._pause)
        except FileNotFoundError:
            raise SourceError(f"{shlex.quote(self.name)} is no longer there") from None
