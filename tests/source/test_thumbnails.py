"""Thumbnails: one decode at reduced scale, of whatever a row may hold."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builder.base.records import Reason, SampleProblem
from builder.source.images import decode, thumbnail

CORPUS = Path(__file__).parents[2] / "../shared/corpus/images"


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixels(data: bytes, side: int = 8) -> np.ndarray:
    return np.frombuffer(thumbnail(data, side), dtype=np.uint8).reshape(side, side, 3)


QUARTERS = Image.fromarray(
    np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8).repeat(100, 0).repeat(75, 1)
)


@pytest.mark.parametrize(
    "data",
    [
        encoded(QUARTERS, "JPEG", quality=95),
        encoded(QUARTERS.convert("CMYK"), "JPEG", quality=95),
        encoded(QUARTERS, "PNG"),
        encoded(QUARTERS.convert("P"), "PNG"),
        encoded(QUARTERS.convert("RGBA"), "PNG"),
        encoded(QUARTERS, "WEBP", lossless=True),
        encoded(QUARTERS, "GIF", save_all=True, append_images=[Image.new("RGB", QUARTERS.size)]),
        encoded(QUARTERS, "TIFF"),
        encoded(QUARTERS, "BMP"),
    ],
    ids=["JPEG", "CMYK", "PNG", "palette", "RGBA", "WebP", "animated GIF", "TIFF", "BMP"],
)
def test_each_format_and_mode_becomes_the_same_square(data: bytes) -> None:
    small = pixels(data).astype(int)
    corners = small[[1, 1, 6, 6], [1, 6, 1, 6]]
    assert np.abs(corners - [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]).max() <= 40


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 2), (5000, 2)])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_no_shape_is_too_odd(size: tuple[int, int], form: str) -> None:
    assert (pixels(encoded(Image.new("RGB", size, (200, 200, 200)), form), 32) == 200).all()


def test_transparent_pixels_lie_on_white() -> None:
    red = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    assert (pixels(encoded(red, "PNG")) == 255).all()
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([9, 9, 9, 200, 200, 200])
    assert (pixels(encoded(palette, "PNG", transparency=0)) == 255).all()


def test_16_bits_of_grey_are_not_clipped_at_255() -> None:
    ramp = Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(64, axis=0))
    small = pixels(encoded(ramp, "PNG"))[4, :, 0].astype(int)
    assert small[0] < 30 < 220 < small[-1]
    assert (np.diff(small) > 20).all()


def test_a_mirrored_jpeg_has_the_mirrored_thumbnail_at_any_width() -> None:
    """A scaled JPEG ends with part of a block; that part must not count as a pixel."""
    for width in (201, 207, 208, 333):
        noise = np.random.default_rng(width).integers(0, 256, (40, width // 5 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((width, 200))
        one, other = pixels(encoded(image, "JPEG", quality=95), 16), None
        other = pixels(encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "JPEG", quality=95), 16)[:, ::-1]
        assert np.abs(one.astype(int) - other).mean() < 4


@pytest.mark.parametrize("cut", [0, 2, 30, -400])
def test_what_does_not_decode_has_a_reason(cut: int) -> None:
    with pytest.raises(SampleProblem) as caught:
        thumbnail(encoded(QUARTERS, "JPEG")[:cut], 32)
    assert caught.value.reason in (Reason.IMAGE_TRUNCATED, Reason.IMAGE_UNREADABLE)


def reason_of(read: Callable[[bytes], object], data: bytes) -> Reason | None:
    try:
        read(data)
    except SampleProblem as problem:
        return problem.reason
    return None


@pytest.mark.slow
@pytest.mark.skipif(not CORPUS.is_dir(), reason="no corpus of odd images here")
def test_odd_images_have_thumbnails_where_they_decode(capfd: pytest.CaptureFixture[str]) -> None:
    for file in sorted(path for path in CORPUS.iterdir() if path.is_file()):
        data = file.read_bytes()
        assert reason_of(lambda data: thumbnail(data, 32), data) is reason_of(decode, data), file.name
    capfd.readouterr()  # libtiff writes to standard error by itself
