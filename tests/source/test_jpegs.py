"""The JPEG walk answers what Pillow's open answers, and knows a cut image from a whole one."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from builder.base.records import ImageInfo, Reason, SampleProblem
from builder.source import jpegs
from builder.source.images import probe, probe_with_pillow

PHOTOS = Path(__file__).parents[2] / "../shared/corpus/photos"
WIDTH, HEIGHT = 37, 23
EOI = b"\xff\xd9"


def noise(mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, size, random.Random(1).randbytes(size[0] * size[1] * bands))


def jpeg(mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT), **options: object) -> bytes:
    file = io.BytesIO()
    noise(mode, size).save(file, "JPEG", **options)
    return file.getvalue()


def mpo() -> bytes:
    file = io.BytesIO()
    noise().save(file, "MPO", save_all=True, append_images=[noise(size=(9, 9))])
    return file.getvalue()


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">HH", marker, len(payload) + 2) + payload


def put(inserted: bytes, data: bytes | None = None, before: int | None = None) -> bytes:
    """Insert bytes behind SOI, or before the first segment with this marker."""
    data = PLAIN if data is None else data
    at = 2 if before is None else data.index(struct.pack(">H", before))
    return data[:at] + inserted + data[at:]


def patched(marker: int, at: int, value: bytes, data: bytes | None = None) -> bytes:
    """Overwrite bytes from ``at`` on (0: the marker, 2: the length, 4: the payload) in the first segment so marked."""
    data = PLAIN if data is None else data
    start = data.index(struct.pack(">H", marker)) + at
    return data[:start] + value + data[start + len(value) :]


def without(marker: int) -> bytes:
    start = PLAIN.index(struct.pack(">H", marker))
    return PLAIN[:start] + PLAIN[start + 2 + int.from_bytes(PLAIN[start + 2 : start + 4], "big") :]


def tiff(entries: list[tuple[int, int, int, bytes]], order: str = ">", at: int = 8) -> bytes:
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "I", at)
    body = b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    return head + b"\0" * (at - 8) + struct.pack(order + "H", len(entries)) + body + b"\0" * 4


def exif(content: bytes, prefix: bytes = b"Exif\0\0") -> bytes:
    return segment(0xFFE1, prefix + content)


def orientation(value: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = value
    return tags


PLAIN = jpeg()
NO_JFIF = without(0xFFE0)
"""Without a resolution in JFIF, Pillow looks for one in the EXIF."""

UNIT = (0x0128, 3, 1, b"\0\2")
SHORT_BYTE = tiff([UNIT, (0x011A, 1, 1, b"\1")])
SHORT_TEXT = tiff([(0x0128, 3, 1, b"\2\0"), (0x011A, 2, 2, b"7\0")], order="<", at=26)
THUMBNAIL = jpeg(size=(4, 4))
DQT_16 = segment(0xFFDB, b"\x1f" + b"\0\1" * 64)
TWO_TABLES = segment(0xFFDB, b"\0" + b"\1" * 64 + b"\1" + b"\1" * 64)
PHOTOSHOP = b"Photoshop 3.0\0"
BLOCK = b"8BIM\x03\xed\0\0\0\0\0\x10" + b"\0\1\0\0\0\1\0\1" * 2

WHOLE: dict[str, bytes] = {
    "rgb": PLAIN,
    "gray": jpeg("L"),
    "cmyk": jpeg("CMYK"),
    "progressive": jpeg(progressive=True),
    "optimized, coarse": jpeg(optimize=True, quality=5),
    "4:4:4": jpeg(subsampling=0),
    "restart markers": jpeg(restart_marker_blocks=2),
    "comment": jpeg(comment=b"a comment \xff\xd9 with an end marker"),
    "dots per inch": jpeg(dpi=(300, 300)),
    "turned by EXIF: sizes are as stored": jpeg(exif=orientation(6)),
    "ICC": jpeg(icc_profile=b"\0" * 200),
    "ICC in two segments": jpeg(icc_profile=b"\0" * 70_000),
    "ICC with a wrong count": put(segment(0xFFE2, b"ICC_PROFILE\0\1\2")),
    "EXIF, ICC, Adobe": put(
        segment(0xFFEE, b"Adobe\0\x64\0\0\0\0\1"), jpeg(exif=orientation(1), icc_profile=b"\0" * 99)
    ),
    "APP4 of junk": put(segment(0xFFE4, b"\xff\xda\xff\xd9" * 50)),
    "fill bytes": put(b"\xff\xff\xff"),
    "junk between segments": put(b"junk\0\x12", before=0xFFC4),
    "stuffed zero between segments": put(b"\xff\0", before=0xFFC4),
    "restart marker between segments": put(b"\xff\xd3", before=0xFFC4),
    "SOI again": put(b"\xff\xd8"),
    "EOI before the frame": put(EOI, before=0xFFDB),
    "DNL before the scan": put(segment(0xFFDC, b"\0\x17"), before=0xFFDA),
    "table of words": put(DQT_16),
    "two tables": put(TWO_TABLES),
    "empty table segment": put(segment(0xFFDB, b"")),
    "segment of length 1": put(b"\xff\xe5\0\1"),
    "JFIF is short but there": put(segment(0xFFE0, b"JFIF\0\1\1"), NO_JFIF),
    "thumbnail with an end in EXIF": put(exif(THUMBNAIL)),
    "resolution from EXIF": put(exif(tiff([UNIT, (0x011A, 3, 1, b"\0\x48")])), NO_JFIF),
    "resolution a byte, but JFIF has one": put(
        segment(0xFFE0, b"JFIF\0\1\1\1\0\1\0\1\0\0") + exif(SHORT_BYTE), NO_JFIF
    ),
    "EXIF without TIFF": put(exif(b"hello, world"), NO_JFIF),
    "EXIF cut": put(exif(b"MM\0*\0\0"), NO_JFIF),
    "EXIF points nowhere": put(exif(b"MM\0*\xff\xff\xff\xff"), NO_JFIF),
    "EXIF twice": put(exif(SHORT_BYTE[:8]) + exif(b"more"), NO_JFIF),
    "XMP": put(segment(0xFFE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6">'), NO_JFIF),
    "Photoshop": put(segment(0xFFED, PHOTOSHOP + BLOCK * 2)),
    "Photoshop, cut in a name": put(segment(0xFFED, PHOTOSHOP + BLOCK + b"8BIM\x03\xed\x09")),
    "picture index that is none": put(segment(0xFFE2, b"MPF\0II*\0\x08\0\0\0\0\0\0\0\0\0")),
    "trailing bytes": PLAIN + b"\0" * 10,
    "trailing bytes beyond the reach": PLAIN + b"\0" * 5000,
    "trailing JPEG, cut": PLAIN + PLAIN[:-5],
    "second frame header": put(segment(0xFFC0, struct.pack(">BHHB", 8, 9, 9, 1) + b"\1\x11\0"), before=0xFFC0),
    "lossless": patched(0xFFC0, 1, b"\xc3"),
    "arithmetic": patched(0xFFC0, 1, b"\xc9"),
}
"""All of these are WIDTH x HEIGHT and have their end marker."""

REFUSED: dict[str, bytes] = {
    "leading space": b" " + PLAIN,
    "leading BOM": b"\xef\xbb\xbf" + PLAIN,
    "12 bits": patched(0xFFC0, 4, b"\x0c"),
    "no height": patched(0xFFC0, 5, b"\0\0"),
    "no width": patched(0xFFC0, 7, b"\0\0"),
    "two components": patched(0xFFC0, 9, b"\2"),
    "frame header a byte longer": patched(0xFFC0, 2, b"\0\x12"),
    "frame header of 7": patched(0xFFC0, 2, b"\0\x07"),
    "no frame header": without(0xFFC0),
    "table a byte short": put(segment(0xFFDB, b"\0" * 64)),
    "table of words, half there": put(segment(0xFFDB, b"\x10" + b"\1" * 64)),
    "table and a byte": put(segment(0xFFDB, b"\0" * 66)),
    "unknown marker": put(b"\xff\x05"),
    "short JFIF": put(segment(0xFFE0, b"JFIF\0\1")),
    "short ICC": put(segment(0xFFE2, b"ICC_PROFILE\0\1")),
    "short Adobe": put(segment(0xFFEE, b"Adobe\0")),
    "Photoshop ends behind a resource code": put(segment(0xFFED, PHOTOSHOP + BLOCK + b"8BIM\x03\xed")),
    "resolution of one byte": put(exif(SHORT_BYTE), NO_JFIF),
    "resolution of one character": put(exif(SHORT_TEXT), NO_JFIF),
    "resolution of one character, big end first": put(exif(tiff([UNIT, (0x011A, 2, 2, b"7\0")])), NO_JFIF),
    "resolution of one byte, little end first": put(
        exif(tiff([(0x0128, 3, 1, b"\2\0"), (0x011A, 7, 1, b"\1")], "<")), NO_JFIF
    ),
    "resolution of one byte, JFIF has a ratio only": put(
        segment(0xFFE0, b"JFIF\0\1\1\0\0\1\0\1\0\0") + exif(SHORT_BYTE), NO_JFIF
    ),
}
"""Whole images that Pillow does not open."""


ASKED = (probe, probe_with_pillow)


def answer(ask: Callable[..., ImageInfo], *arguments: object) -> ImageInfo | tuple[object, ...]:
    try:
        return ask(*arguments)
    except SampleProblem as problem:
        return problem.args


def verdict(data: bytes) -> ImageInfo | tuple[object, ...]:
    """What probe makes of these bytes between neighbours that would complete them, checked against Pillow's answer."""
    buffer = b"\xff\xd8\xff" + data + EOI * 9
    answers = [answer(ask, source, 3, 3 + len(data)) for source in (buffer, bytearray(buffer)) for ask in ASKED]
    assert all(other == answers[0] for other in answers), answers
    return answers[0]


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_jpeg_has_its_size_and_end(name: str) -> None:
    assert verdict(WHOLE[name]) == ImageInfo("JPEG", WIDTH, HEIGHT, 1, True)


@pytest.mark.parametrize("name", REFUSED)
def test_what_pillow_refuses_is_unreadable(name: str) -> None:
    found = verdict(REFUSED[name])
    assert isinstance(found, tuple)
    assert found[0] is Reason.IMAGE_UNREADABLE


@pytest.mark.parametrize(
    "data",
    [
        put(exif(b"Exif\0\0" + SHORT_BYTE), NO_JFIF),
        put(exif(SHORT_BYTE, prefix=b"Exif\0\1"), NO_JFIF),
        put(segment(0xFFE1, b"Exif\0"), NO_JFIF),
        put(segment(0xFFE0, b"JFIF\0\1\1\2\0\1\0\1\0\0") + exif(SHORT_BYTE), NO_JFIF),  # dots per cm
        put(exif(SHORT_BYTE) + segment(0xFFE0, b"JFIF\0\1\1\1\0\1\0\1\0\0"), NO_JFIF),
        PLAIN[: PLAIN.index(b"\xff\xda")],
    ],
    ids=["prefix twice", "prefix with a 1", "short prefix", "dots per cm", "EXIF before JFIF", "no scan"],
)
def test_where_versions_of_pillow_differ_the_installed_one_is_right(data: bytes) -> None:
    verdict(data)


def test_ordinary_images_are_read_without_pillow() -> None:
    """Else the walk could fall back on everything, and all the rest of this file would still pass."""
    left = {name for name, data in WHOLE.items() if not jpegs.read_header(data, 0, len(data)).sure}
    assert left == {
        "segment of length 1",
        "EXIF twice",
        "picture index that is none",
        "lossless",
        "arithmetic",
    }


def test_a_multi_picture_file_has_frames() -> None:
    data = mpo()
    assert verdict(data) == ImageInfo("MPO", WIDTH, HEIGHT, 2, True)
    cut_in_the_second = data[:-10]
    assert verdict(cut_in_the_second) == ImageInfo("MPO", WIDTH, HEIGHT, 2, True)


def test_a_frame_over_pillows_limit_is_too_large() -> None:
    found = verdict(patched(0xFFC0, 5, b"\xff\xff\xff\xff"))
    assert isinstance(found, tuple)
    assert found[0] is Reason.IMAGE_TOO_LARGE


@pytest.mark.parametrize(
    "name",
    ["rgb", "gray", "progressive", "restart markers", "EXIF, ICC, Adobe", "thumbnail with an end in EXIF", "comment"],
)
def test_cut_at_any_byte_it_is_truncated(name: str) -> None:
    data = WHOLE[name]
    scan = jpegs.read_header(data, 0, len(data)).scan
    for length in range(3, len(data)):
        if length < scan and length % 7:
            continue  # in the header Pillow is asked each time, which takes longer
        found = verdict(data[:length]) if length < scan else probe(data, 0, length)
        if isinstance(found, tuple):
            assert found[0] is Reason.IMAGE_TRUNCATED, length
        else:
            assert not found.complete, length


def test_cutting_trailing_bytes_cuts_nothing() -> None:
    for trailing in (1, 4094, 4095, 4096, 4097, 9000):
        assert probe(PLAIN + b"\0" * trailing).complete
        assert not probe(PLAIN[:-2] + b"\0" * trailing).complete


def test_an_end_marker_in_a_segment_between_scans_is_none() -> None:
    """Beyond the reach of the first look, where the scans are followed to their end."""
    data = WHOLE["progressive"]
    scan = jpegs.read_header(data, 0, len(data)).scan
    second = data.index(b"\xff\xc4", scan)
    with_comment = data[:second] + segment(0xFFFE, EOI * 3) + data[second:]
    assert probe(with_comment + b"\0" * 5000).complete
    assert not probe(with_comment[:-2] + b"\0" * 5000).complete
    assert not probe(with_comment[: second + 3] + b"\xff" * 5000).complete


def test_a_header_without_a_scan_is_not_complete() -> None:
    scan = PLAIN.index(b"\xff\xda")
    assert not jpegs.is_complete(PLAIN, jpegs.read_header(PLAIN, 0, scan).scan, scan)


EDITS = st.tuples(
    st.sampled_from(("set", "set", "cut", "delete", "insert")),
    st.integers(0, 700),
    st.sampled_from((0, 1, 2, 7, 0x08, 0x10, 0xC0, 0xC2, 0xD8, 0xD9, 0xDA, 0xE1, 0xFF)) | st.integers(0, 255),
)


def edited(data: bytes, edits: list[tuple[str, int, int]]) -> bytes:
    for kind, place, value in edits:
        at = place % (len(data) or 1)
        if kind == "set":
            data = data[:at] + bytes((value,)) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] if value < 128 else data[: len(data) - at]
        elif kind == "delete":
            data = data[:at] + data[at + 1 + value % 16 :]
        else:
            data = data[:at] + bytes((value,)) * (1 + value % 3) + data[at:]
    return data


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.lists(EDITS, min_size=1, max_size=4))
def test_damaged_jpegs_get_pillows_verdict(name: str, edits: list[tuple[str, int, int]]) -> None:
    verdict(edited(WHOLE[name], edits))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from((0x0112, 0x011A, 0x011A, 0x0128, 0x0128, 0x0101)),
            st.integers(0, 14),
            st.integers(0, 5),
            st.binary(max_size=4),
        ),
        max_size=5,
    ),
    st.sampled_from("<>"),
    st.sampled_from((8, 9, 26)),
    st.integers(0, 30),
)
def test_no_exif_makes_the_walk_say_yes_where_pillow_says_no(
    entries: list[tuple[int, int, int, bytes]], order: str, at: int, cut: int
) -> None:
    content = tiff(entries, order, at)
    verdict(put(exif(content[: len(content) - cut]), NO_JFIF))


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the shared photographs are not here")
def test_photographs_are_whole_until_they_are_cut() -> None:
    rng = random.Random(7)
    for path in sorted(PHOTOS.iterdir()):
        data = path.read_bytes()
        header = jpegs.read_header(data, 0, len(data))
        assert header.sure, path.name
        info = probe(data)
        assert info == probe_with_pillow(data, 0, len(data))
        assert info.complete, path.name
        marker = data.rindex(EOI)
        for cut in (header.scan, marker, marker + 1, *(rng.randrange(header.scan, marker) for _ in range(5))):
            assert not probe(data, 0, cut).complete, (path.name, cut)
