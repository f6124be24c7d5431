"""Client files of petrel and aoss, and reading through S3: a real server on this machine."""

from __future__ import annotations

import json
import os
import pickle
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fsspec.registry import _registry

from builder.base.errors import MissingExtraError, SourceError
from builder.base.urls import StorageOptions
from builder.mm.ceph import S3Client, open_client, read_client_config


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def cluster(endpoint: str, key: str | None = None, secret: str | None = None) -> StorageOptions:
    return StorageOptions.of({"endpoint_url": endpoint, "key": key, "secret": secret, "anon": key is None})


OURS = cluster("http://10.0.0.1:80", "key", "se%cret")


@pytest.mark.parametrize(
    ("text", "clusters"),
    [
        ("[ours]\nendpoint_url=http://10.0.0.1:80\naccess_key = key\nsecret_key= se%cret\n", {"ours": OURS, "": OURS}),
        ("[ours]\nhost_base = 10.0.0.1:80\naccess_key=key\nsecret_key=se%cret", {"ours": OURS, "": OURS}),
        (
            "[DEFAULT]\nendpoint_url = http://10.0.0.1:80\naccess_key=key\nsecret_key=se%cret",
            {"DEFAULT": OURS, "": OURS},
        ),
        (
            "[DEFAULT]\ndefault_cluster = b\n[a]\nhost_base=x\nuse_https=True\n[b]\nendpoint=http://y\n[mc]\ndebug=1",
            {
                "a": cluster("https://x"),
                "b": cluster("http://y"),
                "": cluster("http://y"),
            },
        ),
        (  # two, and none is the default: a path has to name one
            "[a]\nendpoint=http://x\n[b]\nendpoint=http://y",
            {"a": cluster("http://x"), "b": cluster("http://y")},
        ),
    ],
)
def test_a_client_file_names_clusters(text: str, clusters: dict[str, StorageOptions], tmp_path: Path) -> None:
    found = read_client_config(written(tmp_path / "petreloss.conf", text))
    assert found == clusters
    assert "se%cret" not in repr(found)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no section has an endpoint"),
        ("[a]\naccess_key=1", "no section has an endpoint"),
        ("access_key=1", "is not an INI file"),
        ("[DEFAULT]\ndefault_cluster=c\n[a]\nendpoint=http://x", "default_cluster is c, but the clusters are a"),
    ],
)
def test_a_client_file_that_says_nothing_is_an_error(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=problem):
        read_client_config(written(tmp_path / "petreloss.conf", text))


def test_a_client_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        read_client_config(tmp_path / "nothing.conf")


def test_an_installed_client_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def __init__(self, config: str) -> None:
            self.config = config

    for package in ("petrel_client", "aoss_client"):  # upstream looks for aoss first
        module = ModuleType(f"{package}.client")
        module.Client = type(package, (Client,), {})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
        monkeypatch.setitem(sys.modules, f"{package}.client", module)
        client = open_client(tmp_path / "conf")
        assert type(client).__name__ == package
        assert client.config == str(tmp_path / "conf")  # type: ignore[attr-defined]


def test_without_s3fs_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)  # if another test has read from S3
    monkeypatch.setattr("builder.base.storage._systems", {})
    with pytest.raises(MissingExtraError, match=r"laion6m\[s3\]"):
        open_client(written(tmp_path / "conf", "[a]\nendpoint=http://x"))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """moto's S3 server in a process of its own, on a port of 127.0.0.1 that was free."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    pytest.importorskip("moto.server", reason="moto's server is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            assert server.poll() is None, "the server died"
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        yield url
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def config(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    text = f"[DEFAULT]\ndefault_cluster = ours\n[ours]\nhost_base = {endpoint}\naccess_key = a\nsecret_key = b\n"
    return str(written(tmp_path_factory.mktemp("ceph") / "petreloss.conf", text))


def put(config: str, files: dict[str, bytes]) -> None:
    filesystem = S3Client(config)._clusters[""].system("s3://")[0]
    if not filesystem.exists("photos"):
        filesystem.mkdir("photos")
    for name, data in files.items():
        filesystem.pipe_file(f"photos/{name}", data)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # botocore's
def test_objects_come_from_a_real_server(config: str) -> None:
    put(config, {"raw/a b.jpg": b"bytes", "empty": b"", "a::b?c.jpg": b"marks of URLs"})
    client = open_client(config)
    assert client.get("s3://photos/raw/a b.jpg") == b"bytes"
    assert client.get("ours:s3://photos/raw/a b.jpg") == b"bytes"
    assert client.get("s3://photos/a::b?c.jpg") == b"marks of URLs"
    assert pickle.loads(pickle.dumps(client)).get("s3://photos/empty") == b""
    with pytest.raises(FileNotFoundError):
        client.get("s3://photos/nothing")
    with pytest.raises(SourceError, match=r"has no cluster theirs\. Its clusters are ours"):
        client.get("theirs:s3://photos/nothing")
    with pytest.raises(SourceError, match="not of the form"):
        client.get("/photos/nothing")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_client_that_was_used_works_after_a_fork(config: str) -> None:
    put(config, {"x": b"42"})
    client = S3Client(config)
    assert client.get("s3://photos/x") == b"42"
    child = os.fork()
    if child == 0:
        os._exit(42 if client.get("s3://photos/x") == b"42" else 1)
    deadline = time.monotonic() + 60
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    if done[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(done[1]) == 42


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_dataset_reads_images_annotations_and_latents_from_there(config: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the training side needs torch")
    from io import BytesIO

    from PIL import Image

    from builder.mm import CaptionDataset

    class Letters:
        def encode(self, text: str, return_tensors: str, add_special_tokens: bool) -> Any:
            return torch.tensor([[ord(letter) for letter in text]])

    picture, latents = BytesIO(), BytesIO()
    Image.effect_mandelbrot((120, 100), (-2, -1, 1, 1), 50).convert("RGB").save(picture, "JPEG")
    torch.save(torch.ones(2, 3), latents)
    put(
        config,
        {
            "d/0/1.jpg": picture.getvalue(),
            "d/0/1.json": json.dumps({"caption": "a fractal"}).encode(),
            "l/0/1.jpg.pt": latents.getvalue(),
        },
    )
    (tmp_path / "data.json").write_text('[{"image": "0/1.jpg", "annotation": "0/1.json"}]')
    options: dict[str, Any] = {
        "data_path": str(tmp_path / "data.json"),
        "ceph_folder": "s3://photos/d",
        "ceph_config": config,
        "tokenizer": Letters(),
        "prompt_template": {"GENERATION": "{input}", "CFG": "", "INSTRUCTION": "{input}", "IMG_START_TOKEN": ""},
        "image_size": 32,
        "unconditional": 0,
    }
    random.seed(0)
    remote = CaptionDataset(**options)[0]
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "1.jpg").write_bytes(picture.getvalue())
    random.seed(0)
    local = CaptionDataset(**{**options, "image_folder": str(tmp_path)})[0]  # captions still from there
    assert torch.equal(remote["pixel_values"], local["pixel_values"])
    assert "".join(map(chr, remote["input_ids"].tolist())) == "a fractal"
    sample = CaptionDataset(**options, latents_ceph_folder="s3://photos/l", image_latents_folder=str(tmp_path))[0]
    assert torch.equal(sample["image_latents"], torch.ones(2, 3))
