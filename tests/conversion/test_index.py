from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import xxhash

from builder.base import schema
from builder.base.errors import IndexMismatchError, JobMismatchError, SourceChangedError, SourceError, WriteError
from builder.base.options import ConvertOptions
from builder.base.records import Member
from builder.conversion import build as building
from builder.conversion.convert import convert
from builder.conversion.index import index
from builder.conversion.summary import Summary
from builder.plan import kept, survey
from builder.read.opening import open_dataset
from builder.source.glance import Glances
from tests.outputs import leftovers, make_large_source, output_bytes, read_rejects
from tests.sources import LAYOUTS, Source, faults_of, make_source

# From 3.12 on, forking a process that has other threads warns; those here are pyarrow's.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def make_index(source: Source, out: Path | None, *, digest: bool = False, num_proc: int = 1) -> Summary:
    options = ConvertOptions(recaptions=source.recaptions)
    return index(
        str(source.path), None if out is None else str(out), options, digest=digest, num_proc=num_proc, quiet=True
    )


def index_of(out: Path) -> pa.Table:
    with pa.memory_map(str(out / schema.INDEX)) as file:
        return pa.ipc.open_file(file).read_all()


def whole_source(folder: Path, layout: str) -> Source:
    return make_source(folder, layout, shards=4, per_shard=10, faults=faults_of(layout))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_index_has_the_rows_rejects_and_counts_of_a_conversion(layout: str, tmp_path: Path) -> None:
    source = whole_source(tmp_path / "src", layout)
    options = ConvertOptions(recaptions=source.recaptions)
    converted = convert(str(source.path), str(tmp_path / "converted"), options, num_proc=1, quiet=True)
    indexed = make_index(source, tmp_path / "index")
    assert indexed.totals == converted.totals
    assert indexed.examples == converted.examples
    assert indexed.damage == converted.damage
    assert indexed.complete
    assert read_rejects(tmp_path / "index") == read_rejects(tmp_path / "converted")
    same = ["size", "width", "height", "position", "bom", "key", "path", "annotation_path", "caption"]
    assert index_of(tmp_path / "index").select(same).equals(index_of(tmp_path / "converted").select(same))
    assert not list((tmp_path / "index").glob("data"))
    assert leftovers(tmp_path / "index") == []


@pytest.mark.parametrize("layout", ["card", "extracted", "img2dataset"])
def test_digests_are_noted_where_they_are_asked_for(layout: str, tmp_path: Path) -> None:
    source = whole_source(tmp_path / "src", layout)
    make_index(source, tmp_path / "out")
    assert index_of(tmp_path / "out").column("digest").null_count == len(source.rows)
    make_index(source, tmp_path / "out", digest=True)
    digests = index_of(tmp_path / "out").column("digest").to_pylist()
    assert digests == [xxhash.xxh3_128_digest(row.image) for row in source.rows.values()]


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    source = whole_source(tmp_path / "src", "scattered")
    found = []
    for num_proc in (1, 2, 5):
        make_index(source, tmp_path / "out", num_proc=num_proc)
        found.append(output_bytes(tmp_path / "out"))
    assert found[0] == found[1] == found[2]
    assert set(found[0]) == {schema.INDEX, schema.REJECTS, schema.MANIFEST}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_a_scan_sees_of_images_in_passing_changes_nothing(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = whole_source(tmp_path / "src", layout)
    make_index(source, tmp_path / "out")
    found = output_bytes(tmp_path / "out")
    seen: list[int] = []

    def nothing(self: Glances, members: Sequence[Member]) -> Iterator[int]:
        seen.append(sum(map(bool, shapes(self, members))))
        return iter([0] * len(members))

    shapes = Glances.shapes
    monkeypatch.setattr(Glances, "shapes", nothing)
    make_index(source, tmp_path / "out")
    assert output_bytes(tmp_path / "out") == found
    assert sum(seen) > 0 or layout == "extracted"


def test_a_plan_too_large_for_memory_is_kept_on_disk_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(tmp_path / "src", shards=2, per_shard=3)
    saved: list[object] = []
    monkeypatch.setattr(building, "save_survey", lambda *given: (saved.append(given), save(*given)))
    save = kept.save_survey
    found = []
    for few in (building._FEW, 5):
        monkeypatch.setattr(building, "_FEW", few)
        make_index(source, tmp_path / "out")
        found.append((len(saved), output_bytes(tmp_path / "out")))
    assert found == [(0, found[0][1]), (1, found[0][1])]


def test_a_tar_that_changes_behind_the_scan_is_noticed_though_no_image_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(tmp_path / "src", shards=2, per_shard=3)
    plan = survey.plan_survey

    def plan_and_change(*arguments: Any) -> Any:
        os.utime(source.path / "raw" / "00001.tar", ns=(1, 1))
        return plan(*arguments)

    monkeypatch.setattr(survey, "plan_survey", plan_and_change)
    with pytest.raises(SourceChangedError, match=r"00001\.tar"):
        make_index(source, tmp_path / "out")


def test_only_what_stays_is_synced_and_all_of_it_before_the_manifest_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(tmp_path / "src", shards=2, per_shard=3)
    events: list[tuple[str, str]] = []
    sync, replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        sync(handle)
        events.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{handle}")).split(".")[0]))

    def rename(old: str, new: str) -> None:
        replace(old, new)
        if ".laion6m" not in Path(new).parts:
            events.append(("name", os.path.basename(new).split(".")[0]))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    make_index(source, tmp_path / "out")
    steps = [[("sync", f"meta-{name}"), ("name", name), ("sync", "meta")] for name in ("index", "rejects", "manifest")]
    assert events == [event for step in steps for event in step]


def test_a_large_source_is_indexed_without_reading_its_images(tmp_path: Path) -> None:
    keys = make_large_source(tmp_path / "src", tars=2)
    summary = index(str(tmp_path / "src"), str(tmp_path / "out"), num_proc=1, quiet=True)
    assert [sample.key for sample in open_dataset(tmp_path / "out")] == keys
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()) < 60_000
    assert summary.totals.image_bytes > 3_000_000


def test_without_an_out_the_index_lies_beside_the_tars(tmp_path: Path) -> None:
    source = whole_source(tmp_path / "src", "card")
    summary = make_index(source, None)
    assert summary.out == str(source.path)
    assert (source.path / schema.INDEX).exists()
    assert [sample.key for sample in open_dataset(source.path)] == list(source.rows)
    source.path.rename(tmp_path / "moved")  # tars and index together
    reader = open_dataset(tmp_path / "moved")
    assert all(sample.image == source.rows[sample.key].image for sample in reader)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_source_with_an_index_in_it_is_still_the_same_source(layout: str, tmp_path: Path) -> None:
    source = whole_source(tmp_path / "src", layout)
    first = make_index(source, None)
    again = make_index(source, None)
    assert (again.totals, again.damage) == (first.totals, first.damage)
    options = ConvertOptions(recaptions=source.recaptions)
    assert convert(str(source.path), str(tmp_path / "out"), options, num_proc=1, quiet=True).totals == first.totals


def test_an_index_is_made_anew_each_time(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    make_index(source, tmp_path / "out")
    (source.path / "data.json").write_text(json.dumps(json.loads((source.path / "data.json").read_text())[:5]))
    assert make_index(source, tmp_path / "out").totals.rows == 5
    assert len(open_dataset(tmp_path / "out")) == 5


@pytest.mark.parametrize("side", ["raw", "captions"])
def test_compressed_tars_are_refused_with_the_reason_and_a_way_on(side: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    for tar in sorted((source.path / side).iterdir()):
        tar.with_suffix(".tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
        tar.unlink()
    with pytest.raises(SourceError) as caught:
        make_index(source, tmp_path / "out")
    message = str(caught.value)
    names = ", ".join(f"{side}/0000{number}.tar.gz" for number in range(3))
    assert f"{names}: an index cannot point into compressed tars" in message
    assert "laion6m convert" in message
    assert not (tmp_path / "out" / "meta").exists()


def test_a_refused_source_does_not_stand_in_the_way_of_the_next(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    tar = source.path / "raw" / "00001.tar"
    data = tar.read_bytes()
    tar.write_bytes(gzip.compress(data))
    with pytest.raises(SourceError):
        make_index(source, tmp_path / "out")
    tar.write_bytes(data)
    assert make_index(source, tmp_path / "out").complete


def test_a_converted_folder_keeps_its_own_index(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    convert(str(source.path), str(tmp_path / "out"), num_proc=1, quiet=True)
    before = output_bytes(tmp_path / "out")
    with pytest.raises(SourceError, match="is a converted folder, which has its own index"):
        make_index(source, tmp_path / "out")
    assert output_bytes(tmp_path / "out") == before


@pytest.mark.parametrize("place", ["raw", "captions", "raw/deeper", "data.json"])
def test_an_index_does_not_lie_among_the_tars(place: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    before = sorted(source.path.rglob("*"))
    with pytest.raises(SourceError, match="lies in the source"):
        make_index(source, source.path / place)
    assert sorted(source.path.rglob("*")) == before


def test_an_unwritable_out_is_named(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(WriteError, match=str(tmp_path / "out")):
        make_index(source, tmp_path / "out")


def test_an_index_of_nothing_is_an_error_that_leaves_out_free(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    listing = (source.path / "data.json").read_text()
    (source.path / "data.json").write_text("[]")
    with pytest.raises(SourceError, match="gives no rows: 0 samples are listed"):
        make_index(source, tmp_path / "out")
    assert not (tmp_path / "out/meta").exists()
    (source.path / "data.json").write_text(listing)
    assert make_index(source, tmp_path / "out").complete


def test_a_conversion_may_follow_into_the_folder_of_an_index(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    make_index(source, tmp_path / "out")
    try:
        summary = convert(str(source.path), str(tmp_path / "out"), num_proc=1, quiet=True)
    except JobMismatchError:
        pytest.fail("an index leaves no job behind")
    assert summary.complete
    reader = open_dataset(tmp_path / "out")
    os.rename(source.path, tmp_path / "gone")
    assert all(sample.image == source.rows[sample.key].image for sample in reader)


@pytest.mark.parametrize("side", ["raw", "captions"])
@pytest.mark.parametrize("digest", [False, True])
def test_an_extracted_file_that_changed_is_an_error_and_no_wrong_row(side: str, digest: bool, tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", "extracted")
    index(str(source.path), str(tmp_path / "out"), digest=digest, num_proc=1, quiet=True)
    reader = open_dataset(tmp_path / "out")
    sample = reader[1]
    assert (sample.image, json.loads(sample.annotation)) != (b"", {})
    path = source.path / side / (sample.path if side == "raw" else sample.annotation_path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))
    with pytest.raises(IndexMismatchError, match="modified since it was indexed"):
        _ = reader[1].image if side == "raw" else reader[1].annotation
    assert reader[0].image == source.rows[reader[0].key].image


def test_files_are_noted_with_what_tells_that_they_are_the_same(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    make_index(source, tmp_path / "out")
    with pa.memory_map(str(tmp_path / "out" / schema.INDEX)) as file:
        metadata = pa.ipc.open_file(file).schema.metadata
    header = schema.IndexHeader.from_json(metadata[schema.INDEX_METADATA_KEY])
    assert header.root == str(source.path)
    assert [file.path for file in header.files] == [
        f"{side}/{number:05d}.tar" for side in ("raw", "captions") for number in range(3)
    ]
    for entry in header.files:
        status = (source.path / entry.path).stat()
        assert entry.check == {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
