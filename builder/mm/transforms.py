"""Decode image files and crop them to the size that the model takes. Arrays are uint8, h w c, RGB, 0 to 255.

There are two ways. The exact one gives the same bits as upstream's CaptionDataset. The fast one uses OpenCV, and
simplejpeg if it is installed. It decodes a JPEG at 1/2, 1/4 or 1/8 if the target is that much smaller. It resamples
with other filters.
"""

from __future__ import annotations

import importlib
import math
import random
import struct
import zlib
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from builder.base.errors import MissingExtraError
from builder.mm.buckets import Buckets, Size

Pixels = NDArray[np.uint8]

BAD_IMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""Errors that Pillow's plugins raise for broken files. SyntaxError: PNG. struct.error: TIFF, BMP. The bomb error is not
an OSError."""

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"


class UnusableImageError(ValueError):
    """The image can be read, but its size is refused. Args: kind (``image_too_small``, ``aspect_ratio``), detail."""

    def __str__(self) -> str:
        return str(self.args[-1])  # there is only one if torch's loader rebuilt the error


def check_size(width: int, height: int, min_side: int) -> None:
    """Upstream's assertions: both sides > ``min_side``, 0.1 < width ÷ height < 10. Raises UnusableImageError."""
    if not (width > min_side and height > min_side):
        raise UnusableImageError("image_too_small", f"{width}x{height} pixels; both sides must be over {min_side}")
    if not 0.1 < width / height < 10:
        raise UnusableImageError("aspect_ratio", f"{width}x{height} pixels; width / height must be between 0.1 and 10")


def random_crop(width: int, height: int, target: Size) -> tuple[int, int, int, int]:
    """The largest box of the target's ratio, as (left, upper, right, lower). Its place along the side that is too long
    is random.

    Draws once from ``random``, for a square target exactly as upstream does. It draws even if there is only one box:
    ``randint(0, 0)`` advances the generator, and so changes every later draw.
    """
    wide, high = target
    if width * high > height * wide:
        side = max(1, round(height * wide / high))
        left = random.randint(0, width - side)
        return left, 0, left + side, height
    side = min(height, max(1, round(width * high / wide)))
    upper = random.randint(0, height - side)
    return 0, upper, width, upper + side


@dataclass(frozen=True, slots=True)
class Target:
    """The size of the result: ``size`` × ``size`` pixels, or the bucket nearest to the image's ratio."""

    size: int
    buckets: Buckets | None = None

    def of(self, width: int, height: int) -> Size:
        return self.buckets.sizes[self.buckets.of(width, height)] if self.buckets else (self.size, self.size)


def open_exact(data: bytes, min_side: int) -> Image.Image:
    """The image as RGB, decoded by Pillow, not turned by EXIF. Raises BAD_IMAGE errors and UnusableImageError."""
    image: Image.Image = Image.open(BytesIO(data))
    check_size(image.width, image.height, min_side)
    if image.mode == "RGB":
        image.load()  # as convert does; but convert would copy
        return image
    return image.convert("RGB")


def crop_exact(image: Image.Image, target: Target) -> Pixels:
    """Random crop, then resize with Pillow's default filter. ``resize(box=…)`` would give other pixels: its filter
    reads beyond the box's edges."""
    size = target.of(image.width, image.height)
    cropped = image.crop(random_crop(image.width, image.height, size))
    return np.array(cropped.resize(size))


@dataclass(frozen=True, slots=True)
class ScaledPixels:
    """A decoded image in OpenCV's order BGR. It may be smaller than the file's ``width`` × ``height`` pixels.

    It has Pillow's method ``convert``, because code written for Pillow calls that on every image.
    """

    pixels: Pixels
    width: int
    height: int

    def convert(self, mode: str = "RGB") -> Any:
        """Returns itself for ``RGB``. For any other mode, returns a Pillow image of the decoded pixels."""
        return self if mode == "RGB" else self.to_pillow().convert(mode)

    def to_pillow(self) -> Image.Image:
        """A Pillow image (RGB) of the decoded pixels."""
        return Image.fromarray(np.ascontiguousarray(self.pixels[:, :, ::-1]))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"imdecode_backend='cv2' gives ScaledPixels, which have no {name}: call to_pillow() first, "
            "or decode with imdecode_backend='pillow'"
        )


@cache
def load_cv2() -> Any:
    """OpenCV. Raises MissingExtraError."""
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise MissingExtraError("imdecode_backend='cv2'", "opencv-python", "mm") from error


@cache
def load_simplejpeg() -> Any:
    """simplejpeg, or None if it is not installed. cv2 gives the same pixels but takes up to a third longer."""
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


def open_fast(data: bytes, min_side: int, target: Target) -> ScaledPixels:
    """The image, decoded by simplejpeg or OpenCV, or by Pillow if they would give another image. Not turned by EXIF.

    Raises what :func:`open_exact` raises. Raises OSError for a JPEG without its end marker: the decoders would fill the
    missing part with grey.
    """
    cv2 = load_cv2()
    width, height, known = _header(data)
    check_size(width, height, min_side)
    if not known:
        rgb = np.asarray(open_exact(data, min_side))
        return ScaledPixels(np.ascontiguousarray(rgb[:, :, ::-1]), width, height)
    if not data.startswith(_JPEG_START):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    else:
        if data.rfind(_JPEG_END) < 0:
            raise OSError("the JPEG ends before its end marker")
        pixels = _decode_jpeg(data, width, height, shrink_factor(width, height, target.of(width, height)))
    if pixels is None:
        raise OSError("OpenCV cannot decode the image")
    return ScaledPixels(pixels, width, height)


def _header(data: bytes) -> tuple[int, int, bool]:
    """Width, height, and whether the fast decoders give the same image as Pillow."""
    jpeg = load_simplejpeg()
    if jpeg is not None and data.startswith(_JPEG_START):
        try:
            height, width, colours, _ = jpeg.decode_jpeg_header(data)
        except ValueError:
            pass  # Pillow below raises an error that says what is wrong
        else:
            if Image.MAX_IMAGE_PIXELS and width * height > 2 * Image.MAX_IMAGE_PIXELS:
                limit = f"{2 * Image.MAX_IMAGE_PIXELS:,} pixels, as in Pillow"
                raise Image.DecompressionBombError(f"{width}x{height} pixels; the limit is {limit}")
            return width, height, colours in ("YCbCr", "Gray")
    with Image.open(BytesIO(data)) as header:
        known = header.format in ("JPEG", "PNG", "WEBP", "BMP") and header.mode in ("RGB", "L")
        return header.width, header.height, known


def _decode_jpeg(data: bytes, width: int, height: int, factor: int) -> Any:
    """The pixels in BGR, at 1/``factor`` of the size. None if OpenCV cannot decode them."""
    jpeg = load_simplejpeg()
    if jpeg is not None:
        least = {"min_width": -(-width // factor), "min_height": -(-height // factor), "min_factor": factor}
        return jpeg.decode_jpeg(data, "BGR", strict=False, **(least if factor > 1 else {}))
    cv2 = load_cv2()
    reduced = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
    flags = reduced.get(factor, cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def shrink_factor(width: int, height: int, size: Size) -> int:
    """8, 4, 2 or 1: the largest factor by which a JPEG may be decoded smaller. The crop must still have at least the
    target's pixels."""
    room = min(width / size[0], height / size[1])
    return next((factor for factor in (8, 4, 2) if room >= factor), 1)


def crop_fast(image: ScaledPixels, target: Target, planes: Pixels | None = None) -> Pixels:
    """Random crop, resampled by OpenCV. Returns c h w, RGB, written into ``planes`` if given."""
    cv2 = load_cv2()
    high, wide = image.pixels.shape[:2]
    size = target.of(image.width, image.height)
    left, upper, right, lower = random_crop(wide, high, size)
    resized = _resample(image.pixels[upper:lower, left:right], size)
    planes = np.empty((3, size[1], size[0]), np.uint8) if planes is None else planes
    cv2.split(resized, [planes[2], planes[1], planes[0]])
    return planes


_AREA = 2.5
"""Above this scale OpenCV's area filter is better. Below it, a blur and a bilinear filter cost a third as much. Their
result is as near to Pillow's bicubic as Pillow's own bilinear is (41 dB)."""


def _resample(pixels: Pixels, size: Size) -> Pixels:
    """Enlarge with a linear filter. When shrinking, first remove the detail that would alias."""
    cv2 = load_cv2()
    ratio = min(pixels.shape[1] / size[0], pixels.shape[0] / size[1])
    if 1.05 < ratio <= _AREA:
        pixels = cv2.GaussianBlur(pixels, (3, 3), 0.4 * math.sqrt(ratio * ratio - 1))
    resampled: Pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if ratio > _AREA else cv2.INTER_LINEAR)
    return resampled
