"""Whatever a source's names say, nothing is written outside of OUT, nor outside of it read."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from builder.conversion.convert import convert
from builder.conversion.index import index
from builder.jobs.extract import extract
from stress.common import account
from tests.outputs import read_rows
from tests.sources import picture

NAMES = (
    "../../escaped.jpg",
    "/escaped.jpg",
    "//escaped.jpg",
    "a/../../../escaped.jpg",
    "00000/../../../escaped.jpg",
    "..",
    "../",
    "a/..",
    ".",
    "line\nbreak.jpg",
    "-rf.jpg",
    "~/escaped.jpg",
    "$HOME/escaped.jpg",
    "%2e%2e/escaped.jpg",
    "..\\..\\escaped.jpg",
    "C:\\escaped.jpg",
    "x" * 300 + ".jpg",  # longer than file systems allow
    "<img src=x onerror=alert(1)>.jpg",
    "\udcff.jpg",  # a byte that is no UTF-8
    "00000/fine.jpg",
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source whose tars and listing are full of them, deep enough that ``..`` leads to a place in sight."""
    folder = tmp_path / "in" / "a" / "source"
    for side, data in (
        ("raw", picture(1)),
        ("captions", b'{"caption": "<script>alert(1)</script> [x](javascript:x)"}'),
    ):
        (folder / side).mkdir(parents=True)
        with tarfile.open(folder / side / "00000.tar", "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
            for name in NAMES:
                info = tarfile.TarInfo(name if side == "raw" else f"{name}.json")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            for name, target in (("link.jpg", "/etc/passwd"), ("folder", "/tmp"), ("folder/through.jpg", "")):
                info = tarfile.TarInfo(name)
                info.type = tarfile.SYMTYPE if target else tarfile.REGTYPE
                info.linkname = target
                tar.addfile(info, io.BytesIO(b"") if not target else None)
    entries = [
        {"image": name, "annotation": f"{name}.json"} for name in (*NAMES, "link.jpg", "nul\0.jpg", "/etc/passwd")
    ]
    (folder / "data.json").write_text(json.dumps(entries))
    return folder


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("work", [convert, index, extract])
def test_nothing_is_written_outside_of_out(work: object, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "to" / "b" / "out"
    out.mkdir(parents=True)
    before = everything(tmp_path)
    passwd = Path("/etc/passwd").stat()
    assert callable(work)
    work(str(source), str(out), num_proc=1, quiet=True)
    written = everything(tmp_path) - before
    assert written
    assert all(out in path.parents for path in written)
    assert not any(path.is_symlink() for path in written)
    assert Path("/etc/passwd").stat() == passwd
    assert not Path("/escaped.jpg").exists()


def test_names_are_keys_and_no_more(source: Path, tmp_path: Path) -> None:
    listed = len(json.loads((source / "data.json").read_text()))
    convert(str(source), str(tmp_path / "out"), num_proc=1, quiet=True)
    counted = account(tmp_path / "out", listed)
    assert counted.rows >= 15
    assert {row.image for row in read_rows(tmp_path / "out")} == {picture(1)}  # none is of /etc/passwd


def test_captions_do_not_reach_the_card(source: Path, tmp_path: Path) -> None:
    convert(str(source), str(tmp_path / "out"), num_proc=1, quiet=True)
    card = (tmp_path / "out" / "README.md").read_text()
    assert read_rows(tmp_path / "out")
    for word in ("<script", "javascript:", "onerror", "escaped"):
        assert word not in card
