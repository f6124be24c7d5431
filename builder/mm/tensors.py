"""Tensors from files and columns, and objects from config dicts: the parts of ``builder.mm``'s datasets."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from builder.base.errors import DamagedFileError, MissingExtraError, OptionError
from builder.mm.engine import mmengine
from builder.read.columns import Array


def load_tensor(file: str | os.PathLike[str] | io.BytesIO) -> Tensor:
    """The tensor of a .pt file, on the CPU. Only tensors and plain values are unpickled, never code.

    Raises OSError, RuntimeError or pickle.UnpicklingError if it is not a .pt file. Raises DamagedFileError if the file
    does not hold a tensor.
    """
    value = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(value, Tensor):
        name = "the .pt file" if isinstance(file, io.BytesIO) else os.fspath(file)
        raise DamagedFileError(name, "top level", f"expected one tensor, found {type(value).__name__}")
    return value


def to_array(tensor: Tensor) -> Array:
    """A tensor as an Array (bytes, dtype, shape), to be stored in a column."""
    plain = tensor.detach().contiguous()
    name = str(plain.dtype).removeprefix("torch.")
    return Array(plain.reshape(-1).view(torch.uint8).numpy().tobytes(), name, tuple(plain.shape))


def from_array(array: Array) -> Tensor:
    """The inverse of :func:`to_array`. The tensor owns its memory."""
    dtype: torch.dtype = getattr(torch, array.dtype)
    if not array.data:  # torch.frombuffer refuses an empty buffer
        return torch.empty(array.shape, dtype=dtype)
    return torch.frombuffer(bytearray(array.data), dtype=torch.uint8).view(dtype).reshape(array.shape)


def normalize_pixels(pixel_values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scale uint8, 0 to 255, to -1 to 1, on the device of the pixels. The float32 result has the same bits as
    ``out='float32'`` gives on a CPU. It is rounded to ``dtype`` at the end."""
    return pixel_values.to(torch.float32).div_(255).mul_(2).sub_(1).to(dtype)


def build(config: Any) -> Any:
    """An object from ``dict(type=callable or name, **options)``. Anything else is returned as it is.

    A name is looked up in mmengine's registry. In text-style configs it may be an import path, such as
    ``transformers.AutoTokenizer.from_pretrained``.
    """
    if not isinstance(config, Mapping):
        return config
    kind, options = type_and_options(config)
    return (look_up(kind) if isinstance(kind, str) else kind)(**options)


def type_and_options(config: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A config dict's ``type``, and its other fields. Raises OptionError if it has no type."""
    options = {name: config[name] for name in config}  # item access imports lazy types; dict(config) does not
    if "type" not in options:
        fields = ", ".join(options) or "no fields"
        raise OptionError("type", None, f"a config dict of an object needs one; this one has {fields}")
    return options.pop("type"), options


def look_up(name: str) -> Any:
    """The function that mmengine's registry has under this name, or the object at this import path. Raises
    MissingExtraError without mmengine, LookupError if the name is neither."""
    try:
        functions = mmengine("registry").FUNCTIONS
    except ImportError as error:
        raise MissingExtraError(f'looking up type "{name}"', "mmengine", "mm") from error
    try:
        found = functions.get(name)
    except RuntimeError:  # from mmengine 0.10.7 on; earlier versions return None
        found = None
    if found is None:
        raise LookupError(f'type "{name}" is neither registered nor importable. Check its spelling and custom_imports')
    return found
