"""Small pictures of large ones, and a collage of many. Decodes at reduced scale if the format can."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from builder.base.errors import Laion6mError
from builder.base.records import Reason, SampleProblem
from builder.read.view import Rows
from builder.source.images import opened

COLLAGE = "meta/collage.jpg"
"""Path of the collage in a repository, if its owner wants one."""

_MOST_PIXELS = 100_000_000  # at full scale a picture of 178 million pixels takes 0.7 GB for one thumbnail
_COLUMNS, _LINES = 6, 4
_CELL = (200, 150)  # pixels
_TRIED = 4 * _COLUMNS * _LINES


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """``data``: a JPEG, or a PNG if the picture is transparent. ``width``, ``height``: pixels, after the turn by
    EXIF."""

    data: bytes
    media_type: str
    width: int
    height: int


def make_thumbnail(data: bytes, side: int, *, quality: int = 82) -> Thumbnail:
    """A picture of at most ``side`` × ``side`` pixels, never larger than the original.

    Raises SampleProblem if the bytes are no image, or the image has more than 100 million pixels.
    """
    from PIL import ImageOps

    with opened(io.BytesIO(data)) as image:
        if image.width * image.height > _MOST_PIXELS:
            raise SampleProblem(Reason.IMAGE_TOO_LARGE, f"{image.width} x {image.height}: too large for a thumbnail")
        transparent = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa")
        image.draft("RGB", (side, side))  # a JPEG is decoded at 1/2, 1/4 or 1/8
        turned = ImageOps.exif_transpose(image)
        small = turned.convert("RGBA" if transparent else "RGB")
        small.thumbnail((side, side), reducing_gap=2.0)
        sink = io.BytesIO()
        if transparent:
            small.save(sink, "PNG")
        else:
            small.save(sink, "JPEG", quality=quality)
    return Thumbnail(sink.getvalue(), "image/png" if transparent else "image/jpeg", *small.size)


def make_collage(dataset: Rows) -> bytes | None:
    """A JPEG of 24 rows, evenly spaced; None if too few of them can be drawn."""
    from PIL import Image

    sheet = Image.new("RGB", (_COLUMNS * _CELL[0], _LINES * _CELL[1]), "white")
    drawn = 0
    for row in np.unique(np.linspace(0, len(dataset) - 1, _TRIED).astype(int)) if len(dataset) else ():
        try:
            made = make_thumbnail(dataset[int(row)].image, max(_CELL))
        except (Laion6mError, SampleProblem):
            continue
        with Image.open(io.BytesIO(made.data)) as small:
            picture = small.convert("RGB")
        picture.thumbnail((_CELL[0] - 8, _CELL[1] - 8))
        left, top = drawn % _COLUMNS * _CELL[0], drawn // _COLUMNS * _CELL[1]
        sheet.paste(picture, (left + (_CELL[0] - picture.width) // 2, top + (_CELL[1] - picture.height) // 2))
        drawn += 1
        if drawn == _COLUMNS * _LINES:
            sink = io.BytesIO()
            sheet.save(sink, "JPEG", quality=85)
            return sink.getvalue()
    return None
