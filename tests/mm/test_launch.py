"""Samplers under the launchers that share out batches themselves, and under loaders that save their state."""

from __future__ import annotations

import warnings
from itertools import islice
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the training side needs torch")

from torch.utils.data import BatchSampler, ConcatDataset, DataLoader  # noqa: E402

from builder.base.errors import OptionError  # noqa: E402
from builder.mm import AspectRatioBatchSampler, EpochSampler, InfiniteSampler, MixtureSampler, launch  # noqa: E402
from builder.mm.buckets import Buckets  # noqa: E402
from tests.mm.test_samplers import Rows  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.set_vital:UserWarning"
)  # of the launchers


def imported(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} is not installed")


def sharded(sampler: Any, batch_size: int = 4, ranks: int = 2) -> list[list[list[int]]]:
    """What accelerate gives each of its processes."""
    shard = imported("accelerate.data_loader").BatchSamplerShard
    inner = sampler if isinstance(sampler, AspectRatioBatchSampler) else BatchSampler(sampler, batch_size, False)
    return [list(islice(shard(inner, ranks, rank), 30)) for rank in range(ranks)]


BUCKETS = Buckets([(64, 64), (96, 48), (48, 96)])


@pytest.mark.parametrize("kind", ["epochs", "endless", "buckets"])
def test_accelerate_shares_out_what_a_sampler_of_one_rank_gives(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "ranks", lambda: (1, 2))
    alone = {"rank": 0, "world_size": 1, "seed": 3}
    sampler: Any = InfiniteSampler(Rows(120), **alone) if kind == "endless" else EpochSampler(Rows(120), **alone)
    if kind == "buckets":
        sampler = AspectRatioBatchSampler(EpochSampler(Rows(120, BUCKETS), **alone), 4)
    shown = [row for own in sharded(sampler) for batch in own for row in batch]
    assert sorted(shown) == sorted(list(range(120)) * (2 if kind == "endless" else 1))


@pytest.mark.parametrize("kind", ["epochs", "endless", "buckets"])
def test_sharing_out_twice_under_accelerate_is_a_warning(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "ranks", lambda: (1, 2))
    sampler: Any = InfiniteSampler(Rows(120), seed=3) if kind == "endless" else EpochSampler(Rows(120), seed=3)
    if kind == "buckets":
        sampler = AspectRatioBatchSampler(EpochSampler(Rows(120, BUCKETS), seed=3), 4)
    with pytest.warns(UserWarning, match=r"among 2 ranks, and accelerate divides .*rank=0 and world_size=1"):
        sharded(sampler)


def test_a_seed_that_each_rank_drew_for_itself_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    early = EpochSampler(Rows(120), rank=0, world_size=1)
    bucketed = AspectRatioBatchSampler(EpochSampler(Rows(120, BUCKETS), rank=0, world_size=1), 4)
    monkeypatch.setattr(launch, "ranks", lambda: (1, 2))
    for sampler in (early, bucketed):
        with pytest.warns(UserWarning, match=r"accelerate divides batches of 2 different orders. Give"):
            sharded(sampler)
    early.load_state_dict(EpochSampler(Rows(120), seed=3).state_dict())
    sharded(early)  # the state has the seed of all


def distributed(sampler: Any, ranks: int = 2) -> list[list[int]]:
    """What Lightning gives each of its processes."""
    wrapper = imported("lightning_fabric.utilities.distributed").DistributedSamplerWrapper
    return [list(wrapper(sampler, num_replicas=ranks, rank=rank, shuffle=False)) for rank in range(ranks)]


@pytest.mark.slow
def test_lightning_shares_out_what_a_sampler_of_one_rank_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "ranks", lambda: (1, 2))
    shown = distributed(EpochSampler(Rows(120), seed=1, rank=0, world_size=1))
    assert sorted(shown[0] + shown[1]) == list(range(120))


def test_sharing_out_twice_under_lightning_is_a_warning_and_an_endless_list_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "ranks", lambda: (1, 2))
    with pytest.warns(UserWarning, match=r"Lightning divides .*use_distributed_sampler=False"):
        distributed(EpochSampler(Rows(120), seed=1))
    for sampler in (InfiniteSampler(Rows(9), seed=3, rank=0, world_size=1), InfiniteSampler(Rows(9), seed=3)):
        with pytest.raises(OptionError, match=r"this one is endless: .*use_distributed_sampler=False"):
            distributed(sampler)


MAKERS: dict[str, Any] = {
    "epochs": lambda: EpochSampler(Rows(50), seed=5),
    "endless": lambda: InfiniteSampler(Rows(50), seed=5),
    "mixture": lambda: MixtureSampler(ConcatDataset([Rows(20), Rows(30)]), [1, 2], seed=5),
    "buckets": lambda: AspectRatioBatchSampler(InfiniteSampler(Rows(50, BUCKETS), seed=5), 4),
    "buckets, epochs": lambda: AspectRatioBatchSampler(EpochSampler(Rows(50, BUCKETS), seed=5), 4),
}


def loader(kind: str, workers: int, loader_class: Any = None) -> Any:
    sampler = MAKERS[kind]()
    batched = {"batch_sampler": sampler} if "buckets" in kind else {"sampler": sampler, "batch_size": 4}
    made = loader_class or imported("torchdata.stateful_dataloader").StatefulDataLoader
    context = "fork" if workers else None
    return made(Rows(50), num_workers=workers, multiprocessing_context=context, **batched)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", MAKERS)
def test_torchdatas_loader_resumes_at_the_very_next_batch(kind: str, workers: int) -> None:
    """After any number of batches, the last one of an epoch among them, and in later epochs."""
    whole = take(loader(kind, 0, DataLoader), kind, 45)
    for taken in (1, 5, 11, 12, 13, 14, 24, 26, 30) if workers == 0 else (5, 13):
        first = loader(kind, workers)
        seen = take(first, kind, taken)
        second = loader(kind, workers)
        second.load_state_dict(first.state_dict())
        assert [batch for _, batch in seen + take(second, kind, 10, seen[-1][0])] == [
            batch for _, batch in whole[: taken + 10]
        ]


@pytest.mark.parametrize("kind", ["epochs", "buckets, epochs"])
def test_torchdatas_loader_resumes_after_an_epoch_with_the_next(kind: str) -> None:
    first, second = loader(kind, 0), loader(kind, 0)
    for _ in first:
        pass
    second.load_state_dict(first.state_dict())
    assert take(second, kind, 20, 1) == take(loader(kind, 0), kind, 20, 1)


def take(data: Any, kind: str, count: int, epoch: int = 0) -> list[tuple[int, list[int]]]:
    """The next batches, each with its epoch, which a loop by epochs sets."""
    taken: list[tuple[int, list[int]]] = []
    while len(taken) < count:
        if "epochs" in kind:
            (data.batch_sampler if "buckets" in kind else data.sampler).set_epoch(epoch)
        for batch in data:
            taken.append((epoch, batch.tolist()))
            if len(taken) == count:
                break
        epoch += 1
    return taken
