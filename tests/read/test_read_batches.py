"""Stretches of files for many rows at a time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from builder.base.schema import IndexedFile
from builder.read import batches, handles
from builder.read.batches import Wanted, read_together
from builder.read.handles import Handles

SIZE = 5000


def files_of(folder: Path, count: int = 3) -> tuple[Handles, list[bytes]]:
    data = [random.Random(number).randbytes(SIZE) for number in range(count)]
    for number, content in enumerate(data):
        (folder / f"{number}.tar").write_bytes(content)
    return Handles(str(folder), [IndexedFile(f"{n}.tar", "tar", 0, {"size": SIZE}) for n in range(count)]), data


def some(count: int, files: int = 3) -> list[Wanted]:
    rng = random.Random(count)
    return [(rng.randrange(files), rng.randrange(SIZE - 50), rng.randrange(1, 50), number) for number in range(count)]


@pytest.mark.parametrize("cold", [True, False])
@pytest.mark.parametrize("count", [0, 1, 7, 40, 300])
def test_every_stretch_comes_back_under_its_number(
    count: int, cold: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handles.LocalHandle, "is_cold", lambda *_: cold)
    monkeypatch.setattr(batches, "_ANNOUNCED", 100)
    files, data = files_of(tmp_path)
    wanted = some(count)
    images: list[bytes | None] = [None] * count
    read_together(files, list(wanted), images)
    assert images == [data[file][offset : offset + size] for file, offset, size, _ in wanted]


def test_from_a_cold_disk_all_is_announced_in_order_and_never_far_ahead_of_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, int, int]] = []
    read_at = handles.LocalHandle.read_at

    def announce(handle: handles.LocalHandle, offset: int, length: int) -> None:
        events.append(("announced", offset, length))

    def read(handle: handles.LocalHandle, offset: int, length: int) -> bytes:
        events.append(("read", offset, length))
        return read_at(handle, offset, length)

    monkeypatch.setattr(handles.LocalHandle, "is_cold", lambda *_: True)
    monkeypatch.setattr(handles.LocalHandle, "announce", announce)
    monkeypatch.setattr(handles.LocalStorage, "threads", 1)
    monkeypatch.setattr(batches, "_ANNOUNCED", 400)
    files, _ = files_of(tmp_path, 1)
    files.get(0)
    monkeypatch.setattr(handles.LocalHandle, "read_at", read)
    wanted = sorted(some(60, 1))
    read_together(files, list(wanted), [None] * 60)
    assert [event[1:] for event in events if event[0] == "announced"] == [each[1:3] for each in wanted]
    ahead = most = 0
    for kind, _, length in events:
        ahead += length if kind == "announced" else -length
        most = max(most, ahead)
        assert ahead >= 0, "a stretch was read before it was announced"
    assert 400 <= most < 450


def test_what_is_in_memory_already_is_not_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles.LocalHandle, "is_cold", lambda *_: False)
    monkeypatch.setattr(handles.LocalHandle, "announce", lambda *_: pytest.fail("announced"))
    files, _ = files_of(tmp_path)
    read_together(files, some(50), [None] * 50)
