"""Images of a network kept on this machine's disk."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import shutil
from pathlib import Path

import pytest

from builder.base.errors import IndexMismatchError, OptionError
from builder.base.options import ConvertOptions
from builder.conversion.convert import convert
from builder.read.local_cache import LocalCache
from builder.read.opening import open_dataset
from tests.servers import FileServer
from tests.sources import make_source

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.img") if path.is_file()]


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in files_in(folder))


def data_of(number: int, size: int = 1000) -> bytes:
    return random.Random(number).randbytes(size)


def test_what_was_put_comes_back_in_any_process(tmp_path: Path) -> None:
    cache = LocalCache(str(tmp_path / "a" / "b"), 10**6)
    for number in range(20):
        assert cache.get(str(number)) is None
        cache.put(str(number), data_of(number))
    for each in (cache, pickle.loads(pickle.dumps(cache)), LocalCache(cache.folder, 5)):
        assert [each.get(str(number)) for number in range(20)] == [data_of(number) for number in range(20)]
    cache.put("empty", b"")
    assert cache.get("empty") == b""


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b"\xff" + path.read_bytes()[1:]),
        lambda path: path.write_bytes(b""),
        Path.unlink,
    ],
)
def test_a_damaged_file_is_as_none_and_is_written_anew(damage: object, tmp_path: Path) -> None:
    cache = LocalCache(str(tmp_path), 10**6)
    cache.put("a", data_of(1))
    [path] = files_in(tmp_path)
    damage(path)  # type: ignore[operator]
    assert cache.get("a") is None
    assert not path.exists()
    cache.put("a", data_of(1))
    assert cache.get("a") == data_of(1)


def test_the_bound_holds_and_what_was_used_least_lately_goes(tmp_path: Path) -> None:
    cache = LocalCache(str(tmp_path), 50_000)
    for number in range(200):
        cache.put(str(number), data_of(number))
        for path in files_in(tmp_path):  # so that the order does not hang on the clock's ticks
            os.utime(path, ns=(path.stat().st_mtime_ns - 10**9,) * 2)
        assert cache.get("0") == data_of(0), "it is used all the time"
        assert bytes_in(tmp_path) <= 50_000
    assert cache.get("199") == data_of(199)
    assert cache.get("1") is None


def test_files_that_a_killed_process_left_unfinished_go_and_those_being_written_stay(tmp_path: Path) -> None:
    cache = LocalCache(str(tmp_path), 5000)
    cache.put("a", data_of(1))
    [path] = files_in(tmp_path)
    old, new = path.parent / "new-old", path.parent / "new-new"
    for each in (old, new):
        each.write_bytes(bytes(4000))
    os.utime(old, (0, 0))
    cache.put("b", data_of(2))
    assert new.exists()
    assert not old.exists()


def _write_and_read(cache: LocalCache, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(300):
        number = rng.randrange(60)
        data = cache.get(str(number))
        assert data in (None, data_of(number))
        if data is None:
            cache.put(str(number), data_of(number))
    os._exit(0)


def test_processes_at_once_never_see_other_bytes_and_stay_within_the_bound(tmp_path: Path) -> None:
    cache = LocalCache(str(tmp_path), 40_000)
    processes = [
        multiprocessing.get_context("fork").Process(target=_write_and_read, args=(cache, seed)) for seed in range(6)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 6
    cache.put("last", b"x")
    assert bytes_in(tmp_path) <= 40_000


@pytest.fixture(scope="module", params=["parquet", "arrow"])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cached")
    source = make_source(folder / "source")
    convert(str(source.path), str(folder / "out"), ConvertOptions(format=request.param), num_proc=1, quiet=True)
    return folder / "out"


@pytest.mark.slow
def test_an_image_that_was_read_once_is_not_asked_for_again(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("LAION6M_CACHE", str(tmp_path / "indexes"))
    local = open_dataset(converted)
    with FileServer(converted) as server:
        server.states = True
        far = open_dataset(server.url, cache_dir=tmp_path / "cache", cache_bytes="1MB")
        assert far[3].image == local[3].image
        assert [sample.image for sample in far[[5, 3, 9]]] == [local[row].image for row in (5, 3, 9)]
        for reader in (far, pickle.loads(pickle.dumps(far)), open_dataset(server.url, cache_dir=tmp_path / "cache")):
            server.requests.clear()
            assert [reader[row].image for row in (9, 5, 3)] == [local[row].image for row in (9, 5, 3)]
            assert [sample.image for sample in reader[[3, 9, 5]]] == [local[row].image for row in (3, 9, 5)]
            asked = [request for request in server.requests if "/data/" in request[1]]
            assert len(asked) <= 2, "one request for the version of the shard, one for its footer"
        assert [sample.image for sample in far] == [sample.image for sample in local]


def test_a_new_version_is_not_read_from_the_old_ones_cache(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("LAION6M_CACHE", str(tmp_path / "indexes"))
    [shard] = (converted / "data").glob("train-*")
    data = shard.read_bytes()
    try:
        with FileServer(converted) as server:
            server.states = True
            far = open_dataset(server.url, cache_dir=tmp_path / "cache")
            before = far[3].image
            shard.write_bytes(bytes(255 - byte for byte in data[:-4000]) + data[-4000:])
            assert far[3].image == before, "kept, and the image of that row"
            with pytest.raises(IndexMismatchError):
                far[4].image  # noqa: B018
    finally:
        shard.write_bytes(data)


def test_old_and_new_bytes_never_mix_even_if_size_and_footer_stay(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("LAION6M_CACHE", str(tmp_path / "indexes"))
    shutil.copytree(converted, tmp_path / "copy")
    [shard] = (tmp_path / "copy" / "data").glob("train-*")
    data = shard.read_bytes()
    with FileServer(tmp_path / "copy") as server:
        server.states = True
        old = {sample.row: sample.image for sample in open_dataset(server.url, cache_dir=tmp_path / "cache")[:9]}
        shard.write_bytes(bytes(255 - byte for byte in data[:-4000]) + data[-4000:])
        for again in range(2):  # from the server, then from the cache
            new = open_dataset(server.url, cache_dir=tmp_path / "cache")
            assert [new[row].image for row in old] == [bytes(255 - byte for byte in old[row]) for row in old], again


def test_what_makes_no_sense_is_refused(converted: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for options, words in (
        ({"cache_dir": tmp_path / "c"}, "only for URLs"),
        ({"cache_bytes": 5}, "give a cache_dir"),
        ({"cache_dir": tmp_path / "c", "cache_bytes": 0}, "1 or more"),
        ({"cache_dir": tmp_path / "file"}, "cannot be written"),
    ):
        place = converted if words == "only for URLs" else "http://127.0.0.1:9/x"
        with pytest.raises(OptionError, match=words):
            open_dataset(place, **options)  # type: ignore[arg-type]


def test_a_disk_that_is_full_is_said_once_and_read_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = LocalCache(str(tmp_path), 10**6)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="keeps no more images: No space left"):
        cache.put("a", b"x")
    cache.put("b", b"x")
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"] == []
