"""Compressed files read as what they hold, and damaged ones as far as they go."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import random
import sys
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.base.errors import DamagedFileError, Laion6mError, MissingExtraError, SourceError
from builder.base.records import CUT, WHOLE
from builder.source import compressed
from builder.source.compressed import LOOK_BACK, compression_of, open_compressed
from builder.source.files import LocalFile
from builder.source.tars import scan_tar, walk_tar

FORMS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "bzip2": lambda data: bz2.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "zstd": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
}
each_form = pytest.mark.parametrize("form", FORMS)


class Held:
    """Bytes in memory as a ByteFile."""

    name = "held"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size: int | None = len(data)
        self.starts = 0
        self.closed = False

    def read_at(self, offset: int, length: int) -> bytes:
        self.starts += offset == 0
        return self.data[offset : offset + length]

    def close(self) -> None:
        self.closed = True


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def tar_of(sizes: list[int]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for number, size in enumerate(sizes):
            info = tarfile.TarInfo(f"00000/{number:09d}.jpg")
            info.size = size
            tar.addfile(info, io.BytesIO(noise(size, number)))
    return buffer.getvalue()


CONTENT = noise(150_000) + bytes(150_000) + b"text " * 30_000
TAR = tar_of([0, 1, 511, 512, 70_000, 300_000, 5])
LOST = 64 << 10  # most decoded bytes that a failing decoder keeps for itself


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (gzip.compress(b"", mtime=0), "gzip"),
        (bz2.compress(b""), "bzip2"),
        (bz2.compress(b"x"), "bzip2"),
        (b"BZh1 is a name in a tar".ljust(512, b"\0"), None),
        (lzma.compress(b""), "xz"),
        (zstandard.compress(b""), "zstd"),
        (b"\x50\x2a\x4d\x18\4\0\0\0", "zstd"),  # a skippable frame first, as pzstd writes
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"\x1f\x9d\x90", "compress"),
        (TAR, None),
        (b"\xff\xd8\xff\xe0", None),
        (b"", None),
    ],
)
def test_compression_is_known_by_the_first_bytes(head: bytes, kind: str | None) -> None:
    assert compression_of(head[:16]) == kind


@each_form
def test_the_content_is_read_forward_and_the_size_known_at_the_end(form: str) -> None:
    raw = Held(FORMS[form](CONTENT))
    file = open_compressed(raw)
    assert file.name == "held"
    assert file.size is None
    for at in range(0, len(CONTENT), 7001):
        assert file.read_at(at, 7001) == CONTENT[at : at + 7001]
    assert file.read_at(len(CONTENT), 10) == b""
    assert file.read_at(len(CONTENT) + 99, 10) == b""
    assert file.size == len(CONTENT)
    file.close()
    assert raw.closed


@pytest.mark.slow
@each_form
@given(ranges=st.lists(st.tuples(st.integers(0, 460_000), st.integers(0, 200_000)), max_size=5))
@settings(max_examples=15, deadline=None)
def test_any_range_in_any_order_gives_the_same_bytes(form: str, ranges: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressed, "LOOK_BACK", 100_000)
        file = open_compressed(Held(FORMS[form](CONTENT)))
        for offset, length in ranges:
            assert file.read_at(offset, length) == CONTENT[offset : offset + length]


def test_going_back_a_little_costs_nothing_and_going_back_far_begins_anew() -> None:
    content = bytes(LOOK_BACK + (1 << 20))
    raw = Held(gzip.compress(content, 1))
    file = open_compressed(raw)
    starts = raw.starts
    file.read_at(len(content) - 100, 100)
    file.read_at(len(content) - LOOK_BACK, LOOK_BACK)
    assert raw.starts == starts + 1
    assert file.read_at(0, 10) == content[:10]
    assert raw.starts == starts + 2


@each_form
def test_several_streams_in_a_file_are_one_content(form: str) -> None:
    compress = FORMS[form]
    data = compress(CONTENT) + compress(b"") + compress(b"more")
    file = open_compressed(Held(data))
    assert file.read_at(0, 1 << 20) == CONTENT + b"more"
    if form != "zstd":  # tape blocks are filled up with zeros; zstd has no such thing
        file = open_compressed(Held(data + bytes(100_000) + compress(b"and more") + bytes(9)))
        assert file.read_at(0, 1 << 20) == CONTENT + b"moreand more"


@each_form
def test_a_compressed_tar_scans_like_the_tar(form: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"  # the name does not matter
    path.write_bytes(FORMS[form](TAR))
    file = open_compressed(LocalFile(str(path)))
    plain = scan_tar(Held(TAR))
    assert scan_tar(file) == plain
    assert scan_tar(file) == plain  # again, now that the size is known
    for member in plain.members:
        assert file.read_at(member.offset, member.size) == TAR[member.offset : member.offset + member.size]
    file.close()


@pytest.mark.slow
def test_a_tar_can_be_read_in_the_same_pass_that_walks_it() -> None:
    data = tar_of([100_000, LOOK_BACK + 99, 5, 7] + [900] * 3000)
    raw = Held(gzip.compress(data, 1))
    file = open_compressed(raw)
    starts = raw.starts
    for number, member in enumerate(walk_tar(file)):
        assert file.read_at(member.offset, member.size) == noise(member.size, number)  # type: ignore[union-attr]
    assert number == 3003
    assert raw.starts == starts + 1


@each_form
def test_a_cut_stream_gives_what_it_held_and_damage(form: str) -> None:
    data = FORMS[form](TAR)
    whole = scan_tar(Held(TAR)).members
    for length in [20, 100, 1000, 50_000, 200_000, len(data) * 9 // 10]:
        found = scan_tar(open_compressed(Held(data[:length])))
        assert found.damage
        there = [member for member in whole if member.offset + member.size <= found.size]
        assert [member for member in found.members if member.state == WHOLE] == there
        assert [member.state for member in found.members[len(there) :]] in ([], [CUT])
        assert found.damage[-1].end == found.size
        if form != "bzip2":  # whose blocks of 100 kB are all or nothing
            assert found.size > length - 140_000


@each_form
def test_reading_from_where_a_stream_is_damaged_is_an_error_each_time(form: str) -> None:
    data = bytearray(FORMS[form](noise(400_000)))
    data[250_000:250_050] = bytes(50)
    file = open_compressed(Held(bytes(data)))
    good = file.read_at(0, 400_000)
    # Of stored bytes only the checksum tells, at the end; bzip2 stores none.
    assert (100_000 if form == "bzip2" else 400_000 - LOST) <= len(good) < 400_000
    with pytest.raises(DamagedFileError, match="held: after"):
        file.read_at(400_000, 10)
    with pytest.raises(DamagedFileError):
        file.read_at(len(good), 10)
    assert file.read_at(0, 400_000) == good
    assert file.size is None


def wrong_sum(form: str, content: bytes) -> bytes:
    """A stream whose last checksum does not fit."""
    data = bytearray(FORMS[form](content))
    if form == "gzip":
        data[-8:] = bytes(8)
    elif form == "xz":  # the block's CRC64, which stands before the index and the footer of 12 bytes
        end = len(data) - 12 - (int.from_bytes(data[-8:-4], "little") + 1) * 4
        data[end - 8 : end] = bytes(8)
    else:
        data[-3] ^= 0xFF
    return bytes(data)


@pytest.mark.slow
@each_form
@pytest.mark.parametrize("sizes", [[5, 700, 9], [40_000, 300_000, 70_000, 5, 5], [64 << 10]], ids=str)
def test_a_wrong_checksum_at_the_end_costs_the_last_members_only_and_is_noted(form: str, sizes: list[int]) -> None:
    tar = tar_of(sizes)
    file = open_compressed(Held(wrong_sum(form, tar)))
    found = scan_tar(file)
    assert found.size >= len(tar) - LOST
    there = [member for member in scan_tar(Held(tar)).members if member.offset + member.size <= found.size]
    assert [member for member in found.members if member.state == WHOLE] == there
    assert f"held: after {found.size} bytes of its content" in found.damage[-1].problem
    for member in there:
        assert file.read_at(member.offset, member.size) == tar[member.offset : member.offset + member.size]


@each_form
@pytest.mark.parametrize("size", [1, 511, 65_535, 65_536, 65_537, 200_001])
def test_a_wrong_checksum_costs_few_bytes_before_it(form: str, size: int) -> None:
    content = noise(size)
    file = open_compressed(Held(wrong_sum(form, content)))
    with pytest.raises(DamagedFileError, match=r"after \d+ bytes"):
        file.read_at(size, 1)
    given = b""
    with contextlib.suppress(DamagedFileError):  # all of it may be lost
        given = file.read_at(0, size)
    assert len(given) >= size - LOST
    assert content.startswith(given)
    with pytest.raises(DamagedFileError, match=f"after {len(given)} bytes"):
        file.read_at(len(given), 1)
    assert file.size is None


def test_a_bzip2_stream_cut_in_its_end_mark_loses_nothing() -> None:
    data = FORMS["bzip2"](TAR)
    for cut in range(1, 10):
        found = scan_tar(open_compressed(Held(data[:-cut])))
        assert found.members == scan_tar(Held(TAR)).members
        assert "cut short" in found.damage[-1].problem


def test_a_bzip2_block_with_a_wrong_checksum_is_given_but_for_its_end() -> None:
    content = noise(90_000)
    data = bytearray(bz2.compress(content, 1))
    data[10] ^= 1  # the block's checksum stands behind its magic
    given = open_compressed(Held(bytes(data))).read_at(0, len(content))
    assert content.startswith(given)
    assert len(content) - len(given) <= LOST


@each_form
def test_what_a_cut_stream_gives_is_how_its_content_begins(form: str) -> None:
    chooser = random.Random(5)
    sound = FORMS[form](CONTENT)
    for _ in range(15):
        file = open_compressed(Held(sound[: chooser.randrange(len(sound) * 3 // 4, len(sound))]))
        assert CONTENT.startswith(file.read_at(0, len(CONTENT)))


@pytest.mark.parametrize("form", ["gzip", "bzip2", "xz"])
def test_damage_is_found_before_the_members_behind_it(form: str) -> None:
    data = bytearray(FORMS[form](TAR))
    data[-300_000 // 2 :] = noise(300_000 // 2)
    found = scan_tar(open_compressed(Held(bytes(data))))
    assert found.damage
    assert any("held: after" in damage.problem for damage in found.damage)
    assert found.members[:3] == scan_tar(Held(TAR)).members[:3]


@pytest.mark.parametrize("form", ["gzip", "bzip2", "xz", "zstd"])
def test_what_follows_the_last_stream_is_not_ignored(form: str) -> None:
    file = open_compressed(Held(FORMS[form](CONTENT) + b"garbage that is no stream"))
    assert file.read_at(0, len(CONTENT)) == CONTENT
    with pytest.raises(DamagedFileError):
        file.read_at(len(CONTENT), 1)


@pytest.mark.slow
@each_form
def test_a_bomb_costs_no_memory(form: str) -> None:
    size = 60_000_000
    data = FORMS[form](bytes(size))
    file = open_compressed(Held(data))
    tracemalloc.start()
    assert scan_tar(file).members == ()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert file.size == size
    assert peak < LOOK_BACK + (8 << 20)


def test_a_decoder_that_asks_for_too_much_memory_is_refused() -> None:
    header = bytearray(lzma.compress(b"x" * 100, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]))
    # The block header's byte for the dictionary size: 2^20 is 16, 2^29 is 34; its CRC stands behind it.
    place = bytes(header).index(b"\x21\x01", 12)
    header[place + 2] = 34
    size = (header[12] + 1) * 4
    header[12 + size - 4 : 12 + size] = zlib.crc32(bytes(header[12 : 12 + size - 4])).to_bytes(4, "little")
    with pytest.raises(DamagedFileError, match=r"[Mm]emory"):
        open_compressed(Held(bytes(header))).read_at(0, 1)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x1f\x9d\x90" + bytes(20), "gunzip"),
        (b"\x04\x22\x4d\x18" + bytes(20), "lz4 -d"),
        (TAR, "not compressed"),
        (b"", "not compressed"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_remedy(data: bytes, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        open_compressed(Held(data))


def test_zstd_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match=r"laion6m\[zstd\]"):
        open_compressed(Held(FORMS["zstd"](b"x")))


@pytest.mark.slow
@each_form
def test_mutated_streams_raise_nothing_but_the_projects_errors_and_end(form: str) -> None:
    chooser = random.Random(3)
    sound = FORMS[form](tar_of([100, 1000, 4000]))
    for _ in range(60):
        data = bytearray(sound)
        at = chooser.randrange(12, len(data))
        data[at : at + chooser.choice([1, 20])] = chooser.randbytes(chooser.choice([1, 20]))
        try:
            first = scan_tar(open_compressed(Held(bytes(data))))
        except Laion6mError:
            continue
        assert first == scan_tar(open_compressed(Held(bytes(data))))
