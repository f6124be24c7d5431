"""Hooks for mmengine's Runner. Imported by ``builder.mm`` only where mmengine is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from builder.base.errors import MissingExtraError, OptionError
from builder.mm.engine import mmengine
from builder.mm.samplers import EpochSampler, Resumable
from builder.mm.tensors import normalize_pixels

try:
    Hook: Any = mmengine("hooks").Hook
except ImportError as error:
    raise MissingExtraError("builder.mm's hooks", "mmengine", "mm") from error

INFO = "laion6m_sampler"
"""Key of the sampler's state in the runner's message hub: the one place that every kind of checkpoint carries along
(DeepSpeed's know no callback), that is restored by ``resume`` and left alone by ``load_from``."""


class SamplerStateHook(Hook):  # type: ignore[misc]  # mmengine has no types
    """Lets an iteration-based training resume where it stopped, at once and on any number of ranks.

    mmengine's loop replays every batch it has trained on, decoding all images again. With this hook the state of the
    sampler is in each checkpoint, and a resumed loop starts a loader there instead.
    """

    priority = "NORMAL"  # before CheckpointHook, which is VERY_LOW: the state is up to date when it saves

    def __init__(self) -> None:
        self._first = 0  # the iteration that the sampler's start stands for

    def before_train(self, runner: Any) -> None:
        loop = runner.train_loop
        self._first = loop.iter
        if loop.iter == 0 or not hasattr(loop, "dataloader_iterator"):
            return  # an epoch-based loop begins its epochs anew, and replays nothing
        sampler = _resumable(loop.dataloader)
        state = runner.message_hub.get_info(INFO) if INFO in runner.message_hub.runtime_info else None
        sampler.load_state_dict(state or sampler.state_after(loop.iter, loop.dataloader.batch_size))
        loop.dataloader_iterator = _WithoutReplay(type(loop.dataloader_iterator)(loop.dataloader), loop.iter)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        loop = runner.train_loop
        if hasattr(loop, "dataloader_iterator"):
            batches = loop.iter + 1 - self._first
            runner.message_hub.update_info(
                INFO, _resumable(loop.dataloader).state_after(batches, loop.dataloader.batch_size)
            )


class _WithoutReplay:
    """Gives mmengine's loop nothing for the batches it asks for only to throw them away."""

    def __init__(self, batches: Iterator[Any], replayed: int) -> None:
        self._batches = batches
        self._replayed = replayed

    def __iter__(self) -> _WithoutReplay:
        return self

    def __next__(self) -> Any:
        if self._replayed:
            self._replayed -= 1
            return None
        return next(self._batches)


def _resumable(loader: Any) -> Resumable:
    for sampler in (loader.batch_sampler, loader.sampler):
        if isinstance(sampler, EpochSampler) or isinstance(getattr(sampler, "sampler", None), EpochSampler):
            raise OptionError(
                "sampler", "EpochSampler", "an iteration-based loop needs InfiniteSampler to be resumable"
            )
        if hasattr(sampler, "state_after"):
            found: Resumable = sampler
            return found
    raise OptionError("sampler", type(loader.sampler).__name__, "SamplerStateHook needs one of builder.mm's samplers")


class NormalizePixelsHook(Hook):  # type: ignore[misc]
    """For ``out='uint8'``: brings each batch's ``pixel_values`` to the device and to -1 … 1 there, before the model
    sees them, in training, validation and test. A quarter of the bytes go through the loader's queues and over the
    bus. Batches may be nested dicts and lists, as mmengine's own collate functions make them."""

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        _normalize(data_batch, next(runner.model.parameters()).device)

    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        _normalize(data_batch, next(runner.model.parameters()).device)

    def before_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        _normalize(data_batch, next(runner.model.parameters()).device)


def _normalize(batch: Any, device: torch.device) -> None:
    """In place."""
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
