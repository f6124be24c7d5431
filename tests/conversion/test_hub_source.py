"""A repository of tars on the Hub as a source: its tars are streamed, and nothing of them is kept."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builder import convert
from builder.base.options import ConvertOptions
from tests.hub.server import OTHER_TOKEN, WRITE_TOKEN, Account, HubServer
from tests.hub.upstream import hub_of_tars
from tests.outputs import output_bytes
from tests.pushes import command, everything_written
from tests.sources import Source, make_source

pytestmark = pytest.mark.timeout(3000 if "HUB_TEST_ALL" in os.environ else 300)

ALL = "HUB_TEST_ALL" in os.environ
URL = "hf://datasets/wusize/laion6m"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return make_source(tmp_path / "src", faults=["image_missing", "blank_caption"])


@pytest.fixture
def hub(source: Source, tmp_path: Path) -> Iterator[HubServer]:
    """wusize/laion6m as tars."""
    with hub_of_tars(source, tmp_path / "hub-storage") as server:
        yield server


@pytest.mark.slow
def test_tars_on_the_hub_convert_to_the_bytes_of_those_on_a_disk(
    source: Source, hub: HubServer, tmp_path: Path
) -> None:
    options = ConvertOptions(max_shard_size=1_000_000)
    convert(str(source.path), str(tmp_path / "local"), options, num_proc=1, quiet=True)
    arguments = ["--max-shard-size", "1MB", "--num-proc", 2, "--json", "--max-reject-ratio", 1]
    home = tmp_path / "home"
    url, out = "hf://datasets/wusize/laion6m", tmp_path / "out"
    done = command(hub, home, "convert", url, out, *arguments)
    assert done.code == 0, done.stderr
    assert done.document["rows"] == len(source.rows)
    assert output_bytes(out) == output_bytes(tmp_path / "local")
    assert not [path for path in home.rglob("*") if path.is_file() and path.stat().st_size > 20_000]  # no tar is kept


@pytest.mark.slow
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


FAULTS: list[dict[str, Any]] = [
    {"kind": "fail_before", "status": 503},
    {"kind": "fail_after", "status": None},
    {"kind": "drop"},
    {"kind": "truncate"},
    {"kind": "status", "status": 429, "headers": {"Retry-After": "1"}},
]
ROUTES = ["info", "tree", "resolve", "cdn_get"]
TABLE = [(route, fault) for route in ROUTES for fault in FAULTS]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("route", "fault"), TABLE if ALL else TABLE[3::6], ids=lambda value: value if isinstance(value, str) else None
)
def test_a_fault_at_a_route_is_ridden_out(
    route: str, fault: dict[str, Any], source: Source, hub: HubServer, tmp_path: Path
) -> None:
    convert(str(source.path), str(tmp_path / "local"), ConvertOptions(max_shard_size=1_000_000), num_proc=1, quiet=True)
    ordered = hub.faults.add(route, **fault)
    arguments = ["--max-shard-size", "1MB", "--num-proc", 1, "--max-reject-ratio", 1]
    done = command(hub, tmp_path, "convert", URL, tmp_path / "out", *arguments)
    assert done.code == 0, done.stderr
    assert ordered.hits == 1
    assert output_bytes(tmp_path / "out") == output_bytes(tmp_path / "local")


@pytest.mark.slow
def test_killed_at_a_request_and_run_again_it_ends_the_same(source: Source, hub: HubServer, tmp_path: Path) -> None:
    convert(str(source.path), str(tmp_path / "local"), ConvertOptions(max_shard_size=1_000_000), num_proc=1, quiet=True)
    arguments = ["--max-shard-size", "1MB", "--num-proc", 1, "--max-reject-ratio", 1]
    command(hub, tmp_path, "convert", URL, tmp_path / "trial", *arguments)
    count = len(hub.requests())
    for number in range(1, count + 1) if ALL else (count - 2, count):
        out = tmp_path / f"out-{number}"
        killed = command(hub, tmp_path, "convert", URL, out, *arguments, kill_at=number)
        assert killed.code == -signal.SIGKILL, number
        done = command(hub, tmp_path, "convert", URL, out, *arguments)
        assert done.code == 0, (number, done.stderr)
        assert output_bytes(out) == output_bytes(tmp_path / "local"), number


@pytest.mark.slow
def test_a_private_source_is_read_with_the_token_that_is_shown_nowhere(
    source: Source, hub: HubServer, tmp_path: Path
) -> None:
    repo = hub.store.repo("wusize/laion6m")
    repo.private = True
    repo.save()
    arguments = ["--max-shard-size", "1MB", "--num-proc", 1, "--max-reject-ratio", 1]
    hub.accounts[WRITE_TOKEN] = Account("wusize")
    for token, code in ((WRITE_TOKEN, 0), (OTHER_TOKEN, 1), (None, 1)):
        out = tmp_path / f"out-{code}"
        done = command(hub, tmp_path, "convert", URL, out, *arguments, token=token)
        assert done.code == code, done.stderr
        assert not token or token not in done.stdout + done.stderr
        assert not any(token and token.encode() in content for content in everything_written(tmp_path))
        if code:
            assert len(done.stderr.splitlines()) == 1, "one clear error"
            assert "Traceback" not in done.stderr
