"""Chained URLs, hosts, credentials: whatever a storage's library raises is one line of ours."""

from __future__ import annotations

import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from builder import open_dataset
from builder.base import storage
from builder.base.errors import Laion6mError, OutputError, SourceError
from builder.base.paths import path_of
from builder.base.storage import Storage, persist
from builder.base.urls import Chain, is_url, join
from builder.conversion.convert import convert
from builder.store.folders import LocalFolder, open_folder
from tests.sources import Source, make_source


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(storage, "_PAUSE", 0.001)
    monkeypatch.setenv("LAION6M_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_source(tmp_path_factory.mktemp("storage") / "source")


@pytest.fixture(scope="module")
def out(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("storage") / "out"
    convert(str(source.path), str(out), num_proc=1, quiet=True)
    return out


# --- names ---


@pytest.mark.parametrize(
    ("root", "joined"),
    [
        ("s3://b/out/", "s3://b/out/a/b"),
        ("memory://", "memory://a/b"),
        ("zip://out::s3://b/x.zip", "zip://out/a/b::s3://b/x.zip"),  # a place in the archive
        ("zip::/x.zip", "zip://a/b::/x.zip"),
        ("simplecache::s3://b/out", "simplecache::s3://b/out/a/b"),  # a cache has no places of its own
        ("simplecache::zip://out::s3://b/x.zip", "simplecache::zip://out/a/b::s3://b/x.zip"),
        ("zip://out::simplecache::s3://b/x.zip", "zip://out/a/b::simplecache::s3://b/x.zip"),
        ("simplecache::/x/out", "simplecache::/x/out/a/b"),
    ],
)
def test_a_name_is_joined_to_the_link_that_names_places(root: str, joined: str) -> None:
    assert is_url(root)
    assert join(root, "a/b") == joined
    assert "::".join(Chain.of(joined).links) == joined


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("file:///a/b", "/a/b"),
        ("file://localhost/a/b", "/a/b"),
        ("file:/a/b", "/a/b"),
        ("local:///a/b", "/a/b"),
        ("local://a/b", "a/b"),
        (Path("/a/b"), "/a/b"),
        ("C:/a", "C:/a"),  # no scheme that anybody knows
        ("data:v2/x", "data:v2/x"),
    ],
)
def test_urls_of_this_machine_are_paths(given: str | Path, path: str) -> None:
    assert path_of(given) == path


@pytest.mark.parametrize("given", ["s3:/bucket/x", "s3:bucket/x", "hf:/datasets/a/b", "https:/host/x", "gs:/b"])
def test_a_url_with_one_slash_is_a_typing_error(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Source
) -> None:
    monkeypatch.chdir(tmp_path)
    scheme, _, rest = given.partition(":")
    for call in (lambda: open_dataset(given), lambda: convert(str(source.path), given, num_proc=1, quiet=True)):
        with pytest.raises(SourceError, match=f"Give {scheme}://{rest.lstrip('/')}"):
            call()
    assert not (tmp_path / f"{scheme}:").exists()
    (tmp_path / f"{scheme}:").mkdir()  # a folder of that name is one
    assert path_of(given) == given


# --- OUT ---


@pytest.mark.parametrize("form", ["file://{}", "file:{}", "local://{}"])
def test_an_out_behind_a_file_url_is_a_folder_here(form: str, source: Source, tmp_path: Path) -> None:
    url = form.format(tmp_path / "deep" / "out")
    convert(str(source.path), url, num_proc=1, quiet=True)
    assert len(open_dataset(tmp_path / "deep" / "out")) == len(open_dataset(url)) == len(source.rows)
    assert isinstance(open_folder(url), LocalFolder)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://127.0.0.1:9/new", "half written"),
        ("sftp://127.0.0.1:9/new", "half written"),
        ("hdfs://127.0.0.1:9/new", "half written"),
        ("https://127.0.0.1:9/new", "can only be read"),
        ("github://a:b@c/new", "can only be read"),
        ("zip://new::x.zip", "can only be read"),
        ("simplecache::memory://new", "can only be read"),
    ],
)
def test_an_out_that_cannot_be_written_whole_is_refused_at_once(
    url: str, words: str, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(OutputError, match=words):
        convert(str(source.path), url, num_proc=1, quiet=True)


# --- chains ---


def test_a_dataset_in_an_archive_reads_as_it_does_beside_it(out: Path, tmp_path: Path) -> None:
    expected = [(sample.key, sample.image, sample.annotation) for sample in open_dataset(out)]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in sorted(out.rglob("*")):
            archive.write(path, f"in/{path.relative_to(out)}")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(out, "in")
    fsspec.filesystem("memory").pipe_file("/chained/x.zip", (tmp_path / "x.zip").read_bytes())
    for url in (
        f"zip://in::{tmp_path}/x.zip",
        f"zip://in::file://{tmp_path}/x.zip",
        "zip://in::memory://chained/x.zip",
        "zip://in::simplecache::memory://chained/x.zip",
        f"simplecache::file://{out}",
        f"tar://in::{tmp_path}/x.tar",
    ):
        reader = open_dataset(url)
        assert [(sample.key, sample.image, sample.annotation) for sample in reader] == expected, url
        assert pickle.loads(pickle.dumps(reader))[1].image == expected[1][1]


def test_two_archives_are_not_taken_for_one(tmp_path: Path) -> None:
    """File systems are kept for their next use: which one is more than a scheme."""
    reader = Storage()
    for name in ("a", "b"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("x", name)
    assert [reader.read(f"zip://x::{tmp_path}/{name}.zip") for name in "abab"] == [b"a", b"b", b"a", b"b"]


def test_two_hosts_are_not_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    class Hosts(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "hosts"
        cachable = False

        def __init__(self, host: str, **options: object) -> None:
            super().__init__(**options)
            self.host = host
            made.append(host)

        @classmethod
        def _get_kwargs_from_urls(cls, path: str) -> dict[str, str]:
            return {"host": path.removeprefix("hosts://").partition("/")[0]}

        def cat_file(self, path: str, **_: object) -> bytes:
            return self.host.encode()

    fsspec.register_implementation("hosts", Hosts, clobber=True)
    reader = Storage()
    assert [reader.read(f"hosts://{host}/x") for host in ("one", "two", "one")] == [b"one", b"two", b"one"]
    assert made == ["one", "two"]


# --- what goes wrong ---


class NoCredentialsError(Exception):
    """As botocore has it."""


class RefusedError(Exception):
    """As aiohttp and httpx have it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


def caused(cause: Exception) -> Exception:
    error = RuntimeError("could not")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("url", "error", "how"),
    [
        ("s3://b/x", NoCredentialsError("Unable to locate credentials"), "AWS_ACCESS_KEY_ID"),
        ("s3://b/x", PermissionError("Forbidden"), '{"anon": true}'),
        ("s3://b/x", caused(NoCredentialsError()), "AWS_PROFILE"),
        ("gs://b/x", RefusedError(401), "GOOGLE_APPLICATION_CREDENTIALS"),
        ("hf://datasets/a/b", RefusedError(403), "HF_TOKEN"),
        ("https://h/x", RefusedError(403), "Authorization"),
        ("zip://x::s3://b/x.zip", NoCredentialsError(), "AWS_ACCESS_KEY_ID"),
    ],
)
def test_missing_credentials_are_said_after_one_try_with_how_to_give_them(url: str, error: Exception, how: str) -> None:
    tries: list[int] = []

    def attempt() -> None:
        tries.append(1)
        raise error

    with pytest.raises(SourceError) as caught:
        persist(url, attempt)
    assert str(caught.value).startswith(f"{url}: {type(error).__name__}: ")
    assert how in str(caught.value)
    assert "\n" not in str(caught.value)
    assert tries == [1]


class RepositoryNotFoundError(Exception):
    """As huggingface_hub has it: of private repositories, too, for whoever may not see them."""


def test_a_repository_that_is_not_shown_may_be_private() -> None:
    def attempt() -> None:
        raise FileNotFoundError("datasets/a/b (repository not found)") from RepositoryNotFoundError()

    with pytest.raises(SourceError, match=r"no such repository. It may be private.*HF_TOKEN"):
        persist("hf://datasets/a/b/meta/index.arrow", attempt)


def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")


@pytest.mark.slow
def test_s3_without_credentials_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    _no_credentials(monkeypatch)
    monkeypatch.setattr(storage.time, "sleep", lambda _: pytest.fail("it was tried again"))
    with pytest.raises(SourceError, match=r"NoCredentialsError.*AWS_ACCESS_KEY_ID"):
        open_dataset("s3://nobody-has-it/x", storage_options={"endpoint_url": "http://127.0.0.1:9"})


def unreachable(kind: str, tmp_path: Path) -> str:
    (tmp_path / "no.zip").write_bytes(b"this is no archive")
    return {
        "ftp": "ftp://127.0.0.1:9/x",
        "cached": "blockcache::ftp://127.0.0.1:9/x",
        "unknown": "nosuch://x",
        "absent archive": f"zip://out::{tmp_path}/nowhere.zip",
        "no archive": f"zip://out::{tmp_path}/no.zip",
        "no tar": f"tar://out::{tmp_path}/no.zip",
        "lacks options": "reference://x",
        "bad": "data://x",
    }[kind]


@pytest.mark.parametrize(
    "kind", ["ftp", "cached", "unknown", "absent archive", "no archive", "no tar", "lacks options", "bad"]
)
@pytest.mark.parametrize("use", ["open", "convert"])
def test_whatever_a_library_raises_is_one_line_of_ours(kind: str, use: str, tmp_path: Path) -> None:
    url = unreachable(kind, tmp_path)
    calls: dict[str, Callable[[], object]] = {
        "open": lambda: open_dataset(url),
        "convert": lambda: convert(url, str(tmp_path / "out"), num_proc=1, quiet=True),
    }
    with pytest.raises(Laion6mError) as caught:
        calls[use]()
    assert "\n" not in str(caught.value)
    assert "://" in str(caught.value)
