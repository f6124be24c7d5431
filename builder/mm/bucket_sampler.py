"""Batches of images of one aspect-ratio bucket each."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler, Subset

from builder.base.errors import OptionError
from builder.base.words import counted
from builder.mm import launch
from builder.mm.buckets import BatchOrder, Buckets
from builder.mm.samplers import Drawn, MixtureSampler, State, check_state

_ORDER = 2
"""Version of the order, kept in states. Version 1 dropped the rows of a bucket that did not fill a batch."""


class AspectRatioBatchSampler(Sampler[list[int]]):
    """Batches whose images share one bucket. The sizes come from the index. No image is opened.

    ``sampler``: an InfiniteSampler or EpochSampler, or mmengine's InfiniteSampler or DefaultSampler. The dataset, the
    seed and ``shuffle`` are taken from it, and whether to stop after an epoch. Its window is ignored. The dataset must
    have ``buckets``: the sizes that it crops images to.

    All ranks share one sequence of batches and take turns. Every rank gets the same number of batches. If an epoch's
    batches do not divide evenly, the last few come in the next epoch. A resumed run may have another number of ranks.
    ``rank``, ``world_size``: the default is those of ``sampler``.
    """

    def __init__(
        self,
        sampler: Any,
        batch_size: int,
        drop_last: bool = True,
        *,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if isinstance(sampler, MixtureSampler):
            raise OptionError("sampler", "MixtureSampler", "batches by bucket take no weights. Give another sampler")
        if not hasattr(sampler, "dataset") or not hasattr(sampler, "seed"):
            allowed = "give a sampler with a dataset and a seed, such as InfiniteSampler or EpochSampler"
            raise OptionError("sampler", type(sampler).__name__, allowed)
        self._placed = rank is not None or getattr(sampler, "placed", False)
        if rank is None and world_size is None and self._placed:
            rank, world_size = sampler.rank, sampler.world_size
        self.rank, self.world_size = launch.place(rank, world_size)
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self._loaded: tuple[int, int] | None = None  # epoch and position
        self._used = False
        self._drawn = Drawn()
        self._endless: bool = getattr(sampler, "endless", not hasattr(sampler, "epoch"))
        buckets, self._buckets = bucketed(sampler.dataset)
        self._sizes = [list(size) for size in buckets.sizes]
        self._order = self._make_order(sampler.seed)
        if not self._endless and self._order.fewest < self.world_size:
            few = f"an epoch has {counted(self._order.fewest, 'batch', 'batches')}, too few for {self.world_size} ranks"
            raise OptionError("batch_size", batch_size, f"{few}. Give a smaller batch_size")

    def _make_order(self, seed: int) -> BatchOrder:
        return BatchOrder(self._buckets, self.batch_size, seed, self.sampler.shuffle, self.drop_last)

    @property
    def _epoch(self) -> int:
        return int(getattr(self.sampler, "epoch", 0))

    def _first(self, epoch: int) -> int:
        """Number of an epoch's first batch, counted over all ranks. The epoch begins with the batches that the epoch
        before could not divide evenly."""
        return self._order.first(epoch) // self.world_size * self.world_size

    @property
    def start(self) -> int:
        """Number of the next iterator's first batch, counted over all ranks."""
        epoch = self._epoch
        return self._loaded[1] if self._loaded and self._loaded[0] == epoch else self._first(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        placed = (self.rank, self.world_size)
        own_seed = bool(getattr(self.sampler, "own_seed", False))
        launch.check_sharing(type(self).__name__, placed, given=self._placed, endless=self._endless, own_seed=own_seed)
        if self._used and not self._endless:
            self._loaded = None  # a loaded state holds for one iterator; the next gives a whole epoch
        self._used = True
        drawn = self._drawn = Drawn(self._epoch)
        for batch in self._order.walk(self.start + self.rank, self.world_size, self._stop()):
            drawn.count += 1
            yield batch

    def _stop(self) -> int | None:
        """The batch number at which the epoch ends. Every rank gets the same number of batches."""
        if self._endless:
            return None
        rest = max(0, self._first(self._epoch + 1) - self.start)
        return self.start + rest // self.world_size * self.world_size

    def __len__(self) -> int:
        """Batches of this rank in the current epoch."""
        return (self._first(self._epoch + 1) - self._first(self._epoch)) // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of ``sampler``. It is kept there because some launchers set it on the sampler itself."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def state_after(self, batches: int, batch_size: int) -> State:
        return {
            "seed": self._order.seed,
            "position": self.start + batches * self.world_size,
            "rows": len(self._buckets),
            "batch_size": self.batch_size,
            "epoch": self._epoch,
            "kind": type(self).__name__,
            "shuffle": bool(getattr(self.sampler, "shuffle", True)),
            "drop_last": bool(self.drop_last),
            "buckets": self._sizes,
            "endless": self._endless,
            "order": _ORDER,
        }

    def state_dict(self) -> State:
        drawn = self._drawn.count if self._drawn.epoch == self._epoch else 0
        return self.state_after(drawn, self.batch_size)

    def load_state_dict(self, state: State) -> None:
        check_state(state, self.state_dict())
        if state["batch_size"] != self.batch_size:
            saved = f"the saved state has batches of {state['batch_size']}. Make the sampler as it was then"
            raise OptionError("batch_size", self.batch_size, saved)
        self._order = self._make_order(state["seed"])
        epoch, position = int(state["epoch"]), int(state["position"])
        if "order" not in state:
            position = self._of_order_1(position, epoch)
        self._drawn, self._used = Drawn(), False
        if not self._endless and self._epoch == epoch + 1 and position >= self._first(epoch + 1):
            return  # the state's epoch is over, and set_epoch has set the next: start that one
        self.set_epoch(epoch)
        self._loaded = epoch, position

    def _of_order_1(self, position: int, epoch: int) -> int:
        """Translate a position from a state of version 1. There every epoch had the same number of batches, and an
        epoch sampler's position counted from the start of its epoch. The first epoch's batches are the same in both
        versions. Later epochs have another order."""
        if (epoch or position > self._order.first(1)) and self.drop_last:
            warnings.warn(
                "This state was saved by an earlier version, which left out rows that did not fill a batch. So this "
                "epoch shows some rows twice.",
                stacklevel=3,
            )
        return position if self._endless else self._first(epoch) + position


def bucketed(dataset: Any) -> tuple[Buckets, NDArray[np.int16]]:
    """The buckets of a dataset, and the bucket number of each row. The dataset may also be a torch Subset, mmengine's
    RepeatDataset or a concatenation of datasets.

    Raises OptionError if the dataset has no buckets, or its parts have different ones.
    """
    if isinstance(dataset, Subset):
        buckets, numbers = bucketed(dataset.dataset)
        return buckets, numbers[np.asarray(dataset.indices, np.int64)]
    times = getattr(dataset, "times", None)
    if times is not None and hasattr(dataset, "dataset"):  # mmengine's RepeatDataset
        buckets, numbers = bucketed(dataset.dataset)
        return buckets, np.tile(numbers, times)
    parts = getattr(dataset, "datasets", None)
    if not parts:
        own: Buckets | None = getattr(dataset, "buckets", None)
        if own is None:
            raise OptionError("buckets", None, f"the {type(dataset).__name__} has none. Give it buckets")
        return own, _part_numbers(dataset, own)
    found = [bucketed(part) for part in parts]
    if any(buckets.sizes != found[0][0].sizes for buckets, _ in found):
        raise OptionError("buckets", [buckets.sizes for buckets, _ in found], "give every dataset the same buckets")
    return found[0][0], np.concatenate([numbers for _, numbers in found])


def _part_numbers(part: Any, buckets: Buckets) -> NDArray[np.int16]:
    widths, heights = part.widths(), part.heights()
    if not len(widths) == len(heights) == len(part):
        known = f"it has {len(widths)} widths and {len(heights)} heights"
        raise OptionError("dataset", f"{len(part)} rows", f"{known}. Give every row a width and a height")
    return buckets.of_all(widths, heights)
