"""The last look: copies pass, whatever a hash may take for the same does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from builder.curate.pixels import LOOK, alike
from builder.source.images import thumbnail
from tests.curate import pictures

Array = np.ndarray[Any, np.dtype[Any]]


def seen(image: bytes) -> Array:
    return np.frombuffer(thumbnail(image, LOOK), dtype=np.uint8).reshape(LOOK, LOOK, 3)


def shown(image: Image.Image) -> Array:
    return seen(pictures.encoded(image))


@pytest.mark.slow
@pytest.mark.parametrize("kind", pictures.COPIES)
@pytest.mark.parametrize("seed", range(4))
def test_a_copy_is_alike(seed: int, kind: str) -> None:
    original = pictures.photo(seed)
    copy = seen(pictures.COPIES[kind](original))
    assert alike(shown(original), copy, "mirrored" in kind)
    assert alike(copy, shown(original), "mirrored" in kind)


def test_a_crop_from_one_corner_is_alike() -> None:
    original = pictures.photo(1)
    assert alike(shown(original), shown(original.crop((0, 0, 152, 114))), False)


def test_other_pictures_are_not() -> None:
    looks = [shown(pictures.photo(seed)) for seed in range(6)]
    assert not any(alike(a, b, turned) for a in looks for b in looks if a is not b for turned in (False, True))
    assert not alike(looks[0], shown(ImageOps.mirror(pictures.photo(0))), False)


def shirt(colour: str) -> Image.Image:
    page = Image.new("RGB", (160, 120), "white")
    ImageDraw.Draw(page).polygon([(50, 20), (110, 20), (130, 50), (106, 46), (106, 110), (54, 110), (54, 46)], colour)
    return page


def mark(seed: int) -> Image.Image:
    page, rng = Image.new("RGB", (160, 120), "white"), np.random.default_rng(seed)
    for x, y, right, down in rng.uniform(0, 30, (6, 4)):
        ImageDraw.Draw(page).line((65 + x, 45 + y, 65 + right, 45 + down), "black", 3)
    return page


def test_the_same_thing_in_another_colour_is_another_picture() -> None:
    assert not alike(shown(shirt("red")), shown(shirt("green")), False)
    assert alike(shown(shirt("red")), seen(pictures.encoded(shirt("red"), quality=30)), False)


def test_marks_at_one_place_are_told_apart() -> None:
    looks = [shown(mark(seed)) for seed in range(8)]
    assert not any(alike(a, b, False) for at, a in enumerate(looks) for b in looks[:at])


def test_blank_pictures_are_alike_to_nothing() -> None:
    white, grey = shown(Image.new("RGB", (160, 120), "white")), shown(Image.new("RGB", (160, 120), "grey"))
    assert not alike(white, grey, False)
    assert not alike(white, shown(pictures.photo(0)), False)
