"""Show samples and datasets: as Pillow images, and as HTML for notebooks."""

from __future__ import annotations

import base64
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from builder.base.errors import DamagedFileError, Laion6mError
from builder.base.records import SampleProblem
from builder.base.words import counted
from builder.base.words import size as in_words
from builder.source.images import opened

if TYPE_CHECKING:
    from builder.read.sample import Sample
    from builder.read.view import Rows

_LARGE, _SMALL = 512, 128  # most pixels of the longer side
_GALLERY = 8
_CAPTION = 80  # most characters of a caption in the gallery


def picture(sample: Sample) -> Any:
    """The first frame as ``PIL.Image.Image``, in any mode, not turned by EXIF. Raises DamagedFileError if it cannot be
    decoded, and what ``Sample.image`` raises."""
    try:
        with opened(BytesIO(sample.image)) as image:
            image.load()
            return image
    except SampleProblem as problem:
        raise DamagedFileError(sample.path, sample.key, problem.detail) from problem


def sample_html(sample: Sample) -> str:
    """A sample's picture, caption and facts."""
    facts = f"{sample.key} · {sample.width} × {sample.height} · {in_words(sample.size)} · row {sample.row:,}"
    return (
        f'<figure style="margin:0;max-width:{_LARGE}px">{_img(sample, _LARGE)}'
        f"<figcaption>{escape(sample.caption)}<br><small>{escape(facts)}</small></figcaption></figure>"
    )


def rows_html(rows: Rows) -> str:
    """A dataset's counts, and a small gallery of its first rows."""
    sizes = np.maximum(rows._numbers("size"), 0)  # -1: no image
    counts = f"{counted(len(rows), 'row')}, {in_words(int(sizes.sum(dtype=np.int64)))} of images · {rows.folder}"
    tiles = "".join(
        f'<figure style="margin:0;width:{_SMALL}px">{_img(rows[number], _SMALL)}'
        f"<figcaption><small>{escape(rows[number].caption[:_CAPTION])}</small></figcaption></figure>"
        for number in range(min(_GALLERY, len(rows)))
    )
    return f'<p>{escape(counts)}</p><div style="display:flex;flex-wrap:wrap;gap:8px">{tiles}</div>'


def _img(sample: Sample, side: int) -> str:
    """An <img> with the scaled-down picture inside. If it cannot be decoded, a text that says why."""
    try:
        image = picture(sample)
        image.thumbnail((side, side))
        out = BytesIO()
        image.convert("RGB").save(out, "JPEG", quality=85)
    except Laion6mError as error:
        return f"<em>{escape(str(error))}</em>"
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(sample.caption[:_CAPTION])}">'
