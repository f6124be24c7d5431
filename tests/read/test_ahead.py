"""Announced rows come into the page cache before they are read."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder import open_dataset
from builder.base.schema import IndexedFile
from builder.conversion.convert import convert
from builder.read import batches, view
from builder.read.batches import NEAR, PIECE, Piece, ReadAhead, Wanted, pieces_of
from builder.read.handles import Handles, LocalHandle
from builder.read.reader import Reader
from builder.read.view import View
from tests.sources import make_source

SIZE = 100_000


@pytest.mark.parametrize(
    ("wanted", "pieces"),
    [
        ([], []),
        ([(0, 10, 5, 0)], [(0, 10, 5)]),
        ([(0, 500, 5, 0), (0, 10, 5, 1)], [(0, 10, 495)]),  # near each other, in file order
        ([(0, 0, 10, 0), (0, 10 + NEAR, 10, 1)], [(0, 0, 20 + NEAR)]),
        ([(0, 0, 10, 0), (0, 11 + NEAR, 10, 1)], [(0, 0, 10), (0, 11 + NEAR, 10)]),  # a byte too far
        ([(1, 0, 10, 0), (0, 10, 10, 1)], [(0, 10, 10), (1, 0, 10)]),  # another file
        ([(0, 7, PIECE + 1, 0)], [(0, 7, PIECE), (0, 7 + PIECE, 1)]),  # a row larger than a piece
    ],
)
def test_rows_near_each_other_share_a_piece(wanted: list[Wanted], pieces: list[Piece]) -> None:
    assert pieces_of(wanted) == pieces


class Disk:
    """Files whose bytes are all cold until they are read ahead."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, cold: bool = True) -> None:
        for number in range(2):
            (folder / f"{number}.tar").write_bytes(bytes(SIZE))
        self.files = Handles(str(folder), [IndexedFile(f"{n}.tar", "tar", 0, {"size": SIZE}) for n in range(3)])
        self.read: list[tuple[str, int, int]] = []
        self.done = threading.Semaphore(0)
        monkeypatch.setattr(LocalHandle, "is_cold", lambda *_: cold)
        monkeypatch.setattr(LocalHandle, "read_into", self._read_into)

    def _read_into(self, buffer: memoryview, offset: int) -> int:
        self.read.append((threading.current_thread().name, offset, len(buffer)))
        self.done.release()
        return len(buffer)

    def wait(self, pieces: int) -> list[tuple[int, int]]:
        for _ in range(pieces):
            assert self.done.acquire(timeout=30)
        return sorted((offset, size) for _, offset, size in self.read)


def places(rows: Any) -> list[Wanted]:
    """Rows of 10 bytes that are too far apart to share a piece."""
    return [(row % 2, row * 100, 10, row) for row in rows]


def test_announced_rows_are_read_in_other_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "NEAR", 0)
    disk = Disk(tmp_path, monkeypatch)
    ReadAhead(disk.files).announce(range(20), places)
    assert disk.wait(20) == [(row * 100, 10) for row in range(20)]
    assert {name for name, _, _ in disk.read} == {"laion6m-ahead"}


def test_rows_in_the_page_cache_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only a few of them are checked."""
    disk, asked = Disk(tmp_path, monkeypatch, cold=False), []
    ReadAhead(disk.files).announce(range(100), lambda rows: asked.extend(rows) or places(rows))
    assert len(asked) == 8
    assert disk.read == []


def test_a_file_that_is_not_there_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads its rows gets the error."""
    disk = Disk(tmp_path, monkeypatch)
    reading = ReadAhead(disk.files)
    reading.announce([0], lambda _: [(2, 0, 10, 0)])
    reading.add([(2, 0, 10), (0, 50, 10)])
    assert disk.wait(1) == [(50, 10)]


def test_if_reading_cannot_keep_up_the_oldest_pieces_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_WAITING", 5)
    disk = Disk(tmp_path, monkeypatch)
    ReadAhead(disk.files).add([(0, offset, 1) for offset in range(100)])
    assert disk.wait(5) == [(offset, 1) for offset in range(95, 100)]


def test_a_forked_process_reads_with_threads_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(tmp_path, monkeypatch)
    reading = ReadAhead(disk.files)
    reading._threads, reading._process = batches.THREADS, os.getpid() - 1  # as a child finds it
    reading.add([(0, 50, 10)])
    assert disk.wait(1) == [(50, 10)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("ahead")
    source = make_source(folder / "src", per_shard=10)
    convert(str(source.path), str(folder / "out"), num_proc=1, quiet=True)
    return open_dataset(folder / "out")


def announced_by(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    said: list[list[int]] = []
    monkeypatch.setattr(reader._ahead, "announce", lambda rows, places: said.append(list(rows)))
    return said


def test_iteration_announces_each_later_row_once(dataset: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "_AHEAD", 3)
    monkeypatch.setattr(view, "_ANNOUNCED", 6)
    said = announced_by(dataset, monkeypatch)
    rows = np.arange(len(dataset))[::-1]
    for _ in View(dataset, rows):
        pass
    assert [row for some in said for row in some] == rows[3:].tolist()
    assert all(type(row) is int and len(some) <= 6 for some in said for row in some)


def test_a_view_announces_its_own_rows(dataset: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    said = announced_by(dataset, monkeypatch)
    dataset[4:].announce(np.array([0, -1, 2]))
    with pytest.raises(IndexError):
        dataset[4:].announce([len(dataset) - 4])
    assert said == [[4, len(dataset) - 1, 6]]


def test_places_are_those_of_the_images(dataset: Reader) -> None:
    for (file, offset, size, _), sample in zip(dataset._places(range(len(dataset))), dataset, strict=True):
        assert dataset._files.read(file, offset, size) == sample.image


def test_a_pickled_reader_has_nothing_announced(dataset: Reader) -> None:
    dataset.announce([0, 1])
    assert pickle.loads(pickle.dumps(dataset))[1].image == dataset[1].image
