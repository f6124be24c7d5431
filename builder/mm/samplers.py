"""Samplers for one process or many. The order of rows is arithmetic (see ``builder.mm.order``): no sampler keeps a list
of rows, each starts anywhere at once, and the order does not depend on the number of ranks.

A sampler takes the rows at positions ``start + rank``, ``start + rank + world_size``, … of one endless order.

* ``state_dict()``: after the rows drawn so far. For loaders that snapshot it with each batch (torchdata's).
* ``state_after(batches, batch_size)``: after so many batches were trained on, however far workers have read ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from itertools import pairwise
from numbers import Integral
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Sampler

from builder.base.errors import OptionError
from builder.base.options import check_number
from builder.mm import launch
from builder.mm.order import ListedOrder, MixedOrder, Order, ShuffledOrder, WindowOrder, derive, walk

State = dict[str, Any]
"""Plain values, the same on every rank: goes into a checkpoint as it is."""

RUN = 512
"""Rows that a window takes from one place. At 110 kB an image, 56 MB: long enough to read at full speed from a
network disk."""


class Resumable(Protocol):
    """What a training loop asks of a sampler, or of a batch sampler, to go on where it stopped."""

    def state_after(self, batches: int, batch_size: int) -> State:
        """Where to start after each rank has trained on ``batches`` batches from the present start."""

    def state_dict(self) -> State:
        """Where to start after what this rank has drawn since the newest iterator began."""

    def load_state_dict(self, state: State) -> None:
        """Start there at the next ``iter()``. Raises OptionError where the state is of other data, or of a sampler
        that has another order."""


class Drawn:
    """How much one iterator has given out, in which epoch. An older iterator counts on its own, and disturbs
    nothing."""

    __slots__ = ("count", "epoch")

    def __init__(self, epoch: int = 0) -> None:
        self.count, self.epoch = 0, epoch


class InfiniteSampler(Sampler[int]):
    """Endless; every row comes once in ``len(dataset)`` positions of all ranks. Takes the place of mmengine's.

    Each ``iter()`` begins at the start of the sampler's epoch (0, or what ``set_epoch`` said), or where
    ``load_state_dict`` put it. An epoch is ``len(sampler)`` rows on every rank: what a loop over a whole loader takes.

    ``window`` (rows, a multiple of ``run``) keeps reads near each other: see :class:`builder.mm.order.WindowOrder`.
    ``seed``: the same on all ranks; None draws one and shares it. ``rank``, ``world_size``: which rows are this
    process's; without them, torch.distributed's. ``rank=0, world_size=1`` leaves sharing out to a launcher that does it
    itself (accelerate, Lightning); with tensor, sequence or pipeline parallelism, give the data rank.
    """

    endless = True

    def __init__(
        self,
        dataset: Sized,
        shuffle: bool = True,
        seed: int | None = None,
        window: int | None = None,
        run: int = RUN,
        *,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.rank, self.world_size = launch.place(rank, world_size)
        self.placed = rank is not None  # by the user
        self.dataset = dataset
        self.shuffle = shuffle
        if seed is not None:
            check_number("seed", seed, "the same on all ranks", Integral)
        self.seed = launch.shared_seed(self.world_size) if seed is None else int(seed)
        self.own_seed = seed is None and launch.ranks()[1] == 1
        self.size = len(dataset)
        self.epoch = 0
        self.start = 0
        self._drawn = Drawn()
        self._window, self._run = window, run
        self._order = self._make_order()

    def _make_order(self) -> Order:
        return make_order(self.size, self.seed, self.shuffle, self._window, self._run)

    def __iter__(self) -> Iterator[int]:
        drawn = self._begin()
        for row in walk(self._order, self.start + self.rank, self.world_size):
            drawn.count += 1
            yield row

    def _begin(self) -> Drawn:
        placed = (self.rank, self.world_size)
        options = {"given": self.placed, "endless": self.endless, "own_seed": self.own_seed}
        launch.check_sharing(type(self).__name__, placed, **options)
        self._drawn = Drawn()
        return self._drawn

    def __len__(self) -> int:
        """Rows of the dataset, as mmengine has it."""
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Start at this epoch: where a loop over ``len(loader)`` batches on every rank has left off after the one
        before. No effect for the epoch that it is in, so that a loaded state holds."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, epoch * self.size * self.world_size
            self._drawn = Drawn()

    def state_after(self, batches: int, batch_size: int) -> State:
        return self._state(self.start + batches * batch_size * self.world_size)

    def state_dict(self) -> State:
        return self._state(self.start + self._drawn.count * self.world_size)

    def _state(self, position: int) -> State:
        return {
            "seed": self.seed,
            "position": int(position),
            "rows": self.size,
            "epoch": int(self.epoch),
            **self._identity(),
        }

    def _identity(self) -> State:
        """What a state must share with this sampler to mean the same place; options without effect are None."""
        window = self._window if self.shuffle else None
        run = None if window is None else self._run
        return {"kind": type(self).__name__, "shuffle": bool(self.shuffle), "window": window, "run": run}

    def load_state_dict(self, state: State) -> None:
        check_state({"epoch": 0, **state} if self.endless else state, self._state(0), self._identity())
        self.seed, self.start, self.epoch = state["seed"], state["position"], state.get("epoch", 0)
        self.own_seed = False
        self._drawn = Drawn()
        self._order = self._make_order()


class EpochSampler(InfiniteSampler):
    """One epoch at a time; ``set_epoch`` for the next. Takes the place of mmengine's DefaultSampler.

    Every rank gets the same number of rows: with ``round_up`` the first rows of the epoch come a second time where the
    ranks do not share out evenly, without it the last few rows are left out. A loaded state holds for one ``iter()``:
    the one after that shows a whole epoch. ``rank``, ``world_size`` and the others as of :class:`InfiniteSampler`.
    """

    endless = False

    def __init__(
        self,
        dataset: Sized,
        shuffle: bool = True,
        seed: int | None = None,
        round_up: bool = True,
        window: int | None = None,
        run: int = RUN,
        *,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__(dataset, shuffle, seed, window, run, rank=rank, world_size=world_size)
        self.round_up = round_up
        self._loaded = False

    def _count(self, rows: int) -> int:
        """How many of the epoch's last ``rows`` rows each rank gets."""
        return -(-rows // self.world_size) if self.round_up else rows // self.world_size

    def __iter__(self) -> Iterator[int]:
        drawn = self._begin()
        self.start, self._loaded = self.start if self._loaded else 0, False
        for row in self._rest():
            drawn.count += 1
            yield row

    def _rest(self) -> Iterator[int]:
        """This rank's rows of the epoch, from ``start`` on."""
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
            self.epoch, self.start, self._loaded = epoch, 0, False
            self._drawn = Drawn()

    def load_state_dict(self, state: State) -> None:
        """At the end of an epoch there is nothing more in it; where the next epoch was set before, that one begins."""
        ahead = self.epoch
        super().load_state_dict(state)
        self._loaded = True
        if self.start >= self.size and ahead == self.epoch + 1:
            self.set_epoch(ahead)


class MixtureSampler(InfiniteSampler):
    """Draws from the parts of a ConcatDataset by weight, each part in epochs of its own: see
    :class:`builder.mm.order.MixedOrder`. Endless.

    ``dataset``: anything with ``cumulative_sizes``; ``weights``: one positive number for each part. ``rank``,
    ``world_size`` and the others as of :class:`InfiniteSampler`.
    """

    def __init__(
        self,
        dataset: Sized,
        weights: Sequence[float],
        shuffle: bool = True,
        seed: int | None = None,
        window: int | None = None,
        run: int = RUN,
        *,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        ends = getattr(dataset, "cumulative_sizes", None)
        if ends is None:
            raise OptionError("dataset", type(dataset).__name__, "a mixture needs a ConcatDataset")
        try:
            self.weights = np.asarray(weights).tolist() if hasattr(weights, "__array__") else list(weights)
        except TypeError:
            raise OptionError("weights", weights, "a list, one positive number for each part") from None
        self._sizes = [end - start for start, end in pairwise([0, *ends])]
        super().__init__(dataset, shuffle, seed, window, run, rank=rank, world_size=world_size)

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


def check_state(state: State, own: State, identity: State) -> None:
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
