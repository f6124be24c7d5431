"""Faults that a test orders from the test Hub: which request they hit and what becomes of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Literal, get_args

Kind = Literal["fail_before", "fail_after", "status", "drop", "truncate", "delay"]


@dataclass
class Fault:
    """What happens to the matching requests `nth` (from 1) to `nth + times - 1`, counted from `Faults.add` on.

    - fail_before: the request is read and answered with `status` (and `headers`), nothing is done;
    - status: the same, for answers that are a statement rather than a failure (412, 429 with its headers);
    - fail_after: everything is done, then answered with `status`, or with nothing at all where `status` is None;
    - drop: `at` bytes of the request body are read, then the connection is closed without an answer, nothing is done;
    - truncate: the answer is right, but the connection ends after `at` bytes of its body (half of it by default);
    - delay: `seconds` pass before the request is handled as usual.
    """

    route: str
    kind: Kind
    nth: int = 1
    times: int = 1
    status: int | None = 503
    headers: dict[str, str] = field(default_factory=dict)
    method: str | None = None
    path: str = ""
    at: int | None = None
    seconds: float = 0.0
    seen: int = 0
    hits: int = 0


class Faults:
    """The orders of one server. `routes` are the names that exist: a typing error must not make a test pass."""

    def __init__(self, routes: set[str]) -> None:
        self._routes = routes
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(
        self,
        route: str,
        kind: Kind,
        *,
        nth: int = 1,
        times: int = 1,
        status: int | None = 503,
        headers: dict[str, str] | None = None,
        method: str | None = None,
        path: str = "",
        at: int | None = None,
        seconds: float = 0.0,
    ) -> Fault:
        """Order a fault; `route` "*" is every route, `path` a part of the request path. `hits` of the result counts."""
        if route != "*" and route not in self._routes:
            raise ValueError(f"no route {route!r}: {sorted(self._routes)}")
        if kind not in get_args(Kind):
            raise ValueError(f"no kind {kind!r}: {get_args(Kind)}")
        fault = Fault(route, kind, nth, times, status, headers or {}, method, path, at, seconds)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def take(self, route: str, method: str, path: str) -> Fault | None:
        """The fault for this request, if any. Every matching order counts the request; the first due one is taken."""
        taken = None
        with self._lock:
            for fault in self._faults:
                if fault.route not in ("*", route) or fault.method not in (None, method) or fault.path not in path:
                    continue
                fault.seen += 1
                if taken is None and fault.nth <= fault.seen < fault.nth + fault.times:
                    fault.hits += 1
                    taken = fault
        return taken
