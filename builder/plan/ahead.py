"""Scan while numpy and pyarrow are being imported.

Importing takes one core, 0.2 s, and a scan needs none of it. So a command forks scanners first, one for each core but
its own, and finds the members of a dozen tars there when it has imported. What they did not get to, or could not do, is
scanned as ever: whoever is ahead only saves time.
"""

from __future__ import annotations

import fcntl
import gc
import os
import selectors
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType

from builder.base.errors import Laion6mError
from builder.base.options import default_num_proc
from builder.base.urls import is_url
from builder.engines.local import pack, stop_when_told, stops_held, unpack
from builder.source.layouts import Layout, recognise
from builder.source.scan import Scanned, ScanRequest, scan_members

_NUMBER = 4  # bytes of an archive's number; a pipe's pages hold whole ones, so no scanner gets a part of one
_LENGTH = 8  # bytes in front of each message
_PIPE = 1 << 20
"""Bytes that a scanner is ahead of its reader, at most: 25 tars of a thousand images. More takes privileges, says
pipe(7)."""
_IMPORTED = "numpy"  # forking is cheap and safe before its threads are there; afterwards there is nothing to gain


def scan_requests(layout: Layout, *, shapes: bool) -> list[ScanRequest]:
    """What is to be scanned, the archives of captions/ behind those of raw/. ``shapes``: note of images what their scan
    shows in passing. Raises ListingError."""
    names, urls = scans_wanted(layout)
    requests = [ScanRequest(archive, names, urls, shapes) for archive in layout.raw]
    return requests + [ScanRequest(archive, names, urls) for archive in layout.captions]


def scans_wanted(layout: Layout) -> tuple[bool, bool]:
    """Whether scans must note the members' names, and the urls in JSON members. Raises ListingError."""
    if not layout.recaptions:
        return not layout.listing, False
    from builder.source.recaptions import wants_urls

    return not layout.listing, wants_urls(layout.recaptions)


class Ahead:
    """Scanners at work. As a context they are gone in the end, whatever they were doing."""

    def __init__(self, requests: list[ScanRequest], processes: int) -> None:
        """Each scanner takes the next archive when it is done with one, the largest first. Forks: no other thread may
        run. Where the system has no process or pipe to spare, fewer scanners start."""
        self._scanners: dict[int, int] = {}  # what it is read from → its process
        self._numbers, feed = os.pipe()
        os.set_blocking(feed, False)  # a pipe holds 16,384 numbers, or fewer (pipe(7)); the archives behind wait
        numbers = b"".join(number.to_bytes(_NUMBER, "little") for number in range(len(requests)))
        fed = os.write(feed, numbers) // _NUMBER if numbers else 0
        os.close(feed)
        self._requests = sorted(requests, key=lambda request: -request.archive.size)[:fed]
        with suppress(OSError):
            for _ in range(min(processes, fed)):
                self._start()

    def begun(self) -> set[ScanRequest]:
        """What they have begun. From now on they begin no other."""
        left = os.read(self._numbers, len(self._requests) * _NUMBER) if self._requests else b""
        return set(self._requests[: len(self._requests) - len(left) // _NUMBER])

    def scanned(self) -> Iterator[tuple[ScanRequest, Scanned]]:
        """What they find, as it comes, until they have ended. Of what they have begun, what is missing was not for them
        to do."""
        pending = {source: bytearray() for source in self._scanners}
        with selectors.DefaultSelector() as selector:
            for source in pending:
                selector.register(source, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    source = key.fd
                    data = os.read(source, _PIPE)
                    if not data:  # with a message cut off in it, if somebody killed it
                        selector.unregister(source)
                        self._end(source)
                    pending[source] += data
                    for message in _messages(pending[source]):
                        number, scanned = unpack(message)
                        yield self._requests[number], scanned

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for source in list(self._scanners):
            self._end(source)
        os.close(self._numbers)

    def _start(self) -> None:
        source, sink = os.pipe()
        with suppress(OSError):  # whoever has many pipes is refused larger ones
            fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, _PIPE)
        parent = os.getpid()
        try:
            with stops_held():
                process = os.fork()
                if process == 0:
                    self._scan(sink, parent)
                self._scanners[source] = process
        except OSError:
            os.close(source)
            raise
        finally:
            os.close(sink)

    def _scan(self, sink: int, parent: int) -> None:
        """A scanner's life: an archive's number from one pipe, what is in it into another. It never returns: what is
        wrong with an archive is for the parent to find again, and to say."""
        try:
            stop_when_told()
            gc.disable()  # ten thousands of members with no circles among them: a third of the time
            for other in self._scanners:
                os.close(other)
            with open(sink, "wb", _PIPE) as out:
                while (taken := os.read(self._numbers, _NUMBER)) and os.getppid() == parent:
                    number = int.from_bytes(taken, "little")
                    with suppress(Laion6mError):
                        message = pack((number, scan_members(self._requests[number])))
                        out.write(len(message).to_bytes(_LENGTH, "little") + message)
                        out.flush()
        finally:
            os._exit(0)

    def _end(self, source: int) -> None:
        process = self._scanners.pop(source)
        os.close(source)
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        with suppress(ChildProcessError):  # whoever started us has SIGCHLD ignored: the system does not keep them
            os.waitpid(process, 0)


def scan_ahead(source: str, recaptions: tuple[str, ...], num_proc: int | None, *, shapes: bool) -> Ahead:
    """Scanners at the tars of a source. None where they would gain nothing (a source behind a URL, of folders, with
    recaptions, which take pyarrow to read; one process; no fork), or something is wrong that will be told in its own
    time."""
    processes = (num_proc or default_num_proc()) - 1  # importing is one's work
    if processes < 1 or recaptions or is_url(source) or _IMPORTED in sys.modules or sys.platform != "linux":
        return Ahead([], 0)
    try:
        requests = scan_requests(recognise(source), shapes=shapes)
    except Laion6mError:
        requests = []
    return Ahead([request for request in requests if not request.archive.is_folder], processes)


def _messages(pending: bytearray) -> Iterator[bytes]:
    """The whole messages at the front, which are taken off."""
    while len(pending) >= _LENGTH:
        end = _LENGTH + int.from_bytes(pending[:_LENGTH], "little")
        if len(pending) < end:
            return
        message = bytes(pending[_LENGTH:end])
        del pending[:end]
        yield message
