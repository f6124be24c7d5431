"""Samplers: the same rows for any number of ranks, and from any point on."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training side needs torch")

from torch.utils.data import ConcatDataset, DataLoader, Dataset, RandomSampler, Subset  # noqa: E402

from builder.base.errors import OptionError  # noqa: E402
from builder.mm import (  # noqa: E402
    AspectRatioBatchSampler,
    EpochSampler,
    InfiniteSampler,
    MixtureSampler,
    launch,
)
from builder.mm.bucket_sampler import bucketed  # noqa: E402
from builder.mm.buckets import Buckets  # noqa: E402


class Rows(Dataset[int]):
    """Numbers, as a dataset; sizes of three ratios."""

    def __init__(self, size: int, buckets: Buckets | None = None) -> None:
        self.size = size
        self.buckets = buckets

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index

    def widths(self) -> np.ndarray:
        return np.array([(200, 100, 100)[i % 3] for i in range(self.size)], dtype=np.int32)

    def heights(self) -> np.ndarray:
        return np.array([(100, 100, 200)[i % 3] for i in range(self.size)], dtype=np.int32)


BUCKETS = Buckets([(64, 64), (96, 48), (48, 96)])

SAMPLERS: dict[str, Any] = {
    "infinite": lambda: InfiniteSampler(Rows(50), seed=3),
    "in order": lambda: InfiniteSampler(Rows(50), shuffle=False, seed=3),
    "window": lambda: InfiniteSampler(Rows(50), seed=3, window=20, run=5),
    "epochs": lambda: EpochSampler(Rows(50), seed=3),
    "mixture": lambda: MixtureSampler(ConcatDataset([Rows(20), Rows(30)]), [1, 2], seed=3),
    "buckets": lambda: AspectRatioBatchSampler(InfiniteSampler(Rows(50, BUCKETS), seed=3), 4),
    "buckets, epochs": lambda: AspectRatioBatchSampler(EpochSampler(Rows(50, BUCKETS), seed=3), 4),
}
BATCH = 4


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the samplers of all ranks of a world, one by one in this process."""

    def make(name: str, size: int) -> list[Any]:
        made = []
        for rank in range(size):
            monkeypatch.setattr(launch, "ranks", lambda rank=rank: (rank, size))
            made.append(SAMPLERS[name]())
        return made

    return make


def batches(sampler: Any, count: int) -> list[list[int]]:
    """The first batches that a loader would make of it."""
    if isinstance(sampler, AspectRatioBatchSampler):
        return list(islice(sampler, count))
    rows = list(islice(sampler, count * BATCH))
    return [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]


def sets(samplers: list[Any], count: int) -> list[list[int]]:
    """What all ranks together train on in each step."""
    by_rank = [batches(sampler, count) for sampler in samplers]
    return [sorted(row for own in step for row in own) for step in zip(*by_rank, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (2, 1), (1, 3), (4, 2)])
def test_a_resumed_run_goes_on_with_the_very_next_rows_on_any_number_of_ranks(
    name: str, before: int, after: int, world: Any
) -> None:
    alone = SAMPLERS[name]()
    total = 12 * (before + after)  # batches of one rank that cover both parts
    if "epochs" in name:
        total = len(alone) // (1 if "buckets" in name else BATCH)
    expected = batches(alone, total)
    trained = 1 if "epochs" in name else 5
    first = world(name, before)
    done = sets(first, trained)
    states = [sampler.state_after(trained, BATCH) for sampler in first]
    assert all(state == states[0] for state in states)  # so any rank may save it
    second = world(name, after)
    for sampler in second:
        sampler.load_state_dict(pickle.loads(pickle.dumps(states[0])))
    steps = (total - trained * before) // after
    resumed = sets(second, steps)
    flat = [row for batch in expected for row in batch]
    cut = trained * before * BATCH
    assert sorted(row for step in done for row in step) == sorted(flat[:cut])
    for i, step in enumerate(resumed):
        assert step == sorted(flat[cut + i * after * BATCH : cut + (i + 1) * after * BATCH])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_state_after_a_resume_counts_from_where_it_resumed(name: str) -> None:
    whole, halves = SAMPLERS[name](), SAMPLERS[name]()
    halves.load_state_dict(halves.state_after(1, BATCH))
    assert halves.state_after(2, BATCH) == whole.state_after(3, BATCH)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_iterator_begins_at_the_start_and_the_state_has_the_seed(name: str) -> None:
    sampler = SAMPLERS[name]()
    assert batches(sampler, 3) == batches(sampler, 3)
    other = SAMPLERS[name]()
    other.load_state_dict({**sampler.state_after(0, BATCH), "seed": 77})
    assert other.state_after(0, BATCH)["seed"] == 77
    if name != "in order":
        assert batches(other, 3) != batches(sampler, 3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_state_over_other_rows_is_refused(name: str) -> None:
    sampler = SAMPLERS[name]()
    with pytest.raises(OptionError, match="51 rows"):
        sampler.load_state_dict({**sampler.state_after(0, BATCH), "rows": 51})


@pytest.mark.parametrize("saved", SAMPLERS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_state_of_another_sampler_is_refused(name: str, saved: str) -> None:
    state = SAMPLERS[saved]().state_after(2, BATCH)
    if name == saved:
        SAMPLERS[name]().load_state_dict(state)
        return
    with pytest.raises(OptionError, match=r"kind|shuffle|window|endless"):
        SAMPLERS[name]().load_state_dict(state)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_state_of_an_earlier_version_is_taken_as_before(name: str) -> None:
    sampler = SAMPLERS[name]()
    state = sampler.state_after(2, BATCH)
    old = {key: state[key] for key in ("seed", "position", "rows", "epoch", "batch_size") if key in state}
    other = SAMPLERS[name]()
    other.load_state_dict(old)
    assert other.state_after(0, BATCH) == state


def test_a_refused_state_says_what_differs() -> None:
    parts = ConcatDataset([Rows(20), Rows(30)])
    state = SAMPLERS["mixture"]().state_after(1, BATCH)
    with pytest.raises(OptionError, match=r"weights: \[2.0, 1.0\] here, \[1.0, 2.0\] in the saved state"):
        MixtureSampler(parts, [2, 1]).load_state_dict(state)
    state = SAMPLERS["mixture"]().state_after(1, BATCH)
    with pytest.raises(OptionError, match=r"sizes: \[30, 20\] here, \[20, 30\] in"):
        MixtureSampler(ConcatDataset([Rows(30), Rows(20)]), [1, 2]).load_state_dict(state)
    with pytest.raises(OptionError, match=r"sizes: \[20, 31\] here, \[20, 30\] in"):
        MixtureSampler(ConcatDataset([Rows(20), Rows(31)]), [1, 2]).load_state_dict(state)
    state = SAMPLERS["window"]().state_after(1, BATCH)
    with pytest.raises(OptionError, match=r"run: 10 here, 5 in"):
        InfiniteSampler(Rows(50), window=20, run=10).load_state_dict(state)
    with pytest.raises(OptionError, match=r"drop_last: false here, true in"):
        AspectRatioBatchSampler(InfiniteSampler(Rows(50, BUCKETS)), BATCH, drop_last=False).load_state_dict(
            SAMPLERS["buckets"]().state_after(1, BATCH)
        )
    with pytest.raises(OptionError, match="another sampler's: it lacks batch_size"):
        SAMPLERS["buckets"]().load_state_dict({"seed": 3, "position": 8, "rows": 50})
    other = Rows(50, Buckets([(64, 64), (96, 48)]))
    with pytest.raises(OptionError, match=r"buckets: \[\[64, 64\], \[96, 48\]\] here, \[\[48, 96\]"):
        AspectRatioBatchSampler(InfiniteSampler(other), BATCH).load_state_dict(
            SAMPLERS["buckets"]().state_after(1, BATCH)
        )
    without_effect = InfiniteSampler(Rows(50), run=7)
    without_effect.load_state_dict(SAMPLERS["infinite"]().state_after(1, BATCH))


@pytest.mark.parametrize("name", ["infinite", "in order", "window"])
def test_an_infinite_sampler_shows_every_row_once_in_each_epoch(name: str, world: Any) -> None:
    ranks = [list(islice(sampler, 75)) for sampler in world(name, 2)]
    rows = [row for pair in zip(*ranks, strict=True) for row in pair]
    for epoch in range(3):
        assert sorted(rows[epoch * 50 : epoch * 50 + 50]) == list(range(50))


def test_an_infinite_sampler_is_as_long_as_mmengines() -> None:
    assert len(InfiniteSampler(Rows(7))) == 7


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", ["infinite", "in order", "window", "mixture", "buckets"])
def test_an_endless_sampler_leads_on_from_epoch_to_epoch(name: str, size: int, world: Any) -> None:
    """Loops by epoch over whole loaders come out where one loop that never ended would."""
    for sampler in world(name, size):
        whole = batches(sampler, 200)
        epochs = []
        for epoch in range(3):
            setter = getattr(sampler, "sampler", sampler)  # launchers know the sampler, not always the batch sampler
            setter.set_epoch(epoch)
            setter.set_epoch(epoch)  # no effect
            rows = len(sampler) * (1 if name == "buckets" else -(-len(sampler) // BATCH))
            epochs.append(batches(sampler, len(sampler) if name == "buckets" else rows))
        flat = [row for batch in whole for row in batch]
        if name == "buckets":
            assert [batch for own in epochs for batch in own] == whole[: sum(map(len, epochs))]
        else:
            for epoch, own in enumerate(epochs):
                shown = [row for batch in own for row in batch][: len(sampler)]
                assert shown == flat[epoch * len(sampler) : (epoch + 1) * len(sampler)]


def test_every_part_of_a_mixture_is_shown_under_loops_by_epoch() -> None:
    both = ConcatDataset([Rows(500), Rows(500)])
    sampler = MixtureSampler(both, [3, 1], seed=3)
    seen: list[int] = []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        seen += islice(sampler, 1000)
    shown = np.bincount(seen, minlength=1000)
    assert set(shown[500:].tolist()) <= {9, 10, 11}
    assert np.ptp(shown[:500]) <= 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_epoch_set_after_a_state_was_loaded_moves_on_only_if_it_is_another(name: str) -> None:
    sampler, other = SAMPLERS[name](), SAMPLERS[name]()
    setter = getattr(sampler, "sampler", sampler)
    setter.set_epoch(2)
    other.load_state_dict(sampler.state_after(1, BATCH))
    setter = getattr(other, "sampler", other)
    setter.set_epoch(2)
    assert batches(other, 1) == batches(sampler, 2)[1:]
    setter.set_epoch(3)
    getattr(sampler, "sampler", sampler).set_epoch(3)
    assert batches(other, 2) == batches(sampler, 2)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_knows_what_was_drawn_from_it(name: str) -> None:
    sampler = SAMPLERS[name]()
    assert sampler.state_dict() == sampler.state_after(0, BATCH)
    abandoned = iter(sampler)
    next(abandoned)
    iterator = iter(sampler)
    drawn = [next(iterator) for _ in range(5)]
    next(abandoned)  # counts for itself
    state = sampler.state_dict()
    assert state == (sampler.state_after(5, BATCH) if "buckets" in name else sampler.state_after(1, 5))
    other = SAMPLERS[name]()
    other.load_state_dict(state)
    assert drawn + list(islice(other, 4)) == list(islice(SAMPLERS[name](), 9))
    assert other.state_dict() == (sampler.state_after(9, BATCH) if "buckets" in name else sampler.state_after(1, 9))


@pytest.mark.parametrize("name", ["epochs", "buckets, epochs"])
def test_after_an_epochs_end_there_is_nothing_but_the_next(name: str) -> None:
    sampler, other = SAMPLERS[name](), SAMPLERS[name]()
    list(sampler)
    state = sampler.state_dict()
    other.load_state_dict(state)
    assert list(other) == []
    for each in (sampler, other):
        getattr(each, "sampler", each).set_epoch(1)
    other.load_state_dict(state)  # by a loader, once the loop had said which epoch it is
    assert list(other) == list(sampler) != []


@pytest.mark.parametrize("name", ["epochs", "buckets, epochs"])
def test_a_resumed_epoch_is_followed_by_whole_ones(name: str) -> None:
    sampler = SAMPLERS[name]()
    whole = list(sampler)
    sampler.load_state_dict(sampler.state_after(2, BATCH))
    assert [list(sampler), list(sampler)] == [whole[2 if "buckets" in name else 2 * BATCH :], whole]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_over_enough_epochs_every_row_of_every_bucket_is_shown_equally_often(size: int, world: Any) -> None:
    """50 rows in buckets of 17, 17 and 16: 12 epochs are whole numbers of batches of 4, for up to three ranks."""
    shown = np.zeros(50, int)
    samplers = world("buckets, epochs", size)
    for epoch in range(12):
        lengths = set()
        for sampler in samplers:
            sampler.sampler.set_epoch(epoch)
            own = list(sampler)
            assert len(own) == len(sampler)
            lengths.add(len(own))
            for batch in own:
                np.add.at(shown, batch, 1)  # a small bucket's row may come twice in a batch
        assert len(lengths) == 1
    assert set(shown.tolist()) == {12}


@pytest.mark.parametrize("make", ["infinite", "epochs", "mixture", "buckets, epochs"])
def test_a_rank_that_is_given_is_taken_as_it_is(make: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, bucketed = ConcatDataset([Rows(20), Rows(30)]), Rows(50, BUCKETS)
    makers: dict[str, Any] = {
        "infinite": lambda **given: InfiniteSampler(Rows(50), seed=3, **given),
        "epochs": lambda **given: EpochSampler(Rows(50), seed=3, **given),
        "mixture": lambda **given: MixtureSampler(parts, [1, 2], seed=3, **given),
        "buckets, epochs": lambda **given: AspectRatioBatchSampler(EpochSampler(bucketed, seed=3, **given), 4),
    }
    alone = list(islice(SAMPLERS[make](), 12))
    monkeypatch.setattr(launch, "ranks", lambda: (2, 5))
    assert list(islice(makers[make](rank=0, world_size=1), 12)) == alone
    assert list(islice(makers[make](rank=1, world_size=3), 4)) == alone[1::3]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"rank": 0}, "world_size: "),
        ({"world_size": 2}, "rank: "),
        ({"rank": 2, "world_size": 2}, "rank 2"),
        ({"rank": -1, "world_size": 2}, "rank -1"),
        ({"rank": 0, "world_size": 0}, "world_size 0: give 1 or more"),
        ({"rank": "0", "world_size": 1}, 'rank "0"'),
        ({"rank": 0, "world_size": 2}, "seed: "),  # two processes that do not know of each other
    ],
)
def test_a_rank_that_cannot_be_is_refused(given: dict[str, Any], what: str) -> None:
    with pytest.raises(OptionError, match=what):
        EpochSampler(Rows(9), **given)


def test_a_sampler_made_too_early_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = EpochSampler(Rows(9), seed=1)
    quiet = EpochSampler(Rows(9), seed=1, rank=0, world_size=1)
    monkeypatch.setattr(launch, "ranks", lambda: (1, 2))
    list(quiet)
    with pytest.warns(UserWarning, match=r"EpochSampler was made before torch.distributed was set up"):
        list(sampler)


def test_a_state_by_buckets_of_an_earlier_version_says_what_changed() -> None:
    """Its first epoch is in the order that it was; later ones are not."""
    old = {"seed": 3, "position": 5, "rows": 50, "epoch": 0, "batch_size": 4}
    sampler = SAMPLERS["buckets, epochs"]()
    sampler.load_state_dict(old)
    assert list(sampler) == list(SAMPLERS["buckets, epochs"]())[5:]
    with pytest.warns(UserWarning, match="saved by an earlier version"):
        sampler.load_state_dict({**old, "epoch": 2})


@pytest.mark.parametrize("round_up", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_an_epoch_has_as_many_rows_for_every_rank(size: int, round_up: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 10
    taken = []
    for rank in range(size):
        monkeypatch.setattr(launch, "ranks", lambda rank=rank: (rank, size))
        sampler = EpochSampler(Rows(rows), seed=1, round_up=round_up)
        sampler.set_epoch(2)
        own = list(sampler)
        assert len(own) == len(sampler)
        taken += own
    assert set(taken) == set(range(rows)) if round_up else len(set(taken)) == len(taken)
    assert len(taken) == (-(-rows // size) if round_up else rows // size) * size


@pytest.mark.slow
@pytest.mark.parametrize("round_up", [True, False])
def test_an_epoch_resumed_anywhere_has_as_many_rows_for_every_rank(
    round_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size, world, batch in product(range(5, 40), range(1, 5), (1, 3, 4, 7)):
        made = []
        for rank in range(world):
            monkeypatch.setattr(launch, "ranks", lambda rank=rank, world=world: (rank, world))
            made.append(EpochSampler(Rows(size), seed=1, round_up=round_up))
        whole = made[0]._count(size)
        for done in range(-(-whole // batch) + 1):
            state = made[0].state_after(done, batch)
            counts = []
            for sampler in made:
                sampler.start = 0
                sampler.load_state_dict(state)
                counts.append(len(list(sampler)))
                sampler.start = 0
            assert counts == [max(0, whole - done * batch)] * world, (size, world, batch, done)


def test_a_state_with_less_than_a_row_a_rank_left_leads_to_the_epoch_that_is_set() -> None:
    """Without ``round_up`` the last few rows are left out: 7 rows, 6 of them shown, and 4 ranks."""
    state = EpochSampler(Rows(7), seed=1, round_up=False, rank=0, world_size=2).state_after(3, 1)
    sampler = EpochSampler(Rows(7), seed=1, round_up=False, rank=0, world_size=4)
    sampler.set_epoch(1)
    sampler.load_state_dict(state)
    fresh = EpochSampler(Rows(7), seed=1, round_up=False, rank=0, world_size=4)
    fresh.set_epoch(1)
    assert list(sampler) == list(fresh) != []


def test_more_ranks_than_rows_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "ranks", lambda: (6, 7))
    assert len(list(EpochSampler(Rows(3), seed=1))) == 1
    assert list(EpochSampler(Rows(3), seed=1, round_up=False)) == []


def test_each_epoch_has_an_order_of_its_own() -> None:
    sampler = EpochSampler(Rows(50), seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_a_new_epoch_forgets_where_the_last_was_resumed() -> None:
    for sampler in (SAMPLERS["epochs"](), SAMPLERS["buckets, epochs"]()):
        inner = getattr(sampler, "sampler", sampler)
        sampler.load_state_dict(sampler.state_after(2, BATCH))
        rest = len(list(sampler))
        inner.set_epoch(1)
        assert len(list(sampler)) == len(sampler) > rest


def test_a_mixture_draws_by_weight() -> None:
    rows = np.array(list(islice(SAMPLERS["mixture"](), 6000)))
    assert abs((rows < 20).mean() - 1 / 3) < 0.02
    assert set(rows.tolist()) == set(range(50))


def test_a_mixture_needs_parts() -> None:
    with pytest.raises(OptionError, match="ConcatDataset"):
        MixtureSampler(Rows(5), [1])
    for weights in ([1], 3, "12", ["1", "2"], {"a": 1, "b": 2}):
        with pytest.raises(OptionError, match="weights"):
            MixtureSampler(ConcatDataset([Rows(5), Rows(5)]), weights)


@pytest.mark.slow
def test_every_part_of_a_mixture_shows_each_row_once_an_epoch_whatever_the_others_do() -> None:
    sampler = MixtureSampler(ConcatDataset([Rows(700), Rows(90_000)]), [1, 3], seed=3)
    sampler.load_state_dict(sampler.state_after(100 * 65536 // BATCH, BATCH))
    small = [row for row in islice(sampler, 200_000) if row < 700]
    first = 100 * 65536 // 4 % 700  # picks of the epoch that were made before
    for start in range(700 - first, len(small) - 700, 700):
        assert len(set(small[start : start + 700])) == 700


def test_a_batch_has_images_of_one_bucket_also_across_datasets() -> None:
    data = ConcatDataset([Rows(31, BUCKETS), Rows(40, BUCKETS)])
    sampler = AspectRatioBatchSampler(EpochSampler(data, seed=1), 4, drop_last=False)
    ratio = [i % 3 for i in range(31)] + [i % 3 for i in range(40)]
    shown = list(sampler)
    assert len(shown) == len(sampler)
    assert all(len({ratio[row] for row in batch}) == 1 for batch in shown)
    assert sorted(row for batch in shown for row in batch) == list(range(71))


def test_every_rank_gets_the_same_number_of_bucket_batches(world: Any) -> None:
    own = [list(sampler) for sampler in world("buckets, epochs", 3)]
    assert len({len(batches) for batches in own}) == 1
    shown = [row for batches in own for batch in batches for row in batch]
    assert len(shown) == len(set(shown))


def test_fewer_bucket_batches_than_ranks_are_refused(world: Any) -> None:
    """An epoch without a batch would be over at once, and look like one that was trained on."""
    assert [len(sampler) for sampler in world("buckets, epochs", 12)] == [1] * 12
    with pytest.raises(OptionError, match="an epoch has 12 batches, too few for 13 ranks"):
        world("buckets, epochs", 13)


def test_buckets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(OptionError, match="buckets"):
        AspectRatioBatchSampler(InfiniteSampler(Rows(9)), 2)
    mixed = ConcatDataset([Rows(9, BUCKETS), Rows(9, Buckets([(64, 64)]))])
    with pytest.raises(OptionError, match="the same buckets"):
        AspectRatioBatchSampler(InfiniteSampler(mixed), 2)
    with pytest.raises(OptionError, match="weights"):
        AspectRatioBatchSampler(MixtureSampler(ConcatDataset([Rows(9, BUCKETS)]), [1]), 2)
    with pytest.raises(OptionError, match='sampler "RandomSampler"'):
        AspectRatioBatchSampler(RandomSampler(Rows(9, BUCKETS)), 2)
    with pytest.raises(OptionError, match=r"batch_size \"2\": .*a whole number"):
        AspectRatioBatchSampler(InfiniteSampler(Rows(9, BUCKETS)), "2")
    sampler = SAMPLERS["buckets"]()
    with pytest.raises(OptionError, match="batches of 8"):
        sampler.load_state_dict({**sampler.state_after(0, BATCH), "batch_size": 8})


def test_buckets_are_known_of_parts_of_parts_and_of_subsets() -> None:
    whole = bucketed(Rows(9, BUCKETS))[1].tolist()
    nested = ConcatDataset([Rows(9, BUCKETS), ConcatDataset([Rows(9, BUCKETS), Subset(Rows(9, BUCKETS), [8, 1])])])
    assert bucketed(nested)[1].tolist() == [*whole, *whole, whole[8], whole[1]]


@pytest.mark.parametrize("seed", ["5", 5.0, True])
def test_a_seed_that_is_no_whole_number_is_refused(seed: Any) -> None:
    with pytest.raises(OptionError, match=r"seed.*a whole number"):
        InfiniteSampler(Rows(9), seed=seed)


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    plain = InfiniteSampler(Rows(90), seed=5, window=20, run=10)
    numpy = InfiniteSampler(Rows(90), seed=np.int64(5), window=np.int64(20), run=np.int32(10))
    assert list(islice(numpy, 90)) == list(islice(plain, 90))
    assert type(numpy.state_after(1, 4)["seed"]) is int
    parts = ConcatDataset([Rows(5), Rows(6)])
    plain = MixtureSampler(parts, [1, 2], seed=5)
    for weights in (np.array([1, 2]), torch.tensor([1, 2])):
        sampler = MixtureSampler(parts, weights, seed=5)
        assert list(islice(sampler, 50)) == list(islice(plain, 50))
        sampler.load_state_dict(plain.state_after(1, BATCH))


@pytest.mark.parametrize(("window", "run"), [("200", 100), (200, "100"), (200.0, 100)])
def test_a_window_that_is_no_whole_number_is_refused(window: Any, run: Any) -> None:
    with pytest.raises(OptionError, match=r"(window|run) .*a whole number"):
        InfiniteSampler(Rows(900), window=window, run=run)


def test_sizes_of_other_rows_are_refused() -> None:
    class Fewer(Rows):
        def __len__(self) -> int:
            return self.size - 1

    with pytest.raises(OptionError, match=r"8 rows.*9 widths"):
        AspectRatioBatchSampler(InfiniteSampler(Fewer(9, BUCKETS)), 2)


def test_an_empty_dataset_is_refused() -> None:
    with pytest.raises(OptionError, match="0 rows"):
        InfiniteSampler(Rows(0))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["infinite", "buckets"])
def test_a_loader_resumes_however_far_its_workers_have_read_ahead(name: str, workers: int) -> None:
    def loader(sampler: Any) -> Any:
        batched = {"batch_sampler": sampler} if name == "buckets" else {"sampler": sampler, "batch_size": BATCH}
        dataset = getattr(sampler, "sampler", sampler).dataset
        return DataLoader(dataset, num_workers=workers, multiprocessing_context="fork" if workers else None, **batched)

    through = [batch.tolist() for batch in islice(loader(SAMPLERS[name]()), 9)]
    stopped = SAMPLERS[name]()
    seen = [batch.tolist() for batch in islice(loader(stopped), 4)]
    resumed = SAMPLERS[name]()
    resumed.load_state_dict(stopped.state_after(len(seen), BATCH))
    assert seen + [batch.tolist() for batch in islice(loader(resumed), 5)] == through


WORKER = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch.distributed as dist
from itertools import islice
from torch.utils.data import DataLoader
from builder.mm import CaptionDataset, InfiniteSampler, EpochSampler, collate_func_gen

class Letters:
    def encode(self, text, return_tensors, add_special_tokens):
        import torch
        return torch.tensor([[ord(letter) for letter in text]])

rank, world, store, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
template = {"GENERATION": "{input}", "CFG": "", "INSTRUCTION": "{input}", "IMG_START_TOKEN": "<img>"}
dataset = CaptionDataset(path, cap_source="re_caption", tokenizer=Letters(), prompt_template=template, image_size=16)
def rows(sampler, steps):
    names = lambda samples: [sample["image_file"] for sample in samples]
    loader = DataLoader(dataset, batch_size=2, sampler=sampler, collate_fn=names)
    return [name for batch in islice(loader, steps) for name in batch]
infinite = InfiniteSampler(dataset)
answer = {"seed": infinite.seed, "infinite": rows(infinite, 4), "epoch": rows(EpochSampler(dataset, seed=1), None)}
print(json.dumps(answer))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_see_each_row_once_an_epoch(indexed: str, tmp_path: Path) -> None:
    """8 rows, 2 ranks, batches of 2: the infinite sampler's 4 steps are two epochs."""
    command = [sys.executable, "-c", WORKER]
    root = str(Path(__file__).parents[2])
    running = [
        subprocess.Popen(
            [*command, str(rank), "2", str(tmp_path / "store"), indexed],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=root,
            text=True,
        )
        for rank in range(2)
    ]
    answers = []
    for process in running:
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        answers.append(json.loads(out.splitlines()[-1]))
    assert answers[0]["seed"] == answers[1]["seed"]
    both = [answer["epoch"] for answer in answers]
    assert len(both[0]) == len(both[1]) == 4
    assert len(set(both[0] + both[1])) == 8
    for epoch in range(2):
        own = [answer["infinite"][epoch * 4 : epoch * 4 + 4] for answer in answers]
        assert len(set(own[0] + own[1])) == 8
