"""A few threads that wait for storage together."""

from __future__ import annotations

import threading

import pytest

from builder.read.threads import in_threads


def test_every_item_is_worked_on_once_and_in_its_stretch_s_order() -> None:
    seen: list[list[int]] = []
    in_threads(seen.append, list(range(100)), 4)
    assert sorted(seen) == [list(range(first, first + 25)) for first in (0, 25, 50, 75)]


def test_an_error_is_raised_when_nobody_works_any_more() -> None:
    """They write into what the caller would go on with."""
    failed, working = threading.Event(), set(range(4))

    def work(items: list[int]) -> None:
        number = items[0] // 25
        if number == 1:
            working.discard(number)
            failed.set()
            raise ValueError("first")
        assert failed.wait(30)
        working.discard(number)

    for _ in range(20):
        failed.clear()
        working.update(range(4))
        with pytest.raises(ValueError, match="first"):
            in_threads(work, list(range(100)), 4)
        assert working == set()
