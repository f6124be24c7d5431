from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import xxhash
import zstandard

from builder.base import schema
from builder.base.errors import SourceChangedError, SourceError
from builder.base.options import ConvertOptions, SamplePolicy
from builder.conversion import shard as shard_module
from builder.conversion.convert import convert
from builder.conversion.summary import Summary
from tests.outputs import ROOT, leftovers, make_large_source, output_bytes, read_rejects, read_rows
from tests.sources import LAYOUTS, Source, faults_of, make_source, picture

# From 3.12 on, forking a process that has other threads warns; those here are pyarrow's.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

SHARED = ROOT.parent / "shared"


def run(source: Path, out: Path, num_proc: int = 1, recaptions: tuple[str, ...] = (), **options: object) -> Summary:
    made = ConvertOptions(recaptions=recaptions, **options)  # type: ignore[arg-type]
    return convert(str(source), str(out), made, num_proc=num_proc, quiet=True)


def add_member(tar: Path, name: str, data: bytes) -> None:
    with tarfile.open(tar, "a") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))


def plain(text: str) -> str:
    """As UTF-8 can hold it: half an emoji stays the escape it was."""
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["parquet", "arrow", "webdataset"])
def test_every_listed_sample_is_the_right_row_or_the_right_reject(layout: str, form: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", layout, shards=4, per_shard=10, faults=faults_of(layout))
    summary = run(source.path, tmp_path / "out", recaptions=source.recaptions, format=form)
    rows = read_rows(tmp_path / "out")
    assert [row.key for row in rows] == list(source.rows)
    for row in rows:
        expected = source.rows[row.key]
        assert (row.image, row.caption, row.document) == (expected.image, expected.caption, plain(expected.document))
        assert row.path == source.paths[row.key]
    assert summary.totals.rows == len(source.rows)
    assert summary.totals.rejected == source.reasons
    assert summary.totals.unlisted == source.unlisted
    assert summary.totals.image_bytes == sum(len(row.image) for row in rows)
    assert summary.complete
    rejects = read_rejects(tmp_path / "out")
    assert sorted(reject["reason"] for reject in rejects) == sorted(source.rejects.values())
    positions = [reject["position"] for reject in rejects]
    assert positions == sorted(set(positions))
    assert all(reject["detail"] for reject in rejects)
    assert summary.examples.keys() == source.reasons.keys()


def test_all_layouts_of_the_same_samples_give_the_same_rows(tmp_path: Path) -> None:
    found = {}
    for layout in ("card", "scattered", "extracted", "no_listing", "listing_folder", "openuni"):
        source = make_source(
            tmp_path / layout, layout, faults=["too_wide", "rewritten"] if layout != "extracted" else []
        )
        run(source.path, tmp_path / f"{layout}-out")
        rows = read_rows(tmp_path / f"{layout}-out")
        found[layout] = [
            (row.key, row.path, row.caption, *(() if layout == "openuni" else (row.document,))) for row in rows
        ]
    assert found["card"] == found["scattered"] == found["no_listing"] == found["listing_folder"]
    assert [row[:3] for row in found["card"]] == found["openuni"]
    assert len(found["extracted"]) == 24


def test_the_bytes_do_not_depend_on_the_number_of_processes_nor_on_the_sources_place_and_age(tmp_path: Path) -> None:
    source = make_source(tmp_path / "small", faults=faults_of("card"), shards=4, per_shard=8)
    make_large_source(tmp_path / "large")
    for path in (source.path, tmp_path / "large"):
        for form in ("parquet", "webdataset", "arrow"):
            found = []
            for num_proc in (1, 2, 5):
                out = tmp_path / f"{path.name}-{form}-{num_proc}"
                run(path, out, num_proc, max_shard_size=1_000_000, format=form)
                found.append(output_bytes(out))
            assert found[0] == found[1] == found[2]
        moved = shutil.copytree(path, tmp_path / f"{path.name} moved", copy_function=shutil.copyfile)
        run(moved, tmp_path / f"{path.name} moved out", max_shard_size=1_000_000, format="arrow")
        assert output_bytes(tmp_path / f"{path.name} moved out") == found[0]


def test_nothing_of_a_run_is_in_the_output_but_versions_and_options(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", faults=["cut_tar", "image_missing"])
    run(source.path, tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text() + (tmp_path / "out/meta/manifest.json").read_text()
    assert str(tmp_path) not in text
    assert os.uname().nodename not in text or len(os.uname().nodename) < 4


def test_the_manifest_knows_every_file(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", faults=faults_of("card"), shards=4)
    for form in ("parquet", "arrow", "webdataset"):
        out = tmp_path / form
        summary = run(source.path, out, format=form)
        manifest = json.loads((out / schema.MANIFEST).read_text())
        for path, entry in manifest["files"].items():
            data = (out / path).read_bytes()
            assert entry == {"size": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
        assert set(manifest["files"]) | {schema.MANIFEST, ".gitignore"} == set(output_bytes(out))
        assert manifest["totals"]["rows"] == summary.totals.rows
        assert sum(manifest["totals"]["formats"].values()) == summary.totals.rows
        assert manifest["kind"] == form
        assert list(manifest["source"]["damaged"]) == ["raw/00003.tar"]
        assert leftovers(out) == []


def test_a_tar_larger_than_a_shard_is_split_and_rows_stay_in_their_order(tmp_path: Path) -> None:
    keys = make_large_source(tmp_path / "src", tars=2, per_tar=40)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "src" / "raw").iterdir())]
    summary = run(tmp_path / "src", tmp_path / "out", max_shard_size=1_000_000)
    shards = sorted((tmp_path / "out" / "data").iterdir())
    assert summary.totals.shards == len(shards) == sum(-(-size * 1.01 // 980_000) for size in sizes)
    assert [row.key for row in read_rows(tmp_path / "out")] == keys
    assert max(path.stat().st_size for path in shards) < 1_000_000 + 70_000  # the image that begins in it ends in it
    assert all(pq.ParquetFile(path).metadata.num_rows > 5 for path in shards)


def test_one_image_larger_than_a_shard_is_a_row_and_the_shards_it_fills_are_empty(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", shards=1)
    large = picture(1, "BMP", (1200, 900))  # 3.2 MB
    add_member(source.path / "raw" / "00000.tar", "00000/000000002.jpg", large)
    run(source.path, tmp_path / "out", max_shard_size=1_000_000)
    rows = read_rows(tmp_path / "out")
    assert {row.key for row in rows} == set(source.rows)
    assert rows[-1].image == large
    counts = [pq.ParquetFile(path).metadata.num_rows for path in sorted((tmp_path / "out/data").iterdir())]
    assert counts == [8, 0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "compress"),
    [
        (".tar.gz", gzip.compress),
        (".tgz", gzip.compress),
        (".tar.bz2", bz2.compress),
        (".tar.xz", lzma.compress),
        (".tar.zst", zstandard.ZstdCompressor().compress),
        (".tar", gzip.compress),  # told by its content, not by its name
    ],
)
def test_compressed_tars_convert_as_if_they_were_not(
    ending: str, compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    source = make_source(tmp_path / "src", faults=["rewritten", "unlisted", "truncated_image"])
    run(source.path, tmp_path / "plain")
    for side in ("raw", "captions"):
        for tar in sorted((source.path / side).iterdir()):
            data = tar.read_bytes()
            tar.unlink()
            tar.with_suffix(ending).write_bytes(compress(data))
    summary = run(source.path, tmp_path / "out", num_proc=2)
    assert read_rows(tmp_path / "out") == read_rows(tmp_path / "plain")
    assert summary.totals.rejected == {"image_truncated": 1}
    assert summary.totals.unlisted == 1


@pytest.mark.parametrize("side", ["raw", "captions"])
def test_a_tar_of_no_bytes_costs_its_own_samples_only(side: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    (source.path / side / "00001.tar").write_bytes(b"")
    summary = run(source.path, tmp_path / "out")
    assert summary.totals.rejected == {"tar_damaged": 8}
    assert [row.key for row in read_rows(tmp_path / "out")] == [k for k in source.rows if not k.startswith("00001/")]
    assert list(summary.damage) == [f"{side}/00001.tar"]


def test_a_whole_tar_without_members_damages_nothing(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    (source.path / "raw" / "00001.tar").write_bytes(bytes(10240))
    summary = run(source.path, tmp_path / "out")
    assert summary.totals.rejected == {"image_missing": 8}
    assert summary.damage == {}


@pytest.mark.parametrize("form", ["parquet", "arrow", "webdataset"])
def test_an_empty_listing_is_an_error_that_leaves_out_free(form: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", shards=2)
    listing = (source.path / "data.json").read_text()
    (source.path / "data.json").write_text("[]")
    with pytest.raises(SourceError, match="gives no rows: 0 samples are listed"):
        run(source.path, tmp_path / "out", format=form)
    (source.path / "data.json").write_text(listing)
    assert run(source.path, tmp_path / "out", format=form).totals.rows == 16


def test_a_source_whose_samples_are_all_rejected_is_told_so(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", shards=1)
    with pytest.raises(SourceError, match=r"gives no rows.*8 image_too_small, such as "):
        run(source.path, tmp_path / "out", policy=SamplePolicy(min_side=100_000))
    assert not (tmp_path / "out").exists()
    assert run(source.path, tmp_path / "out").totals.rows == 8  # another job than the one that came to nothing


def test_rows_know_their_place_in_the_listing(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", faults=["image_missing", "blank_caption"])
    listing = json.loads((source.path / "data.json").read_text())
    listing.reverse()
    (source.path / "data.json").write_text(json.dumps(listing))
    run(source.path, tmp_path / "out")
    assert [row.key for row in read_rows(tmp_path / "out")] == list(source.rows)
    places = {entry["image"]: position for position, entry in enumerate(listing)}
    with pq.ParquetFile(tmp_path / "out/meta/rejects.parquet") as rejects:
        for reject in rejects.read().to_pylist():
            assert listing[reject["position"]]["image"].rpartition(".")[0] == reject["key"]
    from builder.read.opening import open_dataset

    reader = open_dataset(tmp_path / "out")
    assert [sample.position for sample in reader] == [places[source.paths[key]] for key in source.rows]


@pytest.mark.parametrize(
    ("policy", "reason", "lost"),
    [
        (SamplePolicy(min_side=20), "image_too_small", {"small"}),
        (SamplePolicy(max_pixels=40 * 40), "image_too_large", {"wide"}),
        (SamplePolicy(max_aspect_ratio=2), "aspect_ratio", {"wide"}),
        (SamplePolicy(max_aspect_ratio=0), "", set()),
    ],
)
def test_policies_decide_what_becomes_a_row(policy: SamplePolicy, reason: str, lost: set[str], tmp_path: Path) -> None:
    for side in ("raw", "captions"):
        (tmp_path / "src" / side).mkdir(parents=True)
    for name, size in (("small", (19, 30)), ("wide", (90, 30)), ("good", (40, 40))):
        add_member(tmp_path / "src/raw/a.tar", f"a/{name}.jpg", picture(1, "JPEG", size))
        add_member(tmp_path / "src/captions/a.tar", f"a/{name}.json", b'{"caption": "x"}')
    summary = run(tmp_path / "src", tmp_path / "out", policy=policy)
    assert summary.totals.rejected == ({reason: len(lost)} if lost else {})
    assert {row.key for row in read_rows(tmp_path / "out")} == {"a/small", "a/wide", "a/good"} - {
        f"a/{n}" for n in lost
    }


ODD_NAMES = [
    "図/写真",
    "a b/c'd\"e",
    "new\nline",
    "dots.in.folder/dots.in.name",
    "x" * 200 + "/" + "y" * 200,
    ".hidden",
    "-rf",
    "tab\there",
]


def test_odd_names_are_keys_like_others(tmp_path: Path) -> None:
    for side in ("raw", "captions"):
        (tmp_path / "src" / side).mkdir(parents=True)
    for name in ODD_NAMES:
        add_member(tmp_path / "src/raw/a.tar", f"{name}.jpg", picture(len(name)))
        add_member(tmp_path / "src/captions/a.tar", f"{name}.json", json.dumps({"caption": name}).encode())
    listing = [{"image": f"./{name}.jpg", "annotation": f"{name}.json"} for name in ODD_NAMES]
    (tmp_path / "src/data.json").write_text(json.dumps(listing))
    summary = run(tmp_path / "src", tmp_path / "out")
    assert summary.totals.rejected == {}
    assert {row.key: row.caption for row in read_rows(tmp_path / "out")} == {name: name for name in ODD_NAMES}


def test_names_that_lead_out_are_only_names(tmp_path: Path) -> None:
    for side in ("raw", "captions"):
        (tmp_path / "src" / side).mkdir(parents=True)
    names = ["../../outside", "/absolute", "a/../b"]
    for name in names:
        add_member(tmp_path / "src/raw/a.tar", f"{name}.jpg", picture(1))
        add_member(tmp_path / "src/captions/a.tar", f"{name}.json", b'{"caption": "x"}')
    listing = [{"image": f"{name}.jpg", "annotation": f"{name}.json"} for name in names]
    (tmp_path / "src/data.json").write_text(json.dumps(listing))
    before = {str(path) for path in tmp_path.rglob("*")}
    summary = run(tmp_path / "src", tmp_path / "out")
    assert summary.totals.listed == 3
    new = {str(path) for path in tmp_path.rglob("*")} - before
    assert all(path.startswith(str(tmp_path / "out")) for path in new)
    assert not Path("/absolute.jpg").exists()


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 512)


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def overwrite(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:600] + b"!" + data[601:])


@pytest.mark.parametrize("change", [shrink, touch, overwrite, Path.unlink])
@pytest.mark.parametrize("side", ["raw", "captions"])
def test_a_source_that_changes_during_the_run_is_noticed(
    side: str, change: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_large_source(tmp_path / "src", tars=1)
    victim = tmp_path / "src" / side / "00000.tar"
    real = shard_module.read_samples
    calls = []

    def read_samples(*arguments: object, **options: object) -> object:
        for chunk in real(*arguments, **options):  # type: ignore[arg-type]
            if not calls:
                calls.append(change(victim))
            yield chunk

    monkeypatch.setattr(shard_module, "read_samples", read_samples)
    with pytest.raises(SourceChangedError, match=str(victim)):
        run(tmp_path / "src", tmp_path / "out", max_shard_size=1_000_000)
    assert not list((tmp_path / "out").rglob("*.parquet"))
    assert leftovers(tmp_path / "out") == []


def test_an_extracted_file_that_changes_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "src", "extracted")
    real = shard_module.from_ipc

    def from_ipc(data: bytes) -> object:
        victim = source.path / "raw" / source.paths[next(iter(source.rows))]
        victim.write_bytes(b"another")
        return real(data)

    monkeypatch.setattr(shard_module, "from_ipc", from_ipc)
    with pytest.raises(SourceError, match="is not what it was"):
        run(source.path, tmp_path / "out")


def corpus_source(folder: Path) -> Source:
    """All images of the corpus, each under a .jpg name."""
    images = sorted((SHARED / "corpus" / "images").iterdir())
    for side in ("raw", "captions"):
        (folder / side).mkdir(parents=True)
    for number, image in enumerate(images):
        add = [
            ("raw", f"{image.name}.jpg", image.read_bytes()),
            ("captions", f"{image.name}.json", b'{"caption": "x"}'),
        ]
        for side, name, data in add:
            add_member(folder / side / f"{number % 3:05d}.tar", f"{number % 3:05d}/{name}", data)
    return Source(folder, {}, {}, 0, {image.name: str(number) for number, image in enumerate(images)})


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "corpus" / "images").is_dir(), reason="the corpus of odd images is not here")
def test_every_odd_image_is_a_row_or_a_reject_and_the_same_one_each_time(tmp_path: Path) -> None:
    source = corpus_source(tmp_path / "src")
    summary = run(source.path, tmp_path / "out", policy=SamplePolicy(max_aspect_ratio=0))
    assert summary.totals.listed == len(source.paths)
    rejects = read_rejects(tmp_path / "out")
    rows = read_rows(tmp_path / "out")
    assert len(rows) + len(rejects) == len(source.paths)
    for row in rows:
        assert row.image == (SHARED / "corpus" / "images" / row.key.split("/")[1]).read_bytes()
        assert min(row.size) > 0
    again = run(source.path, tmp_path / "again", num_proc=2, policy=SamplePolicy(max_aspect_ratio=0))
    assert again.totals == summary.totals
    assert output_bytes(tmp_path / "again") == output_bytes(tmp_path / "out")
