"""A few threads that wait for storage together."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_WORTH = 8  # items for each thread, below which handing them over costs more than it gains


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """One pool for each process: threads do not come along when a process forks."""
    return ThreadPoolExecutor(max_workers=128, thread_name_prefix=f"laion6m-{process}")


def in_threads(work: Callable[[list[Item]], None], items: list[Item], threads: int) -> None:
    """Call ``work`` on consecutive stretches of ``items``, in up to ``threads`` threads, this one included. The first
    error is raised when all are done."""
    count = min(threads, len(items) // _WORTH)
    if count < 2:
        work(items)
        return
    edges = [len(items) * part // count for part in range(count + 1)]
    stretches = [items[start:end] for start, end in pairwise(edges)]
    futures = [_pool(os.getpid()).submit(work, stretch) for stretch in stretches[1:]]
    try:
        work(stretches[0])
    finally:
        wait(futures)
    for future in futures:
        future.result()


def one_by_one(work: Callable[[Item], None], items: Sequence[Item], threads: int) -> None:
    """Call ``work`` on each item, in up to ``threads`` threads at a time, this one included: each takes the next item
    when it is done with one. The first error is raised when all have stopped, which they do at an error."""
    left = iter(items)  # a list's iterator gives each item to one thread
    failed: list[BaseException] = []

    def take() -> None:
        try:
            for item in left:
                work(item)
                if failed:
                    return
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    futures = [_pool(os.getpid()).submit(take) for _ in range(min(threads, len(items)) - 1)]
    take()
    wait([future for future in futures if not future.cancel()])  # those that never came to begin have nothing left
    if failed:
        raise failed[0]


def fetched_ahead(fetch: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
    """What ``fetch`` gives for each item. The next one is fetched by a thread while one is looked at."""
    coming: Future[Answer] | None = None
    for item in items:
        done, coming = coming, _pool(os.getpid()).submit(fetch, item)
        if done is not None:
            yield done.result()
    if coming is not None:
        yield coming.result()


class ForkLock:
    """A lock that nobody holds in a forked child: the thread that held it did not come along, and would never let
    go."""

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _LOCKS.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        self._lock = threading.Lock()


_LOCKS: weakref.WeakSet[ForkLock] = weakref.WeakSet()


def _renew_all() -> None:
    for lock in _LOCKS:
        lock.renew()


os.register_at_fork(after_in_child=_renew_all)
