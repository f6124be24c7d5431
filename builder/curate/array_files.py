"""Read one array from a file: .pt, .npy or .safetensors, found by the path of its image."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from builder.base.errors import DamagedFileError, Laion6mError, MissingExtraError, SourceError
from builder.read.columns import Array

_SAFETENSORS = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "U16": "uint16", "I16": "int16", "F16": "float16", "BF16": "bfloat16",
    "U32": "uint32", "I32": "int32", "F32": "float32", "U64": "uint64", "I64": "int64", "F64": "float64",
}  # fmt: skip

_LONGEST = (1 << 31) - 1
"""Upper limit of each length in a shape (stored as int32), and of an array's bytes (Arrow's binary type)."""


class Finder:
    """Finds the array of an image path, in a file of a known kind. The kind that was found last is tried first."""

    def __init__(self, folder: str, *, missing_ok: bool = False) -> None:
        """``missing_ok``: an image may have no array."""
        self._folder, self._missing_ok = folder, missing_ok
        self._kinds: list[tuple[str, Callable[[str], Array]]] = [
            (".pt", _load_pt),
            (".npy", _load_npy),
            (".safetensors", _load_safetensors),
        ]

    def __call__(self, image: str) -> Array | None:
        """None if the array is missing and may be. Raises SourceError."""
        for place, (ending, load) in enumerate(self._kinds):
            path = os.path.join(self._folder, *image.split("/")) + ending
            if os.path.exists(path):
                self._kinds.insert(0, self._kinds.pop(place))
                return _loaded(load, path)
        if self._missing_ok:
            return None
        raise SourceError(
            f"{self._folder} has no {image}.pt, .npy or .safetensors; a column needs one for every row. If some rows "
            "are to have none: --missing-ok"
        )


def _loaded(load: Callable[[str], Array], path: str) -> Array:
    try:
        array = load(path)
        if not all(type(length) is int and length <= _LONGEST for length in array.shape):  # to Python True is an int
            raise ValueError(f"a shape of {array.shape}; lengths are whole numbers of up to {_LONGEST:,}")
        if len(array.data) > _LONGEST:
            raise ValueError(f"{len(array.data):,} bytes; {_LONGEST:,} are the most that a row can have")
    except DamagedFileError as error:
        raise _no_array(path, error) from error
    except (Laion6mError, MemoryError):
        raise
    except Exception as error:  # numpy, torch and pickle can raise anything for a damaged file
        raise _no_array(path, error) from error
    return array


def _no_array(path: str, error: Exception) -> SourceError:
    why = str(error) or type(error).__name__
    return SourceError(f"{path} holds no single array: {why}. Make it again, then run the same command to go on.")


def _load_pt(path: str) -> Array:
    try:
        tensors = import_module("builder.mm.tensors")  # the only import upwards, to torch; only for .pt files
    except ImportError as error:
        raise MissingExtraError(f"reading {path}", "torch", "mm") from error
    array: Array = tensors.to_array(tensors.load_tensor(path))
    return array


_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _load_npy(path: str) -> Array:
    """Load a .npy file. If the header claims more than the file holds, raises ValueError before memory is allocated."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in _NPY_HEADERS:
            raise ValueError(f"it is of .npy version {version}, which only structured arrays need")
        shape, fortran, dtype = _NPY_HEADERS[version](file)
        if min(shape, default=0) < 0:
            raise ValueError(f"a shape of {shape}")
        claimed, left = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size - file.tell()
        if claimed > left:
            raise ValueError(f"its header claims {claimed:,} bytes, {left:,} follow")
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        data = file.read(claimed)
    array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, data, order="F" if fortran else "C")
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
    return Array(plain.tobytes(), str(array.dtype.newbyteorder("=")), tuple(plain.shape))


def _load_safetensors(path: str) -> Array:
    """Load one tensor as the format defines it: 8 bytes length, JSON, data."""
    with open(path, "rb") as file:
        data = file.read()
    if len(data) < 8 or (length := struct.unpack("<Q", data[:8])[0]) > len(data) - 8:
        raise ValueError("it is cut short")
    header = json.loads(data[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    entries = [entry for key, entry in header.items() if key != "__metadata__"]
    if len(entries) != 1:
        raise ValueError(f"expected one tensor, found {len(entries)}")
    dtype, shape, (start, end) = (entries[0][key] for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(shape, list):
        raise ValueError(f"a shape of {shape!r}")
    return Array(data[8 + length :][start:end], _SAFETENSORS.get(dtype, f"safetensors' {dtype}"), tuple(shape))
