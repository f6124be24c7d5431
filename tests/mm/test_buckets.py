import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.base.errors import OptionError
from builder.mm.buckets import BatchOrder, Buckets

GOLDEN = [[3, 9, 4], [5, 7, 0], [2, 10, 8], [6, 6, 9], [1, 5, 2], [7, 0, 1], [8, 1, 5], [10, 7, 0]]
BUCKETS = Buckets([(512, 512), (640, 384), (384, 640)])


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (100, 100, (512, 512)),
        (4000, 3000, (640, 384)),  # 1.33 is nearer to 1.67 than to 1 on a scale of ratios: the border is at 1.29
        (3000, 2400, (512, 512)),
        (3000, 4000, (384, 640)),
        (10_000, 10, (640, 384)),
        (1, 3000, (384, 640)),
    ],
)
def test_an_image_goes_to_the_nearest_ratio(width: int, height: int, size: tuple[int, int]) -> None:
    assert BUCKETS.sizes[BUCKETS.of(width, height)] == size


@given(st.lists(st.tuples(st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1)), min_size=1))
def test_the_column_and_the_single_image_agree(sizes: list[tuple[int, int]]) -> None:
    widths, heights = np.array(sizes, dtype=np.int32).T
    for buckets in (BUCKETS, Buckets.around(512)):
        assert buckets.of_all(widths, heights).tolist() == [buckets.of(*size) for size in sizes]


@pytest.mark.parametrize("side", [64, 100, 256, 512, 1024])
def test_sizes_around_a_side_hold_nearly_as_many_pixels(side: int) -> None:
    sizes = Buckets.around(side).sizes
    assert {(height, width) for width, height in sizes} == set(sizes)
    for width, height in sizes:
        assert width % 64 == height % 64 == 0
        assert max(width, height) / min(width, height) <= 2
        assert width * height <= side * side < width * height + 64 * (width + height + 64)


def test_a_side_under_one_step_is_refused_by_the_name_that_the_user_gave() -> None:
    with pytest.raises(OptionError, match=r"^image_size 32: buckets=True needs 64 pixels or more"):
        Buckets.around(32)


def test_the_square_is_among_the_sizes_around_it() -> None:
    assert Buckets.around(512).sizes == (
        (384, 640), (448, 576), (512, 512), (576, 448), (640, 384),
    )  # fmt: skip


@pytest.mark.parametrize(
    "sizes", [[], [(0, 5)], [(5, 0)], [(-1, -1)], [(512, 512), (256, 256)], 512, [512, 640], "512x512", [("a", "b")]]
)
def test_sizes_that_leave_a_choice_or_none_are_refused(sizes: Any) -> None:
    with pytest.raises(OptionError, match="buckets"):
        Buckets(sizes)


def numbers(*counts: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int16)


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 3),
)
def test_an_epoch_that_drops_nothing_shows_every_row_once(
    counts: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    buckets = numbers(*counts)
    order = BatchOrder(buckets, batch_size, seed, drop_last=False)
    batches = [order.batch(number) for number in range(order.first(epoch), order.first(epoch + 1))]
    assert sorted(row for batch in batches for row in batch) == list(range(len(buckets)))
    assert all(len(batch) <= batch_size and len(set(buckets[batch].tolist())) == 1 for batch in batches)


@pytest.mark.slow
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**31),
    shuffle=st.booleans(),
)
def test_what_an_epoch_has_left_of_a_bucket_begins_its_next_batch(
    counts: list[int], batch_size: int, seed: int, shuffle: bool
) -> None:
    """A bucket's batches of ``batch_size`` epochs hold all of its rows, each as often as the others, and of every
    epoch before some row comes again, each has come."""
    counts = [*counts, 9]  # one has enough rows for a batch
    buckets = numbers(*counts)
    order = BatchOrder(buckets, batch_size, seed, shuffle)
    batches = [order.batch(number) for number in range(order.first(batch_size))]
    assert all(len(batch) == batch_size and len(set(buckets[batch].tolist())) == 1 for batch in batches)
    shown = np.bincount([row for batch in batches for row in batch], minlength=len(buckets))
    assert set(shown.tolist()) == {batch_size}
    for epoch in range(batch_size):
        here = [order.batch(number) for number in range(order.first(epoch), order.first(epoch + 1))]
        assert len(here) >= order.fewest
        assert all(order.epoch_of(number) == epoch for number in range(order.first(epoch), order.first(epoch + 1)))
    for bucket in range(len(counts)):
        own = [order._batch(bucket, number, 0) for number in range(counts[bucket])]  # picks 0 to counts × batch_size
        picks = [row for batch in own for row in batch]
        for start in range(0, len(picks), max(1, counts[bucket])):
            assert len(set(picks[start : start + counts[bucket]])) == counts[bucket]


def test_the_order_of_batches_is_frozen() -> None:
    """Runs resume by seed and position alone. Epoch 0 is as it was before rows were carried over."""
    order = BatchOrder(np.array([0, 0, 0, 1, 1, 0, 1, 0, 0, 1, 0], dtype=np.int16), 3, 1)
    assert [order.batch(number) for number in range(8)] == GOLDEN
    assert [order.first(epoch) for epoch in range(5)] == [0, 3, 6, 11, 14]


def test_a_batch_far_out_is_found_at_once() -> None:
    order = BatchOrder(numbers(1_000_003, 77, 5), 64, 3)
    epoch = order.epoch_of(10**12)
    assert order.first(epoch) <= 10**12 < order.first(epoch + 1)
    assert len(order.batch(10**12)) == 64


def test_the_buckets_of_an_epoch_come_mixed_and_another_seed_mixes_otherwise() -> None:
    buckets = numbers(100, 100)
    first, second = (
        [int(buckets[batch[0]]) for batch in order.walk(0, 1, 20)]
        for order in (BatchOrder(buckets, 10, seed) for seed in (0, 1))
    )
    assert first != sorted(first)
    assert first != second


def test_unshuffled_batches_go_through_the_buckets_in_order() -> None:
    order = BatchOrder(np.array([1, 0, 1, 0, 1], dtype=np.int16), 2, 0, shuffle=False, drop_last=False)
    assert list(order.walk(0, 1, 3)) == [[1, 3], [0, 2], [4]]
    assert order.batch(3) == [1, 3]


def test_ranks_take_turns_and_a_walk_can_begin_anywhere() -> None:
    order = pickle.loads(pickle.dumps(BatchOrder(numbers(50, 31), 4, 9)))
    alone = list(order.walk(0, 1, 40))
    assert [batch for pair in zip(order.walk(0, 2, 40), order.walk(1, 2, 40), strict=True) for batch in pair] == alone
    assert list(order.walk(17, 1, 40)) == alone[17:]


@pytest.mark.parametrize(("counts", "batch_size"), [((3, 3), 4), ((3,), 0)])
def test_a_batch_size_that_leaves_nothing_is_refused(counts: tuple[int, ...], batch_size: int) -> None:
    with pytest.raises(OptionError, match="batch_size"):
        BatchOrder(numbers(*counts), batch_size, 0)
