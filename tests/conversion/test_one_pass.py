"""Sources behind URLs: read once, the same bytes as from a disk, whatever of the guess was wrong."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from builder import convert, open_dataset
from builder.base import storage
from builder.base.errors import LayoutError, SourceChangedError, SourceError
from builder.base.options import ConvertOptions
from builder.base.storage import Storage
from builder.conversion import build as building
from builder.conversion import one_pass, passes
from builder.plan.plan import Cut
from builder.store.ledger import Ledger
from tests.outputs import ROOT, environment, make_large_source, output_bytes, read_rows
from tests.servers import S3, FileServer, s3
from tests.sources import LAYOUTS, Source, faults_of, make_source, picture

SMALL = ConvertOptions(max_shard_size=1_000_000)


@pytest.fixture(scope="module")
def bucket() -> Iterator[S3]:
    with s3("sources") as server:
        yield server


def upload(source: Path, url: str, options: dict[str, Any] | None = None) -> str:
    system, path = Storage(options).system(url)
    for file in sorted(source.rglob("*")):
        if file.is_file():
            system.pipe_file(f"{path}/{file.relative_to(source).as_posix()}", file.read_bytes())
    return url


def in_memory(source: Path) -> str:
    return upload(source, f"memory://{uuid.uuid4().hex}/src")


def local(source: Source, out: Path, options: ConvertOptions = SMALL) -> dict[str, str]:
    """What conversion from the disk gives."""
    convert(str(source.path), str(out), options_of(source, options), num_proc=1, quiet=True)
    return output_bytes(out)


def options_of(source: Source, options: ConvertOptions) -> ConvertOptions:
    return ConvertOptions(max_shard_size=options.max_shard_size, recaptions=source.recaptions)


def test_captions_in_text_files_behind_a_url_are_samples(tmp_path: Path) -> None:
    (tmp_path / "src/raw").mkdir(parents=True)
    with tarfile.open(tmp_path / "src/raw/0.tar", "w") as tar:
        for name, data in (("a.jpg", picture(1)), ("a.txt", b"a cat"), ("._a.jpg", b"a companion")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    summary = convert(in_memory(tmp_path / "src"), str(tmp_path / "out"), num_proc=1, quiet=True)
    assert (summary.totals.rows, summary.unread) == (1, {"hidden": 1})
    assert [row.caption for row in read_rows(tmp_path / "out")] == ["a cat"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "extracted"])
def test_every_layout_gives_the_bytes_that_a_disk_gives(layout: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", layout, faults=faults_of(layout))
    expected = local(source, tmp_path / "local")
    url = in_memory(source.path)
    out = tmp_path / "out"
    summary = convert(url, str(out), options_of(source, SMALL), num_proc=1, quiet=True)
    assert output_bytes(out) == expected
    assert (summary.totals.rows, summary.totals.rejected) == (len(source.rows), source.reasons)
    assert summary.totals.unlisted == source.unlisted
    again = convert(url, str(out), options_of(source, SMALL), num_proc=1, quiet=True)
    assert again.did == 0
    assert again.totals == summary.totals


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["card", "openuni"])
def test_a_sound_source_is_read_once(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "src", layout)
    local(source, tmp_path / "local")
    monkeypatch.setattr(building, "shard_rows", None)  # a shard that is made in the second way would need it
    monkeypatch.setattr(passes, "keep_scan", None)
    with FileServer(tmp_path) as server:
        convert(f"{server.url}/src", str(tmp_path / "out"), SMALL, num_proc=1, quiet=True)
        ranges = Counter((path, wanted) for method, path, wanted in server.requests if method == "GET" and wanted)
    assert output_bytes(tmp_path / "out") == output_bytes(tmp_path / "local")
    assert {path for path, _ in ranges} >= {f"/src/raw/{tar.name}" for tar in (source.path / "raw").glob("*.tar")}
    assert {count for (path, _), count in ranges.items() if path.endswith(".tar")} == {1}


def test_a_tar_larger_than_a_shard_is_read_once_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_large_source(tmp_path / "src", tars=2, per_tar=24)
    options = ConvertOptions(max_shard_size=1_000_000)
    convert(str(tmp_path / "src"), str(tmp_path / "local"), options, num_proc=1, quiet=True)
    monkeypatch.setattr(building, "shard_rows", None)
    convert(in_memory(tmp_path / "src"), str(tmp_path / "out"), options, num_proc=1, quiet=True)
    assert output_bytes(tmp_path / "out") == output_bytes(tmp_path / "local")
    assert len(read_rows(tmp_path / "out")) > 0


def test_out_may_be_behind_a_url_and_slices_share_it(tmp_path: Path) -> None:
    make_large_source(tmp_path / "src", tars=3)
    convert(str(tmp_path / "src"), str(tmp_path / "local"), SMALL, num_proc=1, quiet=True)
    url, out = in_memory(tmp_path / "src"), f"memory://{uuid.uuid4().hex}/out"
    first = convert(url, out, SMALL, start=2, end=3, num_proc=1, quiet=True)
    second = convert(url, out, SMALL, start=0, end=1, num_proc=1, quiet=True)
    assert [first.complete, second.complete] == [False, False]
    assert (first.totals.rows, second.totals.rows) == (24, 24)
    again = convert(url, out, SMALL, start=0, end=1, num_proc=1, quiet=True)
    assert (again.did, again.totals) == (0, second.totals)
    last = convert(url, out, SMALL, start=1, end=2, num_proc=1, quiet=True)
    assert last.complete  # who comes last finds all of it read, and finishes
    whole = convert(url, out, SMALL, num_proc=1, quiet=True)
    assert (whole.did, whole.totals.rows) == (0, 72)
    system, path = fsspec.core.url_to_fs(out)
    system.get(path, str(tmp_path / "got"), recursive=True)
    assert output_bytes(tmp_path / "got") == output_bytes(tmp_path / "local")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["first", "later", "before the plan is kept", "at the end"])
def test_a_run_that_ended_anywhere_is_finished_by_the_next(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_large_source(tmp_path / "src", tars=3)
    convert(str(tmp_path / "src"), str(tmp_path / "local"), SMALL, num_proc=1, quiet=True)
    expected = output_bytes(tmp_path / "local")
    url, out = in_memory(tmp_path / "src"), tmp_path / "out"

    class Stop(BaseException):
        """What nobody catches."""

    places: dict[str, tuple[object, str, int]] = {
        "first": (one_pass, "table_to_ipc", 0),
        "later": (Ledger, "write_passed", 1),
        "before the plan is kept": (building, "save_survey", 0),
        "at the end": (building, "examples_of", 0),
    }
    owner, name, after = places[moment]
    real, calls = getattr(owner, name), []

    def stop(*arguments: Any) -> Any:
        calls.append(name)
        if len(calls) > after:
            raise Stop
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop)
        with pytest.raises(Stop):
            convert(url, str(out), SMALL, num_proc=1, quiet=True)
    assert not (out / "meta" / "manifest.json").exists()
    convert(url, str(out), SMALL, num_proc=1, quiet=True)
    assert output_bytes(out) == expected
    assert not (out / ".laion6m" / "tmp").exists()


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_what_storage_is_opened_with_is_kept_nowhere(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither options nor what stands in the URL: not in OUT, nor in the bookkeeping of a run that is to be resumed."""
    make_source(tmp_path / "src", faults=["blank_caption", "image_missing"])
    if not whole:
        monkeypatch.setattr(building, "examples_of", None)
    with FileServer(tmp_path) as server:
        places = {
            f"{server.url.replace('//', '//me:hunter2@')}/src": {"http": {"client_kwargs": {"skip_auto_headers": []}}},
            in_memory(tmp_path / "src"): {"memory": {"secret": "hunter2"}},
        }
        for number, (url, options) in enumerate(places.items()):
            out = tmp_path / f"out{number}"
            with nullcontext() if whole else pytest.raises(TypeError):
                convert(url, str(out), SMALL, num_proc=1, quiet=True, storage_options=options)
            files = [path for path in out.rglob("*") if path.is_file()]
            assert (out / "data") in {path.parent for path in files}
            assert not [path for path in files if b"hunter2" in path.read_bytes()]


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "src")
    url = in_memory(source.path)
    tar = sorted((source.path / "raw").glob("*.tar"))[0]
    real = one_pass.scan_open

    def scan(*arguments: Any) -> Any:
        upload(tar.parent, f"{url}/raw")
        return real(*arguments)

    monkeypatch.setattr(one_pass, "scan_open", scan)
    with pytest.raises(SourceChangedError, match="what the storage states about it"):
        convert(url, str(tmp_path / "out"), SMALL, num_proc=1, quiet=True)


def test_a_tar_that_is_compressed_under_a_plain_name_costs_a_second_reading(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    tar = sorted((source.path / "raw").glob("*.tar"))[0]
    tar.write_bytes(gzip.compress(tar.read_bytes(), mtime=0))
    expected = local(source, tmp_path / "local")
    out = tmp_path / "out"
    convert(in_memory(source.path), str(out), SMALL, num_proc=1, quiet=True)
    assert output_bytes(out) == expected
    assert sorted(path.name for path in (out / "data").iterdir()) == sorted(
        path.name for path in (tmp_path / "local" / "data").iterdir()
    )


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        ([], SourceError, "is not there, or is empty"),
        (["raw/00000/1.jpg"], LayoutError, "only tars are read"),
        (["meta/manifest.json", "data/a.parquet"], LayoutError, "a converted folder"),
        (["data.json/readme.txt", "raw/0.tar"], LayoutError, "without \\*.json"),
    ],
)
def test_what_is_no_source_is_refused_with_what_was_found(
    names: list[str], error: type[Exception], words: str, tmp_path: Path
) -> None:
    url = f"memory://{uuid.uuid4().hex}/src"
    for name in names:
        fsspec.filesystem("memory").pipe_file(f"{url}/{name}", b"x")
    with pytest.raises(error, match=words):
        convert(url, str(tmp_path / "out"), SMALL, num_proc=1, quiet=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["{url}", "{url}/raw/out", "{url}/captions"])
def test_an_out_within_the_source_is_refused(out: str, tmp_path: Path) -> None:
    url = in_memory(make_source(tmp_path / "src").path)
    with pytest.raises(SourceError, match="lies in the source"):
        convert(url, out.format(url=url), SMALL, num_proc=1, quiet=True)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(0, 0, 1, 10), (2, 0, 2, 10)], [(0, 1), (1, 1)]),
        ([(0, 0, 0, 5), (0, 5, 0, 10), (1, 0, 1, 3)], [(0, 2), (2, 1)]),  # one archive in two shards
        ([(0, 0, 0, 5)], [(0, 1)]),
    ],
)
def test_shards_of_one_archive_go_together(
    sizes: list[tuple[int, int, int, int]], expected: list[tuple[int, int]]
) -> None:
    found = passes.stretches(tuple(Cut(*each) for each in sizes))
    assert [(stretch.first, len(stretch.cuts)) for stretch in found] == expected


# Real servers, and workers that are processes


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "builder", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=120, check=False, cwd=ROOT)


@pytest.mark.slow
def test_s3_to_s3_with_requests_that_fail_gives_the_same_bytes_and_reads_back(tmp_path: Path, bucket: S3) -> None:
    source = make_source(tmp_path / "src", faults=["image_missing", "blank_caption"])
    expected = local(source, tmp_path / "local")
    url = upload(source.path, "s3://sources/a/src", bucket.options)
    options = json.dumps(bucket.options)
    bucket.weather.every, bucket.weather.failed = 20, 0  # one in twenty
    try:
        done = command(
            "convert",
            url,
            "s3://sources/a/out",
            "--max-shard-size",
            "1MB",
            "--num-proc",
            2,
            "--storage-options",
            options,
        )
        assert done.returncode in (0, 3), done.stderr
        assert bucket.weather.failed > 2
        reader = open_dataset("s3://sources/a/out", storage_options=bucket.options)
        rows = {sample.key: (sample.image, sample.caption) for sample in reader}
    finally:
        bucket.weather.every = 0
    assert rows == {key: (row.image, row.caption) for key, row in source.rows.items()}
    system, _ = Storage(bucket.options).system(url)
    system.invalidate_cache()
    system.get("sources/a/out", str(tmp_path / "got"), recursive=True)
    assert output_bytes(tmp_path / "got") == expected
    assert not [path for path in system.find("sources/a/out") if "/tmp/" in path]


@pytest.mark.slow
def test_a_killed_run_on_s3_is_finished_by_the_next_and_shows_nothing_half_written(tmp_path: Path, bucket: S3) -> None:
    source = make_source(tmp_path / "src")
    expected = local(source, tmp_path / "local")
    url = upload(source.path, "s3://sources/b/src", bucket.options)
    line = [
        sys.executable,
        "-m",
        "builder",
        "convert",
        url,
        "s3://sources/b/out",
        "--max-shard-size",
        "1MB",
    ]
    line += ["--num-proc", "2", "--storage-options", json.dumps(bucket.options)]
    system, _ = Storage(bucket.options).system(url)
    before = len(bucket.weather.requests)
    process = subprocess.Popen(line, env=environment(), start_new_session=True, cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(
        method == "PUT" and "/b/out/data" in path for method, path, _ in bucket.weather.requests[before:]
    ):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    system.invalidate_cache()
    for path in system.glob("sources/b/out/data/*.*"):  # the server may still be at a request of who was killed
        assert system.cat_file(path)[-4:] == b"PAR1"
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    system.invalidate_cache()
    system.get("sources/b/out", str(tmp_path / "got"), recursive=True)
    assert output_bytes(tmp_path / "got") == expected


def test_a_web_server_whose_connections_break_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "time", SimpleNamespace(sleep=lambda seconds: None))  # between tries
    source = make_source(tmp_path / "src")
    expected = local(source, tmp_path / "local")
    with FileServer(tmp_path) as server:
        server.break_next = 3
        convert(f"{server.url}/src", str(tmp_path / "out"), SMALL, num_proc=2, quiet=True)
        assert server.break_next == 0
    assert output_bytes(tmp_path / "out") == expected
