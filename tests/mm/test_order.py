import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.base.errors import OptionError
from builder.mm.order import (
    BLOCK,
    SLOTS,
    ListedOrder,
    MixedOrder,
    Permutation,
    ShuffledOrder,
    WindowOrder,
    derive,
    shares,
    walk,
)

GOLDEN = {
    "derive": 105800997263431414,
    "ten": [0, 9, 1, 7, 6, 5, 4, 8, 2, 3],
    "million": [1762582, 604675, 4855039, 150759, 5623206],
    "epochs": [5, 4, 3, 0, 2, 1, 6, 3, 2, 4, 0, 1, 6, 5],
    "window": [7, 8, 6, 9, 4, 5, 1, 0, 2, 10, 3, 5, 6, 7, 4, 8, 1, 9, 0, 3, 2, 10],
    "mixed": [3, 4, 5, 2, 6, 7, 0, 8, 9, 1, 10, 11],
    "mixed, second turn": [63, 64, 65, 1, 66, 2, 67, 68],
}


def positions(count: int, start: int = 0) -> np.ndarray:
    return np.arange(start, start + count, dtype=np.int64)


@given(size=st.integers(1, 3000), seed=st.integers(-(2**63), 2**64))
def test_a_permutation_gives_every_row_once(size: int, seed: int) -> None:
    rows = Permutation(size, seed).take(positions(size))
    assert sorted(rows.tolist()) == list(range(size))


@given(size=st.integers(1, 2**62), seed=st.integers(0, 2**64 - 1), data=st.data())
def test_find_is_the_inverse_also_where_the_walk_is_longest(size: int, seed: int, data: st.DataObject) -> None:
    permutation = Permutation(size, seed)
    position = data.draw(st.integers(0, size - 1))
    row = permutation[position]
    assert 0 <= row < size
    assert permutation.find(row) == position


@pytest.mark.parametrize("size", [0, -1, 2**62 + 1])
def test_a_size_that_cannot_be_ordered_is_refused(size: int) -> None:
    with pytest.raises(OptionError, match="size"):
        Permutation(size, 0)


@pytest.mark.parametrize("outside", [-1, 7])
def test_a_position_or_row_outside_is_an_index_error(outside: int) -> None:
    with pytest.raises(IndexError):
        Permutation(7, 0)[outside]
    with pytest.raises(IndexError):
        Permutation(7, 0).find(outside)


def test_the_orders_are_frozen() -> None:
    """Runs resume by seed and position alone, so a changed order would show rows twice and others never. If this test
    fails, the change is the mistake, not the numbers."""
    assert derive(0) == 16294208416658607535
    assert derive(1, 2, 3) == GOLDEN["derive"]
    assert Permutation(10, 42).take(positions(10)).tolist() == GOLDEN["ten"]
    assert Permutation(6_000_000, 42).take(positions(5)).tolist() == GOLDEN["million"]
    assert ShuffledOrder(7, 1).take(positions(14)).tolist() == GOLDEN["epochs"]
    assert WindowOrder(11, 1, window=4, run=2).take(positions(22)).tolist() == GOLDEN["window"]
    parts = [ShuffledOrder(3, 1), ListedOrder(100)]
    mixed = MixedOrder(parts, [3, 100], [1, 2], 5)
    assert mixed.take(positions(12)).tolist() == GOLDEN["mixed"]
    assert mixed.take(positions(8, 70_000)).tolist() == GOLDEN["mixed, second turn"]


def test_different_seeds_and_epochs_give_different_orders() -> None:
    orders = {tuple(Permutation(50, seed).take(positions(50)).tolist()) for seed in range(200)}
    assert len(orders) == 200
    order = ShuffledOrder(50, 0)
    assert len({tuple(order.take(positions(50, 50 * epoch)).tolist()) for epoch in range(200)}) == 200


@pytest.mark.slow
def test_small_shuffles_come_up_equally_often() -> None:
    """24 orders of four rows, 9,600 seeds: 400 each, more or less. χ² of 23 degrees passes 49.7 once in 1,000."""
    seen: dict[tuple[int, ...], int] = {}
    for seed in range(9_600):
        order = tuple(Permutation(4, seed).take(positions(4)).tolist())
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 24
    assert sum((count - 400) ** 2 / 400 for count in seen.values()) < 49.7


def test_a_shuffle_leaves_no_trace_of_the_order_of_rows() -> None:
    rows = Permutation(100_003, 9).take(positions(100_003))
    steps = np.diff(rows)
    assert abs(np.corrcoef(rows, positions(len(rows)))[0, 1]) < 0.02
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.02
    assert (np.abs(steps) == 1).sum() < 15  # 2 are expected of chance


@pytest.mark.slow
@given(
    size=st.integers(1, 400),
    runs=st.integers(1, 5),
    run=st.integers(1, 40),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 2**32),
)
def test_a_window_order_gives_every_row_once_an_epoch(size: int, runs: int, run: int, epoch: int, seed: int) -> None:
    rows = WindowOrder(size, seed, runs * run, run).take(positions(size, epoch * size))
    assert sorted(rows.tolist()) == list(range(size))


def test_a_window_touches_no_more_than_its_runs() -> None:
    order = WindowOrder(10_000, 3, window=400, run=100)
    rows = order.take(positions(10_000)).reshape(-1, 400)
    assert all(len(set((window // 100).tolist())) == 4 for window in rows)
    assert len(set((rows[0] // 100).tolist()) & {0, 1, 2, 3}) < 4  # the runs themselves come in shuffled order


def test_a_window_shuffles_across_its_runs() -> None:
    window = WindowOrder(1000, 3, window=200, run=100).take(positions(200)) // 100
    assert 60 < (np.diff(window) != 0).sum() < 140  # of 199 neighbours, half are from the other run


@pytest.mark.parametrize(("window", "run"), [(100, 0), (50, 100), (150, 100), (0, 1)])
def test_a_window_that_is_no_multiple_of_its_run_is_refused(window: int, run: int) -> None:
    with pytest.raises(OptionError, match=r"window|run"):
        WindowOrder(1000, 0, window, run)


ORDERS = {
    "listed": ListedOrder(97),
    "shuffled": ShuffledOrder(97, 5),
    "window": WindowOrder(97, 5, 30, 10),
    "mixed": MixedOrder([ShuffledOrder(40, 1), WindowOrder(57, 2, 20, 10)], [40, 57], [0.3, 0.7], 8),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ORDERS)
@settings(max_examples=40)
@given(start=st.integers(0, 10**12), count=st.integers(1, 150), world=st.integers(1, 8))
def test_ranks_together_take_the_order_of_one(name: str, start: int, count: int, world: int) -> None:
    order = ORDERS[name]
    alone = list(walk(order, start, 1, start + count))
    together = [list(walk(order, start + rank, world, start + count)) for rank in range(world)]
    assert [together[i % world][i // world] for i in range(count)] == alone


@pytest.mark.parametrize("name", ORDERS)
def test_walking_on_is_the_same_as_starting_there(name: str) -> None:
    order = pickle.loads(pickle.dumps(ORDERS[name]))
    endless = walk(order, 3, 2)
    taken = [next(endless) for _ in range(1400)]
    resumed = walk(ORDERS[name], 3 + 2 * 1234, 2)
    assert [next(resumed) for _ in range(100)] == taken[1234:1334]


def test_the_first_index_of_as_many_rows_as_there_can_be_comes_at_once() -> None:
    """No list of them could be made, nor could the epochs before be walked through."""
    assert 0 <= next(walk(ShuffledOrder(2**62, 1), 5_000_000_000 * 2**30, 8)) < 2**62


def test_a_mixture_keeps_its_weights_in_every_turn_and_every_block() -> None:
    mixed = MixedOrder([ListedOrder(10), ListedOrder(1000), ListedOrder(5)], [10, 1000, 5], [1, 3, 0.01], 0)
    parts = np.searchsorted([10, 1010], mixed.take(positions(2 * SLOTS)), side="right")
    exact = shares([1, 3, 0.01], SLOTS)
    for turn in parts.reshape(2, SLOTS):
        assert np.bincount(turn).tolist() == exact
    for block in parts.reshape(-1, BLOCK):
        counts = np.bincount(block, minlength=3)
        assert (np.abs(counts - np.array(exact) * BLOCK / SLOTS) < 1).all()
    small = np.flatnonzero(parts == 2)  # 163 a turn: one in every block or two, none together for long
    assert np.diff(small).max() < 4 * BLOCK


@pytest.mark.slow
@given(
    sizes=st.lists(st.integers(500, 50_000), min_size=1, max_size=4),
    data=st.data(),
    seed=st.integers(0, 2**63),
)
@settings(max_examples=10)
def test_each_part_of_a_mixture_comes_in_its_own_order_row_by_row(
    sizes: list[int], data: st.DataObject, seed: int
) -> None:
    """So every part shows each of its rows once before any twice, across turns too."""
    weights = data.draw(st.lists(st.floats(0.01, 1), min_size=len(sizes), max_size=len(sizes)))
    orders = [ShuffledOrder(size, derive(seed, 9, part)) for part, size in enumerate(sizes)]
    rows = MixedOrder(orders, sizes, weights, seed).take(positions(SLOTS + 3000))
    ends = np.cumsum(sizes)
    parts = np.searchsorted(ends, rows, side="right")
    for part, order in enumerate(orders):
        own = rows[parts == part] - (ends[part] - sizes[part])
        assert np.array_equal(own, order.take(positions(len(own))))


def test_a_mixture_far_out_begins_no_part_anew() -> None:
    """The first pick of turn 10**6 is the one after all picks of the turns before."""
    parts = [ShuffledOrder(1000, 1), ListedOrder(70_001)]
    mixed = MixedOrder(parts, [1000, 70_001], [1, 3], 4)
    start = 10**6 * SLOTS
    rows = mixed.take(positions(SLOTS + 100, start))
    for own, order, share in ((rows[rows < 1000], parts[0], 1), (rows[rows >= 1000] - 1000, parts[1], 3)):
        assert np.array_equal(own, order.take(positions(len(own), start * share // 4)))


def test_a_mixture_is_mixed_at_every_scale() -> None:
    mixed = MixedOrder([ListedOrder(10), ListedOrder(10)], [10, 10], [1, 1], 0)
    halves = (mixed.take(positions(6400)) < 10).reshape(-1, 64).sum(axis=1)
    assert halves.min() > 10
    assert halves.max() < 54


@pytest.mark.parametrize(
    ("weights", "slots", "expected"),
    [
        ([1, 1], 10, [5, 5]),
        ([1, 1, 1], 10, [4, 3, 3]),  # the first of equals gets what is left
        ([0.7, 0.3], 10, [7, 3]),
        ([1e-3, 1], 1000, [1, 999]),
        ([5], 7, [7]),
    ],
)
def test_shares_are_whole_and_sum_up(weights: list[float], slots: int, expected: list[int]) -> None:
    assert shares(weights, slots) == expected


@pytest.mark.parametrize(
    "weights", [[], [0, 1], [-1, 2], [float("nan"), 1], [float("inf"), 1], [1e-9, 1], ["1", "2"], [None]]
)
def test_weights_that_cannot_be_kept_are_refused(weights: Any) -> None:
    with pytest.raises(OptionError, match="weights"):
        shares(weights, 1000)


def test_a_mixture_wants_one_weight_for_each_part() -> None:
    with pytest.raises(OptionError, match="one for each of the 2"):
        MixedOrder([ListedOrder(1), ListedOrder(1)], [1, 1], [1, 2, 3], 0)
