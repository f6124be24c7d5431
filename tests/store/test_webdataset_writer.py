"""Tars for webdataset: what tarfile, GNU tar and webdataset's own rule for names make of them."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from builder.base.errors import WriteError
from builder.store.output import OutputFile
from builder.store.shards import TextRow, WrittenShard
from builder.store.webdataset import WebDatasetShardWriter, image_ending, member_header, member_name

SPLIT = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
"""How webdataset and datasets cut a member's name into key and extension."""

Row = tuple[bytes, TextRow]


def row(key: str, image: bytes = b"\xff\xd8 image", ending: str = ".jpg") -> Row:
    return image, TextRow(key, key + ending, f"caption of {key}", 3, 4, b'{"caption": "%s"}' % key.encode())


def write(path: Path, rows: list[Row], release: int = 1) -> WrittenShard:
    writer = WebDatasetShardWriter(OutputFile(str(path)))
    for number, (image, text) in enumerate(rows, start=1):
        writer.add(memoryview(image), text)
        if number % release == 0:
            writer.release()
    return writer.close()


def members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


ROWS = [row("00000/000000001"), row("00000/000000002", b"x" * 70_000), row("a/b/c", b"", ".PNG"), row("ü" * 80 + "/図")]


def test_each_row_is_a_pair_of_members(tmp_path: Path) -> None:
    written = write(tmp_path / "a.tar", ROWS)
    found = members(tmp_path / "a.tar")
    assert [name for name, _ in found[:6:2]] == ["00000/000000001.jpg", "00000/000000002.jpg", "a/b/c.png"]
    assert found[::2] == [(member_name(text.key) + image_ending(text.path, image), image) for image, text in ROWS]
    assert found[1::2] == [(f"{member_name(text.key)}.json", text.annotation) for _, text in ROWS]
    data = (tmp_path / "a.tar").read_bytes()
    assert written.annotation_offsets is not None
    for (image, text), offset, at in zip(ROWS, written.offsets, written.annotation_offsets, strict=True):
        assert data[offset : offset + len(image)] == image
        assert data[at : at + len(text.annotation)] == text.annotation
    assert (written.size, written.digest) == (len(data), xxhash.xxh3_128_hexdigest(data))
    assert written.check == {"size": len(data)}


def test_gnu_tar_reads_it(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", ROWS)
    listed = subprocess.run(
        ["tar", "tf", tmp_path / "a.tar", "--quoting-style=literal"], capture_output=True, check=True
    )
    assert listed.stdout.decode().splitlines() == [name for name, _ in members(tmp_path / "a.tar")]
    assert listed.stderr == b""


def test_the_same_rows_give_the_same_bytes_however_they_come(tmp_path: Path) -> None:
    digests = {write(tmp_path / f"{release}.tar", ROWS * 30, release).digest for release in (1, 7, 1000)}
    assert len(digests) == 1


def test_no_rows_are_an_empty_tar(tmp_path: Path) -> None:
    assert write(tmp_path / "a.tar", []).size == 10240
    assert members(tmp_path / "a.tar") == []


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("00000/000000012", "00000/000000012"),
        ("v1.0/12", "v1.0/12"),  # a folder's dots are none of the key's
        ("0/a.b", "0/a%2Eb"),
        ("0/.hidden", "0/%2Ehidden"),
        ("0/100%", "0/100%"),
        ("0/100%2E", "0/100%252E"),  # else the same as of 0/100.
        ("0/a\nb", "0/a%0Ab"),
        ("0/12.jpg", "0/12%2Ejpg"),  # where two images differ in their endings only
    ],
)
def test_webdataset_gives_the_key_back(key: str, name: str) -> None:
    assert member_name(key) == name
    assert SPLIT.match(f"{name}.jpg").groups() == (name, "jpg")


@given(st.lists(st.text("ab./%2E5\n", min_size=1), unique=True))
def test_no_two_keys_share_a_name(keys: list[str]) -> None:
    keys = [f"0/{key}" for key in keys if not key.endswith("/")]
    names = {member_name(key) for key in keys}
    assert len(names) == len(keys)
    assert all(SPLIT.match(f"{name}.json").group(1) == name for name in names)


@pytest.mark.parametrize(
    ("path", "start", "ending"),
    [
        ("0/1.jpg", b"", ".jpg"),
        ("0/1.JPEG", b"", ".jpeg"),
        ("0/1.webp", b"\xff\xd8", ".webp"),
        ("0/1", b"\xff\xd8\xff\xe0", ".jpg"),
        ("0/1.php", b"\x89PNG", ".png"),
        ("0/1.json", b"GIF89a", ".gif"),  # not to be taken for the annotation
        ("0/1.jpg!d", b"RIFF", ".webp"),
        ("0/1.x", b"????", ".img"),
    ],
)
def test_an_image_ends_as_images_do(path: str, start: bytes, ending: str) -> None:
    assert image_ending(path, start) == ending


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300), st.integers(0, 1 << 30)
)
def test_tarfile_reads_each_header(stem: str, size: int) -> None:
    name = f"{stem}.jpg"
    with tarfile.open(fileobj=io.BytesIO(member_header(name, size) + bytes(1024)), ignore_zeros=True) as tar:
        member = tar.next()
    assert member is not None
    assert (member.name, member.size, member.isreg(), member.mtime) == (name, size, True, 0)


def test_a_full_disk_is_a_write_error(tmp_path: Path) -> None:
    class Full(OutputFile):
        def _write_some(self, pieces: object) -> None:
            raise OSError(28, "No space left on device")

    writer = WebDatasetShardWriter(Full(str(tmp_path / "a.tar"), str(tmp_path / "final.tar")))
    writer.add(memoryview(ROWS[0][0]), ROWS[0][1])
    with pytest.raises(WriteError):
        writer.release()
    writer.abort()
    assert list(tmp_path.iterdir()) == []
