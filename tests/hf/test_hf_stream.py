"""Without data_dir: the Hub's tars, downloaded or streamed. The Hub is that of tests/hub, on this machine."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import tarfile
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what datasets imports may be deprecated
    import datasets  # noqa: F401
from builder import load_dataset
from builder.base.errors import HubError, OptionError
from builder.base.options import SamplePolicy
from builder.base.urls import StorageOptions
from builder.hf import source as hf_source
from builder.hf.stream import PairUnit, plan_pairs
from builder.source.layout import Archive, Layout
from tests.hub.client import PROJECT, client_env, run_ok
from tests.hub.server import HubServer
from tests.hub.upstream import hub_of_tars
from tests.sources import Source, make_source, picture

FAULTS = ("too_wide", "caption_missing", "image_missing", "unlisted", "blank_caption")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_source(tmp_path_factory.mktemp("card") / "source", faults=FAULTS)


@pytest.fixture
def hub(source: Source, tmp_path: Path) -> Iterator[HubServer]:
    """wusize/laion6m as tars."""
    with hub_of_tars(source, tmp_path / "hub-storage") as server:
        yield server
        assert server.violations == []


LOAD = """
    import hashlib, json, logging, sys
    log = logging.getLogger("builder")
    log.addHandler(logging.StreamHandler(sys.stdout))
    from builder import load_dataset
    import datasets
    rows = load_dataset("laion6m.py", split="train"OPTIONS).cast_column("image", datasets.Image(decode=False))
    digest = lambda row: hashlib.sha256(row["image"]["bytes"]).hexdigest()
    print(json.dumps([[row["key"], row["caption"], row["annotation"], digest(row)] for row in rows]))
"""


def expected(source: Source) -> list[list[str]]:
    return [[key, r.caption, r.document, hashlib.sha256(r.image).hexdigest()] for key, r in source.rows.items()]


@pytest.mark.slow
def test_without_data_dir_the_hub_is_downloaded_once(hub: HubServer, source: Source, tmp_path: Path) -> None:
    env = client_env(hub, tmp_path)
    first = run_ok(hub, LOAD.replace("OPTIONS", ""), env=env)
    assert json.loads(first.splitlines()[-1]) == expected(source)
    assert f"{len(source.rejects)} of {source.listed} listed samples are left out" in first
    sent = len(hub.requests("cdn_get"))
    assert sent == 7  # three raw tars, three captions tars, the listing
    offline = run_ok(hub, LOAD.replace("OPTIONS", ""), env=env | {"HF_HUB_OFFLINE": "1"})
    assert offline.splitlines()[-1] == first.splitlines()[-1]
    assert len(hub.requests("cdn_get")) == sent


@pytest.mark.slow
def test_the_hub_is_streamed_pair_of_tars_by_pair(hub: HubServer, source: Source) -> None:
    out = run_ok(hub, LOAD.replace("OPTIONS", ", streaming=True"))
    assert json.loads(out.splitlines()[-1]) == expected(source)
    assert "image_missing 1" in out
    assert "aspect_ratio 1" in out
    assert not any("data.json" in record.path for record in hub.requests("resolve"))


PLAIN = """
    import json, sys
    SETUP
    import datasets
    rows = datasets.load_dataset("laion6m.py", split="train", **EXTRA)
    stream = datasets.load_dataset("laion6m.py", split="train", streaming=True, **EXTRA)
    assert rows.features == stream.features
    print(json.dumps([[row["key"], row["caption"]] for row in rows.select_columns(["key", "caption"])]))
    print(json.dumps([[row["key"], row["caption"]] for row in stream.select_columns(["key", "caption"])]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["module", "script"])
def test_the_plain_call_without_data_dir_does_the_same(how: str, hub: HubServer, source: Source) -> None:
    """``load_dataset("laion6m.py")`` in the checkout: of datasets from 4 on after ``import laion6m``, below 4 as a
    script."""
    if how == "script" and int(version("datasets").split(".")[0]) >= 4:
        pytest.skip("this version of datasets runs no scripts")
    setup, extra = ("import laion6m", "{}") if how == "module" else ("", "{'trust_remote_code': True}")
    code = PLAIN.replace("SETUP", setup).replace("EXTRA", extra)
    mapped, streamed = run_ok(hub, code, cwd=PROJECT).splitlines()[-2:]
    assert json.loads(mapped) == json.loads(streamed) == [[key, row.caption] for key, row in source.rows.items()]


SHARED = """
    import json, sys
    from builder import load_dataset
    import datasets
    from datasets.distributed import split_dataset_by_node
    stream = load_dataset("laion6m.py", split="train", streaming=True)
    stream = stream.cast_column("image", datasets.Image(decode=False))
    assert stream.num_shards == 3
    plain = lambda row: (row["key"], row["image"]["bytes"], row["caption"])
    whole = [plain(row) for row in stream]
    shuffled = [plain(row) for row in stream.shuffle(seed=1, buffer_size=4)]
    assert shuffled != whole and sorted(shuffled) == sorted(whole)
    for size in (2, 3):
        nodes = [split_dataset_by_node(stream, rank=rank, world_size=size) for rank in range(size)]
        parts = [[plain(row) for row in node] for node in nodes]
        assert sorted(sum(parts, [])) == sorted(whole) and all(parts)
    try:
        from torch.utils.data import DataLoader
    except ImportError:
        print("no torch")
        sys.exit()
    for workers in (1, 2, 3):
        for rows in (stream, stream.shuffle(seed=2, buffer_size=4)):
            loader = DataLoader(rows, batch_size=None, num_workers=workers)
            assert sorted(map(plain, loader)) == sorted(whole), workers
    print("read", len(whole))
"""


@pytest.mark.slow
def test_the_stream_from_the_hub_is_shuffled_split_and_shared(hub: HubServer, source: Source) -> None:
    said = run_ok(hub, ["-W", "ignore", "-c", textwrap.dedent(SHARED)])
    if "no torch" in said:
        pytest.skip("torch is not installed there; all else was shared")
    assert f"read {len(source.rows)}" in said


@pytest.mark.slow
def test_a_stream_that_breaks_goes_on(hub: HubServer, source: Source) -> None:
    broken = hub.faults.add("cdn_get", "truncate", times=2)
    out = run_ok(hub, LOAD.replace("OPTIONS", ", streaming=True"))
    assert json.loads(out.splitlines()[-1]) == expected(source)
    assert broken.hits == 2


def test_no_hub_and_no_folder_says_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    class Unreachable:
        def __init__(self, token: Any) -> None: ...

        def hf_hub_download(self, *_: Any, **__: Any) -> str:
            raise LocalEntryNotFoundError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hf_source, "HfApi", Unreachable)
    with pytest.raises(HubError, match="Give data_dir"):
        load_dataset("laion6m.py", split="train")


@pytest.mark.parametrize("option", [{"recaptions": "r.csv"}, {"listing": "d.json"}, {"listing": False}])
def test_what_would_not_hold_on_the_hub_is_refused(
    option: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=f"^{next(iter(option))}.*Download it, and give data_dir"):
        load_dataset("laion6m.py", split="train", **option)


# One pair of tars, as files


def tar_of(path: Path, *members: tuple[str, bytes | str], cut: int = 0) -> Archive:
    """``(name, bytes)`` is a file, ``(name, str)`` a hard link, ``("@name", str)`` a symbolic one."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name.removeprefix("@"))
            if isinstance(data, str):
                member.type, member.linkname = (tarfile.SYMTYPE if name[0] == "@" else tarfile.LNKTYPE), data
                tar.addfile(member)
            else:
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    data = buffer.getvalue()
    return written(path, data[: len(data) - cut] if cut else data)


def written(path: Path, data: bytes) -> Archive:
    path.write_bytes(data)
    return Archive(path.name, f"file://{path}", False, len(data), 0)


def text(caption: str) -> bytes:
    return json.dumps({"re_caption": caption}).encode()


def read(raw: Archive, captions: Archive) -> tuple[dict[str, str], Counter[str]]:
    lost: Counter[str] = Counter()
    rows: dict[str, str] = {}
    for table in PairUnit(raw, captions).tables(SamplePolicy(), lost):
        rows |= dict(zip(table["key"].to_pylist(), table["caption"].to_pylist(), strict=True))
    return rows, lost


def test_captions_without_an_image_in_the_pair_are_counted_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = tar_of(tmp_path / "r.tar", ("0/a.jpg", picture(1)), ("0/unlisted.jpg", picture(2)), ("0/a.txt", b"x"))
    captions = tar_of(tmp_path / "c.tar", ("0/a.json", text("A")), ("0/b.json", text("B")), ("1/c.json", text("C")))
    with caplog.at_level(logging.WARNING, logger="builder"):
        assert read(raw, captions) == ({"0/a": "A"}, {"image_missing": 2})
    assert "2 captions of" in caplog.text
    assert "such as 0/b." in caplog.text


def test_of_several_captions_the_last_counts(tmp_path: Path) -> None:
    raw = tar_of(tmp_path / "r.tar", ("0/a.jpg", picture(1)))
    captions = tar_of(tmp_path / "c.tar", ("0/a.json", text("old")), ("0/a.json", text("new")))
    assert read(raw, captions)[0] == {"0/a": "new"}


def test_links_read_as_what_they_lead_to(tmp_path: Path) -> None:
    raw = tar_of(tmp_path / "r.tar", ("@0/s.jpg", "later.jpg"), ("0/later.jpg", picture(1)), ("0/h.jpg", "0/later.jpg"))
    names = [("0/s.json", text("S")), ("0/later.json", text("L")), ("0/h.json", "0/later.json")]
    assert read(raw, tar_of(tmp_path / "c.tar", *names))[0] == {"0/later": "L", "0/s": "S", "0/h": "L"}


def test_a_cut_tar_gives_what_there_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures = [(f"0/{n}.jpg", picture(n, "JPEG", (90, 90))) for n in range(3)]
    raw = tar_of(tmp_path / "r.tar", *pictures, cut=11000)
    captions = tar_of(tmp_path / "c.tar", *((f"0/{n}.json", text(str(n))) for n in range(3)))
    with caplog.at_level(logging.WARNING, logger="builder"):
        rows, lost = read(raw, captions)
    assert rows.keys() < {"0/0", "0/1", "0/2"}
    assert len(rows) + lost["tar_damaged"] == 3 == len(rows) + lost.total()
    assert "r.tar is damaged" in caplog.text


def test_samples_are_judged_as_everywhere(tmp_path: Path) -> None:
    images = {"wide": picture(1, "JPEG", (90, 20)), "text": b"not an image", "mute": picture(2), "good": picture(3)}
    raw = tar_of(tmp_path / "r.tar", *((f"{name}.jpg", data) for name, data in images.items()))
    documents = {name: text(name) for name in images} | {"mute": b"{}"}
    captions = tar_of(tmp_path / "c.tar", *((f"{name}.json", data) for name, data in documents.items()))
    lost = {"aspect_ratio": 1, "image_unreadable": 1, "caption_invalid": 1}
    assert read(raw, captions) == ({"good": "good"}, lost)


def test_compressed_tars_stream_too(tmp_path: Path) -> None:
    tar_of(tmp_path / "r.tar", ("a.jpg", picture(1)))
    raw = written(tmp_path / "r.tar.gz", gzip.compress((tmp_path / "r.tar").read_bytes()))
    captions = tar_of(tmp_path / "c.tar", ("a.json", text("A")))
    assert read(raw, captions) == ({"a": "A"}, {})


def test_a_tar_without_its_other_half_is_said() -> None:
    raw, captions = ([Archive(f"{n}.tar", f"{side}{n}", False, 1, 1) for n in (at, at + 1)]
                     for side, at in (("raw", 0), ("captions", 1)))  # fmt: skip
    planned = plan_pairs(Layout("card", "hf://r", "raw", "captions", tuple(raw), tuple(captions), ()))
    assert planned.units == [PairUnit(raw[1], captions[0])]
    assert [line.split()[0] for line in planned.remarks] == ["raw0", "captions2"]


def test_a_token_is_not_shown() -> None:
    archive = Archive("a.tar", "hf://a.tar", False, 1, 1, StorageOptions.of({"token": "secret"}))
    assert "secret" not in repr(PairUnit(archive, archive))
