"""The last test of a pair in doubt: lay two pictures over each other as well as possible and compare them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

LOOK = 64  # pixels per side
_ALIKE = 0.94  # of a correlation of 1
_HOPELESS = 0.45  # without shifting; crops of 5 % have 0.58 or more, 99 of 100 pairs of photographs less
_MARGINS = (0, 1, 2, 3, 4, 6)  # of 64 pixels, how many a crop removes in all: up to 9 %
_GREY_ONLY = 5.0  # levels of colour of a tile; a picture below it is black and white

_COLOUR = 30.0  # levels; copies differ by less than 10, brightened ones by up to 28
_GREY = np.array([0.299, 0.587, 0.114])

Picture = npt.NDArray[np.float64]


def alike(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8], mirrored: bool) -> bool:
    """Whether two pictures, (64, 64, 3) RGB, are the same: resized, recompressed, brightened or cropped by up to 9 %.

    Measured by the correlation of all three channels together, so a shirt in another colour is another picture. If one
    of them is black and white, the greys are correlated.
    """
    a, b = first.astype(np.float64), second.astype(np.float64)
    if mirrored:
        b = b[:, ::-1]
    if min(np.abs(_tiles(a)).max(), np.abs(_tiles(b)).max()) >= _GREY_ONLY:
        if _colour_difference(a, b) > _COLOUR:
            return False
    else:
        a, b = (a @ _GREY)[:, :, None], (b @ _GREY)[:, :, None]
    if _correlation(a, b) < _HOPELESS:
        return False
    return any(_correlation(x, y) >= _ALIKE for p, q in ((a, b), (b, a)) for x, y in _laid_over(p, q))


def _colour_difference(a: Picture, b: Picture) -> float:
    """The largest colour difference among 4 x 4 tiles, in levels, after both have the same contrast."""
    contrast = (a @ _GREY).std() / max(float((b @ _GREY).std()), 1e-9)
    return float(np.abs(_tiles(a) - contrast * _tiles(b)).max())


def _tiles(picture: Picture) -> Picture:
    """Red, green and blue minus grey, of 4 x 4 tiles."""
    colours = picture - (picture @ _GREY)[:, :, None]
    return np.asarray(colours.reshape(4, LOOK // 4, 4, LOOK // 4, 3).mean((1, 3)))


def _laid_over(whole: Picture, crop: Picture) -> Iterator[tuple[Picture, Picture]]:
    """Each window of ``whole`` that ``crop`` may show, and ``crop`` resized to it."""
    for margin in _MARGINS:
        side = LOOK - margin
        small = _shrunk(crop, side)
        for top in range(margin + 1):
            for left in range(margin + 1):
                yield whole[top : top + side, left : left + side], small


def _shrunk(picture: Picture, side: int) -> Picture:
    """Resize to ``side`` pixels per side, by linear interpolation."""
    at = (np.arange(side) + 0.5) * (LOOK / side) - 0.5
    low = np.clip(np.floor(at).astype(int), 0, LOOK - 2)
    part = np.clip(at - low, 0, 1)
    rows = picture[low] * (1 - part)[:, None, None] + picture[low + 1] * part[:, None, None]
    return np.asarray(rows[:, low] * (1 - part)[None, :, None] + rows[:, low + 1] * part[None, :, None])


def _correlation(a: Picture, b: Picture) -> float:
    x, y = a - a.mean(), b - b.mean()
    power = float((x * x).sum() * (y * y).sum())
    return float((x * y).sum()) / power**0.5 if power else 0.0
