"""Batches in the form that OpenUni's models take: ``{"data": {…}, "data_samples": None}``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from builder.base.errors import OptionError
from builder.mm.arrays import TAKEN, collate_arrays, pad
from builder.mm.tensors import look_up, type_and_options

PAD_INDEX = 0
"""The value of xtuner's DEFAULT_PAD_TOKEN_INDEX."""

Batch = dict[str, Any]


def collate_func_gen(instances: Sequence[Mapping[str, Any]], pad_index: int = PAD_INDEX) -> Batch:
    """``pixel_values`` (b c h w), ``input_ids`` (b n, int64, padded right), ``attention_mask`` (b n, bool).

    Other arrays of the samples (``arrays`` of a CaptionDataset) keep their names: see
    :func:`builder.mm.arrays.collate_arrays`. If the images already lie in one block of memory, nothing is copied.
    """
    return _collate(instances, "pixel_values", pad_index)


def collate_func_gen_latents(instances: Sequence[Mapping[str, Any]], pad_index: int = PAD_INDEX) -> Batch:
    """Like :func:`collate_func_gen`, with ``image_latents`` (b c h w) instead of the pixels."""
    return _collate(instances, "image_latents", pad_index)


def collate_func_gen_tokens(instances: Sequence[Mapping[str, Any]], pad_index: int = PAD_INDEX) -> Batch:
    """Like :func:`collate_func_gen`, with ``image_tokens`` (b …, int64) instead of the pixels."""
    return _collate(instances, "image_tokens", pad_index)


def _collate(instances: Sequence[Mapping[str, Any]], image_key: str, pad_index: int) -> Batch:
    for instance in instances:
        if image_key not in instance:
            raise OptionError("collate_fn", image_key, f"every sample needs it, but one has only {', '.join(instance)}")
    images = [instance[image_key] for instance in instances]
    shapes = {tuple(image.shape) for image in images if image is not None}
    if len(shapes) > 1:
        found = " and ".join(map(str, sorted(shapes)))
        advice = "With buckets, use AspectRatioBatchSampler"
        raise OptionError("collate_fn", image_key, f"a batch has the shapes {found}. {advice}")
    input_ids, mask = pad([instance["input_ids"] for instance in instances], pad_index)
    data = {**collate_arrays(image_key, images), "input_ids": input_ids, "attention_mask": mask}
    for name in instances[0]:
        values = [instance.get(name) for instance in instances]
        if name not in TAKEN and all(value is None or isinstance(value, Tensor) for value in values):
            data.update(collate_arrays(name, values))
    return {"data": data, "data_samples": None}


class CollateConcat:
    """For batches whose samples all have one ``type``. The first sample's ``type`` is the key: it selects the collate
    function, and the batch is stored under it.

    ``collate_fns``: one ``dict(type=function or name, **options)`` for each of ``keys``. Empty samples are left out.

    mmengine's Runner does not build an object from a ``collate_fn``'s type. It calls the type with each batch, and with
    the options by name. So ``CollateConcat(samples, collate_fns=…, keys=…)`` returns the batch itself.
    """

    def __new__(cls, *args: Any, **options: Any) -> Any:
        if args and "collate_fns" in options:
            samples, *rest = args
            return cls(*rest, **options)(samples)
        return super().__new__(cls)

    def __init__(self, collate_fns: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
        if len(collate_fns) != len(keys):
            raise OptionError("keys", list(keys), f"give one for each of the {len(collate_fns)} collate_fns")
        self.keys = keys
        self.collate_fns: dict[str, Callable[[Sequence[Mapping[str, Any]]], Batch]] = {}
        for key, given in zip(keys, collate_fns, strict=True):
            kind, options = type_and_options(given)
            self.collate_fns[key] = partial(_function(kind), **options)

    def __call__(self, data_samples: Sequence[Mapping[str, Any]]) -> Batch:
        """``{"data": {key: …}, "data_samples": None}``. Raises OptionError if all samples are empty, or if the ``type``
        is not one of the keys."""
        samples = [sample for sample in data_samples if len(sample) > 0]
        if not samples:
            raise OptionError("data_samples", data_samples, "every sample is empty. Give one or more that are not")
        key = samples[0]["type"]
        if key not in self.collate_fns:
            known = f"the collate functions are for {', '.join(self.keys)}"
            raise OptionError("type", key, f"{known}. Give one for this, too")
        return {"data": {key: self.collate_fns[key](samples)["data"]}, "data_samples": None}


_FUNCTIONS = (collate_func_gen, collate_func_gen_latents, collate_func_gen_tokens)
_OWN = {function.__name__: function for function in _FUNCTIONS}


def _function(kind: Any) -> Any:
    """A collate function from itself or its name. Names of our own are found without mmengine's registry: in a spawned
    worker the registry is empty."""
    return _OWN.get(kind) or look_up(kind) if isinstance(kind, str) else kind
