"""A few threads that wait for storage together."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from builder.read import threads
from builder.read.threads import fetched_ahead, in_threads, one_by_one


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


@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_each_item_goes_to_one_thread_of_no_more_than_were_asked_for(count: int) -> None:
    seen: list[int] = []
    names: set[str] = set()
    one_by_one(lambda item: (seen.append(item), names.add(threading.current_thread().name)), list(range(count)), 4)
    assert sorted(seen) == list(range(count))
    assert len(names) <= 4


def test_so_many_wait_together_as_were_asked_for() -> None:
    meeting = threading.Barrier(8, timeout=30)
    one_by_one(lambda _: meeting.wait(), list(range(8)), 8)


def test_the_first_error_stops_all_and_is_raised() -> None:
    seen: list[int] = []

    def work(item: int) -> None:
        seen.append(item)
        raise ValueError(item)

    with pytest.raises(ValueError, match=r"0|1|2|3"):
        one_by_one(work, list(range(1000)), 4)
    assert len(seen) <= 4


def test_a_pool_whose_threads_are_all_taken_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that a thread of the pool does may be shared out itself."""
    with threads.ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(threads, "_pool", lambda _: pool)
        seen: list[int] = []
        one_by_one(lambda item: one_by_one(seen.append, [item] * 3, 4), [1, 2, 3, 4], 4)
    assert sorted(seen) == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3


def test_the_next_item_is_fetched_while_one_is_looked_at_and_no_more() -> None:
    begun = [threading.Event() for _ in range(4)]
    asked: list[int] = []

    def items() -> Iterator[int]:
        for item in range(4):
            asked.append(item)
            yield item

    def fetch(item: int) -> int:
        begun[item].set()
        return item * 10

    answers = fetched_ahead(fetch, items())
    for number, answer in enumerate(answers):
        assert answer == number * 10
        if number < 3:
            assert begun[number + 1].wait(30)
        assert asked == list(range(min(number + 2, 4)))
    assert list(fetched_ahead(fetch, [])) == []
