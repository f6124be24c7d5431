"""Images for the demo, drawn by arithmetic. With the same Pillow the bytes are always the same."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

_SIDES = ((96, 72), (72, 96), (128, 96), (64, 64), (120, 48), (48, 120), (160, 120), (80, 80))
_COLORS = ("red", "orange", "golden", "green", "teal", "blue", "violet", "gray")
_HUES = ((220, 60, 50), (235, 140, 40), (220, 190, 60), (70, 160, 80), (40, 150, 150), (60, 90, 200), (140, 80, 190))


def draw(number: int) -> tuple[bytes, str, str]:
    """One image: its bytes, its file ending, and a caption that describes it."""
    from PIL import Image

    width, height = _SIDES[number % len(_SIDES)]
    spacing, color = number % 7, number % len(_COLORS)
    y, x = np.mgrid[0:height, 0:width]
    wave = np.cos(np.hypot(x - width / 2, y - height / 3) / (3 + spacing)) * 0.5 + 0.5
    if _COLORS[color] == "gray":
        pixels = (wave * 200 + 20).astype(np.uint8)
    else:
        pixels = (wave[..., None] * np.array(_HUES[color]) + 20).astype(np.uint8)
    form, ending, options = _form(number)
    data = encode(Image.fromarray(pixels), form, **options)
    apart = "close together" if spacing < 3 else "wide apart"
    shape = "wide" if width > height else "tall" if height > width else "square"
    color_name = _COLORS[color].capitalize()
    caption = f"{color_name} rings on a dark ground, {apart}, spreading from above the middle of a {shape} image."
    return data, ending, caption


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def wide(number: int) -> bytes:
    """A JPEG that is five times as wide as high."""
    from PIL import Image

    return encode(Image.new("RGB", (200, 40), _HUES[number % len(_HUES)]), "JPEG")


def _form(number: int) -> tuple[str, str, dict[str, Any]]:
    """Mostly JPEG, as in the source. As on the web, some are progressive, some are turned by EXIF, some have another
    format under the same ending."""
    if number % 10 == 3:
        return "PNG", ".png", {}
    if number % 10 == 5:
        return "WEBP", ".webp", {"lossless": True}
    if number % 20 == 7:
        return "GIF", ".jpg", {}
    if number % 10 == 8:
        return "JPEG", ".jpg", {"progressive": True}
    if number % 10 == 9:
        from PIL import Image

        exif = Image.Exif()
        exif[0x0112] = 6  # orientation: turn by 90 degrees
        return "JPEG", ".jpg", {"exif": exif}
    return "JPEG", ".jpg", {"quality": 85}
