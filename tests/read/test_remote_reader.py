"""Datasets behind URLs: HTTP with ranges, S3, and the Hub."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import pytest

from builder import index, open_dataset
from builder.base import storage
from builder.base.errors import IndexMismatchError, SourceError
from builder.base.options import ConvertOptions
from builder.conversion.convert import convert
from tests.hub.client import client_env, run_ok
from tests.hub.server import HubServer
from tests.servers import FileServer, s3, s3_server
from tests.sources import make_source


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    source = make_source(folder / "source")
    convert(str(source.path), str(folder / "out"), num_proc=1, quiet=True)
    return folder / "out"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAION6M_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "_PAUSE", 0.01)


def test_over_http_the_index_comes_once_and_a_sample_is_one_range(converted: Path) -> None:
    pytest.importorskip("aiohttp")
    local = open_dataset(converted)
    with FileServer(converted) as server:
        server.states = True
        far = open_dataset(server.url)
        assert len(far) == len(local)
        assert far[0].image  # opens the shard: its size and footer are looked at once
        server.requests.clear()
        assert far[7].image == local[7].image
        [(method, path, wanted)] = server.requests
        size = local[7].size
        assert (method, path) == ("GET", "/" + local.shards[0].path)
        first, last = map(int, (wanted or "").removeprefix("bytes=").split("-"))
        assert last - first + 1 == size
        server.requests.clear()
        open_dataset(server.url)
        assert [method for method, _, _ in server.requests] == ["HEAD"], "the index is kept from the first time"


@pytest.mark.parametrize("states", [True, False])
def test_another_index_of_the_same_size_is_not_taken_for_the_one_before(
    states: bool, converted: Path, tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp")
    for name in ("meta", "data"):
        shutil.copytree(converted / name, tmp_path / "copy" / name)
    path = tmp_path / "copy" / "meta" / "index.arrow"
    old = open_dataset(converted)[0].caption
    new = old.swapcase()
    with FileServer(tmp_path / "copy") as server:
        server.states = states
        before = open_dataset(server.url)
        assert before[0].caption == old
        path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
        assert open_dataset(server.url)[0].caption == new
        assert before[0].caption == old
        assert pickle.loads(pickle.dumps(before))[0].caption == old
        kept = {(file.name, file.stat().st_mtime_ns) for file in (tmp_path / "cache").iterdir()}
        assert len(kept) == 2
        assert open_dataset(server.url)[0].caption == new
        assert {(file.name, file.stat().st_mtime_ns) for file in (tmp_path / "cache").iterdir()} == kept


def test_neighbours_share_a_request(converted: Path) -> None:
    pytest.importorskip("aiohttp")
    local = open_dataset(converted)
    with FileServer(converted) as server:
        far = open_dataset(server.url)
        assert far[0].image
        server.requests.clear()
        samples = far[[3, 1, 2, 2]]
        assert [sample.image for sample in samples] == [local[row].image for row in (3, 1, 2, 2)]
        assert len(server.requests) == 1


def test_a_cut_answer_is_asked_for_again(converted: Path) -> None:
    pytest.importorskip("aiohttp")
    local = open_dataset(converted)
    with FileServer(converted) as server:
        far = open_dataset(server.url)
        assert far[0].image
        server.break_next = 2
        assert far[5].image == local[5].image
        for reader in (far, open_dataset(server.url)):  # the second has not opened the shard yet
            server.break_next = 100
            with pytest.raises(SourceError, match="tried 5 times"):
                assert reader[6].image


@pytest.mark.slow
@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_a_server_without_ranges_is_a_clear_error(form: str, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    source = make_source(tmp_path / "source")
    convert(str(source.path), str(tmp_path / "out"), ConvertOptions(format=form), num_proc=1, quiet=True)
    with FileServer(tmp_path / "out") as server:
        server.ranges = False
        far = open_dataset(server.url)
        for touch in (lambda: far[3].image, lambda: far[[3, 5]]):
            with pytest.raises(SourceError, match="ignores ranges and sends the whole file"):
                touch()


def test_a_folder_without_an_index_is_a_clear_error(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    with FileServer(tmp_path) as server, pytest.raises(SourceError, match=r"has no meta/index.arrow"):
        open_dataset(server.url)


def test_a_changed_shard_behind_a_url_is_an_error(converted: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    (tmp_path / "copy" / "meta").mkdir(parents=True)
    (tmp_path / "copy" / "data").mkdir()
    (tmp_path / "copy/meta/index.arrow").write_bytes((converted / "meta/index.arrow").read_bytes())
    [shard] = (converted / "data").iterdir()
    (tmp_path / "copy/data" / shard.name).write_bytes(shard.read_bytes()[:-1])
    with FileServer(tmp_path / "copy") as server:
        far = open_dataset(server.url)
        with pytest.raises(IndexMismatchError, match="when it was indexed"):
            assert far[0].image


def test_files_behind_a_url_are_opened_once_however_many_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setattr("builder.read.handles.MOST_OPEN", 1)
    source = make_source(tmp_path / "source")
    index(source.path)
    with FileServer(source.path) as server:
        far = open_dataset(server.url)
        for _ in range(3):
            assert len(far[list(range(len(far)))]) == len(far)
        opened = sorted(path for method, path, _ in server.requests if method == "HEAD" and path.startswith("/raw/"))
    assert len(opened) > 2
    assert opened == sorted(set(opened))


def test_a_sample_read_over_a_network_survives_pickling(converted: Path) -> None:
    pytest.importorskip("aiohttp")
    local = open_dataset(converted)
    with FileServer(converted) as server:
        far = open_dataset(server.url, storage_options={"headers": {"X-A": "b"}})
        for sample in (far[3], *far[[5, 4]]):
            assert pickle.loads(pickle.dumps(sample)).image == local[sample.row].image


@pytest.mark.slow
def test_an_s3_bucket_reads_like_a_folder_also_after_pickling_and_fork(converted: Path) -> None:
    s3fs = pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    local = open_dataset(converted)
    with s3_server("bucket") as options:
        system = s3fs.S3FileSystem(**options, skip_instance_cache=True)
        for name in ("data", "meta"):
            system.put(str(converted / name), "bucket/dataset/", recursive=True)
        far = open_dataset("s3://bucket/dataset", storage_options=options)
        assert [sample.image for sample in far] == [sample.image for sample in local]
        assert [sample.annotation for sample in far] == [sample.annotation for sample in local]
        by_scheme = open_dataset("s3://bucket/dataset", storage_options={"s3": options, "hf": {"token": "…"}})
        assert by_scheme[3].image == local[3].image
        again = pickle.loads(pickle.dumps(far))
        assert again.find(local[4].key).image == local[4].image
        child = multiprocessing.get_context("fork").Process(target=_compare, args=(far, local))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        for place, words in (("bucket/nothing", "it does not exist"), ("buckets/a", "no bucket buckets")):
            with pytest.raises(SourceError, match=f"s3://{place}: {words}|s3://{place}: there is {words}"):
                open_dataset(f"s3://{place}", storage_options=options)


def test_a_new_version_in_the_bucket_never_gives_its_images(converted: Path) -> None:
    s3fs = pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    local = open_dataset(converted)
    with s3("versions") as server:
        system = s3fs.S3FileSystem(**server.options, skip_instance_cache=True)
        for name in ("data", "meta"):
            system.put(str(converted / name), "versions/dataset/", recursive=True)
        far = open_dataset("s3://versions/dataset", storage_options=server.options)
        assert far[3].image == local[3].image
        [shard] = (converted / "data").iterdir()
        place = f"versions/dataset/data/{shard.name}"
        data = shard.read_bytes()
        for change, words in (
            (lambda: system.pipe_file(place, bytes(255 - byte for byte in data)), "it is another file now"),
            (lambda: system.pipe_file(place, data[:100]), "it is (another file|shorter) now"),
            (lambda: system.rm_file(place), "it is gone"),
        ):
            change()
            for touch in (lambda: far[3].image, lambda: far[[5, 1]], lambda: list(far[:3])):
                server.weather.requests.clear()
                with pytest.raises(IndexMismatchError, match=f"{shard.name}.*{words}"):
                    touch()
                assert len(server.weather.requests) <= 3, "an answer that stays is not asked for again"


@pytest.mark.slow
@pytest.mark.parametrize("states", [True, False])
def test_a_new_version_on_a_web_server_never_gives_its_images(states: bool, converted: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    local = open_dataset(converted)
    for name in ("meta", "data"):
        shutil.copytree(converted / name, tmp_path / "copy" / name)
    [shard] = (tmp_path / "copy" / "data").iterdir()
    data = shard.read_bytes()
    with FileServer(tmp_path / "copy") as server:
        server.states = states
        far = open_dataset(server.url)
        assert far[3].image == local[3].image
        changes = [lambda: shard.write_bytes(data + b"x"), lambda: shard.write_bytes(data[:100]), shard.unlink]
        if states:  # a server that says nothing of a file but its size hides a change that keeps the size
            changes.insert(0, lambda: shard.write_bytes(bytes(255 - byte for byte in data)))
        for change in changes:
            change()
            for touch in (lambda: far[3].image, lambda: far[[5, 1]]):
                server.requests.clear()
                with pytest.raises(IndexMismatchError, match="was changed while the dataset was open"):
                    touch()
                assert len(server.requests) <= 2


def test_another_store_is_asked_again_after_each_answer(converted: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.put(str(converted), "/versions", recursive=True)
    far = open_dataset("memory://versions")
    local = open_dataset(converted)
    assert [sample.image for sample in far] == [sample.image for sample in local]
    [shard] = (converted / "data").iterdir()
    system.pipe_file(f"/versions/data/{shard.name}", bytes(255 - byte for byte in shard.read_bytes()))
    for touch in (lambda: far[3].image, lambda: far[[5, 1]]):
        with pytest.raises(IndexMismatchError, match="it is another file now"):
            touch()
    system.rm("/versions", recursive=True)
    with pytest.raises(IndexMismatchError, match="it is gone"):
        far[3].image  # noqa: B018


def _compare(far: object, local: object) -> None:
    same = far[6].image == local[6].image  # type: ignore[index]
    os._exit(0 if same else 1)


@pytest.mark.slow
def test_a_hub_repository_opens_by_its_hf_url(converted: Path, hub: HubServer, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from huggingface_hub import HfApi
from builder import index, open_dataset
HfApi().create_repo("user/pairs", repo_type="dataset")
HfApi().upload_folder(
    repo_id="user/pairs", repo_type="dataset", folder_path={str(converted)!r}, ignore_patterns=[".laion6m/*"]
)
local, far = open_dataset({str(converted)!r}), open_dataset("hf://datasets/user/pairs")
assert [s.image for s in far] == [s.image for s in local]
assert far[3].annotation == local[3].annotation
print("equal", len(far))
"""
    assert "equal 24" in run_ok(hub, code, env=client_env(hub, tmp_path))
