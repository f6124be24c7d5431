"""Remote files: any range of any file, whatever breaks on the way, within a bounded memory."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.base import storage
from builder.base.errors import HubError, SourceError
from builder.base.storage import TRIES
from builder.source.remote import AHEAD, KEPT, RemoteFile
from tests.servers import FileServer

DATA = random.Random(5).randbytes(1000)


class Network(fsspec.AbstractFileSystem):
    """``net://``: one file, whose ranges come as ``plan`` says: a number of bytes at most, or an error; then as they
    should."""

    protocol = "net"
    cachable = False
    async_impl = True  # ranges are asked for by cat_file, one request each
    data: bytes
    plan: Iterator[int | Exception]
    length: int | None
    asked: list[tuple[int, int]]
    lock = threading.Lock()

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": Network.length, "type": "file"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        assert start is not None
        assert end is not None
        with Network.lock:
            Network.asked.append((start, end - start))
            step = next(Network.plan, end - start)
        if isinstance(step, Exception):
            raise step
        return Network.data[start : start + min(step, end - start)]


fsspec.register_implementation("net", Network, clobber=True)


def opened(
    plan: list[int | Exception] | None = None,
    data: bytes = DATA,
    size: int | None = -1,
    block: int = 64,
    ahead: int = 0,
    kept: int = KEPT,
) -> RemoteFile:
    Network.data, Network.plan, Network.asked = data, iter(plan or []), []
    Network.length = len(data) if size == -1 else size
    return RemoteFile("net://file", block=block, ahead=ahead, kept=kept, pause=0)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1100), st.integers(0, 300)), max_size=8),
    st.integers(1, 1200),
    st.integers(0, 4),
    st.integers(1, 5),
)
def test_any_ranges_in_any_order_are_those_of_the_file(
    ranges: list[tuple[int, int]], block: int, ahead: int, kept: int
) -> None:
    file = opened(block=block, ahead=ahead, kept=kept)
    for offset, length in ranges:
        assert file.read_at(offset, length) == DATA[offset : offset + length]
    assert len(file._held) <= kept
    assert len(file._coming) <= ahead
    file.close()


def test_reading_forward_asks_for_each_block_once() -> None:
    file = opened(ahead=AHEAD)
    parts = [file.read_at(offset, 50) for offset in range(0, 1000, 50)]
    assert b"".join(parts) == DATA
    assert sorted(Network.asked) == [(start, min(64, 1000 - start)) for start in range(0, 1000, 64)]


def test_what_is_passed_over_is_not_fetched() -> None:
    file = opened(ahead=1)
    file.read_at(0, 10)
    file.read_at(900, 100)
    file.close()
    assert {start for start, _ in Network.asked} <= {0, 64, 896, 960}  # one block ahead each time


def test_kept_blocks_are_not_asked_for_again_whatever_the_order() -> None:
    file = opened(kept=16)
    for offset in random.Random(1).sample(range(990), 200):
        assert file.read_at(offset, 10) == DATA[offset : offset + 10]
    assert len(Network.asked) == 16  # 1,000 bytes in blocks of 64


@pytest.mark.parametrize(
    "plan",
    [
        [ConnectionError("reset"), 20, TimeoutError("slow"), 64],
        [20, 20, 20, 20],  # short answers are no failure
        [ValueError("whatever the transport raises")] * (TRIES - 1),
        [0, 64],  # an empty answer before the end
    ],
)
def test_a_broken_request_is_repeated_from_where_it_broke(plan: list[int | Exception]) -> None:
    file = opened(plan)
    assert file.read_at(0, 1000) == DATA
    got = 0
    for step, (start, _) in zip(plan, Network.asked, strict=False):
        assert start == got
        got += step if isinstance(step, int) else 0


def test_a_request_that_keeps_breaking_is_given_up() -> None:
    file = opened([ConnectionError("reset")] * TRIES)
    with pytest.raises(SourceError, match=rf"net://file: ConnectionError: reset \(tried {TRIES} times\)"):
        file.read_at(0, 1)
    assert len(Network.asked) == TRIES


def test_an_answer_that_will_not_change_is_not_asked_for_again() -> None:
    file = opened([PermissionError("no access")])
    with pytest.raises(SourceError, match="net://file: PermissionError: no access"):
        file.read_at(0, 1)
    assert len(Network.asked) == 1


def test_pauses_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", slept.append)
    opened([OSError()] * 4)
    file = RemoteFile("net://file", block=2000, pause=0.5)
    assert file.read_at(0, 1000) == DATA
    assert slept == [0.5, 1.0, 2.0, 4.0]


def test_a_file_that_is_shorter_than_it_said_is_an_error() -> None:
    file = opened(data=DATA[:500], size=600)
    assert file.size == 600
    with pytest.raises(SourceError, match="the server sent nothing from byte 500 of 600 on"):
        file.read_at(0, 600)


def test_a_file_of_unknown_length_is_refused() -> None:
    with pytest.raises(HubError, match="does not say how long it is"):
        opened(size=None)


def test_a_size_that_is_known_costs_no_request_and_a_closed_file_reads_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    with FileServer(tmp_path) as server:
        file = RemoteFile(f"{server.url}/a", block=400, ahead=0, size=1000)
        assert server.requests == []
        assert file.read_at(390, 20) == DATA[390:410]
        file.close()
        assert file.read_at(0, 10) == DATA[:10]
        file.close()
        assert [wanted for _, _, wanted in server.requests] == ["bytes=0-399", "bytes=400-799", "bytes=0-399"]


def test_a_cut_connection_is_ridden_out(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    with FileServer(tmp_path) as server:
        server.break_next = 2
        file = RemoteFile(f"{server.url}/a", block=400, pause=0)
        assert file.read_at(0, 1000) == DATA
        assert server.break_next == 0
        file.close()


def test_a_local_url_works_and_a_missing_one_says_so(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    assert RemoteFile(f"file://{tmp_path}/a").read_at(10, 20) == DATA[10:30]
    with pytest.raises(FileNotFoundError):
        RemoteFile(f"file://{tmp_path}/b")
