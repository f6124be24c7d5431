"""A repository of tars on the Hub as a source: its tars are streamed, and nothing of them is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder import convert
from builder.options import ConvertOptions
from tests.hub.server import HubServer
from tests.hub.storage import File
from tests.outputs import output_bytes
from tests.pushes import command
from tests.sources import Source, make_source


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return make_source(tmp_path / "src", faults=["image_missing", "blank_caption"])


@pytest.fixture
def hub(source: Source, tmp_path: Path) -> Iterator[HubServer]:
    """wusize/laion6m as tars."""
    with HubServer(tmp_path / "hub-storage") as server:
        store = server.store
        repo = store.create("wusize/laion6m")
        table = {"README.md": store.put_blob(b"# laion6m\n")}
        for path in [*source.path.glob("*/*.tar"), source.path / "data.json"]:
            data = path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            store.put_large(digest, [data])
            table[path.relative_to(source.path).as_posix()] = File.large(digest, len(data))
        store.add_commit(repo, "refs/heads/main", repo.refs["refs/heads/main"], table, "tars")
        yield server
        assert server.crashes == []


def test_tars_on_the_hub_convert_to_the_bytes_of_those_on_a_disk(
    source: Source, hub: HubServer, tmp_path: Path, client_python: str
) -> None:
    options = ConvertOptions(max_shard_size=1_000_000)
    convert(str(source.path), str(tmp_path / "local"), options, num_proc=1, quiet=True)
    arguments = ["--max-shard-size", "1MB", "--num-proc", 2, "--json", "--max-reject-ratio", 1]
    home = tmp_path / "home"
    url, out = "hf://datasets/wusize/laion6m", tmp_path / "out"
    done = command(hub, home, "convert", url, out, *arguments, python=client_python)
    assert done.code == 0, done.stderr
    assert done.document["rows"] == len(source.rows)
    assert output_bytes(out) == output_bytes(tmp_path / "local")
    assert not [path for path in home.rglob("*") if path.is_file() and path.stat().st_size > 20_000]  # no tar is kept


def test_tars_on_the_hub_are_converted_and_pushed_without_either_on_the_disk(
    source: Source, hub: HubServer, tmp_path: Path
) -> None:
    arguments = ["--max-shard-size", "1MB", "--num-proc", 1, "--json", "--max-reject-ratio", 1]
    arguments += ["--push-to", "user/laion6m", "--delete-pushed"]
    out = tmp_path / "out"
    done = command(hub, tmp_path / "home", "convert", "hf://datasets/wusize/laion6m", out, *arguments)
    assert done.code == 0, done.stderr
    assert list((out / "data").glob("*")) == []
    convert(str(source.path), str(tmp_path / "local"), ConvertOptions(max_shard_size=1_000_000), num_proc=1, quiet=True)
    for shard in (tmp_path / "local" / "data").iterdir():
        assert hub.store.read("user/laion6m", f"data/{shard.name}") == shard.read_bytes()
