"""From a checkpoint to the first batch of a resumed run: torchdata, accelerate and mmengine with their own samplers and
with ours, over 2,000,000 rows, 200 batches of 32 in.

    laion6m demo work
    python benchmarks/resume.py work/out

Each row costs what decoding one of DATASET's costs (32 × 32 pixels). ``exact``: the batch is the very next one.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")
sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "examples")]

import torch  # noqa: E402
from accelerate import Accelerator, skip_first_batches  # noqa: E402
from mmengine.dataset import InfiniteSampler as MmengineSampler  # noqa: E402
from torch.utils.data import DataLoader, Dataset, DistributedSampler  # noqa: E402
from torchdata.stateful_dataloader import StatefulDataLoader  # noqa: E402
from torchdata.stateful_dataloader.sampler import RandomSampler  # noqa: E402
from train_tiny import tiny_dataset  # noqa: E402

from benchmarks.results import Results, add_json  # noqa: E402
from builder.mm import EpochSampler, InfiniteSampler  # noqa: E402

ROWS, BATCH, DONE = 2_000_000, 32, 200
Way = tuple[str, Callable[[], Iterator[Any]], Callable[[], Iterator[Any]], int]
"""Name, an unbroken run, a resumed one, and the bytes that the checkpoint holds for it."""


class Rows(Dataset[int]):
    def __init__(self, path: str) -> None:
        self.data = tiny_dataset(path)

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> int:
        self.data[row % len(self.data)]
        return row


def torchdata(rows: Rows, name: str, make: Callable[[], Any]) -> Way:
    first = StatefulDataLoader(rows, batch_size=BATCH, sampler=make())
    for _ in islice(first, DONE):
        pass
    state = first.state_dict()

    def resumed() -> Iterator[Any]:
        loader = StatefulDataLoader(rows, batch_size=BATCH, sampler=make())
        loader.load_state_dict(state)
        return iter(loader)

    return name, lambda: iter(StatefulDataLoader(rows, batch_size=BATCH, sampler=make())), resumed, size_of(state)


def size_of(state: Any) -> int:
    return len(pickle.dumps(state))


def ways(rows: Rows) -> Iterator[Way]:
    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    yield torchdata(rows, "torchdata, its RandomSampler", lambda: RandomSampler(rows, generator=generator()))
    yield torchdata(rows, "torchdata, torch's DistributedSampler", lambda: DistributedSampler(rows, 1, 0, seed=1))
    yield torchdata(rows, "torchdata, InfiniteSampler", lambda: InfiniteSampler(rows, seed=1))
    accelerator = Accelerator(cpu=True)

    def alone() -> EpochSampler:
        return EpochSampler(rows, seed=1, rank=0, world_size=1)

    def prepared(**options: Any) -> Any:
        return accelerator.prepare(DataLoader(rows, batch_size=BATCH, **options))

    def shuffled() -> Any:
        return prepared(shuffle=True, generator=generator())

    skipping = "accelerate, skip_first_batches"
    yield skipping, lambda: iter(shuffled()), lambda: iter(skip_first_batches(shuffled(), DONE)), size_of(DONE)
    state = alone().state_after(DONE, BATCH)

    def loaded(sampler: Any) -> Any:
        sampler.load_state_dict(state)
        return sampler

    ours = lambda: iter(prepared(sampler=loaded(alone())))  # noqa: E731
    yield "accelerate, EpochSampler", lambda: iter(prepared(sampler=alone())), ours, size_of(state)

    def loop(sampler: Any) -> Iterator[Any]:
        return iter(DataLoader(rows, batch_size=BATCH, sampler=sampler))

    def replayed() -> Iterator[Any]:
        """As mmengine's IterBasedTrainLoop begins."""
        batches = loop(MmengineSampler(rows, seed=1))
        for _ in range(DONE):
            next(batches)
        return batches

    yield "mmengine, its InfiniteSampler", lambda: loop(MmengineSampler(rows, seed=1)), replayed, size_of(DONE)
    endless = InfiniteSampler(rows, seed=1).state_after(DONE, BATCH)

    def hooked() -> Iterator[Any]:
        """As SamplerStateHook has it begin."""
        sampler = InfiniteSampler(rows, seed=1)
        sampler.load_state_dict(endless)
        return loop(sampler)

    whole = lambda: loop(InfiniteSampler(rows, seed=1))  # noqa: E731
    yield "mmengine, InfiniteSampler, SamplerStateHook", whole, hooked, size_of(endless)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", metavar="DATASET")
    torch.set_num_threads(1)
    add_json(parser)
    arguments = parser.parse_args()
    rows, results = Rows(arguments.dataset), Results()
    for name, whole, resumed, size in ways(rows):
        *_, expected = islice(whole(), DONE + 1)
        start = time.perf_counter()
        got = next(resumed())
        spent = (time.perf_counter() - start) * 1e3
        exact = "yes" if torch.equal(got, expected) else "no"
        results.add(
            name, {"ms to the first batch": spent, "bytes of the checkpoint": size, "the very next batch": exact}
        )
    results.finish(arguments.json)


if __name__ == "__main__":
    main()
