"""The file system of ``laion6m://`` addresses: the contract that other libraries rely on."""

from __future__ import annotations

import errno
import pickle
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from builder.base.errors import SourceError
from builder.hf import rows
from builder.hf.rows import AddressError

ONE, TWO = "shelf#0/one", "shelf#1/two"
FILES = {ONE: b"0123456789", TWO: b"line\nline two\nline three\n"}


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A dataset of two rows, and the file system that serves it."""
    samples = [SimpleNamespace(path=f"a/{name[8:]}", image=data, size=len(data)) for name, data in FILES.items()]
    monkeypatch.setattr(rows, "_READERS", {"shelf": samples})
    return fsspec.filesystem("laion6m")


def test_files_open_like_files(shelf: Any) -> None:
    with fsspec.open(f"laion6m://{ONE}", "rb") as file:
        assert (file.read(3), file.tell(), file.read()) == (b"012", 3, b"3456789")
    with fsspec.open(f"laion6m://{TWO}", "r") as file:
        assert list(file) == ["line\n", "line two\n", "line three\n"]


def test_it_can_be_pickled_and_so_can_its_files(shelf: Any) -> None:
    again = pickle.loads(pickle.dumps(shelf))
    assert again.cat_file(ONE) == FILES[ONE]
    file = pickle.loads(pickle.dumps(shelf.open(ONE)))
    assert file.read() == FILES[ONE]


def test_it_says_what_there_is(shelf: Any) -> None:
    assert shelf.info(f"laion6m://{ONE}") == {"name": ONE, "size": 10, "type": "file"}
    assert (shelf.size(ONE), shelf.sizes([ONE, TWO])) == (10, [10, 25])
    assert (shelf.isfile(ONE), shelf.isdir("shelf"), shelf.exists("shelf#0/three")) == (True, True, False)
    assert shelf.ls("shelf", detail=False) == ["shelf#0", "shelf#1"]
    assert shelf.ls("shelf#1", detail=False) == [TWO]
    assert [entry["name"] for entry in shelf.ls(ONE)] == [ONE]
    assert shelf.find("") == shelf.find("shelf") == [ONE, TWO]
    assert shelf.glob("shelf#1/t*") == [TWO]
    assert shelf.du("shelf") == 35
    assert [(root, folders, files) for root, folders, files in shelf.walk("")] == [
        ("", ["shelf"], []),
        ("shelf", ["shelf#0", "shelf#1"], []),
        ("shelf#0", [], ["one"]),
        ("shelf#1", [], ["two"]),
    ]


@pytest.mark.parametrize(
    ("start", "end"), [(None, None), (0, 4), (4, None), (-3, None), (None, -3), (-5, -2), (2, 100), (7, 3), (20, 30)]
)
def test_parts_of_a_file_are_as_of_bytes(shelf: Any, start: int | None, end: int | None) -> None:
    assert shelf.cat_file(ONE, start, end) == FILES[ONE][start:end]
    assert shelf.cat_ranges([ONE], [start], [end]) == [FILES[ONE][start:end]]


def test_blocks_heads_and_tails(shelf: Any) -> None:
    assert shelf.read_block(ONE, 2, 4) == b"2345"
    assert shelf.read_block(ONE, 8, 40) == b"89"
    assert shelf.read_block(ONE, 3, None) == b"3456789"
    assert shelf.read_block(TWO, 2, 8, delimiter=b"\n") == b"line two\n"
    assert (shelf.head(ONE, 3), shelf.tail(ONE, 3)) == (b"012", b"789")
    assert shelf.cat([ONE, TWO]) == FILES


@pytest.mark.parametrize("use", ["info", "open", "cat_file", "ls", "size", "read_block"])
def test_what_is_not_there_is_not_found(shelf: Any, use: str) -> None:
    arguments = {"read_block": (0, 1)}.get(use, ())
    with pytest.raises(FileNotFoundError, match="laion6m://: no dataset is open at b") as caught:
        getattr(shelf, use)("b", *arguments)
    assert isinstance(caught.value, SourceError)
    assert caught.value.errno == errno.ENOENT
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), type(again)) == (str(caught.value), AddressError)


def test_it_is_read_only_and_folders_are_no_files(shelf: Any) -> None:
    for mode in ("wb", "ab", "xb"):
        with pytest.raises(PermissionError):
            shelf.open(ONE, mode)
    with pytest.raises(IsADirectoryError):
        shelf.cat_file("shelf")
