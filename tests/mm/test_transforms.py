"""The exact way is held against upstream in tests/mm; here is what each piece promises by itself."""

import pickle
import random
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from builder.base.errors import MissingExtraError
from builder.mm import transforms
from builder.mm.buckets import Buckets
from builder.mm.transforms import (
    Target,
    UnusableImageError,
    check_size,
    crop_exact,
    crop_fast,
    open_exact,
    open_fast,
    random_crop,
    shrink_factor,
)


def picture(width: int, height: int) -> Image.Image:
    """Smooth colours: resampling differs little between filters, a swapped axis or channel shows."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 255 - across], axis=2).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned_by_exif(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a viewer turns it by 90 degrees
    return encoded(image, exif=exif)


@pytest.mark.parametrize(
    ("width", "height", "kind"),
    [
        (81, 81, None),
        (80, 500, "image_too_small"),  # both sides must be over 80, not at it
        (500, 80, "image_too_small"),
        (999, 100, None),
        (1000, 100, "aspect_ratio"),
        (100, 1000, "aspect_ratio"),
        (101, 1000, None),
    ],
)
def test_sizes_are_checked_as_upstream_asserts(width: int, height: int, kind: str | None) -> None:
    if kind is None:
        check_size(width, height, 80)
    else:
        with pytest.raises(UnusableImageError, match=f"{width}x{height}") as caught:
            check_size(width, height, 80)
        assert caught.value.args[0] == kind


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 2000), st.integers(1, 2000))
def test_a_crop_lies_inside_fills_one_side_and_has_the_ratio(width: int, height: int, wide: int, high: int) -> None:
    left, upper, right, lower = random_crop(width, height, (wide, high))
    assert 0 <= left < right <= width
    assert 0 <= upper < lower <= height
    assert right - left == width or lower - upper == height
    assert abs((right - left) * high - (lower - upper) * wide) <= max(wide, high)  # within a pixel of the ratio


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (200, 200)])
def test_a_square_crop_draws_what_upstream_draws(width: int, height: int) -> None:
    random.seed(7)
    box = random_crop(width, height, (64, 64))
    after = random.random()
    random.seed(7)
    offset = random.randint(0, abs(width - height))  # also for a square image: the draw moves the generator
    assert box[:2] == ((offset, 0) if width > height else (0, offset))
    assert random.random() == after


def test_every_mode_comes_out_as_rgb() -> None:
    image = picture(120, 100)
    for data in (
        encoded(image),
        encoded(image.convert("L")),
        encoded(image.convert("CMYK")),
        encoded(image.convert("P"), "PNG"),
        encoded(image.convert("RGBA"), "PNG"),
        encoded(image.convert("1"), "PNG"),
        encoded(image, "WEBP"),
        encoded(image.convert("P"), "GIF"),
    ):
        pixels = crop_exact(open_exact(data, 80), Target(50))
        assert pixels.shape == (50, 50, 3)
        assert pixels.dtype == np.uint8
        assert pixels.flags.writeable


def test_a_bucket_decides_the_shape() -> None:
    target = Target(64, Buckets([(64, 64), (96, 48), (48, 96)]))
    assert crop_exact(picture(400, 200), target).shape == (48, 96, 3)
    assert crop_exact(picture(200, 400), target).shape == (96, 48, 3)


def test_neither_way_turns_an_image_by_its_exif() -> None:
    pytest.importorskip("cv2")
    data = turned_by_exif(picture(400, 200))
    assert open_exact(data, 80).size == (400, 200)
    assert open_fast(data, 80, Target(100)).pixels.shape[:2] == (100, 200)


@pytest.mark.parametrize(
    ("width", "height", "factor"), [(512, 900, 1), (1023, 2000, 1), (1024, 1024, 2), (2050, 3000, 4), (4096, 4096, 8)]
)
def test_a_jpeg_shrinks_only_while_enough_pixels_are_left(width: int, height: int, factor: int) -> None:
    assert shrink_factor(width, height, (512, 512)) == factor


@pytest.mark.slow
@pytest.mark.parametrize("size", [(600, 400), (400, 600), (90, 90), (1700, 1300)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_the_fast_way_shows_the_same_picture(size: tuple[int, int], kind: str) -> None:
    pytest.importorskip("cv2")
    data = encoded(picture(*size), kind)
    random.seed(3)
    exact = crop_exact(open_exact(data, 80), Target(128)).astype(int)
    random.seed(3)
    fast = crop_fast(open_fast(data, 80, Target(128)), Target(128)).transpose(1, 2, 0).astype(int)
    # A crop drawn on the reduced grid may lie elsewhere, up to the whole of what the long side has to spare.
    slack = 255 * abs(size[0] - size[1]) / max(size) if min(size) >= 256 else 0
    assert np.abs(exact - fast).mean() < 6 + slack


def test_the_fast_way_knows_the_images_own_size() -> None:
    pytest.importorskip("cv2")
    scaled = open_fast(encoded(picture(1001, 801)), 80, Target(100))
    assert (scaled.width, scaled.height) == (1001, 801)
    assert scaled.pixels.shape == (101, 126, 3)  # an eighth, rounded up


def test_what_the_fast_way_gives_converts_as_code_for_pillow_expects() -> None:
    pytest.importorskip("cv2")
    scaled = open_fast(encoded(picture(300, 200), "PNG"), 80, Target(100))
    assert scaled.convert("RGB") is scaled
    assert np.array_equal(np.array(scaled.to_pillow()), np.array(picture(300, 200)))
    grey = scaled.convert("L")
    assert (grey.mode, grey.size) == ("L", (300, 200))
    with pytest.raises(AttributeError, match=r"no resize: call to_pillow\(\) first"):
        scaled.resize((10, 10))
    assert np.array_equal(pickle.loads(pickle.dumps(scaled)).pixels, scaled.pixels)


@pytest.mark.parametrize("way", ["exact", "fast"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "cut PNG", "bomb"])
def test_a_damaged_image_is_an_error(way: str, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoded(picture(300, 300))
    data = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"<html>not found</html>",
        "cut PNG": encoded(picture(300, 300), "PNG")[:-200],
        "bomb": whole,
    }[damage]
    if damage == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300 * 300 // 2 - 1)
    if way == "fast":
        pytest.importorskip("cv2")
    with pytest.raises(transforms.BAD_IMAGE):
        open_exact(data, 80) if way == "exact" else open_fast(data, 80, Target(100))


def test_without_opencv_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    transforms.load_cv2.cache_clear()
    with pytest.raises(MissingExtraError, match=r"laion6m\[mm\]"):
        transforms.load_cv2()
    transforms.load_cv2.cache_clear()


@pytest.mark.parametrize("size", [(300, 300), (224, 224), (176, 176)])
def test_the_fast_filter_is_as_near_to_pillows_bicubic_as_pillows_bilinear(size: tuple[int, int]) -> None:
    """1.2 to 2.2 times smaller, where a bilinear filter alone aliases: on noise that is smoothed as photographs are."""
    cv2 = pytest.importorskip("cv2")
    noise = np.random.default_rng(0).integers(0, 256, (390, 390, 3), dtype=np.uint8)
    pixels = cv2.GaussianBlur(noise, (0, 0), 0.7)

    def error(made: object) -> float:
        exact = np.asarray(Image.fromarray(pixels).resize(size)).astype(float)
        return float(np.mean((np.asarray(made).astype(float) - exact) ** 2))

    bilinear = error(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    assert error(transforms._resample(pixels, size)) < 1.3 * bilinear
    assert size == (300, 300) or error(cv2.resize(pixels, size)) > 1.5 * bilinear  # what the blur is for
