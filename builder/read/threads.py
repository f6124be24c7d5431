"""A few threads that wait for storage at the same time."""

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

_WORTH = 8  # items for each thread; with fewer, starting the thread costs more than it gains


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """One pool for each process: a fork does not copy threads."""
    return ThreadPoolExecutor(max_workers=128, thread_name_prefix=f"laion6m-{process}")


def in_threads(work: Callable[[list[Item]], None], items: list[Item], threads: int) -> None:
    """Call ``work`` on consecutive parts of ``items``, in up to ``threads`` threads. This thread is one of them. When
    all are done, the first error is raised.

    It is not :func:`one_by_one` over the parts: with that, the peak memory of reading batches rose by up to 11 MB, from
    114 (``python benchmarks/read.py SOURCE --peers ours-256``).
    """
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


def one_by_one(work: Callable[[Item], object], items: Sequence[Item], threads: int) -> None:
    """Call ``work`` on each item, in up to ``threads`` threads. This thread is one of them. A thread that is done with
    an item takes the next one. At an error all threads stop. Then the first error is raised."""
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
    wait([future for future in futures if not future.cancel()])  # a future that never started has no items left to take
    if failed:
        raise failed[0]


def fetched_ahead(fetch: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
    """``fetch(item)`` for each item. A thread fetches the next one while the caller uses this one."""
    coming: Future[Answer] | None = None
    for item in items:
        done, coming = coming, _pool(os.getpid()).submit(fetch, item)
        if done is not None:
            yield done.result()
    if coming is not None:
        yield coming.result()


class ForkLock:
    """A lock that is free in a forked child. The fork does not copy the thread that held it, so nobody would release
    it."""

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
