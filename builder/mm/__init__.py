"""For training: OpenUni's dataset and collate functions under upstream's names, and samplers that resume.

    from builder.mm import CaptionDataset, collate_func_gen

Only this part of the package imports torch. If mmengine is installed too, everything is registered with it, for
configs that name types by strings (``custom_imports = dict(imports=["builder.mm"])``). Without mmengine, everything but
the hooks works. See docs/training.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from builder.base.errors import MissingExtraError

try:
    import torch as torch
except ImportError as error:
    raise MissingExtraError("builder.mm", "torch", "mm") from error

from builder.mm.bucket_sampler import AspectRatioBatchSampler
from builder.mm.collate import CollateConcat, collate_func_gen, collate_func_gen_latents, collate_func_gen_tokens
from builder.mm.dataset import CaptionDataset
from builder.mm.engine import has_mmengine, mmengine
from builder.mm.samplers import EpochSampler, InfiniteSampler, MixtureSampler
from builder.mm.tensors import normalize_pixels

__all__ = [
    "AspectRatioBatchSampler",
    "CaptionDataset",
    "CollateConcat",
    "EpochSampler",
    "InfiniteSampler",
    "MixtureSampler",
    "collate_func_gen",
    "collate_func_gen_latents",
    "collate_func_gen_tokens",
    "normalize_pixels",
]

_HOOKS = ("NormalizePixelsHook", "SamplerStateHook")


def __getattr__(name: str) -> Any:
    if name in _HOOKS:
        return getattr(import_module("builder.mm.hooks"), name)  # raises MissingExtraError without mmengine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _register() -> None:
    """Register everything with mmengine. mmengine has an InfiniteSampler already, so ours is registered as
    ResumableInfiniteSampler."""
    registry, hooks = mmengine("registry"), import_module("builder.mm.hooks")
    registry.DATASETS.register_module(module=CaptionDataset)
    registry.DATA_SAMPLERS.register_module(name="ResumableInfiniteSampler", module=InfiniteSampler)
    for sampler in (EpochSampler, MixtureSampler, AspectRatioBatchSampler):
        registry.DATA_SAMPLERS.register_module(module=sampler)
    for function in (collate_func_gen, collate_func_gen_latents, collate_func_gen_tokens, CollateConcat):
        registry.FUNCTIONS.register_module(module=function)
    for hook in _HOOKS:
        registry.HOOKS.register_module(module=getattr(hooks, hook))


if has_mmengine():
    _register()
