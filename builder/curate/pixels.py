"""The last word on a pair in doubt: whether two pictures show the same, laid over each other as well as they can be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

LOOK = 64  # pixels each way
_ALIKE = 0.94  # of a correlation of 1
_HOPELESS = 0.45  # laid over as they are; crops by 5 % have 0.58 and more, two photographs less, 99 times of 100
_MARGINS = (0, 1, 2, 3, 4, 6)  # pixels that a crop takes off in all, of 64: up to 9 %
_GREY_ONLY = 4.0  # mean levels of colour below which a picture is black and white

_GREY = np.array([0.299, 0.587, 0.114])

Picture = npt.NDArray[np.float64]


def alike(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8], mirrored: bool) -> bool:
    """Whether two pictures, (64, 64, 3) RGB, are one: resized, recompressed, brightened or cropped by up to 9 %.

    The measure is the correlation of all three channels together, so a shirt in another colour is another picture;
    where one of them is black and white, of the greys.
    """
    a, b = first.astype(np.float64), second.astype(np.float64)
    if mirrored:
        b = b[:, ::-1]
    if min(_colourfulness(a), _colourfulness(b)) < _GREY_ONLY:
        a, b = (a @ _GREY)[:, :, None], (b @ _GREY)[:, :, None]
    if _correlation(a, b) < _HOPELESS:
        return False
    return any(_correlation(x, y) >= _ALIKE for p, q in ((a, b), (b, a)) for x, y in _laid_over(p, q))


def _colourfulness(picture: Picture) -> float:
    return float(np.abs(picture - picture.mean(2, keepdims=True)).mean())


def _laid_over(whole: Picture, crop: Picture) -> Iterator[tuple[Picture, Picture]]:
    """Each window of ``whole`` that ``crop`` may be of, and ``crop`` at its size."""
    for margin in _MARGINS:
        side = LOOK - margin
        small = _shrunk(crop, side)
        for top in range(margin + 1):
            for left in range(margin + 1):
                yield whole[top : top + side, left : left + side], small


def _shrunk(picture: Picture, side: int) -> Picture:
    """To ``side`` pixels each way, by linear interpolation."""
    at = (np.arange(side) + 0.5) * (LOOK / side) - 0.5
    low = np.clip(np.floor(at).astype(int), 0, LOOK - 2)
    part = np.clip(at - low, 0, 1)
    rows = picture[low] * (1 - part)[:, None, None] + picture[low + 1] * part[:, None, None]
    return np.asarray(rows[:, low] * (1 - part)[None, :, None] + rows[:, low + 1] * part[None, :, None])


def _correlation(a: Picture, b: Picture) -> float:
    x, y = a - a.mean(), b - b.mean()
    power = float((x * x).sum() * (y * y).sum())
    return float((x * y).sum()) / power**0.5 if power else 0.0
