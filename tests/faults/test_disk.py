"""Refusals of the system at the odd places: locks, tidying up, the terminal. Each was a traceback once."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from builder.base.errors import WriteError
from builder.conversion.convert import convert
from builder.engines.progress import Progress
from builder.store import ledger as module
from builder.store.ledger import Ledger
from builder.store.output import OutputFile, write_file
from tests.outputs import environment, leftovers, output_bytes
from tests.sources import Source, make_source

AS_ROOT = os.geteuid() == 0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_source(tmp_path_factory.mktemp("source") / "src", faults=("blank_caption",))


def refuse(patch: pytest.MonkeyPatch, where: Any, name: str, code: int) -> None:
    def refusal(*arguments: Any) -> Any:
        raise OSError(code, os.strerror(code))

    patch.setattr(where, name, refusal)


@pytest.mark.parametrize(
    ("where", "name", "code"),
    [
        (os, "pwrite", errno.ENOSPC),  # who holds the lock is noted in it
        (os, "ftruncate", errno.EIO),
        (module.fcntl, "flock", errno.ENOLCK),  # a network disk without locks
        (module.fcntl, "flock", errno.ENOSYS),
    ],
)
def test_a_lock_that_cannot_be_taken_says_why(
    where: Any, name: str, code: int, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        refuse(patch, where, name, code)
        with pytest.raises(WriteError, match=os.strerror(code)):
            convert(str(source.path), str(tmp_path / "out"), num_proc=1, quiet=True)
    convert(str(source.path), str(tmp_path / "out"), num_proc=1, quiet=True)
    assert leftovers(tmp_path / "out") == []


def test_a_lock_whose_file_cannot_be_removed_is_let_go_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(str(tmp_path))
    with monkeypatch.context() as patch, ledger.locked(0, 4):
        refuse(patch, os, "unlink", errno.EROFS)
    assert (tmp_path / ".laion6m" / "locks" / "0-4").exists()
    with ledger.locked(2, 3):
        pass


def test_giving_up_a_file_does_not_hide_why_it_was_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.close

    def close(handle: int) -> None:
        real(handle)
        raise OSError(errno.EIO, "closing")

    file = OutputFile(str(tmp_path / "a"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close)
        file.abort()
        refuse(patch, os, "writev", errno.ENOSPC)
        with pytest.raises(WriteError, match="No space left"):
            write_file(str(tmp_path / "b"), [b"data"])
    assert not (tmp_path / "b").exists()


def test_a_shard_is_on_disk_under_its_name_before_its_receipt_is_written(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a power cut leaves no receipt of a shard that is not there."""
    events: list[tuple[str, str]] = []
    sync, replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        sync(handle)
        events.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))))

    def rename(old: str, new: str, **options: Any) -> None:
        replace(old, new, **options)
        events.append(("name", os.path.basename(new)))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    convert(str(source.path), str(tmp_path / "out"), num_proc=1, quiet=True)
    shard, receipt = "train-00000-of-00001.parquet", ("name", "00000.json")
    at = events.index(("name", shard))
    assert any(kind == "sync" and f"-{shard}." in name for kind, name in events[:at])  # still under a temporary name
    assert events[at + 1] == ("sync", "data")
    written = events[at + 2 : events.index(receipt)]
    assert [name for kind, name in written if kind == "name"] == ["00000.index.arrow", "00000.rejects.arrow"]
    assert events[events.index(receipt) + 1] == ("sync", "receipts")


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "the terminal is gone")

    def isatty(self) -> bool:
        return True


def test_a_terminal_that_goes_away_stops_the_bar_and_not_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Gone())
    progress = Progress("convert", 10, 100)
    for _ in range(3):
        progress._show(1.0)
    progress.update(5, 50)
    progress.finish()
    assert (progress.images, progress.bytes) == (5, 50)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_on_a_full_disk_does_not_lose_the_conversion(source: Source, tmp_path: Path) -> None:
    convert(str(source.path), str(tmp_path / "whole"), num_proc=1, quiet=True)
    script = (
        "import sys; from builder.cli.commands import main; sys.stderr = open('/dev/full', 'w'); "
        "import builder.engines.progress as p; p._LINE_EVERY = 0.0; main(sys.argv[1:])"
    )
    subprocess.run(
        [sys.executable, "-c", script, "convert", source.path, tmp_path / "out", "--num-proc", "1"],
        env=environment(),
        stderr=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    assert output_bytes(tmp_path / "out") == output_bytes(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(AS_ROOT and not shutil.which("setpriv"), reason="root writes into read-only folders")
@pytest.mark.parametrize("place", [".", "data", "meta", ".laion6m", ".laion6m/tmp"])
def test_a_folder_that_cannot_be_written_is_named(place: str, source: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = out / place
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "builder", "convert", source.path, out, "--num-proc", "1"]
    if AS_ROOT:  # without what sets root above the permissions of its own files
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    folder.chmod(0o555)
    try:
        ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    finally:
        folder.chmod(0o755)
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert f"cannot write {out}" in ran.stderr
    assert "Permission denied" in ran.stderr
    assert not (out / "meta" / "manifest.json").exists()
    convert(str(source.path), str(out), num_proc=1, quiet=True)
    assert leftovers(out) == []
