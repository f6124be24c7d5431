"""Fingerprints: copies keep them, other pictures have others, and each machine gives the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builder.curate import fingerprints, pairs
from builder.curate.fingerprints import (
    FULL,
    MIRROR,
    PLAIN,
    SIDE,
    SPARSE,
    fingerprint,
)
from builder.curate.pairs import popcount
from builder.source.images import thumbnail
from tests.curate import pictures

PHOTOS = Path(__file__).parents[2] / "../shared/corpus/photos"
MIRRORED = {"mirrored", "mirrored and cropped"}
CROPPED = {"cropped by 5 %", "mirrored and cropped"}


def prints(*images: bytes) -> np.ndarray[Any, np.dtype[Any]]:
    thumbnails = [np.frombuffer(thumbnail(image, SIDE), dtype=np.uint8) for image in images]
    return fingerprint(np.array(thumbnails).reshape(-1, SIDE, SIDE, 3))


def distances(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of each pair of rows, in bits."""
    return np.asarray(popcount(a ^ b).reshape(len(a), -1).sum(axis=1, dtype=np.int64))


FROZEN = [0xCA15A7030BF80808, 0xB513156FC5FCE14, 0x92B165AAEDB655E1, 0x35896C14864119AF]
FROZEN_MIRROR = [0x145A7648CEA61D45, 0xE84F2EA564178F4E, 0x5AC2B11C71BEA468, 0x713CD58E211F1747]

ORIGINALS = [pictures.photo(seed) for seed in range(24)]
OF_ORIGINALS = prints(*(pictures.encoded(image, quality=95) for image in ORIGINALS))


@pytest.mark.slow
@pytest.mark.parametrize("kind", pictures.COPIES)
def test_a_copy_keeps_the_fingerprint(kind: str) -> None:
    copies = prints(*(pictures.COPIES[kind](image) for image in ORIGINALS))
    turned = MIRROR if kind in MIRRORED else np.zeros(4, dtype=np.uint64)
    own = distances(copies["words"] ^ turned, OF_ORIGINALS["words"])
    assert (distances(copies["words"][:, 0] ^ turned[0], OF_ORIGINALS["words"][:, 0]) <= 10).all()
    assert own.max() <= (60 if kind in CROPPED else 30)
    assert (copies["state"] == FULL).all()


def test_other_pictures_have_other_fingerprints() -> None:
    words = OF_ORIGINALS["words"]
    for turned in (MIRROR, np.zeros(4, dtype=np.uint64)):
        for row in range(1, len(words)):
            others = np.broadcast_to(words[row] ^ turned, words[:row].shape)
            assert distances(words[:row], others).min() > 72


@pytest.mark.parametrize("name", pictures.PLAIN)
def test_what_has_too_little_in_it_says_so(name: str) -> None:
    assert prints(pictures.encoded(pictures.PLAIN[name], "PNG"))["state"].tolist() == [PLAIN]


def test_a_mark_on_a_white_page_is_sparse() -> None:
    page = Image.new("RGB", (400, 300), "white")
    page.paste(pictures.photo(3, 60, 50), (170, 120))
    assert prints(pictures.encoded(page))["state"].tolist() == [SPARSE]


def test_brightness_alone_changes_no_bit() -> None:
    pixels = np.asarray(ORIGINALS[0].resize((SIDE, SIDE)))[None] // 4
    assert (fingerprint(pixels)["words"] == fingerprint(pixels + np.uint8(90))["words"]).all()


def test_colour_is_kept_beside_the_bits() -> None:
    image = pictures.encoded(ORIGINALS[0], "PNG")
    swapped = pictures.encoded(Image.merge("RGB", ORIGINALS[0].split()[::-1]), "PNG")
    own, other = prints(image, swapped)["colour"].astype(int)
    assert np.abs(own[..., 0] - other[..., 1]).max() <= 8 < np.abs(own - other).max()


def test_each_batch_gives_the_same_bits() -> None:
    """Sums are of whole numbers, so no order of summing, no BLAS and no batch changes one."""
    pixels = np.random.default_rng(5).integers(0, 256, (33, SIDE, SIDE, 3), dtype=np.uint8)
    pixels[7] = np.random.default_rng(5).integers(0, 2, (SIDE, SIDE, 3)) * 255  # the largest sums there are
    together = fingerprint(pixels)
    assert together.tobytes() == b"".join(fingerprint(pixels[row : row + 1]).tobytes() for row in range(33))
    grey = pixels.astype(np.float64) @ fingerprints._GREY
    exact = fingerprints._amplitudes(grey)
    assert (exact == np.round(exact)).all()
    assert np.abs(exact).max() < 2**53
    basis = fingerprints._BASIS.astype(int).astype(object)  # Python's own numbers, without a limit
    centred = (grey[7] * SIDE * SIDE - grey[7].sum()).astype(int).astype(object)
    slowly = basis.dot(centred).dot(basis.T)[fingerprints._ROWS, fingerprints._COLUMNS]
    assert exact[7].astype(int).tolist() == slowly.tolist()


def test_the_bits_are_these() -> None:
    """Frozen: takedown lists and datasets hold them. Change them, and no older ``phash`` fits any longer."""
    y, x = np.mgrid[:SIDE, :SIDE]
    pixels = ((x * x * 3 + y * 7 + x * y * 5) % 256).astype(np.uint8)[None, :, :, None].repeat(3, axis=3)
    assert fingerprint(pixels)["words"][0].tolist() == FROZEN
    assert MIRROR.tolist() == FROZEN_MIRROR


def test_bits_are_counted_with_any_numpy() -> None:
    values = np.array([0, 1, 2**64 - 1, 0xF0F0, 1 << 63], dtype=np.uint64)
    for count in (popcount, pairs._popcount_by_table):
        assert count(values).tolist() == [0, 1, 64, 8, 1]
        assert count(values[:4].reshape(2, 2)).tolist() == [[0, 1], [64, 8]]


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photographs here")
def test_photographs_keep_theirs_and_share_none() -> None:
    files = sorted(PHOTOS.glob("*.jpg"))
    photos = [Image.open(file).convert("RGB") for file in files]
    own = prints(*(file.read_bytes() for file in files))["words"]
    for kind in ("half the size", "quality 30", "brighter", "mirrored", "cropped by 5 %"):
        turned = MIRROR if kind in MIRRORED else np.zeros(4, dtype=np.uint64)
        copies = prints(*(pictures.COPIES[kind](photo) for photo in photos))["words"] ^ turned
        near = (distances(copies[:, 0], own[:, 0]) <= 10) & (distances(copies, own) <= 64)
        assert near.mean() >= 0.99, kind
    nearest = min(
        int(distances(own[:row], np.broadcast_to(own[row] ^ turned, own[:row].shape)).min())
        for row in range(1, len(own))
        for turned in (MIRROR, np.zeros(4, dtype=np.uint64))
    )
    assert nearest > 72
