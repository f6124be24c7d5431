"""Which part of the data this process takes: its rank, the number of ranks, and launchers that divide batches too."""

from __future__ import annotations

import secrets
import sys
import warnings
from numbers import Integral

import torch.distributed as dist

from builder.base.errors import OptionError
from builder.base.options import check_number

_SHARE_OUT = {
    # class: its library
    "BatchSamplerShard": "accelerate",
    "DataLoaderDispatcher": "accelerate",
    "_DatasetSamplerWrapper": "Lightning",
}
"""Classes of launchers that give each rank a part of the sampler's rows."""

_FRAMES = 24
"""Stack frames to search for these classes. torch's loader and batch sampler lie between them and our sampler."""


def ranks() -> tuple[int, int]:
    """This process's rank and the number of ranks. 0 and 1 if torch.distributed is not set up."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """``rank`` and ``world_size`` as given, or torch.distributed's if neither is given. Raises OptionError."""
    if rank is None and world_size is None:
        return ranks()
    if rank is None or world_size is None:
        missing, given = ("rank", "world_size") if rank is None else ("world_size", "rank")
        raise OptionError(missing, None, f"give it together with {given}, or neither")
    check_number("rank", rank, "give 0 or more", Integral)
    check_number("world_size", world_size, "give 1 or more", Integral, least=1)
    if not 0 <= rank < world_size:
        raise OptionError("rank", rank, f"give 0 to {world_size - 1}, for world_size={world_size}")
    return int(rank), int(world_size)


def shared_seed(world_size: int = 1) -> int:
    """A random seed, the same on all ranks. This is a collective call if torch.distributed is set up. Raises
    OptionError if there are several ranks and they cannot agree on a seed."""
    seeds = [secrets.randbits(31)]
    if ranks()[1] > 1:
        dist.broadcast_object_list(seeds, src=0)
    elif world_size > 1:
        raise OptionError("seed", None, f"give one: {world_size} ranks cannot agree without torch.distributed")
    return seeds[0]


def check_sharing(name: str, taken: tuple[int, int], *, given: bool, endless: bool, own_seed: bool) -> None:
    """Warns if the rows would be divided among ranks twice, or not at all. A sampler calls this at its first row.

    * ``taken``: the sampler's rank and number of ranks.
    * ``given``: the user gave them; they were not taken from torch.distributed.
    * ``own_seed``: this process drew the seed alone.

    Raises OptionError for an endless sampler if the launcher would first list all of its rows.
    """
    launcher = _launcher()
    if launcher == "Lightning" and endless:
        advice = "give Trainer(use_distributed_sampler=False), or use EpochSampler(rank=0, world_size=1)"
        raise OptionError("sampler", name, f"Lightning lists all rows of a sampler, and this one is endless: {advice}")
    if launcher and taken[1] > 1:
        rest = "or Trainer(use_distributed_sampler=False)" if launcher == "Lightning" else "or leave out prepare()"
        problem = (
            f"Each epoch leaves rows out: this {name} divides its rows among {taken[1]} ranks, and {launcher} divides "
            f"its batches again. Give the sampler rank=0 and world_size=1, {rest}."
        )
    elif launcher and own_seed and ranks()[1] > 1:
        problem = (
            f"This {name} was made before torch.distributed was set up, so every rank has drawn its own seed. "
            f"{launcher} divides batches of {ranks()[1]} different orders. Give the sampler a seed."
        )
    elif not given and launcher is None and taken == (0, 1) and ranks()[1] > 1:
        problem = (
            f"Every rank gets all rows: this {name} was made before torch.distributed was set up, as rank 0 of 1. Make "
            "it afterwards, or give it rank and world_size."
        )
    else:
        return
    warnings.warn(problem, stacklevel=3)


def _launcher() -> str | None:
    """The launcher that is drawing rows now, if it divides them among ranks. It is found on the call stack."""
    frame = sys._getframe(2)
    for _ in range(_FRAMES):
        if frame.f_back is None:
            return None
        frame = frame.f_back
        found = _SHARE_OUT.get(type(frame.f_locals.get("self")).__name__)
        if found:
            return found
    return None
