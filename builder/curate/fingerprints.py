"""Fingerprints: 256 bits of a picture that survive resizing, recompression, brightening and small crops.

    image → 32 x 32 pixels → DCT → signs of the 256 lowest frequencies; the lowest 64 are the ``phash``

Three choices make these bits better than the usual perceptual hash. First, a window (the square root of a half sine)
fades the borders. So a crop of 5 % flips 4 of 64 bits instead of 5 to 6, and 30 of 256 instead of 40. Second, a bit is
a sign, not a comparison with a median. Mirroring changes only the signs of the odd horizontal frequencies. So the
mirrored picture's hash is ``hash ^ MIRROR``, without a second decode. Third, all sums are of whole numbers below 2**53,
which float64 holds exactly. So every machine and every BLAS gives the same bits for the same pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
"""Shape (rows, 4): one 256-bit fingerprint per row, the ``phash`` first. Bit i of a word is 1 << i."""

SIDE = 32  # pixels; they hold frequencies up to 31, only those up to 17 are read
_SCALE = 1024  # cosines are stored as whole numbers

UNREAD, PLAIN, SPARSE, FULL = range(4)
"""How far a fingerprint can be trusted. UNREAD: the image does not decode. PLAIN: too little content to tell it from
others (a colour, a gradient). SPARSE: mostly background, so few bits are its own; trust only pixels. FULL: a
picture."""

FINGERPRINT = np.dtype([("words", "<u8", (4,)), ("colour", "i1", (2, 2, 2)), ("state", "u1")])
"""``colour``: for each quarter of the picture, red and blue minus grey, each halved."""

_GREY = np.array([5.0, 9.0, 2.0])  # sixteenths of red, green and blue
_NOISE = 0.5  # levels of 255: a smaller amplitude comes from JPEG, not from the picture
_LEAST_DETAIL = 192  # of 256 frequencies above the noise; photographs have 229 and more, gradients 20 to 140
_LEAST_BUSY = SIDE * SIDE // 4  # pixels that differ from the background
_BACKGROUND = 10  # levels from the median


def _frequencies() -> npt.NDArray[np.intp]:
    """Shape (256, 2): (vertical, horizontal), sorted by distance from (0, 0). That one, the brightness, is left out."""
    steps = [(v, u) for v in range(20) for u in range(20) if v or u]
    return np.array(sorted(steps, key=lambda step: (step[0] ** 2 + step[1] ** 2, step[0]))[:256])


def _words(bits: npt.NDArray[np.bool_]) -> Words:
    """Booleans of shape (…, 256) → shape (…, 4)."""
    packed = np.packbits(bits, axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view("<u8").astype(np.uint64, copy=False)


_ROWS, _COLUMNS = _frequencies().T
_MIDDLES = (np.arange(SIDE) + 0.5) / SIDE
_BASIS = np.round(_SCALE * np.cos(np.pi * np.arange(20)[:, None] * _MIDDLES) * np.sqrt(np.sin(np.pi * _MIDDLES)))
_NORMS = np.sqrt((_BASIS**2).sum(1))
_LEAST = _NOISE * _NORMS[_ROWS] * _NORMS[_COLUMNS] * 16 * SIDE * SIDE  # in the units of _amplitudes

MIRROR: Words = _words(_COLUMNS % 2 == 1)
"""Shape (4,): the bits that flip when the picture is mirrored left to right."""


def fingerprint(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Pictures of shape (rows, 32, 32, 3), RGB → FINGERPRINT of shape (rows,)."""
    grey = thumbnails.astype(np.float64) @ _GREY
    amplitudes = _amplitudes(grey)
    made = np.zeros(len(thumbnails), dtype=FINGERPRINT)
    made["words"] = _words(amplitudes > 0)
    made["colour"] = _colours(thumbnails, grey)
    detail = (np.abs(amplitudes) > _LEAST).sum(1)
    flat = grey.reshape(len(grey), -1)
    busy = (np.abs(flat - np.median(flat, axis=1, keepdims=True)) > _BACKGROUND * 16).sum(1)
    made["state"] = np.where(detail < _LEAST_DETAIL, PLAIN, np.where(busy < _LEAST_BUSY, SPARSE, FULL))
    return made


def _amplitudes(grey: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Shape (rows, 256). Whole numbers below 2**53: at most 16 · 255 · 32² for a pixel minus the mean, times 32 · 1024
    for each of two sums: 4.5e15."""
    centred = grey * (SIDE * SIDE) - grey.sum((1, 2), keepdims=True)
    transformed = _BASIS @ centred @ _BASIS.T
    return np.asarray(transformed[:, _ROWS, _COLUMNS])


def _colours(thumbnails: npt.NDArray[np.uint8], grey: npt.NDArray[np.float64]) -> npt.NDArray[np.int8]:
    """Shape (rows, 2, 2, 2)."""
    half = SIDE // 2
    quarters = thumbnails.reshape(-1, 2, half, 2, half, 3).sum((2, 4), dtype=np.int64)
    lightness = grey.reshape(-1, 2, half, 2, half).sum((2, 4)).astype(np.int64) // 16
    difference = quarters[..., [0, 2]] - lightness[..., None]
    return np.asarray(np.clip(difference // (2 * half * half), -127, 127), dtype=np.int8)


def _popcount_by_table(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    quarters = np.ascontiguousarray(values).view(np.uint16).reshape(*values.shape, 4)
    return np.asarray(_COUNTS[quarters].sum(axis=-1, dtype=np.uint8))


_COUNTS = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(1, np.uint8)
popcount = getattr(np, "bitwise_count", _popcount_by_table)  # numpy 1 lacks it
