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
    files, data = files_of(tmp_path)
    wanted = some(count)
    images: list[bytes | None] = [None] * count
    read_together(files, list(wanted), images)
    assert images == [data[file][offset : offset + size] for file, offset, size, _ in wanted]


@pytest.mark.parametrize(("cold", "threads"), [(True, 16), (False, 2)])
def test_from_a_cold_disk_more_is_read_at_a_time(
    cold: bool, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(handles.LocalHandle, "is_cold", lambda *_: cold)
    monkeypatch.setattr(handles.LocalStorage, "threads", 2)
    for name in ("in_threads", "one_by_one"):
        monkeypatch.setattr(batches, name, lambda work, items, threads: asked.append(threads))
    files, _ = files_of(tmp_path)
    read_together(files, some(50), [None] * 50)
    assert asked == [threads]


@pytest.mark.parametrize("cold", [True, False])
def test_bytes_that_are_wanted_twice_are_read_once(cold: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = Handles.read
    monkeypatch.setattr(handles.LocalHandle, "is_cold", lambda *_: cold)
    monkeypatch.setattr(Handles, "read", lambda self, file, at, size: (reads.append(at), read(self, file, at, size))[1])
    files, data = files_of(tmp_path)
    images: list[bytes | None] = [None] * 3
    read_together(files, [(0, 9, 20, 0), (0, 40, 20, 1), (0, 9, 20, 2)], images)
    assert images == [data[0][9:29], data[0][40:60], data[0][9:29]]
    assert sorted(reads) == [9, 40]


def test_one_stretch_in_eight_is_asked_whether_it_is_cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs a microsecond, and a warm batch is not to pay for a disk that it does not need."""
    asked: list[int] = []
    monkeypatch.setattr(handles.LocalHandle, "is_cold", lambda _, offset, length: asked.append(offset))
    files, _ = files_of(tmp_path)
    read_together(files, some(80), [None] * 80)
    assert len(asked) == 10
