from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from builder.base.errors import OutputError
from builder.hub import items as items_module
from builder.hub.client import RemoteFile
from builder.hub.items import Digests, Item, bytes_item, git_blob
from builder.hub.uploads import Uploads


def item(tmp_path: Path, content: bytes = b"content", digest: str = "d") -> Item:
    path = tmp_path / "file"
    path.write_bytes(content)
    return Item("data/file", len(content), file=str(path), digest=digest)


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    plain = items_module._digests

    def counted(path: str) -> tuple[str, str]:
        seen.append(path)
        return plain(path)

    monkeypatch.setattr(items_module, "_digests", counted)
    return seen


def test_a_file_is_read_once_and_remembered_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, one = reads(monkeypatch), item(tmp_path)
    for _ in range(2):
        digests = Digests(str(tmp_path / "work" / "sha256.jsonl"))
        assert [digests.of(one) for _ in range(2)] == [hashlib.sha256(b"content").hexdigest()] * 2
    assert len(seen) == 1


@pytest.mark.parametrize("what", ["bytes", "time", "manifest"])
def test_a_file_that_may_have_changed_is_read_again(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, one = reads(monkeypatch), item(tmp_path)
    digests = Digests(str(tmp_path / "sha256.jsonl"))
    digests.of(one)
    if what == "bytes":
        os.truncate(one.file, 3)
    elif what == "time":
        os.utime(one.file, ns=(1, 1))
    else:
        one = Item(one.path, one.size, file=one.file, digest="other")
    assert digests.of(one) == hashlib.sha256(Path(one.file).read_bytes()).hexdigest()
    assert len(seen) == 2


@pytest.mark.parametrize("cut", [1, 30, 5_000])
def test_a_memory_cut_by_a_kill_forgets_its_last_line_only(
    cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, path = item(tmp_path), tmp_path / "sha256.jsonl"
    other = Item("other", 7, file=one.file, digest="e")
    third = Item("third", 7, file=one.file, digest="f")
    digests = Digests(str(path))
    digests.of(one)
    kept = path.stat().st_size
    digests.of(other)
    os.truncate(path, max(kept, path.stat().st_size - cut))
    Digests(str(path)).of(third)  # written behind what was cut
    seen = reads(monkeypatch)
    again = Digests(str(path))
    assert {again.of(each) for each in (one, third)} == {hashlib.sha256(b"content").hexdigest()}
    assert seen == []
    again.of(other)
    assert len(seen) == 1


def test_a_folder_that_cannot_be_written_only_costs_reading_again(tmp_path: Path) -> None:
    (tmp_path / "work").write_bytes(b"a file, where a folder should be")
    assert Digests(str(tmp_path / "work" / "x" / "sha256.jsonl")).of(item(tmp_path))


def test_a_file_that_changes_under_the_reading_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = item(tmp_path)

    def meddled(path: str) -> tuple[str, str]:
        os.truncate(path, 1)
        return "x", "x"

    monkeypatch.setattr(items_module, "_digests", meddled)
    with pytest.raises(OutputError, match="changed while it was read"):
        Digests(str(tmp_path / "d")).of(one)


def test_a_file_that_is_gone_is_an_error_unless_its_sha256_is_known(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot read"):
        Digests(str(tmp_path / "d")).of(Item("x", 1, file=str(tmp_path / "nothing")))
    assert Digests(str(tmp_path / "d")).of(Item("x", 1, sha256="ab")) == "ab"


def test_a_file_that_is_not_the_converted_one_is_never_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = replace(item(tmp_path, digest=xxhash.xxh3_128_hexdigest(b"content")), checked=True)
    wrong = replace(right, digest="0" * 32)
    digests = Digests(str(tmp_path / "d"))
    digests.of(replace(wrong, checked=False))  # as --verify-only does
    with pytest.raises(OutputError, match=r"file differs from the file that laion6m convert wrote. Delete it"):
        digests.of(wrong)
    digests.of(replace(right, checked=False))
    seen = reads(monkeypatch)
    assert digests.of(right) == hashlib.sha256(b"content").hexdigest()
    assert seen == [], "what was found sound need not be read again"


def test_small_files_go_by_gits_id_and_large_ones_by_sha256(tmp_path: Path) -> None:
    hello = bytes_item("a", b"hello\n")
    assert git_blob(hello) == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    assert git_blob(item(tmp_path, b"hello\n")) == git_blob(hello)
    small = RemoteFile(6, "", git_blob(hello))
    large = RemoteFile(6, hello.sha256, "id of the pointer")
    digests = Digests(str(tmp_path / "sha256.jsonl"))
    assert digests.same(hello, small)
    assert digests.same(hello, large)
    assert not digests.same(hello, None)
    assert not digests.same(hello, RemoteFile(7, hello.sha256, ""))
    assert not digests.same(hello, RemoteFile(6, "0" * 64, ""))
    assert not digests.same(hello, RemoteFile(6, "", "0" * 40))


def test_several_are_on_their_way_at_a_time() -> None:
    together = threading.Barrier(3, timeout=10)
    uploads = Uploads(lambda _: together.wait() and None, 3)
    for number in range(6):
        uploads.submit(Item(str(number), 0))
    sent = {uploads.take().path for _ in range(6)}  # type: ignore[union-attr]
    assert sent == set("012345")
    assert uploads.take() is None
    uploads.stop()


def test_what_goes_wrong_is_raised_where_files_are_taken_and_no_further_one_is_begun() -> None:
    begun: list[str] = []
    told = threading.Event()

    def send(each: Item) -> None:
        begun.append(each.path)
        assert told.wait(30)
        raise OutputError("full")

    uploads = Uploads(send, 1)
    for number in range(5):
        uploads.submit(Item(str(number), 0))
    assert uploads.take(wait=False) is None, "not yet"
    told.set()
    for _ in range(2):
        with pytest.raises(OutputError, match="full"):
            uploads.take()
    uploads.stop()
    for thread in threading.enumerate():
        if thread.name.startswith("laion6m-push"):
            thread.join(30)
    assert len(begun) == 1
