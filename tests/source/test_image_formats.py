"""PNG, GIF, WebP and TIFF have the size and frames that Pillow gives; a cut image is told from a whole one."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from builder.base.records import ImageInfo, Reason, SampleProblem
from builder.source import image_formats
from builder.source.images import probe, probe_with_pillow

WIDTH, HEIGHT = 37, 23
needs_webp = pytest.mark.skipif(not features.check("webp"), reason="this Pillow has no WebP")


def noise(mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    image = Image.frombytes("RGB", size, random.Random(1).randbytes(size[0] * size[1] * 3))
    if mode.endswith("A"):
        image.putalpha(image.getchannel("R"))
    return image.quantize(16) if mode == "P" else image.convert(mode)


def saved(form: str, mode: str = "RGB", frames: int = 1, **options: object) -> bytes:
    file = io.BytesIO()
    if frames > 1:
        more = [noise(mode).transpose(Image.Transpose(turn % 7)).resize((WIDTH, HEIGHT)) for turn in range(frames - 1)]
        options |= {"save_all": True, "append_images": more, "duration": 40}
    noise(mode).save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, payload: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + payload) if checksum is None else checksum
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", checksum)


def ihdr(width: int = WIDTH, height: int = HEIGHT, depth: int = 8, colour: int = 2, rest: bytes = b"\0\0\0") -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBB", width, height, depth, colour) + rest)


IEND = chunk(b"IEND", b"")
IDAT = chunk(b"IDAT", zlib.compress(b"\0" * 3000))


def png(*chunks: bytes, header: bytes | None = None) -> bytes:
    return image_formats.PNG_MAGIC + (ihdr() if header is None else header) + b"".join(chunks) + IDAT + IEND


def riff(*chunks: bytes, size: int | None = None) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def riff_chunk(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) & 1)


def vp8x(flags: int, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return riff_chunk(b"VP8X", bytes((flags, 0, 0, 0)) + sides)


def gif(*blocks: bytes, screen: tuple[int, int] = (WIDTH, HEIGHT), trailer: bytes = b";") -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + b"\0" * 3 + b"\1" * 3 + b"".join(blocks) + trailer


def frame(x: int = 0, y: int = 0, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    return b"," + struct.pack("<HHHHB", x, y, width, height, 0) + b"\2\2\x4c\1\0"


CONTROL = b"!\xf9\4\x04\0\0\0\0"
COMMENT = b"!\xfe\3;,!\0"
LOOP = b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0"

PNGS: dict[str, bytes] = {
    **{f"mode {mode}": saved("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    "16 bits": png(chunk(b"tRNS", b"\0\1"), header=ihdr(depth=16, colour=0)),
    "resolution and text": png(chunk(b"tEXt", b"Title\0x"), chunk(b"pHYs", b"\0" * 9)),
    "ICC": saved("PNG", icc_profile=b"\0" * 128),
    "transparent colour": png(chunk(b"tRNS", b"\0" * 6)),
    "transparent gray": png(chunk(b"tRNS", b"\0\1"), header=ihdr(colour=0)),
    "palette of 16": png(chunk(b"PLTE", b"\7" * 48), chunk(b"tRNS", b"\1\0\2"), header=ihdr(depth=4, colour=3)),
    "gamma, chroma, sRGB": png(chunk(b"gAMA", b"\0" * 4), chunk(b"cHRM", b"\0" * 32), chunk(b"sRGB", b"\0")),
    "EXIF": png(chunk(b"eXIf", b"MM\0*")),
    "private chunk": png(chunk(b"prVt", b"secret")),
    "text of 5000": png(chunk(b"tEXt", b"Title\0" + b"x" * 5000)),
    "interlaced": png(header=ihdr(rest=b"\0\0\1")),
    "unknown compression method": png(header=ihdr(rest=b"\1\0\0")),  # Pillow does not look
    "two headers": png(ihdr()),
    "100 chunks": png(*[chunk(b"tIME", b"\0" * 7)] * 100),
    "trailing bytes": png() + b"\0" * 99,
    "trailing bytes, end in one piece": png(chunk(b"bKGD", b"\0" * 6)) + IEND[:-1],
}
BAD_PNGS: dict[str, bytes] = {
    "header with a wrong checksum": png(header=chunk(b"IHDR", struct.pack(">II5B", 1, 1, 8, 2, 0, 0, 0), 1)),
    "chunk with a wrong checksum": png(chunk(b"tEXt", b"Title\0x", 1)),
    "no width": png(header=ihdr(width=0)),
    "no height": png(header=ihdr(height=0)),
    "depth of 3": png(header=ihdr(depth=3)),
    "palette of 16 bits": png(header=ihdr(depth=16, colour=3)),
    "colour type 1": png(header=ihdr(colour=1)),
    "unknown filter": png(header=ihdr(rest=b"\0\1\0")),
    "gamma is short": png(chunk(b"gAMA", b"\0" * 3)),
    "resolution is short": png(chunk(b"pHYs", b"\0" * 8)),
    "transparent colour is short": png(chunk(b"tRNS", b"\0" * 5)),
    "chunk is no name": png(b"\0\0\0\0\0\0\0\0\0\0\0\0"),
    "line ends translated": png().replace(b"\r\n", b"\n"),
}
GIFS: dict[str, bytes] = {
    "87a": saved("GIF", "P"),
    "gray": saved("GIF", "L"),
    "by hand": gif(frame()),
    "control, comment, loop": gif(CONTROL, COMMENT, LOOP, frame()),
    "frame smaller than the screen": gif(frame(3, 3, 5, 5)),
    "frame larger than the screen": gif(frame(), screen=(5, 5)),
    "no screen": gif(frame(30, 20, 7, 3), screen=(0, 0)),
    "local palette": gif(b"," + struct.pack("<HHHHB", 0, 0, WIDTH, HEIGHT, 0x80) + b"\0" * 6 + b"\2\2\x4c\1\0"),
    "stray bytes between blocks": gif(b"\0\0", frame(), b"\0\0\0"),
    "disposed of": gif(b"!\xf9\4\x08\0\0\0\0", frame()),
    "trailing bytes": gif(frame()) + b"more",
}
BAD_GIFS: dict[str, bytes] = {
    "no frame": gif(COMMENT),
    "no size": gif(frame(0, 0, 0, 0), screen=(0, 0)),
    "loop without a count": gif(b"!\xff\x0bNETSCAPE2.0\0", frame()),
    "empty extension, whose successor Pillow swallows": gif(b"!\1\0", frame()),
    "short control": gif(b"!\xf9\1\1\0", frame()),
}
WEBPS: dict[str, bytes] = {}
BAD_WEBPS: dict[str, bytes] = {}
if features.check("webp"):
    LOSSY, LOSSLESS = saved("WEBP"), saved("WEBP", lossless=True)
    VP8 = LOSSY[LOSSY.index(b"VP8 ") :]
    VP8L = LOSSLESS[LOSSLESS.index(b"VP8L") :]
    WEBPS = {
        "lossy": LOSSY,
        "lossless": LOSSLESS,
        "alpha": saved("WEBP", "RGBA"),
        "metadata": saved("WEBP", icc_profile=b"\0" * 129, exif=b"Exif\0\0MM\0*\0\0\0\x08"),
        "extended, lossy": riff(vp8x(0), VP8),
        "extended, lossless": riff(vp8x(0x10), VP8L),
        "metadata without its flag": riff(vp8x(0), riff_chunk(b"ICCP", b"x"), VP8, riff_chunk(b"XMP ", b"xy")),
        "unknown chunk": riff(vp8x(0), VP8, riff_chunk(b"ABCD", b"xyz")),
        "trailing bytes": LOSSY + b"\0" * 9,
        "chunk behind a simple image": riff(VP8, riff_chunk(b"EXIF", b"xy")),
    }
    BAD_WEBPS = {
        "canvas of another size": riff(vp8x(0, WIDTH + 1), VP8),
        "no image": riff(vp8x(0)),
        "animation without frames": riff(vp8x(2), VP8),
        "unknown flag": riff(vp8x(0x40), VP8),
        "not a key frame": LOSSY[:20] + bytes((LOSSY[20] | 1,)) + LOSSY[21:],
        "not shown": LOSSY[:20] + bytes((LOSSY[20] & ~16,)) + LOSSY[21:],
        "version 7": LOSSY[:20] + bytes((LOSSY[20] | 0x0E,)) + LOSSY[21:],
        "two images": riff(vp8x(0), VP8, VP8),
        "no start code": LOSSY.replace(b"\x9d\x01\x2a", b"\x9d\x01\x2b"),
        "no width": LOSSY[:26] + b"\0\0" + LOSSY[28:],
        "partition beyond the chunk": LOSSY[:21] + b"\xff\xff" + LOSSY[23:],
        "lossless of a version to come": LOSSLESS[:24] + bytes((LOSSLESS[24] | 0xE0,)) + LOSSLESS[25:],
        "chunk beyond the RIFF": riff(VP8, size=len(VP8) - 4) + b"\0" * 20,
        "a wave": b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 40,
    }
ANIMATED = {
    "PNG": saved("PNG", frames=3),
    "GIF": saved("GIF", "P", frames=3),
    **({"WEBP": saved("WEBP", frames=3)} if WEBPS else {}),
}
WHOLE = {"PNG": PNGS, "GIF": GIFS, "WEBP": WEBPS}
EVERY = [data for table in (PNGS, BAD_PNGS, GIFS, BAD_GIFS, WEBPS, BAD_WEBPS, ANIMATED) for data in table.values()]


def answer(ask: Callable[..., ImageInfo], *arguments: object) -> ImageInfo | tuple[object, ...]:
    try:
        return ask(*arguments)
    except SampleProblem as problem:
        return problem.args


def verdict(data: bytes) -> ImageInfo | tuple[object, ...]:
    """What probe makes of these bytes between neighbours that would complete them, checked against Pillow's answer."""
    buffer = b"GIF89a" + data + IEND + b"\0;" * 400
    found = answer(probe, buffer, 6, 6 + len(data))
    assert found == answer(probe_with_pillow, buffer, 6, 6 + len(data))
    assert found == answer(probe, bytearray(data))
    return found


@pytest.mark.parametrize(("form", "name"), [(form, name) for form, table in WHOLE.items() for name in table])
def test_a_whole_image_has_its_size_and_end(form: str, name: str) -> None:
    assert verdict(WHOLE[form][name]) == ImageInfo(form, WIDTH, HEIGHT, 1, True)


@pytest.mark.parametrize("name", [*BAD_PNGS, *BAD_GIFS, *BAD_WEBPS])
def test_what_pillow_refuses_is_unreadable(name: str) -> None:
    found = verdict((BAD_PNGS | BAD_GIFS | BAD_WEBPS)[name])
    assert isinstance(found, tuple)
    assert found[0] is Reason.IMAGE_UNREADABLE


@needs_webp
def test_ordinary_webp_is_read_without_pillow() -> None:
    """Else the parser could fall back on everything, and all the rest of this file would still pass."""
    read = {name for name, data in WEBPS.items() if image_formats.webp_header(data, 0, len(data)) == (WIDTH, HEIGHT)}
    assert WEBPS.keys() - read == {"unknown chunk", "chunk behind a simple image"}


@pytest.mark.parametrize("form", ANIMATED)
def test_frames_are_counted(form: str) -> None:
    assert verdict(ANIMATED[form]) == ImageInfo(form, WIDTH, HEIGHT, 3, True)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_pages_of_a_tiff_are_counted(frames: int) -> None:
    data = saved("TIFF", frames=frames)
    assert verdict(data) == ImageInfo("TIFF", WIDTH, HEIGHT, frames, True)


def test_directories_that_run_in_a_circle_are_counted_once() -> None:
    data = saved("TIFF", frames=2)
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    link = first + 2 + 12 * entries
    circle = data[:link] + struct.pack("<I", first) + data[link + 4 :]
    assert image_formats.tiff_pages(circle, 0, len(circle)) == 1
    assert image_formats.tiff_pages(b"II*\0\xff\xff\xff\xff", 0, 8) == 1
    assert image_formats.tiff_pages(b"MM\0*", 0, 4) == 1


def test_a_big_tiff_has_pages() -> None:
    directory = struct.pack("<Q", 0)
    data = b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) + directory + struct.pack("<Q", 32) + directory + b"\0" * 8
    assert image_formats.tiff_pages(data, 0, len(data)) == 2


@pytest.mark.parametrize(
    "data",
    [
        saved("PNG"),
        PNGS["palette of 16"],
        ANIMATED["PNG"],
        saved("GIF", "P"),
        ANIMATED["GIF"],
        *list(WEBPS.values())[:4],
    ],
)
def test_cut_at_any_byte_it_is_truncated(data: bytes) -> None:
    for length in range(12, len(data), 1 if len(data) < 400 else 37):
        found = verdict(data[:length])
        if isinstance(found, tuple):
            assert found[0] is Reason.IMAGE_TRUNCATED, length
        else:
            assert not found.complete, length
    assert isinstance(verdict(data[:-1]), tuple) or not probe(data[:-1]).complete


def test_a_png_is_complete_only_with_its_whole_last_chunk() -> None:
    walked = png() + b"tail"
    assert probe(walked).complete
    assert not probe(walked[:-5]).complete
    assert probe(png()[:-12] + chunk(b"IEND", b"", checksum=0)).complete  # Pillow never checks this one


def test_a_frame_over_pillows_limit_is_too_large() -> None:
    for data in (png(header=ihdr(60_000, 60_000)), gif(frame(0, 0, 60_000, 60_000))):
        found = verdict(data)
        assert isinstance(found, tuple)
        assert found[0] is Reason.IMAGE_TOO_LARGE


@needs_webp
@pytest.mark.parametrize("size", [(1, 1), (16_383, 1), (1, 16_383), (257, 129)])
def test_webp_sides_of_any_length(size: tuple[int, int]) -> None:
    for lossless in (False, True):
        file = io.BytesIO()
        Image.new("RGB", size).save(file, "WEBP", lossless=lossless)
        found = verdict(file.getvalue())
        assert isinstance(found, ImageInfo)
        assert (found.width, found.height) == size


EDITS = st.tuples(st.sampled_from(("set", "set", "cut", "delete", "insert")), st.integers(0, 400), st.integers(0, 255))


@pytest.mark.slow
@settings(max_examples=800, deadline=None)
@given(st.sampled_from(EVERY), st.lists(EDITS, min_size=1, max_size=4), st.booleans())
def test_damaged_images_get_pillows_verdict(data: bytes, edits: list[tuple[str, int, int]], mended: bool) -> None:
    """``mended``: with a right checksum for the PNG header, so that what it says is looked at."""
    for kind, place, value in edits:
        at = place % (len(data) or 1)
        if kind == "set":
            data = data[:at] + bytes((value,)) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "delete":
            data = data[:at] + data[at + 1 + value % 16 :]
        else:
            data = data[:at] + bytes((value,)) * (1 + value % 3) + data[at:]
    if mended and data.startswith(image_formats.PNG_MAGIC):
        data = data[:29] + struct.pack(">I", zlib.crc32(data[12:29])) + data[33:]
    verdict(data)
