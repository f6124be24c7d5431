"""Places behind URLs: options that keep their secrets, file systems of a process's own, what storages say of files."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import fsspec
import pytest

from builder.base.errors import MissingExtraError, OptionError, SourceError
from builder.base.storage import Entry, Storage, persist, state_of
from builder.base.urls import StorageOptions, is_url, join, masked, refuse_url, say
from tests.servers import FileServer, s3_server


@pytest.mark.parametrize(
    ("text", "scheme", "expected"),
    [
        ("{}", "s3", {}),
        ('{"key": "a"}', "s3", {"key": "a"}),
        ('{"s3": {"key": "a"}, "hf": {"token": "b"}}', "s3", {"key": "a"}),
        ('{"s3": {"key": "a"}, "hf": {"token": "b"}}', "hf", {"token": "b"}),
        ('{"s3": {"key": "a"}}', "gs", {}),  # the other's keys are no business of this one
        ('{"client_kwargs": {"endpoint_url": "u"}}', "s3", {"client_kwargs": {"endpoint_url": "u"}}),
    ],
)
def test_options_are_of_all_file_systems_or_by_scheme(text: str, scheme: str, expected: dict[str, object]) -> None:
    assert StorageOptions(text).for_scheme(scheme) == expected


def test_options_show_no_secret_and_travel() -> None:
    options = StorageOptions.of({"secret": "hunter2"})
    assert "hunter2" not in repr(options)
    assert pickle.loads(pickle.dumps(options)) == options
    assert pickle.loads(pickle.dumps(Storage(options))).options == options
    assert len({options, StorageOptions.of({"secret": "hunter2"}), StorageOptions()}) == 2


@pytest.mark.parametrize("text", ["", "[1]", "nonsense"])
def test_options_that_are_no_object_are_refused_without_being_shown(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        StorageOptions(text)
    assert "nonsense" not in str(caught.value)


def test_a_name_is_joined_as_its_root_wants_it() -> None:
    assert join("s3://b/out/", "meta/index.arrow") == "s3://b/out/meta/index.arrow"
    assert join("out", "meta/index.arrow") == os.path.join("out", "meta", "index.arrow")
    assert [is_url(each) for each in ("s3://b", "/a/b", "C:\\a", "a:b")] == [True, False, False, False]


@pytest.mark.slow
def test_what_is_said_of_an_object_is_the_same_in_a_listing_and_alone_and_changes_with_it() -> None:
    with s3_server("photos") as options:
        storage = Storage(options)
        system, _ = storage.system("s3://photos")
        system.pipe_file("photos/a/one.tar", b"one")
        system.pipe_file("photos/a/deep/two.tar", b"second")
        entries = {entry.name: entry for entry in storage.entries("s3://photos/a")}
        assert entries["one.tar"] == storage.look("s3://photos/a/one.tar")
        assert (entries["one.tar"].size, entries["deep"].is_folder) == (3, True)
        assert state_of("s3://photos/a/one.tar", storage.options) == (3, entries["one.tar"].version)
        system.pipe_file("photos/a/one.tar", b"eno")
        assert storage.look("s3://photos/a/one.tar").version != entries["one.tar"].version
        assert storage.entries("s3://photos/nothing") == []
        assert storage.read("s3://photos/a/one.tar") == b"eno"
        assert storage.read("s3://photos/a/none.tar") is None


def test_a_file_here_has_its_size_and_time(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert state_of(str(tmp_path / "a"), StorageOptions()) == (5, (tmp_path / "a").stat().st_mtime_ns)
    with pytest.raises(FileNotFoundError):
        state_of(str(tmp_path / "b"), StorageOptions())


def test_a_web_server_that_says_nothing_of_a_version_has_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    with FileServer(tmp_path) as server:
        assert Storage().look(f"{server.url}/a") == Entry("a", False, 5, 0)


def test_an_unknown_scheme_is_an_error_with_the_url() -> None:
    with pytest.raises(SourceError, match="nowhere://a"):
        Storage().look("nowhere://a")


def test_options_are_json_that_a_command_line_can_hold() -> None:
    options = {"client_kwargs": {"endpoint_url": "http://127.0.0.1:1"}}
    assert StorageOptions.of(json.loads(json.dumps(options))).for_scheme("s3") == options


def test_nothing_that_gives_access_is_repeated() -> None:
    text = say("PUT https://cdn.hf.co/lfs/12?X-Amz-Signature=abc&y=1 by\n hf_abcDEF123456 failed")
    assert text == "PUT https://cdn.hf.co/lfs/12 by hf_… failed"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@host/bucket is gone", "s3://…@host/bucket is gone"),
        ("https://x/y?X-Amz-Signature=abc&z=1", "https://x/y?X-Amz-Signature=…&z=1"),
        ("https://x/y?sv=1&sig=a%2Fb", "https://x/y?sv=1&sig=…"),
        ("https://x/y?token=abc", "https://x/y?token=…"),
        ("hf_abcDEF123456 was refused", "hf_… was refused"),
        ("half_abcdef123456 is a name", "half_abcdef123456 is a name"),
        ("mail me@example.org", "mail me@example.org"),
    ],
)
def test_nothing_that_gives_access_is_shown(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown


@pytest.mark.parametrize("times", [1, 2])
def test_a_server_that_is_busy_is_asked_again_though_fsspec_says_not_found(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.tar").write_bytes(b"abc")
    with FileServer(tmp_path) as server:
        storage = Storage()
        server.busy_next = 2 * times  # it asks by HEAD and, where that fails, by GET
        entry = storage.ask(f"{server.url}/a.tar", lambda system, path: system.info(path), pause=0.01)
        assert entry["size"] == 3
        server.busy_next = 99
        with pytest.raises(SourceError, match=r"503.*tried 5 times"):
            storage.ask(f"{server.url}/a.tar", lambda system, path: system.info(path), pause=0.01)
        server.busy_next = 0
        with pytest.raises(FileNotFoundError):
            storage.look(f"{server.url}/b.tar")


def test_a_server_that_is_not_there_is_no_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FileServer(tmp_path) as server:
        url = server.url
    with pytest.raises(SourceError, match="tried 5 times"):
        Storage().ask(f"{url}/a.tar", lambda system, path: system.info(path), pause=0.01)


def test_a_missing_package_is_said_at_once_and_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def url_to_fs(url: str, **_: object) -> None:
        asked.append(url)
        raise ImportError("Install it")

    monkeypatch.setattr(fsspec.core, "url_to_fs", url_to_fs)
    with pytest.raises(MissingExtraError, match=r"laion6m\[s3\]"):
        Storage().look("s3://nobody-s/x")
    with pytest.raises(SourceError, match="Install it"):  # none of ours brings that one
        Storage({"never": "opened"}).look("memory://nobody-s/x")
    assert len(asked) == 2


def test_what_another_try_would_not_change_is_tried_once() -> None:
    tries: list[int] = []

    def attempt() -> None:
        tries.append(1)
        raise PermissionError("no")

    with pytest.raises(SourceError, match="PermissionError: no"):
        persist("s3://b/x", attempt, 0.01)
    assert len(tries) == 1


def test_what_works_on_this_machine_s_disks_only_says_so() -> None:
    refuse_url("s3", "verify")
    with pytest.raises(SourceError, match="s3://b/out: laion6m verify works on folders of this machine"):
        refuse_url("s3://b/out", "verify")
