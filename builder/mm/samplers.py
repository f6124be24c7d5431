"""Samplers for one process or many: the order is arithmetic (see ``builder.mm.order``), so that none keeps a list of
rows, all start at once anywhere, and the order is the same whatever number of ranks it is spread over.

All take the rows at positions ``start + rank``, ``start + rank + world_size``, … of one endless order. ``state_after``
says where ``start`` lies once so many batches were trained on; it does not ask how far a loader's workers have read
ahead.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence, Sized
from itertools import pairwise
from numbers import Integral
from typing import Any, Protocol

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch.utils.data import Sampler, Subset

from builder.base.errors import OptionError
from builder.base.options import check_number
from builder.mm.buckets import BatchOrder, Buckets
from builder.mm.order import ListedOrder, MixedOrder, Order, ShuffledOrder, WindowOrder, derive, walk

State = dict[str, Any]
"""Plain values, the same on every rank: goes into a checkpoint as it is."""

RUN = 512
"""Rows that a window takes from one place. At 110 kB an image, 56 MB: long enough to read at full speed from a
network disk."""


class Resumable(Protocol):
    """What the resume hook asks of a sampler, or of a batch sampler."""

    def state_after(self, batches: int, batch_size: int) -> State:
        """Where to start after each rank has trained on ``batches`` batches from the present start."""

    def load_state_dict(self, state: State) -> None:
        """Start there from the next ``iter()`` on. Raises OptionError where the state is of other data, or of a sampler
        that has another order."""


def ranks() -> tuple[int, int]:
    """This process's rank and the number of ranks: 0 and 1 where torch.distributed is not set up."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def shared_seed() -> int:
    """A random seed, the same on all ranks (a collective call where there are several)."""
    seeds = [secrets.randbits(31)]
    if ranks()[1] > 1:
        dist.broadcast_object_list(seeds, src=0)
    return seeds[0]


class InfiniteSampler(Sampler[int]):
    """Takes the place of mmengine's InfiniteSampler: endless, every row once in ``len(dataset)`` positions of all
    ranks.

    ``window`` (rows, a multiple of ``run``) keeps reads near each other: see :class:`builder.mm.order.WindowOrder`.
    Every ``iter()`` begins at the start again, or where ``load_state_dict`` put it.
    """

    def __init__(
        self,
        dataset: Sized,
        shuffle: bool = True,
        seed: int | None = None,
        window: int | None = None,
        run: int = RUN,
    ) -> None:
        self.rank, self.world_size = ranks()
        self.dataset = dataset
        self.shuffle = shuffle
        if seed is not None:
            check_number("seed", seed, "the same on all ranks", Integral)
        self.seed = shared_seed() if seed is None else int(seed)
        self.size = len(dataset)
        self.start = 0
        self._window, self._run = window, run
        self._order = self._make_order()

    def _make_order(self) -> Order:
        return make_order(self.size, self.seed, self.shuffle, self._window, self._run)

    def __iter__(self) -> Iterator[int]:
        return walk(self._order, self.start + self.rank, self.world_size)

    def __len__(self) -> int:
        """Rows of the dataset, as mmengine has it: an epoch of all ranks."""
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: the order goes on from epoch to epoch by itself."""

    def state_after(self, batches: int, batch_size: int) -> State:
        return self._state(self.start + batches * batch_size * self.world_size)

    def _state(self, position: int) -> State:
        return {"seed": self.seed, "position": int(position), "rows": self.size, **self._identity()}

    def _identity(self) -> State:
        """What a state must share with this sampler to mean the same place; options without effect are None."""
        window = self._window if self.shuffle else None
        run = None if window is None else self._run
        return {"kind": type(self).__name__, "shuffle": bool(self.shuffle), "window": window, "run": run}

    def load_state_dict(self, state: State) -> None:
        _check_state(state, self._state(0), self._identity())
        self.seed, self.start = state["seed"], state["position"]
        self._order = self._make_order()


class EpochSampler(InfiniteSampler):
    """Takes the place of mmengine's DefaultSampler: one epoch at a time, ``set_epoch`` for the next.

    Every rank gets the same number of rows: with ``round_up`` the first rows of the epoch come a second time where the
    ranks do not share out evenly, without it the last few rows are left out.
    """

    def __init__(
        self,
        dataset: Sized,
        shuffle: bool = True,
        seed: int | None = None,
        round_up: bool = True,
        window: int | None = None,
        run: int = RUN,
    ) -> None:
        super().__init__(dataset, shuffle, seed, window, run)
        self.epoch = 0
        self.round_up = round_up

    def _count(self, rows: int) -> int:
        """How many of the epoch's last ``rows`` rows each rank gets."""
        return -(-rows // self.world_size) if self.round_up else rows // self.world_size

    def __iter__(self) -> Iterator[int]:
        count = self._count(max(0, self.size - self.start))  # the last batch may have ended beyond the epoch
        if not count:
            return
        base = self.epoch * self.size
        first = self.start + self.rank
        last = first + (count - 1) * self.world_size
        yield from walk(self._order, base + first, self.world_size, base + min(last + 1, self.size))
        if last >= self.size:
            yield from walk(self._order, base + last % self.size, 1, base + last % self.size + 1)

    def __len__(self) -> int:
        """Rows of this rank in a whole epoch."""
        return self._count(self.size)

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def _state(self, position: int) -> State:
        return {**super()._state(position), "epoch": self.epoch}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.epoch = state["epoch"]


class MixtureSampler(InfiniteSampler):
    """Draws from the parts of a ConcatDataset by weight, each part in epochs of its own: see
    :class:`builder.mm.order.MixedOrder`.

    ``dataset``: anything with ``cumulative_sizes``; ``weights``: one positive number for each part.
    """

    def __init__(
        self,
        dataset: Sized,
        weights: Sequence[float],
        shuffle: bool = True,
        seed: int | None = None,
        window: int | None = None,
        run: int = RUN,
    ) -> None:
        ends = getattr(dataset, "cumulative_sizes", None)
        if ends is None:
            raise OptionError("dataset", type(dataset).__name__, "a mixture needs a ConcatDataset")
        try:
            self.weights = np.asarray(weights).tolist() if hasattr(weights, "__array__") else list(weights)
        except TypeError:
            raise OptionError("weights", weights, "a list, one positive number for each part") from None
        self._sizes = [end - start for start, end in pairwise([0, *ends])]
        super().__init__(dataset, shuffle, seed, window, run)

    def _make_order(self) -> Order:
        if 0 in self._sizes:
            raise OptionError("dataset", self._sizes, "rows of its parts; one that has none cannot be drawn from")
        orders = [
            make_order(size, derive(self.seed, part), self.shuffle, self._window, self._run)
            for part, size in enumerate(self._sizes)
        ]
        return MixedOrder(orders, self._sizes, self.weights, derive(self.seed, len(orders)))

    def _identity(self) -> State:
        weights = [float(weight) for weight in self.weights]
        return {**super()._identity(), "weights": weights, "sizes": list(self._sizes)}


class AspectRatioBatchSampler(Sampler[list[int]]):
    """Batches of images of one bucket each, from the index's sizes; no image is opened.

    ``sampler``: an InfiniteSampler or EpochSampler, or mmengine's of that kind. It says which dataset, which seed,
    whether to shuffle, and whether to go on for ever or for an epoch; its window has no part in this. The dataset's
    ``buckets`` are the sizes it crops to. The sequence of batches is one for all ranks, who take them in turn: every
    rank gets the same number, and a resume may change the number of ranks.
    """

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool = True) -> None:
        if isinstance(sampler, MixtureSampler):
            raise OptionError("sampler", "MixtureSampler", "batches by bucket cannot keep to weights")
        if not hasattr(sampler, "dataset") or not hasattr(sampler, "seed"):
            raise OptionError(
                "sampler", type(sampler).__name__, "one of a dataset, with a seed: InfiniteSampler, EpochSampler"
            )
        self.rank, self.world_size = ranks()
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.start = 0
        self._start_epoch = self._epoch
        buckets, self._buckets = _bucketed(sampler.dataset)
        self._sizes = [list(size) for size in buckets.sizes]
        self._order = self._make_order(sampler.seed)
        if self._epoch is not None and not len(self):
            few = f"an epoch has {self._order.per_epoch} batches, none for some of the {self.world_size} ranks"
            raise OptionError("batch_size", batch_size, few)

    def _make_order(self, seed: int) -> BatchOrder:
        return BatchOrder(self._buckets, self.batch_size, seed, self.sampler.shuffle, self.drop_last)

    @property
    def _epoch(self) -> int | None:
        """Of the sampler; None for one that goes on for ever, which counts none."""
        return getattr(self.sampler, "epoch", None)

    def __iter__(self) -> Iterator[list[int]]:
        start = self.start if self._epoch == self._start_epoch else 0
        if self._epoch is None:
            return self._order.walk(start + self.rank, self.world_size)
        first, count = self._epoch * self._order.per_epoch, (self._order.per_epoch - start) // self.world_size
        return self._order.walk(first + start + self.rank, self.world_size, first + start + count * self.world_size)

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch."""
        return self._order.per_epoch // self.world_size

    def state_after(self, batches: int, batch_size: int) -> State:
        start = self.start if self._epoch == self._start_epoch else 0
        return {
            "seed": self._order.seed,
            "position": int(start + batches * self.world_size),
            "rows": len(self._buckets),
            "batch_size": self.batch_size,
            "epoch": self._epoch or 0,
            **self._identity(),
        }

    def _identity(self) -> State:
        return {
            "kind": type(self).__name__,
            "shuffle": bool(getattr(self.sampler, "shuffle", True)),
            "drop_last": bool(self.drop_last),
            "buckets": self._sizes,
            "endless": self._epoch is None,
        }

    def load_state_dict(self, state: State) -> None:
        _check_state(state, self.state_after(0, self.batch_size), self._identity())
        if state["batch_size"] != self.batch_size:
            raise OptionError("batch_size", self.batch_size, f"the state counts batches of {state['batch_size']}")
        self.start = state["position"]
        if self._epoch is not None:
            self._start_epoch = state["epoch"]
            self.sampler.set_epoch(state["epoch"])
        self._order = self._make_order(state["seed"])


def make_order(size: int, seed: int, shuffle: bool, window: int | None, run: int) -> Order:
    """The order that a sampler's options ask for. Raises OptionError."""
    if size < 1:
        raise OptionError("dataset", f"{size} rows", "there is nothing to put in order")
    if not shuffle:
        return ListedOrder(size)
    if window is None:
        return ShuffledOrder(size, seed)
    check_number("run", run, "rows that lie side by side, 1 or more", Integral)
    check_number("window", window, f"rows, a multiple of run={run}", Integral)
    return WindowOrder(size, seed, int(window), int(run))


def bucket_numbers(dataset: Any) -> NDArray[np.int16]:
    """The bucket of each row. Raises OptionError for a dataset without buckets, or whose parts have different ones."""
    return _bucketed(dataset)[1]


def _bucketed(dataset: Any) -> tuple[Buckets, NDArray[np.int16]]:
    """The buckets of a dataset, of a part of one (torch's Subset), or of several end to end, and that of each row."""
    if isinstance(dataset, Subset):
        buckets, numbers = _bucketed(dataset.dataset)
        return buckets, numbers[np.asarray(dataset.indices, np.int64)]
    parts = getattr(dataset, "datasets", None)
    if not parts:
        own: Buckets | None = getattr(dataset, "buckets", None)
        if own is None:
            raise OptionError("buckets", None, f"give the {type(dataset).__name__} buckets to crop to")
        return own, _part_numbers(dataset, own)
    found = [_bucketed(part) for part in parts]
    if any(buckets.sizes != found[0][0].sizes for buckets, _ in found):
        raise OptionError(
            "buckets", [buckets.sizes for buckets, _ in found], "give every dataset the same buckets to crop to"
        )
    return found[0][0], np.concatenate([numbers for _, numbers in found])


def _part_numbers(part: Any, buckets: Buckets) -> NDArray[np.int16]:
    widths, heights = part.widths(), part.heights()
    if not len(widths) == len(heights) == len(part):
        known = f"{len(widths)} widths and {len(heights)} heights"
        raise OptionError("dataset", f"{len(part)} rows", f"has {known}; give it widths() and heights() of its rows")
    return buckets.of_all(widths, heights)


def _check_state(state: State, own: State, identity: State) -> None:
    """Raises OptionError for a state of another sampler or other data. States saved by earlier versions hold nothing of
    ``identity``."""
    for name, value in identity.items():
        if name in state and state[name] != value:
            raise OptionError(name, value, f"the sampler's state was saved with {name}={state[name]!r}")
    missing = [name for name in own if name not in state and name not in identity]
    if missing:
        raise OptionError("kind", own["kind"], f"the state is another sampler's: it lacks {', '.join(missing)}")
    if state["rows"] != own["rows"]:
        raise OptionError("dataset", f"{own['rows']} rows", f"the sampler's state was saved over {state['rows']} rows")
