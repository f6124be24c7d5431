"""A read-only fsspec file system over bytes: the contract that other libraries rely on."""

from __future__ import annotations

import errno
import pickle
from typing import Any

import fsspec
import pytest

from builder.base.errors import SourceError
from builder.base.served import AddressError, ServedFiles

FILES = {"a/one": b"0123456789", "a/two": b"line\nline two\nline three\n"}


class Shelf(ServedFiles):
    protocol = "shelf"

    def data(self, path: str) -> bytes:
        return FILES[path]

    def entry(self, path: str) -> dict[str, Any]:
        if path in FILES:
            return {"name": path, "size": len(FILES[path]), "type": "file"}
        if path in ("", "a"):
            return {"name": path, "size": 0, "type": "directory"}
        raise AddressError.of(f"shelf://{path}", "there is no such book")

    def children(self, path: str) -> list[dict[str, Any]]:
        return [self.entry(each) for each in (FILES if path else ["a"])]


@pytest.fixture
def shelf() -> Any:
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    return fsspec.filesystem("shelf")


def test_files_open_like_files(shelf: Any) -> None:
    with fsspec.open("shelf://a/one", "rb") as file:
        assert (file.read(3), file.tell(), file.read()) == (b"012", 3, b"3456789")
    with fsspec.open("shelf://a/two", "r") as file:
        assert list(file) == ["line\n", "line two\n", "line three\n"]


def test_it_can_be_pickled_and_so_can_its_files(shelf: Any) -> None:
    again = pickle.loads(pickle.dumps(shelf))
    assert again.cat_file("a/one") == FILES["a/one"]
    file = pickle.loads(pickle.dumps(shelf.open("a/one")))
    assert file.read() == FILES["a/one"]


def test_it_says_what_there_is(shelf: Any) -> None:
    assert shelf.info("shelf://a/one") == {"name": "a/one", "size": 10, "type": "file"}
    assert (shelf.size("a/one"), shelf.sizes(["a/one", "a/two"])) == (10, [10, 25])
    assert (shelf.isfile("a/one"), shelf.isdir("a"), shelf.exists("a/three")) == (True, True, False)
    assert shelf.ls("a", detail=False) == ["a/one", "a/two"]
    assert [entry["name"] for entry in shelf.ls("a/one")] == ["a/one"]
    assert shelf.find("") == shelf.find("a") == ["a/one", "a/two"]
    assert shelf.glob("a/t*") == ["a/two"]
    assert shelf.du("a") == 35
    assert [(root, folders, files) for root, folders, files in shelf.walk("")] == [
        ("", ["a"], []),
        ("a", [], ["one", "two"]),
    ]


@pytest.mark.parametrize(
    ("start", "end"), [(None, None), (0, 4), (4, None), (-3, None), (None, -3), (-5, -2), (2, 100), (7, 3), (20, 30)]
)
def test_parts_of_a_file_are_as_of_bytes(shelf: Any, start: int | None, end: int | None) -> None:
    assert shelf.cat_file("a/one", start, end) == FILES["a/one"][start:end]
    assert shelf.cat_ranges(["a/one"], [start], [end]) == [FILES["a/one"][start:end]]


def test_blocks_heads_and_tails(shelf: Any) -> None:
    assert shelf.read_block("a/one", 2, 4) == b"2345"
    assert shelf.read_block("a/one", 8, 40) == b"89"
    assert shelf.read_block("a/one", 3, None) == b"3456789"
    assert shelf.read_block("a/two", 2, 8, delimiter=b"\n") == b"line two\n"
    assert (shelf.head("a/one", 3), shelf.tail("a/one", 3)) == (b"012", b"789")
    assert shelf.cat(["a/one", "a/two"]) == FILES


@pytest.mark.parametrize("use", ["info", "open", "cat_file", "ls", "size", "read_block"])
def test_what_is_not_there_is_not_found(shelf: Any, use: str) -> None:
    arguments = {"read_block": (0, 1)}.get(use, ())
    with pytest.raises(FileNotFoundError, match="shelf://b: there is no such book") as caught:
        getattr(shelf, use)("b", *arguments)
    assert isinstance(caught.value, SourceError)
    assert caught.value.errno == errno.ENOENT
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), type(again)) == (str(caught.value), AddressError)


def test_it_is_read_only_and_folders_are_no_files(shelf: Any) -> None:
    for mode in ("wb", "ab", "xb"):
        with pytest.raises(PermissionError):
            shelf.open("a/one", mode)
    with pytest.raises(IsADirectoryError):
        shelf.cat_file("a")
