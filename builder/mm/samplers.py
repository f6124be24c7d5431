"""Samplers for one process or many.

The order of rows is computed (see ``builder.mm.order``). No sampler keeps a list of rows. Each can start anywhere at
once. The order does not depend on the number of ranks.

A sampler takes the rows at positions ``start + rank``, ``start + rank + world_size``, … of one endless order.

* ``state_dict()``: the state after the rows that this rank has drawn from the newest iterator. It is for loaders that
  save it with each batch (torchdata's).
* ``state_after(batches, batch_size)``: the state after each rank has trained on that many batches, counted from the
  current start. It does not matter how far workers have read ahead.
* ``load_state_dict(state)``: the next ``iter()`` starts at this state. Raises OptionError if the state belongs to other
  data, or to a sampler with another order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence, Sized
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from builder.base.errors import OptionError
from builder.base.options import check_number
from builder.mm import launch
from builder.mm.ahead import announcer, walk_announced
from builder.mm.order import ListedOrder, MixedOrder, Order, ShuffledOrder, WindowOrder, derive

State = dict[str, Any]
"""Plain values, the same on every rank. It can be put into a checkpoint as it is."""

_COUNTS = ("seed", "position", "rows", "batch_size", "epoch")
"""Fields of a state that are not options. A state must have those that its sampler has. The other fields are options,
which must equal the sampler's."""

RUN = 512
"""Neighbouring rows that a window takes from one place. At 110 kB an image this is 56 MB: long enough for a network
disk to read at full speed."""


class Drawn:
    """How many rows one iterator has yielded, and in which epoch. Each iterator has its own counter, so an older one
    does not change it."""

    __slots__ = ("count", "epoch")

    def __init__(self, epoch: int = 0) -> None:
        self.count, self.epoch = 0, epoch


class InfiniteSampler(Sampler[int]):
    """Endless. Every row comes once in ``len(dataset)`` positions, counted over all ranks. Replaces mmengine's
    InfiniteSampler.

    Each ``iter()`` begins at the start of the sampler's epoch: 0, or the one given to ``set_epoch``. After
    ``load_state_dict`` it begins at the loaded state. An epoch is ``len(sampler)`` rows on every rank, as many as a
    loop over a whole loader takes.

    * ``window`` (rows, a multiple of ``run``): keeps reads near each other. See :class:`builder.mm.order.WindowOrder`.
    * ``seed``: the same on all ranks. None draws one and shares it.
    * ``rank``, ``world_size``: which rows this process takes. The default is torch.distributed's. Give ``rank=0,
      world_size=1`` if the launcher itself divides the batches among ranks (accelerate, Lightning). With tensor,
      sequence or pipeline parallelism give the data rank.
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
        self.placed = rank is not None  # the user gave the rank
        self.dataset = dataset
        self.shuffle = shuffle
        if seed is not None:
            check_number("seed", seed, "give one, the same on all ranks", Integral)
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
        placed = (self.rank, self.world_size)
        options = {"given": self.placed, "endless": self.endless, "own_seed": self.own_seed}
        launch.check_sharing(type(self).__name__, placed, **options)
        drawn = self._drawn = Drawn()
        for row in self._rows():
            drawn.count += 1
            yield row

    def _rows(self) -> Iterator[int]:
        """This rank's rows, from ``start`` on."""
        return self._walk(self.start + self.rank, self.world_size)

    def _walk(self, start: int, stride: int, stop: int | None = None) -> Iterator[int]:
        return walk_announced(self._order, start, stride, announcer(self.dataset), stop)

    def __len__(self) -> int:
        """Rows of the dataset, as in mmengine."""
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Start at this epoch: where ``epoch`` loops over the whole loader on every rank end. For the current epoch it
        does nothing, so a loaded state stays."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, epoch * self.size * self.world_size
            self._drawn = Drawn()

    def state_after(self, batches: int, batch_size: int) -> State:
        return self._state(self.start + batches * batch_size * self.world_size)

    def state_dict(self) -> State:
        return self._state(self.start + self._drawn.count * self.world_size)

    def _state(self, position: int) -> State:
        """The state at this position. Options without effect are None."""
        window = self._window if self.shuffle else None
        return {
            "seed": self.seed,
            "position": int(position),
            "rows": self.size,
            "epoch": int(self.epoch),
            "kind": type(self).__name__,
            "shuffle": bool(self.shuffle),
            "window": window,
            "run": None if window is None else self._run,
        }

    def load_state_dict(self, state: State) -> None:
        check_state({"epoch": 0, **state} if self.endless else state, self._state(0))
        self.seed, self.start, self.epoch = state["seed"], state["position"], state.get("epoch", 0)
        self.own_seed = False
        self._drawn = Drawn()
        self._order = self._make_order()


class EpochSampler(InfiniteSampler):
    """One epoch at a time. Call ``set_epoch`` for the next. Replaces mmengine's DefaultSampler.

    Every rank gets the same number of rows. If the rows do not divide evenly, ``round_up`` repeats the first rows of
    the epoch. Without it the last few rows are left out. A loaded state holds for one ``iter()``. The next ``iter()``
    gives a whole epoch. ``rank``, ``world_size`` and the others are those of :class:`InfiniteSampler`.
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
        """How many rows each rank gets of an epoch's last ``rows`` rows."""
        return -(-rows // self.world_size) if self.round_up else rows // self.world_size

    def _rows(self) -> Iterator[int]:
        self.start, self._loaded = self.start if self._loaded else 0, False
        count = self._count(max(0, self.size - self.start))  # the last batch may end past the epoch
        if not count:
            return
        base = self.epoch * self.size
        first = self.start + self.rank
        last = first + (count - 1) * self.world_size
        yield from self._walk(base + first, self.world_size, base + min(last + 1, self.size))
        if last >= self.size:
            yield from self._walk(base + last % self.size, 1, base + last % self.size + 1)

    def __len__(self) -> int:
        """Rows of this rank in a whole epoch."""
        return self._count(self.size)

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.start, self._loaded = epoch, 0, False
            self._drawn = Drawn()

    def load_state_dict(self, state: State) -> None:
        """A state at the end of an epoch leaves no rows in it. If ``set_epoch`` has already set the next epoch, the
        sampler starts that one."""
        ahead = self.epoch
        super().load_state_dict(state)
        self._loaded = True
        if not self._count(max(0, self.size - self.start)) and ahead == self.epoch + 1:
            self.set_epoch(ahead)


class MixtureSampler(InfiniteSampler):
    """Draws from the parts of a ConcatDataset by weight. Endless. Each part has its own epochs: see
    :class:`builder.mm.order.MixedOrder`.

    ``dataset``: anything with ``cumulative_sizes``. ``weights``: one positive number for each part. ``rank``,
    ``world_size`` and the others are those of :class:`InfiniteSampler`.
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
            raise OptionError("dataset", type(dataset).__name__, "give a ConcatDataset. The weights are for its parts")
        try:
            self.weights = np.asarray(weights).tolist() if hasattr(weights, "__array__") else list(weights)
        except TypeError:
            raise OptionError("weights", weights, "give a list, one positive number for each part") from None
        self._sizes = [end - start for start, end in pairwise([0, *ends])]
        super().__init__(dataset, shuffle, seed, window, run, rank=rank, world_size=world_size)

    def _make_order(self) -> Order:
        if 0 in self._sizes:
            raise OptionError("dataset", self._sizes, "these are the rows of its parts. Leave out those with none")
        orders = [
            make_order(size, derive(self.seed, part), self.shuffle, self._window, self._run)
            for part, size in enumerate(self._sizes)
        ]
        return MixedOrder(orders, self._sizes, self.weights, derive(self.seed, len(orders)))

    def _state(self, position: int) -> State:
        weights = [float(weight) for weight in self.weights]
        return {**super()._state(position), "weights": weights, "sizes": list(self._sizes)}


def make_order(size: int, seed: int, shuffle: bool, window: int | None, run: int) -> Order:
    """The order that a sampler's options ask for. Raises OptionError."""
    if size < 1:
        raise OptionError("dataset", f"{size} rows", "a sampler needs at least one")
    if not shuffle:
        return ListedOrder(size)
    if window is None:
        return ShuffledOrder(size, seed)
    check_number("run", run, "give 1 row or more", Integral)
    check_number("window", window, f"give a multiple of run, which is {run}", Integral)
    return WindowOrder(size, seed, int(window), int(run))


def check_state(state: State, own: State) -> None:
    """Raises OptionError for a state of another sampler or other data. ``own``: a state of this sampler. Earlier
    versions saved only the fields in ``_COUNTS``."""
    for name, value in own.items():
        if name not in _COUNTS and name in state and state[name] != value:
            here, saved = ("none" if each is None else json.dumps(each) for each in (value, state[name]))
            raise OptionError(name, None, f"{here} here, {saved} in the saved state. Make the sampler as it was then")
    missing = [name for name in own if name not in state and name in _COUNTS]
    if missing:
        raise OptionError("kind", own["kind"], f"the saved state is another sampler's: it lacks {', '.join(missing)}")
    if state["rows"] != own["rows"]:
        problem = f"the saved state is of {state['rows']} rows"
        raise OptionError("dataset", f"{own['rows']} rows", f"{problem}. Give the dataset that it was saved with")
