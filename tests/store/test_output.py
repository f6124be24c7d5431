"""A file has its final name only when it is whole; a disk that refuses is a WriteError that names the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.base.errors import WriteError
from builder.store import output
from builder.store.output import ArrowSink, OutputFile, make_folder, publish, write_file


@settings(max_examples=40)
@given(st.lists(st.lists(st.binary(max_size=40), max_size=6), max_size=6))
def test_what_is_written_is_what_is_digested(
    tmp_path_factory: pytest.TempPathFactory, writes: list[list[bytes]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "written"
    file = OutputFile(str(path))
    for pieces in writes:
        file.write([memoryview(piece) if number % 2 else piece for number, piece in enumerate(pieces)])
    whole = b"".join(piece for pieces in writes for piece in pieces)
    assert file.position == len(whole)
    assert file.close() == xxhash.xxh3_128_hexdigest(whole)
    assert path.read_bytes() == whole


def test_more_pieces_than_one_call_takes(tmp_path: Path) -> None:
    pieces = [b"%d," % number for number in range(5000)]
    file = OutputFile(str(tmp_path / "x"))
    file.write(pieces)
    file.close()
    assert (tmp_path / "x").read_bytes() == b"".join(pieces)


@settings(max_examples=40)
@given(st.lists(st.binary(max_size=30), min_size=1, max_size=8), st.integers(0, 25), st.integers(1, 7))
def test_a_system_that_takes_only_part_gets_the_rest(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], first: int, later: int
) -> None:
    """writev stops early at a signal, a full disk or 2 GiB."""
    path = tmp_path_factory.getbasetemp() / "part"
    real = os.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "writev", lambda fd, buffers: real(fd, b"".join(buffers)[:first]))
        patch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:later]))
        file = OutputFile(str(path))
        file.write(pieces)
    file.close()
    assert path.read_bytes() == b"".join(pieces)


def test_a_full_disk_says_so_and_where(tmp_path: Path) -> None:
    path = tmp_path / "full"
    path.symlink_to("/dev/full")
    file = OutputFile(str(path))
    with pytest.raises(WriteError, match="No space left on device") as caught:
        file.write([b"x"])
    assert caught.value.args[0] == str(path)
    file.abort()


@pytest.mark.parametrize("call", ["writev", "fsync", "close"])
def test_a_refusal_at_any_call_is_a_write_error_and_the_handle_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Network disks report a full quota only when a file is synced or closed."""
    before = os.listdir("/proc/self/fd")
    real_close = os.close

    def refuse(fd: int, *_: object) -> Any:
        if call == "close":
            real_close(fd)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    file = OutputFile(str(tmp_path / "x"))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(WriteError, match="Disk quota exceeded"):
            write_and_close(file)
    file.abort()
    file.abort()  # once more does no harm, and closes nobody else's file
    assert os.listdir("/proc/self/fd") == before


def write_and_close(file: OutputFile) -> None:
    file.write([b"x"])
    file.close()


@pytest.mark.parametrize("name", ["missing/x", "file/x", "folder"])
def test_a_place_that_cannot_be_written_is_a_write_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError) as caught:
        OutputFile(str(tmp_path / name))
    assert caught.value.args[0] == str(tmp_path / name)


def test_publishing_replaces_what_was_there_at_once(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "deep/er/x").write_text("old")
    publish(str(tmp_path / "new"), str(tmp_path / "deep/er/x"))
    assert (tmp_path / "deep/er/x").read_text() == "new"
    assert not (tmp_path / "new").exists()


def test_publishing_makes_the_folder_and_syncs_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    write_file(str(tmp_path / "data/x"), [b"1"], str(tmp_path / "tmp/x"))
    assert synced == [str(tmp_path / "tmp/x"), str(tmp_path / "data")]  # the bytes first, then the name


def test_publishing_onto_a_folder_is_a_write_error(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "x/y").mkdir(parents=True)
    with pytest.raises(WriteError):
        publish(str(tmp_path / "new"), str(tmp_path / "x"))


def test_a_file_written_at_once(tmp_path: Path) -> None:
    digest = write_file(str(tmp_path / "a"), [b"one ", b"two"])
    assert digest == xxhash.xxh3_128_hexdigest(b"one two")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("call", ["writev", "fsync", "replace"])
def test_a_file_that_could_not_be_written_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    (tmp_path / "a").write_text("old")
    before = os.listdir("/proc/self/fd")

    def refuse(*_: object) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(WriteError, match="No space left"):
            write_file(str(tmp_path / "a"), [b"new"])
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert os.listdir("/proc/self/fd") == before


def test_an_interrupt_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_file(str(tmp_path / "a"), [b"new"])
    assert list(tmp_path.iterdir()) == []


def test_folders_are_made_or_refused(tmp_path: Path) -> None:
    make_folder(str(tmp_path / "a/b/c"))
    make_folder(str(tmp_path / "a/b/c"))
    assert (tmp_path / "a/b/c").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="file"):
        make_folder(str(tmp_path / "file/x"))


def test_pyarrow_writes_through_the_sink_and_leaves_closing_to_us(tmp_path: Path) -> None:
    import pyarrow as pa

    from builder.base.arrays import from_ipc, string_array

    table = pa.table({"x": string_array(["a", "b"])})
    file = OutputFile(str(tmp_path / "x"))
    with pa.ipc.new_stream(ArrowSink(file), table.schema) as writer:
        writer.write(table)
    file.write([b""])  # still open
    digest = file.close()
    data = (tmp_path / "x").read_bytes()
    assert from_ipc(data).equals(table)
    assert (digest, file.position) == (xxhash.xxh3_128_hexdigest(data), len(data))


def test_the_bound_on_pieces_is_the_system_s() -> None:
    assert os.sysconf("SC_IOV_MAX") >= output._MOST_PIECES
