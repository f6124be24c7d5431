"""Hooks for mmengine's Runner. ``builder.mm`` imports them only if mmengine is installed."""

from __future__ import annotations

from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor

from builder.base.errors import MissingExtraError, OptionError
from builder.mm.engine import mmengine
from builder.mm.samplers import EpochSampler
from builder.mm.tensors import normalize_pixels

try:
    Hook: Any = mmengine("hooks").Hook
except ImportError as error:
    raise MissingExtraError("builder.mm's hooks", "mmengine", "mm") from error

INFO = "laion6m_sampler"
"""Key of the sampler's state in the runner's message hub. Every kind of checkpoint saves the message hub; DeepSpeed's
checkpoints call no hook. ``resume`` restores it, ``load_from`` does not."""


class SamplerStateHook(Hook):  # type: ignore[misc]  # mmengine has no types
    """Resumes iteration-based training where it stopped, at once and on any number of ranks.

    Without this hook, a resumed loop of mmengine replays every batch that it has trained on, and decodes all images
    again. The hook saves the sampler's state in each checkpoint. A resumed loop then starts its loader at that state.
    """

    priority = "NORMAL"  # before CheckpointHook (VERY_LOW), so the state is up to date when that saves

    def __init__(self) -> None:
        self._first = 0  # the training iteration at the sampler's start

    def before_train(self, runner: Any) -> None:
        loop = runner.train_loop
        self._first = loop.iter
        if loop.iter == 0 or not hasattr(loop, "dataloader_iterator"):
            return  # an epoch-based loop restarts its epoch and replays nothing
        sampler = _resumable(loop.dataloader)
        state = runner.message_hub.get_info(INFO) if INFO in runner.message_hub.runtime_info else None
        sampler.load_state_dict(state or sampler.state_after(loop.iter, loop.dataloader.batch_size))
        skipped = repeat(None, loop.iter)  # for the batches that the loop replays and throws away
        loop.dataloader_iterator = chain(skipped, type(loop.dataloader_iterator)(loop.dataloader))

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        loop = runner.train_loop
        if hasattr(loop, "dataloader_iterator"):
            batches = loop.iter + 1 - self._first
            runner.message_hub.update_info(
                INFO, _resumable(loop.dataloader).state_after(batches, loop.dataloader.batch_size)
            )


def _resumable(loader: Any) -> Any:
    """The loader's sampler or batch sampler that has ``state_after``. Raises OptionError."""
    for sampler in (loader.batch_sampler, loader.sampler):
        if isinstance(sampler, EpochSampler) or isinstance(getattr(sampler, "sampler", None), EpochSampler):
            raise OptionError("sampler", "EpochSampler", "to resume an iteration-based loop, give InfiniteSampler")
        if hasattr(sampler, "state_after"):
            return sampler
    raise OptionError("sampler", type(loader.sampler).__name__, "to use SamplerStateHook, give a sampler of builder.mm")


class NormalizePixelsHook(Hook):  # type: ignore[misc]
    """For ``out='uint8'``: moves each batch's ``pixel_values`` to the device and scales them there to -1 … 1.

    It runs before the model gets the batch, in training, validation and test. So the loader's queues and the bus to the
    device carry a quarter of the bytes. Batches may be nested dicts and lists, as mmengine's collate functions make
    them.
    """

    def _before_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, mode: str = "train") -> None:
        """mmengine calls this before each iteration of training, validation and test."""
        _normalize(data_batch, next(runner.model.parameters()).device)


def _normalize(batch: Any, device: torch.device) -> None:
    """Normalize every ``pixel_values`` of a batch, in place."""
    if isinstance(batch, dict):
        for key, value in batch.items():
            if key == "pixel_values":
                batch[key] = _normalized(value, device)
            else:
                _normalize(value, device)
    elif isinstance(batch, list | tuple):
        for each in batch:
            _normalize(each, device)


def _normalized(value: Any, device: torch.device) -> Any:
    if isinstance(value, list | tuple):
        return [_normalized(each, device) for each in value]
    if isinstance(value, Tensor) and value.dtype == torch.uint8:
        return normalize_pixels(value.to(device, non_blocking=True))
    return value
