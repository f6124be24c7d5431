"""Looking at an image's two ends gives the verdict that reading all of it gives."""

from __future__ import annotations

import io
import os
import random
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from builder.base.errors import SourceChangedError
from builder.base.records import ImageInfo, SampleProblem
from builder.source import glance as module
from builder.source.files import LocalFile
from builder.source.glance import HEAD, TAIL, Glances, glance, shape_info
from builder.source.images import probe
from builder.source.tars import scan_tar
from tests.held import Held
from tests.sources import picture

SHARED = Path(__file__).parents[2] / "../shared"


def verdict(look: Callable[[], ImageInfo]) -> ImageInfo | tuple[str, str]:
    try:
        return look()
    except SampleProblem as problem:
        return problem.reason.value, problem.detail


def same(image: bytes) -> Held:
    """Both verdicts are one; the image lies in the middle of a file."""
    file = Held(b"\xff\xd8\xff\xd9" * 99 + image + b"\xff\xd9" * 99)
    expected = verdict(lambda: probe(image))
    assert verdict(lambda: glance(file, 396, len(image))) == expected
    return file


def large(form: str, **options: object) -> bytes:
    sink = io.BytesIO()
    noise = Image.frombytes("RGB", (200, 160), random.Random(1).randbytes(200 * 160 * 3))
    noise.save(sink, form, **options)
    assert len(sink.getvalue()) > HEAD + TAIL
    return sink.getvalue()


JPEG = large("JPEG", quality=95)
EXIF = Image.Exif()
EXIF[0x010E] = "d" * 60_000  # a description as long as an APP1 segment may be: the frame header lies behind HEAD


def resized(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG whose frame header claims another size."""
    frame = jpeg.index(b"\xff\xc0\x00\x11\x08") + 5
    return jpeg[:frame] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + jpeg[frame + 4 :]


def header_up_to(length: int, jpeg: bytes) -> bytes:
    """A JPEG whose first scan begins near ``length``: comments before it hold end markers."""
    free = length - jpeg.index(b"\xff\xda")
    return jpeg[:2] + b"\xff\xfe" + (free - 2).to_bytes(2, "big") + (b"\xff\xd9" * free)[: free - 4] + jpeg[2:]


IMAGES = {
    "a bomb to Pillow": resized(JPEG, 20_000, 20_000),
    "as large as Pillow bears": resized(JPEG, 14_000, 12_700),
    "a thumbnail's end marker is near, its own is not there": header_up_to(HEAD - 300, JPEG)[: HEAD + 500],
    "JPEG": JPEG,
    "progressive": large("JPEG", quality=95, progressive=True),
    "EXIF longer than the head": large("JPEG", quality=95, exif=EXIF),
    "EXIF with a thumbnail's end marker in it": large("JPEG", quality=95, comment=b"\xff\xd9" * 500),
    "bytes behind the end": JPEG + b"\0" * 2000,
    "many bytes behind the end": JPEG + b"\0" * 9000,  # the marker is not in the tail
    "cut": JPEG[:-2],
    "cut in half": JPEG[: len(JPEG) // 2],
    "cut with a marker's half": JPEG[:-1],
    "empty middle": JPEG[:HEAD] + bytes(len(JPEG) - HEAD - TAIL) + JPEG[-TAIL:],
    "PNG": large("PNG"),
    "PNG, cut": large("PNG")[:-30],
    "WebP": large("WEBP", lossless=True),
    "GIF": large("GIF"),
    "TIFF": large("TIFF"),
    "text": b"<html>" * 9000,
    "JPEG's magic on text": b"\xff\xd8\xff" + b"<html>" * 9000,
    "two JPEGs": JPEG + JPEG,
    "small": picture(1),
    "small, cut": picture(1)[:-2],
    "empty": b"",
}


@pytest.mark.parametrize("name", IMAGES)
def test_the_verdict_is_that_of_the_whole_image(name: str) -> None:
    same(IMAGES[name])


@pytest.mark.parametrize("size", [HEAD + TAIL - 1, HEAD + TAIL, HEAD + TAIL + 1, HEAD + TAIL + 2])
def test_so_it_is_at_the_size_from_which_on_the_middle_is_left_out(size: int) -> None:
    same(JPEG[:size])
    same(JPEG[: size - 2] + b"\xff\xd9")


@pytest.mark.slow
@settings(max_examples=150)
@given(st.data())
def test_so_it_is_for_damaged_images(data: st.DataObject) -> None:
    image = bytearray(data.draw(st.sampled_from([IMAGES["JPEG"], IMAGES["EXIF longer than the head"], IMAGES["GIF"]])))
    for _ in range(data.draw(st.integers(0, 4))):
        near_an_end = data.draw(st.integers(0, 1500)) * data.draw(st.sampled_from([1, -1]))
        image[near_an_end % len(image)] = data.draw(st.sampled_from([0, 0xFF, 0xD8, 0xD9, 0xDA, 0xC0, 17]))
    end = len(image) - data.draw(st.sampled_from([0, 0, 0, 1, 2, 5000]))
    same(bytes(image[:end]))


def test_of_a_sound_jpeg_only_the_ends_are_read() -> None:
    sound = JPEG[:-2] + bytes(2_000_000) + b"\xff\xd9"
    assert same(sound).read == HEAD + module._LAST
    assert same(sound + bytes(1000)).read == HEAD + module._LAST + TAIL


def tar_of(images: Iterable[bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for number, image in enumerate(images):
            entry = tarfile.TarInfo(f"{number:06d}.jpg")
            entry.size = len(image)
            tar.addfile(entry, io.BytesIO(image))
    return sink.getvalue()


def in_passing(images: list[bytes]) -> list[int]:
    """What a scan of a tar of these images says of each; it is none, or what ``probe`` says."""
    glances = Glances(Held(tar_of(images)))
    scan = scan_tar(glances, glances.watch)
    assert scan == scan_tar(Held(tar_of(images)))
    shapes = list(glances.shapes(scan.members))
    for image, shape in zip(images, shapes, strict=True):
        assert not shape or shape_info(shape) == probe(image)
    return shapes


def test_a_scan_says_of_its_images_what_they_are_or_nothing() -> None:
    shapes = in_passing(list(IMAGES.values()))
    told = {name for name, shape in zip(IMAGES, shapes, strict=True) if shape}
    assert {"JPEG", "progressive", "as large as Pillow bears", "EXIF with a thumbnail's end marker in it"} <= told
    assert not told & {"a bomb to Pillow", "cut", "cut in half", "cut with a marker's half", "PNG", "small, cut"}


@pytest.mark.parametrize("order", [1, -1])
def test_so_it_does_of_the_first_and_the_last_and_of_small_ones_that_one_read_holds_many_of(order: int) -> None:
    small = [picture(seed) for seed in range(40)]
    told = in_passing([JPEG, *small][::order])
    assert sum(map(bool, told)) > 30  # but for those that a read ends within
    assert all(told[::order][:1])
    assert in_passing([image[:-2] for image in small]) == [0] * 40
    assert all(in_passing([JPEG + bytes(length) for length in (0, 1, 50, 60)]))


@pytest.mark.parametrize(("before", "ahead"), [(0, 0), (1, 600), (511, 700), (513, 1200), (5000, 70_000)])
def test_so_it_does_however_much_is_read_along(before: int, ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BEFORE", before)
    monkeypatch.setattr(module, "_AHEAD", ahead)
    for name in IMAGES:
        in_passing([JPEG, IMAGES[name], JPEG, picture(2)])


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_so_it_does_of_damaged_ones(data: st.DataObject) -> None:
    images = []
    for _ in range(data.draw(st.integers(1, 6))):
        image = bytearray(
            data.draw(st.sampled_from([JPEG, picture(1), IMAGES["small, cut"], IMAGES["bytes behind the end"]]))
        )
        for _ in range(data.draw(st.integers(0, 3))):
            near_an_end = data.draw(st.integers(0, 700)) * data.draw(st.sampled_from([1, -1]))
            image[near_an_end % len(image)] = data.draw(st.sampled_from([0, 0xFF, 0xD8, 0xD9, 0xDA, 0xC0, 17]))
        images.append(bytes(image[: len(image) - data.draw(st.sampled_from([0, 0, 1, 2, 300]))]))
    in_passing(images)


@pytest.mark.parametrize("header", [3000, 5000, 9000, HEAD - 300, HEAD + 100, 60_000])
def test_it_reads_on_where_a_header_is_longer(header: int) -> None:
    long = header_up_to(header, JPEG)
    assert all(in_passing([long, JPEG, long, long]))
    assert in_passing([long[:-2], JPEG, long[: header - 50]]) == [0, *in_passing([JPEG]), 0]


def test_a_scan_reads_a_few_kilobytes_of_a_large_image() -> None:
    file = Held(tar_of([JPEG[:-2] + bytes(500_000) + b"\xff\xd9"] * 20))
    glances = Glances(file)
    assert all(glances.shapes(scan_tar(glances, glances.watch).members))
    assert file.read < 20 * 6000 + 20_000


def test_what_has_gone_from_the_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(JPEG)
    file = LocalFile(str(path))
    os.truncate(path, len(JPEG) - 10)
    with pytest.raises(SourceChangedError, match=f"ends at byte {len(JPEG) - 10:,}"):
        glance(file, 0, len(JPEG))
    file.close()


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "corpus/images").is_dir(), reason="the corpus of odd images is not here")
def test_so_it_is_for_every_image_of_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEAD", 2 << 10)  # most of the corpus is smaller than the real bounds
    monkeypatch.setattr(module, "TAIL", 4 << 10)
    paths = sorted((SHARED / "corpus/images").iterdir())
    assert len(paths) > 100
    for path in paths:
        if path.stat().st_size < 1 << 20:
            same(path.read_bytes())
    monkeypatch.undo()
    in_passing([path.read_bytes() for path in paths if path.stat().st_size < 1 << 20])
