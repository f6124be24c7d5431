"""One suite over every kind of folder that OUT can be: on a disk, in memory behind fsspec, on S3."""

from __future__ import annotations

import os
import pickle
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xxhash

from builder.base.errors import OutputError, WriteError
from builder.base.urls import StorageOptions
from builder.store import remote
from builder.store.folders import Folder, LocalFolder, open_folder, write
from builder.store.remote import RemoteFolder
from tests.servers import S3, s3

Make = Callable[[], Folder]


@pytest.fixture(scope="module")
def bucket() -> Iterator[S3]:
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    pytest.importorskip("moto.server", reason="moto is not installed")
    with s3("folders") as server:
        yield server


@pytest.fixture(params=["disk", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "disk":
        return open_folder(str(tmp_path / "out"))
    if request.param == "memory":
        return open_folder(f"memory://{uuid.uuid4().hex}/out")
    server: S3 = request.getfixturevalue("bucket")
    return open_folder(f"s3://folders/{uuid.uuid4().hex}", server.options)


HIDES_PARTS = pytest.mark.parametrize("folder", ["disk", "s3"], indirect=True)
"""fsspec's files in memory show what is written to them at once. Stores that hold data do not."""


@pytest.mark.slow
def test_what_is_written_is_read_back_with_its_digest(folder: Folder) -> None:
    pieces = [b"one", memoryview(b"two"), b""]
    assert write(folder, "data/a", pieces) == xxhash.xxh3_128_hexdigest(b"onetwo")
    assert folder.read("data/a") == b"onetwo"
    assert folder.sizes("data") == {"a": 6}
    assert Path(folder.local("data/a")).read_bytes() == b"onetwo"
    write(folder, "data/a", [b"three"])
    assert folder.read("data/a") == b"three"
    assert folder.sizes("data") == {"a": 5}


def test_an_empty_file_is_a_file(folder: Folder) -> None:
    write(folder, "x/empty", [])
    assert (folder.read("x/empty"), folder.sizes("x")) == (b"", {"empty": 0})


def test_what_is_not_there_is_none(folder: Folder) -> None:
    assert folder.read("nothing") is None
    assert folder.sizes("nothing") == {}
    assert folder.read_all(["nothing", "nor/this"]) == [None, None]
    folder.remove("nothing")
    with pytest.raises(FileNotFoundError):
        Path(folder.local("nothing")).read_bytes()


def test_many_files_are_read_in_the_order_asked_for(folder: Folder) -> None:
    for number in range(20):
        write(folder, f"many/{number}", [b"%d" % number])
    names = [f"many/{number}" for number in (7, 3, 19, 99)]
    assert folder.read_all(names) == [b"7", b"3", b"19", None]
    assert folder.sizes("many") == {str(number): len(str(number)) for number in range(20)}


def test_sizes_are_of_files_directly_in_the_folder(folder: Folder) -> None:
    write(folder, "a/b", [b"1"])
    write(folder, "a/c/d", [b"22"])
    assert folder.sizes("a") == {"b": 1}


def test_a_folder_goes_with_all_that_is_in_it(folder: Folder) -> None:
    for name in ("gone/a", "gone/deep/b", "stays"):
        write(folder, name, [b"x"])
    folder.remove("gone")
    folder.remove("gone")
    assert (folder.read("gone/a"), folder.read("gone/deep/b"), folder.read("stays")) == (None, None, b"x")
    folder.remove("stays")
    assert folder.read("stays") is None


@pytest.mark.slow
@HIDES_PARTS
def test_nobody_sees_a_file_before_it_is_whole(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PART", 5 << 20)
    file = folder.create("data/big")
    part = bytes(range(256)) * 4096 * 6  # 6 MiB: a part of its own on S3
    for _ in range(3):
        file.write([part])
        assert folder.read("data/big") is None
        assert folder.sizes("data") == {}
    file.close()
    assert folder.read("data/big") == part * 3
    assert file.position == len(part) * 3


@HIDES_PARTS
def test_what_is_given_up_leaves_nothing(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PART", 5 << 20)
    write(folder, "data/kept", [b"as it was"])
    for name in ("data/new", "data/kept"):
        file = folder.create(name)
        file.write([bytes(6 << 20)])
        file.write([b"more"])
        file.abort()
        file.abort()
    assert folder.sizes("data") == {"kept": 9}
    assert folder.read("data/kept") == b"as it was"


def test_pieces_may_be_changed_once_they_are_written(folder: Folder) -> None:
    buffer = bytearray(b"first")
    file = folder.create("a")
    file.write([memoryview(buffer)])
    buffer[:] = b"other"
    file.write([memoryview(buffer)])
    file.close()
    assert folder.read("a") == b"firstother"


def test_a_folder_travels(folder: Folder) -> None:
    write(folder, "a", [b"1"])
    other = pickle.loads(pickle.dumps(folder))
    assert other.root == folder.root
    assert other.read("a") == b"1"


def test_a_mapped_file_is_fetched_once_and_anew_after_it_was_removed(folder: Folder) -> None:
    write(folder, "a", [b"1"])
    assert folder.local("a") == folder.local("a")
    folder.remove("a")
    write(folder, "a", [b"22"])
    assert Path(folder.local("a")).read_bytes() == b"22"


def test_a_folder_of_the_web_cannot_be_written_to() -> None:
    with pytest.raises(OutputError, match="can only be read"):
        open_folder("https://example.org/out")


def test_a_refused_write_is_one_error_with_the_place(bucket: S3) -> None:
    folder = open_folder("s3://no-such-bucket/out", bucket.options)
    with pytest.raises(WriteError, match="s3://no-such-bucket/out/a"):
        write(folder, "a", [b"1"])


@pytest.mark.slow
def test_writes_ride_out_bad_weather(bucket: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PART", 5 << 20)
    folder = open_folder(f"s3://folders/{uuid.uuid4().hex}", bucket.options)
    data = os.urandom(16 << 20)
    bucket.weather.every, bucket.weather.failed = 4, 0
    try:
        write(folder, "big", [data])
        write(folder, "small", [b"1"])
        assert folder.read("big") == data
        assert folder.sizes("") == {"big": len(data), "small": 1}
    finally:
        bucket.weather.every = 0
    assert bucket.weather.failed > 1


def test_a_path_is_a_folder_on_this_machine_and_an_open_one_stays_itself(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    assert isinstance(folder, LocalFolder)
    assert open_folder(folder) is folder
    assert isinstance(open_folder("memory://x", StorageOptions()), RemoteFolder)
