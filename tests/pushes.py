"""A converted folder of three shards, and the push command as a process of its own, against the tests' Hub."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from builder.base.options import ConvertOptions
from builder.conversion.convert import convert
from builder.store.manifest import read_manifest
from builder.store.seals import file_digest, seal, unseal
from tests.hub.client import PROJECT, client_env, run_client
from tests.hub.server import WRITE_TOKEN, HubServer
from tests.sources import picture

REPO = "user/laion6m"
MB = 1_000_000
PER_TAR = 3

QUICK = """
import sys
from builder.hub import patience
patience.PAUSES = (0.05, 0.05, 0.05, 0.05, 0.05)
from builder.hub import stream_out
stream_out.BACKLOG_SHARDS = 2
from builder.cli.commands import main
sys.exit(main(sys.argv[1:]))
"""
"""The command line, with pauses that a test can wait for, and little room on its disk."""


def wide_source(folder: Path, shards: int = 3) -> Path:
    """A source whose tars make a shard each at 1 MB: three images of some 400 kB in every one."""
    listing = []
    for shard in range(shards):
        raw: dict[str, bytes] = {}
        captions: dict[str, bytes] = {}
        for number in range(PER_TAR):
            name = f"{shard:05d}/{number:09d}"
            raw[f"{name}.jpg"] = picture(1000 + shard * PER_TAR + number, "JPEG", (600, 600))
            document = {"caption": f"{name}: naïve 図 <!-- x --> | `y`", "url": f"https://example.org/{name}.jpg"}
            captions[f"{name}.json"] = json.dumps(document if number else {"caption": "no address"}).encode()
            listing.append({"image": f"{name}.jpg", "annotation": f"{name}.json"})
        _tar(folder / "raw" / f"{shard:05d}.tar", raw)
        _tar(folder / "captions" / f"{shard:05d}.tar", captions)
    (folder / "data.json").write_text(json.dumps(listing))
    return folder


def converted(folder: Path, shards: int = 3, format: str = "parquet") -> Path:
    """OUT, of a source beside it."""
    source = wide_source(folder / "source", shards)
    options = ConvertOptions(format=format, max_shard_size=MB)
    convert(str(source), str(folder / "out"), options, num_proc=1, quiet=True)
    assert len(list((folder / "out" / "data").iterdir())) == shards
    return folder / "out"


def edit_shard(out: Path, number: int = 1) -> Path:
    """Change a shard in place, as another conversion of a source with an image that was mended: same rows, other bytes,
    and the manifest and the receipt of those."""
    shard = damage_shard(out, number)
    digest = file_digest(str(shard))
    receipt = out / ".laion6m" / "receipts" / f"{number:05d}.json"
    if receipt.exists():
        receipt.write_bytes(seal(unseal(receipt.read_bytes()) | {"digest": digest}))
    manifest = read_manifest(str(out))
    manifest.files[f"data/{shard.name}"]["xxh3_128"] = digest
    (out / "meta" / "manifest.json").write_bytes(manifest.to_json())
    return shard


def damage_shard(out: Path, number: int = 1) -> Path:
    """Flip bits of a shard, as a disk does: nothing else knows."""
    shard = sorted((out / "data").iterdir())[number]
    data = bytearray(shard.read_bytes())
    at = data.index(b"\xff\xd8\xff") + 400  # within an image
    data[at : at + 4] = bytes(each ^ 1 for each in data[at : at + 4])
    shard.write_bytes(data)
    return shard


class Ran(NamedTuple):
    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.stdout)
        return value


def command(
    hub: HubServer, home: Path, *arguments: object, python: str = sys.executable, xet: bool = False, **options: Any
) -> Ran:
    """``laion6m …`` with a home folder under ``home``; ``options`` go to run_client."""
    env = client_env(hub, home, xet=xet, **({"token": options.pop("token")} if "token" in options else {}))
    done: subprocess.CompletedProcess[str] = run_client(
        hub, ["-c", QUICK, *map(str, arguments)], python, env=env, cwd=PROJECT, **options
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def there(hub: HubServer, repo: str = REPO, revision: str = "main") -> dict[str, bytes]:
    """All files of a repository but the one it is born with."""
    names = set(hub.store.files(repo, revision)) - {".gitattributes"}
    return {name: hub.store.read(repo, name, revision) for name in sorted(names)}


def here(out: Path) -> dict[str, bytes]:
    """All files of OUT that are to be pushed."""
    paths = (path for path in out.rglob("*") if path.is_file() and not {".laion6m", ".gitignore"} & {*path.parts})
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(paths)}


def everything_written(folder: Path) -> Iterator[bytes]:
    """The content of all files but the server's."""
    for path in folder.rglob("*"):
        if path.is_file() and "hub-storage" not in path.parts:
            yield path.read_bytes()


def copy_of(out: Path, to: Path) -> Path:
    """OUT as it was before any push, times of its files kept."""
    shutil.copytree(out, to)
    return to


def _tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))


def push_here(hub: HubServer, monkeypatch: Any, token: str = WRITE_TOKEN) -> None:
    """Let the client in this process speak to the test Hub, and nobody sleep for long."""
    import functools
    import time
    from types import SimpleNamespace

    import huggingface_hub
    from huggingface_hub import constants, file_download, hf_api
    from huggingface_hub.utils import _http

    from builder.hub import patience

    monkeypatch.setattr(huggingface_hub, "HfApi", functools.partial(hf_api.HfApi, hub.endpoint))
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # both were filled in when they were imported
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    sleepless = SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic)
    for module in (_http, patience):
        monkeypatch.setattr(module, "time", sleepless)
