from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from builder.base.errors import ChangedFileError, DamagedFileError, IndexMismatchError, SourceError
from builder.base.schema import IndexedFile
from builder.read import handles
from builder.read.handles import Handles, LocalStorage


def files_in(folder: Path, count: int) -> Handles:
    """Files 0, 1, … of 100 bytes, each of its own number."""
    entries = []
    for number in range(count):
        (folder / f"{number}.tar").write_bytes(bytes([number % 256]) * 100)
        entries.append(IndexedFile(f"{number}.tar", "tar", 0, {"size": 100}))
    return Handles(str(folder), entries)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_bytes_are_read_by_file_and_place(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(range(100)))
    files = Handles(str(tmp_path), [IndexedFile("a.tar", "tar", 0, {"size": 100})])
    assert files.read(0, 10, 5) == bytes([10, 11, 12, 13, 14])
    assert files.read(0, 100, 0) == b""
    assert files.read(0, 95, 5) == bytes([95, 96, 97, 98, 99])


@pytest.mark.parametrize(
    ("offset", "size"), [(-1, 5), (0, 101), (100, 1), (50, -1), (2**63, 1), (-(2**63), 1), (0, 2**63), (2**62, 2**62)]
)
def test_what_lies_outside_of_a_file_is_an_error(offset: int, size: int, tmp_path: Path) -> None:
    files = files_in(tmp_path, 1)
    with pytest.raises(IndexMismatchError, match=r"0\.tar"):
        files.read(0, offset, size)


@pytest.mark.parametrize("number", [-1, 3, 2**31 - 1, -(2**31)])
def test_a_number_that_is_no_files_is_damage_of_the_index(number: int, tmp_path: Path) -> None:
    files = files_in(tmp_path, 3)
    for touch in (lambda: files.read(number, 0, 1), lambda: files.get(number)):
        with pytest.raises(DamagedFileError, match=f"file {number} of 3"):
            touch()


def test_few_files_are_open_at_a_time_and_evicted_ones_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handles, "MOST_OPEN", 5)
    files = files_in(tmp_path, 40)
    before = open_descriptors()
    for _ in range(2):
        for number in range(40):
            assert files.read(number, 99, 1) == bytes([number])
            assert open_descriptors() <= before + 5
    held = files.get(0)
    for number in range(1, 20):
        files.get(number)
    assert held.read_at(0, 1) == b"\0"  # evicted, but somebody reads from it
    assert open_descriptors() == before + 6
    del held
    assert open_descriptors() == before + 5
    del files
    assert open_descriptors() == before


def test_a_file_in_use_is_not_opened_again(tmp_path: Path) -> None:
    files = files_in(tmp_path, 2)
    assert files.get(1) is files.get(1)


def test_nothing_is_mapped(tmp_path: Path) -> None:
    files = files_in(tmp_path, 2)
    files.read(0, 0, 1)
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]


def overwrite(path: Path) -> None:
    """As ``cp`` and ``rsync --inplace`` do."""
    path.write_bytes(b"\xff" * path.stat().st_size)


def replace(path: Path) -> None:
    """As ``mv`` and ``rsync`` do: what is open stays."""
    path.with_suffix(".new").write_bytes(b"\xff" * path.stat().st_size)
    path.with_suffix(".new").replace(path)


def restore_time(path: Path) -> None:
    """As ``cp -p`` does of a file of another size."""
    time = path.stat().st_mtime_ns
    path.write_bytes(bytes(3 * path.stat().st_size))
    os.utime(path, ns=(time, time))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (overwrite, "it was written to"),
        (os.utime, "it was written to"),  # that nothing else was done, nobody can know
        (restore_time, "300 bytes, 100 when it was opened"),
        (lambda path: os.truncate(path, 50), "50 bytes, 100 when it was opened"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "101 bytes, 100 when it was opened"),
        (replace, None),
        (Path.unlink, None),
        (lambda path: path.chmod(0o400), None),
    ],
)
def test_a_file_that_changes_while_it_is_open_never_gives_other_bytes(
    change: Callable[[Path], object], words: str | None, tmp_path: Path
) -> None:
    files = files_in(tmp_path, 2)
    assert files.read(1, 0, 2) == b"\1\1"
    change(tmp_path / "1.tar")
    for _ in range(2):
        if words is None:
            assert files.read(1, 0, 2) == b"\1\1"
        else:
            with pytest.raises(IndexMismatchError, match=words):
                files.read(1, 0, 2)
            with pytest.raises(IndexMismatchError, match=words):
                files.current(1)
    assert files.read(0, 0, 2) == b"\0\0"


@pytest.mark.parametrize("change", [overwrite, replace])
def test_a_file_that_changed_while_it_was_closed_never_gives_other_bytes(
    change: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many files few are open; one of this size has no footer to know it by."""
    monkeypatch.setattr(handles, "MOST_OPEN", 1)
    files = files_in(tmp_path, 2)
    assert files.read(0, 0, 2) == b"\0\0"
    assert files.read(1, 0, 2) == b"\1\1"
    change(tmp_path / "0.tar")
    for _ in range(2):
        with pytest.raises(ChangedFileError, match=r"0\.tar was changed while the dataset was open"):
            files.read(0, 0, 2)


def test_a_file_whose_time_was_set_is_read_on_where_its_bytes_can_be_proved(tmp_path: Path) -> None:
    """Where scratch disks are swept, people touch their files."""
    names = []
    files = files_in(tmp_path, 1)
    proved = Handles(files.root, files.files, None, lambda name, handle: bool(names.append(name)) or handle.size == 100)
    assert proved.read(0, 0, 2) == b"\0\0"
    for time in (5, 6):
        os.utime(tmp_path / "0.tar", ns=(time, time))
        assert proved.read(0, 0, 2) == b"\0\0"
        assert proved.read(0, 3, 2) == b"\0\0"
        assert proved.current(0).read_at(0, 1) == b"\0"
    assert names == ["0.tar", "0.tar"]


def test_a_file_that_is_written_twice_within_a_tick_of_the_clock_is_known_to_have_changed(tmp_path: Path) -> None:
    for _ in range(5):
        files = files_in(tmp_path, 1)
        assert files.read(0, 0, 1) == b"\0"
        overwrite(tmp_path / "0.tar")
        with pytest.raises(ChangedFileError):
            files.read(0, 0, 1)


def test_nothing_open_travels(tmp_path: Path) -> None:
    files = files_in(tmp_path, 2)
    files.get(0)
    before = open_descriptors()
    back = pickle.loads(pickle.dumps(files))
    assert open_descriptors() == before
    assert back.read(1, 0, 2) == b"\1\1"


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ({"size": 100}, None),
        ({}, None),
        ({"size": 99}, "100 bytes, 99 when it was indexed"),
        ({"size": 100, "mtime_ns": 12}, "modified since it was indexed"),
        ({"size": 100, "footer": "00"}, "it has another footer"),  # and it is no Parquet file at all
    ],
)
def test_a_file_is_compared_with_what_the_index_noted(check: dict[str, Any], words: str | None, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(100))
    files = Handles(str(tmp_path), [IndexedFile("a.tar", "tar", 0, check)])
    if words is None:
        assert files.read(0, 0, 1) == b"\0"
        return
    with pytest.raises(IndexMismatchError, match=words):
        files.read(0, 0, 1)


def test_a_parquet_file_is_known_by_its_footer(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": pa.array([1, 2, 3])}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    length = int.from_bytes(data[-8:-4], "little") + 8
    check = {"size": len(data), "footer": xxhash.xxh3_128_hexdigest(data[-length:])}
    files = Handles(str(tmp_path), [IndexedFile("a.parquet", "parquet", 3, check)])
    assert files.read(0, 0, 4) == b"PAR1"
    for spoiled in (
        data[:-length] + bytes([data[-length] ^ 1]) + data[1 - length :],
        data[:-8] + b"\xff\xff\xff\x7fPAR1",
    ):
        (tmp_path / "a.parquet").write_bytes(spoiled)
        with pytest.raises(IndexMismatchError, match="footer"):
            Handles(str(tmp_path), files.files).read(0, 0, 4)


def test_a_file_that_is_not_there_is_an_error_each_time(tmp_path: Path) -> None:
    files = files_in(tmp_path, 1)
    (tmp_path / "0.tar").unlink()
    for _ in range(2):
        with pytest.raises(IndexMismatchError, match="No such file"):
            files.read(0, 0, 1)
    (tmp_path / "0.tar").write_bytes(bytes(100))
    assert files.read(0, 0, 1) == b"\0"


class Dribble:
    """A file that gives a few bytes at a time, as network storage may."""

    name, size, mtime_ns, state = "slow", 100, None, (100, None)

    def read_at(self, offset: int, length: int) -> bytes:
        return bytes(range(offset, min(offset + min(length, 3), 60)))


class SlowStorage(LocalStorage):
    def open(self, path: str) -> Any:
        return Dribble()


def test_short_reads_go_on_until_all_is_there_or_the_file_ends(tmp_path: Path) -> None:
    files = Handles(str(tmp_path), [IndexedFile("slow", "tar", 0, {"size": 100})], SlowStorage())
    assert files.read(0, 7, 50) == bytes(range(7, 57))
    with pytest.raises(IndexMismatchError, match="ends at byte 60"):
        files.read(0, 20, 50)


def test_members_of_a_folder_are_read_whole_and_only_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "raw" / "0").mkdir(parents=True)
    (tmp_path / "raw" / "0" / "a.jpg").write_bytes(b"image")
    files = Handles(str(tmp_path), [IndexedFile("raw/0", "folder", 0, {})])
    assert files.read_member(0, "0/a.jpg", 5, 99) == b"image"
    with pytest.raises(IndexMismatchError, match="5 bytes, 6 when it was indexed"):
        files.read_member(0, "0/a.jpg", 6, 0)
    with pytest.raises(IndexMismatchError, match="No such file"):
        files.read_member(0, "0/b.jpg", 6, 0)


def test_where_offsets_of_a_folder_are_times_another_time_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "raw" / "0").mkdir(parents=True)
    (tmp_path / "raw" / "0" / "a.jpg").write_bytes(b"image")
    os.utime(tmp_path / "raw" / "0" / "a.jpg", ns=(0, 0))  # as reproducible archives have it
    files = Handles(str(tmp_path), [IndexedFile("raw/0", "folder", 0, {"offset": "mtime_ns"})])
    assert files.read_member(0, "0/a.jpg", 5, 0) == b"image"
    with pytest.raises(IndexMismatchError, match="modified since it was indexed"):
        files.read_member(0, "0/a.jpg", 5, 1)


def test_threads_that_open_and_evict_at_once_read_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles, "MOST_OPEN", 3)
    files = files_in(tmp_path, 24)
    wrong: list[object] = []

    def read(step: int) -> None:
        try:
            numbers = [number % 24 for number in range(0, 24 * step, step)]
            wrong.extend(number for number in numbers if files.read(number, 5, 2) != bytes([number] * 2))
        except Exception as error:  # noqa: BLE001 - in a thread: to be looked at below
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(step,)) for step in (1, 5, 7, 11, 13, 17, 19, 23)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_path_that_can_be_none_is_an_error_of_ours(tmp_path: Path) -> None:
    """As a damaged index may name one."""
    files = Handles(str(tmp_path), [IndexedFile("raw/0", "folder", 0, {})])
    with pytest.raises(IndexMismatchError):
        files.read_member(0, "a\0b", 5, 0)


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(SourceError, match="not a file"):
        handles.LocalHandle(str(tmp_path / "a.tar"))


def test_a_folder_where_a_file_was_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "a.tar").mkdir()
    files = Handles(str(tmp_path), [IndexedFile("a.tar", "tar", 0, {})])
    with pytest.raises(IndexMismatchError, match=r"a\.tar.*directory"):
        files.read(0, 0, 1)


@pytest.mark.skipif(not handles.SAYS_COLD, reason="this system has no RWF_NOWAIT")
def test_what_was_just_read_is_not_cold_and_what_left_the_page_cache_is(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(1 << 20))
    handle = handles.LocalHandle(str(path))
    handle.read_at(0, 1 << 20)
    assert not handle.is_cold(1000, 100_000)
    fd = os.open(path, os.O_RDONLY)
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    try:
        os.preadv(handle.fileno(), [bytearray(1)], 50_000, os.RWF_NOWAIT)
    except BlockingIOError:
        assert handle.is_cold(0, 100_000)
    except OSError:  # in memory: there is no disk to be waited for
        assert not handle.is_cold(0, 100_000)
