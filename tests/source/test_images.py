"""Probing, judging and decoding images: the reasons given, the limits kept, and Pillow left as it was found."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import os
import random
import struct
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import PIL
import pytest
from PIL import Image, ImageFile, TiffImagePlugin

from builder.base.options import SamplePolicy
from builder.base.records import ImageInfo, Reason, SampleProblem
from builder.source import images
from builder.source.images import decode, judge, probe, probe_with_pillow

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "../shared/corpus"
NOT_DECODED = {"EPS", "WMF", "HDF5"}  # Pillow opens these, and decodes none of them by itself


def saved(form: str, size: tuple[int, int] = (40, 30), mode: str = "RGB", **options: object) -> bytes:
    bands = len(Image.new(mode, (1, 1)).getbands())
    image = Image.frombytes(mode, size, random.Random(1).randbytes(size[0] * size[1] * bands))
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


JPEG = saved("JPEG")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n"
MPEG = b"\0\0\1\xb3\x16\x01\x20\x13\xff\xff\xe0\xa0"
BUFR = b"BUFR\0\0\0\4" + b"\0" * 40
BOMB = JPEG.replace(struct.pack(">HH", 30, 40), b"\xff\xff\xff\xff")


def problem_of(data: bytes, ask: object = probe) -> SampleProblem:
    with pytest.raises(SampleProblem) as caught:
        ask(data)
    return caught.value


def info(width: int = 600, height: int = 400, complete: bool = True) -> ImageInfo:
    return ImageInfo("JPEG", width, height, 1, complete)


@pytest.mark.parametrize(
    "form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "TGA", "PCX", "SGI", "ICO", "JPEG2000", "WEBP"]
)
def test_any_format_that_pillow_reads_has_a_size(form: str) -> None:
    if form in ("JPEG2000", "WEBP") and not PIL.features.check({"JPEG2000": "jpg_2000"}.get(form, "webp")):
        pytest.skip("this Pillow does not read it")
    data = saved(form, sizes=[(40, 30)]) if form == "ICO" else saved(form)
    assert probe(data) == ImageInfo(form, 40, 30, 1, True)
    assert decode(data) == (40, 30)


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"", Reason.IMAGE_UNREADABLE, "empty"),
        (b"<html>404", Reason.IMAGE_UNREADABLE, "HTML, which is not among the formats that make rows"),
        (b"\0" * 5000, Reason.IMAGE_UNREADABLE, "no known format, begins with 00 00 00 00 00 00 00 00"),
        (b"\xff\xd8", Reason.IMAGE_UNREADABLE, "no known format, begins with ff d8"),
        (JPEG[:100], Reason.IMAGE_TRUNCATED, "JPEG of 100 bytes, cut before its size can be read"),
        (BOMB, Reason.IMAGE_TOO_LARGE, "4294836225 pixels"),
        (EPS, Reason.IMAGE_UNREADABLE, "EPS needs a program (Ghostscript)"),
        (MPEG, Reason.IMAGE_UNREADABLE, "Pillow recognises MPEG, but never decodes it"),
        (BUFR, Reason.IMAGE_UNREADABLE, "Pillow recognises BUFR, but never decodes it"),
    ],
    ids=["empty", "page", "zeros", "two bytes", "cut", "bomb", "eps", "mpeg", "stub"],
)
def test_what_is_no_image_has_a_reason(data: bytes, reason: Reason, detail: str) -> None:
    for ask in (probe, decode):
        problem = problem_of(data, ask)
        assert problem.reason is reason
        if ask is probe:
            assert detail in problem.detail
    assert problem_of(data).args == problem_of(bytearray(data)).args  # the same twice: no addresses in memory


def test_no_program_is_run_for_postscript(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: object, **options: object) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr(subprocess, "Popen", run)
    assert problem_of(EPS, decode).reason is Reason.IMAGE_UNREADABLE


def test_reading_photographs_imports_no_pillow() -> None:
    code = """
import sys
from builder.source.images import probe
for data in sys.argv[1:]:
    assert probe(bytes.fromhex(data)).complete
assert not any(name.partition(".")[0] == "PIL" for name in sys.modules)
"""
    hexes = [JPEG.hex(), *([saved("WEBP").hex()] if PIL.features.check("webp") else [])]
    subprocess.run([sys.executable, "-c", code, *hexes], cwd=ROOT, check=True)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF"])
def test_a_large_image_is_not_copied_to_be_probed(form: str) -> None:
    image = JPEG if form == "JPEG" else saved(form)
    inside = {"JPEG": JPEG.index(b"\xff\xda") + 14, "PNG": image.rfind(b"\0\0\0\0IEND"), "GIF": len(image)}[form]
    data = bytearray(8) + image[:inside] + bytes(30_000_000) + image[inside:] + bytes(8)
    probe(data, 8, len(data) - 8)
    tracemalloc.start()
    try:
        assert probe(data, 8, len(data) - 8).complete
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000


def test_pillow_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # what training code likes to do
    limit = Image.MAX_IMAGE_PIXELS
    filters = list(warnings.filters)
    assert problem_of(JPEG[:-40], decode).reason is Reason.IMAGE_TRUNCATED
    assert decode(JPEG) == (40, 30)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert limit == Image.MAX_IMAGE_PIXELS
    assert filters == warnings.filters


def test_the_pixel_limit_holds_where_a_process_lifted_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert problem_of(BOMB).reason is Reason.IMAGE_TOO_LARGE


def test_the_pixel_limit_is_pillows() -> None:
    assert images.PILLOW_PIXEL_LIMIT == 2 * Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    "data",
    [
        JPEG.replace(struct.pack(">HH", 30, 40), struct.pack(">HH", 10_000, 12_000)),  # DecompressionBombWarning
        JPEG[:2] + b"\xff\xe1\0\x12Exif\0\0MM\0*\0\0\0\x08\0\x09" + JPEG[20:],  # Corrupt EXIF data
        JPEG[:2] + b"\xff\xe2\0\x12MPF\0II*\0\x08\0\0\0\0\0\0\0" + JPEG[2:],  # malformed MPO
    ],
    ids=["large", "exif", "mpo"],
)
def test_pillows_warnings_are_not_heard(data: bytes) -> None:
    with pytest.warns((UserWarning, RuntimeWarning)):  # Pillow does warn of it
        Image.open(io.BytesIO(data))
    assert probe_with_pillow(data, 0, len(data)).format == "JPEG"  # warnings are errors in tests


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (info(), None),
        (info(1000, 1000), None),  # as many pixels as are allowed
        (info(1001, 1000), Reason.IMAGE_TOO_LARGE),
        (info(complete=False), Reason.IMAGE_TRUNCATED),
        (info(64, 64), None),
        (info(63, 64), Reason.IMAGE_TOO_SMALL),
        (info(64, 63), Reason.IMAGE_TOO_SMALL),
        (info(300, 100), None),  # three times as wide is within 3
        (info(301, 100), Reason.ASPECT_RATIO),
        (info(100, 301), Reason.ASPECT_RATIO),
        (info(5000, 5000, complete=False), Reason.IMAGE_TOO_LARGE),  # where several apply, the first of the list
        (info(10, 5, complete=False), Reason.IMAGE_TRUNCATED),
        (info(1000, 10), Reason.IMAGE_TOO_SMALL),
    ],
)
def test_judging_in_order(image: ImageInfo, reason: Reason | None) -> None:
    policy = SamplePolicy(max_pixels=1_000_000, min_side=64, max_aspect_ratio=3.0)
    if reason is None:
        judge(image, policy)
        return
    with pytest.raises(SampleProblem) as caught:
        judge(image, policy)
    assert caught.value.reason is reason
    assert str(image.width) in caught.value.detail


def test_limits_that_are_off() -> None:
    judge(info(30_000, 1), SamplePolicy(max_pixels=30_000, min_side=None, max_aspect_ratio=0))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (JPEG[: len(JPEG) // 2], Reason.IMAGE_TRUNCATED),
        (saved("PNG")[:-200], Reason.IMAGE_TRUNCATED),
        (saved("BMP")[:-200], Reason.IMAGE_TRUNCATED),  # no end marker: only decoding finds it
        (saved("PNG").replace(b"IDAT", b"IDAT\xff", 1), Reason.IMAGE_UNREADABLE),
        (BOMB, Reason.IMAGE_TOO_LARGE),
    ],
    ids=["jpeg", "png", "bmp", "broken stream", "bomb"],
)
def test_pixels_that_cannot_be_decoded_have_a_reason(data: bytes, reason: Reason) -> None:
    assert problem_of(data, decode).reason is reason


def test_decoding_an_animation_decodes_its_first_frame() -> None:
    data = saved("GIF", mode="L", save_all=True, append_images=[Image.new("L", (40, 30))])
    assert probe(data).frames == 2
    assert decode(data) == (40, 30)


def test_a_broken_stream_in_a_fits_file_is_no_traceback() -> None:
    """Until version 12 Pillow lets zlib's own error through here."""
    cards = ["SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0"]
    table = ["XTENSION= 'BINTABLE'", "BITPIX  = 8", "NAXIS   = 2", "ZIMAGE  = T", "ZCMPTYPE= 'GZIP_1  '", "ZNAXIS  = 2"]
    table += ["ZNAXIS1 = 4", "ZNAXIS2 = 4", "ZBITPIX = 8", "NAXIS1  = 8", "NAXIS2  = 4", "PCOUNT  = 0"]
    head = "".join(card.ljust(80) for card in [*cards, "END"]).ljust(2880).encode()
    head += "".join(card.ljust(80) for card in [*table, "END"]).ljust(2880).encode()
    packed = gzip.compress(bytes(64), mtime=0)
    with pytest.raises(SampleProblem):
        decode(head + b"\0" * 32 + packed[:10] + b"\xff" * 90)


def test_layers_that_cannot_be_read_do_not_lose_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow may look for further frames only when it is asked how many there are."""

    def layers(image: Image.Image) -> int:
        raise SyntaxError("bad layer")

    monkeypatch.setattr(ImageFile.ImageFile, "n_frames", property(layers), raising=False)
    assert probe(saved("BMP")) == ImageInfo("BMP", 40, 30, 1, True)


def test_counting_pages_does_not_ask_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its count of a TIFF of 100,000 empty directories takes minutes."""

    def count(image: Image.Image) -> int:
        raise AssertionError

    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "n_frames", property(count))
    data = bytearray(saved("TIFF"))
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    data += b"\0" * (len(data) & 1)
    struct.pack_into("<I", data, first + 2 + 12 * entries, len(data))
    for _ in range(100_000):
        data += struct.pack("<HI", 0, len(data) + 6)
    assert probe(data).frames == 100_001


@pytest.mark.slow
@pytest.mark.skipif(not CORPUS.is_dir(), reason="the shared corpus is not here")
def test_the_corpus_of_odd_images_is_read_as_pillow_reads_it() -> None:
    """images.tsv holds what Pillow 13 says; where another is installed, only its own word counts."""
    with (CORPUS / "images.tsv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) > 200
    for row in rows:
        data = (CORPUS / "images" / row["name"]).read_bytes()
        answers = []
        for ask in (probe, lambda data: probe_with_pillow(data, 0, len(data))):
            try:
                answers.append(ask(data))
            except SampleProblem as problem:  # noqa: PERF203
                answers.append(problem.args)
        found = answers[0]
        assert found == answers[1], row["name"]
        if PIL.__version__.split(".")[0] != "13":
            continue
        if row["opens"] != "ok" or row["format"] in NOT_DECODED:
            assert isinstance(found, tuple), row["name"]
            bomb = row["opens"].startswith("DecompressionBombError")
            assert (found[0] is Reason.IMAGE_TOO_LARGE) == bomb, row["name"]
        else:
            assert isinstance(found, ImageInfo), row["name"]
            assert (found.format, f"{found.width}x{found.height}") == (row["format"], row["size"])
            if row["frames"].isdigit():  # counting them fails in Pillow for some
                assert str(found.frames) == row["frames"], row["name"]
            if row["load"] == "ok":
                decode(data)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize("look", [decode, lambda data: probe_with_pillow(data, 0, len(data))], ids=["decode", "probe"])
def test_no_file_left_to_open_is_not_the_image_s_fault(
    number: int, look: Callable[[bytes], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow imports its plugins when it first opens an image."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "PIL/JpegImagePlugin.py")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        look(JPEG)
