"""Samplers announce the rows that they will give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

import pytest

from builder.mm import CaptionDataset, EpochSampler, InfiniteSampler
from builder.mm.ahead import announcer, walk_announced
from builder.mm.order import CHUNK, ListedOrder, MixedOrder, Order, ShuffledOrder, WindowOrder, walk

ORDERS = {
    "listed": ListedOrder(5000),
    "shuffled": ShuffledOrder(5000, 3),
    "window": WindowOrder(20_000, 3, 4096, 512),
    "a small window": WindowOrder(5000, 3, 64, 16),
    "a mix": MixedOrder([ShuffledOrder(5000, 3), ListedOrder(20)], [5000, 20], [3, 1], 3),
    "a mix of windows": MixedOrder([WindowOrder(20_000, 3, 2048, 512)] * 2, [20_000, 20_000], [3, 1], 3),
}


@pytest.mark.parametrize("stop", [None, 0, 700, CHUNK, 9000])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_rows_are_those_of_walk_and_each_is_announced_before_it_comes(
    order: Order, stride: int, stop: int | None
) -> None:
    said: list[int] = []
    waiting: Counter[int] = Counter()

    def announce(rows: Sequence[int]) -> None:
        said.extend(rows)
        waiting.update(rows)

    rows = islice(walk_announced(order, 5, stride, announce, stop), 12_000)
    most = 2 * max(CHUNK, getattr(order, "window", 0)) + CHUNK
    seen = []
    for row in rows:
        seen.append(row)
        waiting[row] -= 1
        assert waiting[row] >= 0
        assert len(said) - len(seen) < most  # the page cache holds no more ahead
    assert seen == list(islice(walk(order, 5, stride, stop), 12_000))
    if stop is not None:
        assert sorted(said) == sorted(seen)


def test_a_window_is_announced_from_its_start_to_its_end() -> None:
    order, said = WindowOrder(20_480, 3, 4096, 512), []
    list(islice(walk_announced(order, 0, 1, said.append), 4096))
    window = sorted(walk(order, 0, 1, 4096))
    after = sorted(walk(order, 4096, 1, 8192))
    assert said[0] == window + after[:CHUNK]
    assert said[1:] == [after[first : first + CHUNK] for first in range(CHUNK, 4096, CHUNK)]


def test_a_window_of_the_largest_part_of_a_mix_is_announced_at_once() -> None:
    orders = [WindowOrder(20_480, 3, 6144, 512), WindowOrder(20_480, 4, 6144, 512)]
    order, said = MixedOrder(orders, [20_480, 20_480], [3, 1], 3), []
    list(islice(walk_announced(order, 0, 1, said.append), 8192))
    window = sorted(walk(orders[0], 0, 1, 6144))
    assert [row for row in said[0] if row < 20_480][:6144] == window
    assert said[0][: order.window] == sorted(walk(order, 0, 1, 8192))


class Told:
    """A dataset that notes what is announced to it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.told: list[int] = []

    def __len__(self) -> int:
        return self.size

    def announce(self, rows: Sequence[int]) -> None:
        self.told += rows


class Silent:
    def __len__(self) -> int:
        return 100


class Concat:
    """Like torch's ConcatDataset."""

    def __init__(self, *parts: Any) -> None:
        self.datasets = parts
        self.cumulative_sizes = [sum(len(part) for part in parts[: n + 1]) for n in range(len(parts))]

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]


def test_samplers_announce_to_their_dataset() -> None:
    for sampler in (EpochSampler, InfiniteSampler):
        dataset = Told(50)
        rows = list(islice(sampler(dataset, seed=1, rank=1, world_size=2), 25))
        assert set(dataset.told) >= set(rows)


def test_parts_of_a_concatenation_are_told_their_own_numbers() -> None:
    first, last = Told(10), Told(20)
    announce = announcer(Concat(first, Silent(), last))
    assert announce is not None
    announce([3, 9, 10, 50, 110, 129])
    assert (first.told, last.told) == ([3, 9], [0, 19])


def test_a_dataset_that_cannot_announce_is_left_alone() -> None:
    assert announcer(Silent()) is None
    assert len(list(EpochSampler(Silent(), seed=1, rank=0, world_size=1))) == 100


@pytest.mark.parametrize(("options", "told"), [({}, [1, 3]), ({"image_tokens_folder": "tokens"}, [])])
def test_images_are_announced_only_if_samples_hold_pixels(
    options: dict[str, Any], told: list[int], indexed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, said = CaptionDataset(indexed, **options), []
    monkeypatch.setattr(dataset._source.reader, "_announce", said.extend)
    dataset.announce([1, 3])
    assert said == told
