"""From planned rows to samples: every row comes out once, as a sample or as a reject."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from builder.base.errors import SourceChangedError, SourceError
from builder.base.options import SamplePolicy
from builder.base.records import Reject
from builder.plan.implied import listing_of_annotations
from builder.plan.recaptions import listing_of_recaptions, wanted_field
from builder.source import samples as module
from builder.source.files import LocalFile
from builder.source.layouts import recognise
from builder.source.listing import read_listing
from builder.source.samples import Chunk, Sample, Stock, read_samples
from builder.source.scan import ScanRequest, scan_archive
from tests.scanned import plan_of_tables
from tests.sources import LAYOUTS, Source, faults_of, make_source, picture

POLICY = SamplePolicy()


def planned(path: Path, recaptions: tuple[str, ...] = ()) -> tuple[pa.RecordBatch, Stock]:
    """All rows of a source as planning gives them to one shard."""
    layout = recognise(str(path), recaptions)
    field = wanted_field(recaptions, None)
    raw = [scan_archive(ScanRequest(archive, True, field)) for archive in layout.raw]
    captions = [scan_archive(ScanRequest(archive, True)) for archive in layout.captions] if layout.captions else raw
    if recaptions:
        listing = listing_of_recaptions(recaptions, raw, "auto").listing
    elif layout.listing:
        listing = read_listing([LocalFile(name) for name in layout.listing])
    else:
        listing = listing_of_annotations(raw, captions)
    plan = plan_of_tables(layout, listing, raw, captions, 10**9)
    stock = Stock(
        layout.raw_root, layout.captions_root, dict(enumerate(layout.raw)), dict(enumerate(layout.annotations))
    )
    return plan.rows.slice(0, plan.rows.num_rows).combine_chunks().to_batches()[0], stock


def image_of(chunk: Chunk, sample: Sample) -> bytes:
    return bytes(chunk.buffer[sample.start : sample.end])


def everything(chunks: Iterator[Chunk]) -> tuple[dict[str, tuple[bytes, str, str]], list[Reject]]:
    rows: dict[str, tuple[bytes, str, str]] = {}
    rejects: list[Reject] = []
    for chunk in chunks:
        for sample in chunk.samples:
            assert sample.key not in rows
            rows[sample.key] = (image_of(chunk, sample), sample.caption, sample.annotation.decode())
        rejects += chunk.rejects
    return rows, rejects


def write_tar(path: Path, members: list[tuple[str, bytes]], links: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, target
            tar.addfile(info)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return make_source(tmp_path / "src", shards=2, per_shard=6)


# --- what comes out ---


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_its_rows_and_rejects(tmp_path: Path, layout: str) -> None:
    source = make_source(tmp_path / "src", layout, faults=faults_of(layout))
    rows, stock = planned(source.path, source.recaptions)
    found, rejects = everything(read_samples(rows, stock, POLICY))
    assert list(found) == list(source.rows)
    assert found == {key: tuple(row) for key, row in source.rows.items()}
    # the plan has taken out what needs no reading
    unread = {"image_missing", "caption_missing", "duplicate", "tar_damaged"}
    assert {reject.key: reject.reason.value for reject in rejects} == {
        key: reason for key, reason in source.rejects.items() if reason not in unread
    }
    assert len(found) + len(rejects) == rows.num_rows


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_images_the_verdicts_are_the_same(tmp_path: Path, layout: str) -> None:
    """An index of tars has to have the rows that converting them has."""
    source = make_source(tmp_path / "src", layout, faults=faults_of(layout))
    rows, stock = planned(source.path, source.recaptions)
    read = list(read_samples(rows, stock, POLICY))
    looked = list(read_samples(rows, stock, POLICY, with_images=False))

    def facts(chunks: list[Chunk]) -> list[Sample]:
        return [sample._replace(start=0, end=sample.end - sample.start) for c in chunks for sample in c.samples]

    assert facts(looked) == facts(read)
    assert [reject for chunk in looked for reject in chunk.rejects] == [r for chunk in read for r in chunk.rejects]
    assert all(len(chunk.buffer) == 0 for chunk in looked)


def test_a_sample_says_where_its_bytes_lie(source: Source) -> None:
    rows, stock = planned(source.path)
    for chunk in read_samples(rows, stock, POLICY):
        for sample in chunk.samples:
            image = Path(stock.raw[sample.archive].path).read_bytes()[sample.offset :][: sample.end - sample.start]
            assert image == image_of(chunk, sample) == source.rows[sample.key].image
            captions = Path(stock.annotations[sample.annotation_archive].path).read_bytes()
            document = captions[sample.annotation_offset :][: sample.annotation_size]
            assert document.decode() == source.rows[sample.key].document
            assert source.paths[sample.key] == sample.path
            assert sample.annotation_path == f"{sample.key}.json"


def test_positions_are_those_of_the_listing(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", shards=2, per_shard=5, faults=("blank_caption", "not_an_image"))
    listing = json.loads((source.path / "data.json").read_text())
    listing.reverse()
    (source.path / "data.json").write_text(json.dumps(listing))
    rows, stock = planned(source.path)
    chunks = list(read_samples(rows, stock, POLICY))
    for item in [*(s for c in chunks for s in c.samples), *(r for c in chunks for r in c.rejects)]:
        assert listing[item.position]["image"] == source.paths[item.key]


def test_a_reject_names_its_archive_and_what_is_wrong(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", shards=2, per_shard=3, faults=("null_caption", "too_wide"))
    rows, stock = planned(source.path)
    _, rejects = everything(read_samples(rows, stock, POLICY))
    assert [(reject.reason.value, reject.source) for reject in rejects] == [
        ("caption_invalid", "00000.tar"),
        ("aspect_ratio", "00001.tar"),
    ]
    assert rejects[0].detail == "caption is null, not a string"
    assert rejects[1].detail == "64 x 16 = 4, more than 3"


def test_captions_may_lie_in_folders_where_images_lie_in_tars(source: Source) -> None:
    for path in sorted((source.path / "captions").iterdir()):
        with tarfile.open(path) as tar:
            tar.extractall(source.path / "captions", filter="data")
        path.unlink()
    rows, stock = planned(source.path)
    found, rejects = everything(read_samples(rows, stock, POLICY))
    assert (found, rejects) == ({key: tuple(row) for key, row in source.rows.items()}, [])


def test_compressed_tars_give_the_same_rows(source: Source) -> None:
    for path in sorted(source.path.glob("*/*.tar")):
        path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
        path.unlink()
    rows, stock = planned(source.path)
    found, rejects = everything(read_samples(rows, stock, POLICY))
    assert (found, rejects) == ({key: tuple(row) for key, row in source.rows.items()}, [])


def test_a_hard_link_is_a_sample_with_the_bytes_of_its_target(tmp_path: Path) -> None:
    image = picture(1)
    write_tar(tmp_path / "src/raw/0.tar", [("0/a.jpg", image), ("0/b.jpg", picture(2))], {"0/link.jpg": "0/a.jpg"})
    names = ["a", "b", "link"]
    write_tar(tmp_path / "src/captions/0.tar", [(f"0/{n}.json", b'{"caption": "%s"}' % n.encode()) for n in names])
    rows, stock = planned(tmp_path / "src")
    found, rejects = everything(read_samples(rows, stock, POLICY))
    assert rejects == []
    assert {key: row[:2] for key, row in found.items()} == {
        "0/a": (image, "a"),
        "0/link": (image, "link"),
        "0/b": (picture(2), "b"),
    }


# --- chunks ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CHUNK_BYTES", 2000),
        ("CHUNK_BYTES", 1),
        ("CHUNK_ROWS", 1),
        ("CHUNK_ROWS", 3),
        ("_CHUNK_TEXT", 300),
        ("_GAP", 0),
    ],
)
@pytest.mark.parametrize("layout", ["card", "scattered", "extracted", "img2dataset"])
def test_where_chunks_are_cut_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, name: str, value: int
) -> None:
    source = make_source(tmp_path / "src", layout, shards=2, per_shard=6, faults=("truncated_image", "blank_caption"))
    rows, stock = planned(source.path, source.recaptions)
    monkeypatch.setattr(module, name, value)
    sizes = []
    for chunk in read_samples(rows, stock, POLICY):
        sizes.append(len(chunk.samples) + len(chunk.rejects))
        if name == "CHUNK_BYTES":
            assert sizes[-1] == 1 or sum(s.end - s.start for s in chunk.samples) <= value
        if name == "CHUNK_ROWS":
            assert sizes[-1] <= value
    assert sum(sizes) == rows.num_rows
    assert len(sizes) > 2 or name == "_GAP"
    found, rejects = everything(read_samples(rows, stock, POLICY))
    assert list(found) == list(source.rows)
    assert found == {key: tuple(row) for key, row in source.rows.items()}
    assert len(rejects) == 2


def test_a_chunk_stays_good_while_the_next_one_is_read(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page that is being written holds views into it."""
    monkeypatch.setattr(module, "CHUNK_ROWS", 2)
    rows, stock = planned(source.path)
    before: Chunk | None = None
    count = 0
    for chunk in read_samples(rows, stock, POLICY):
        for sample in before.samples if before else ():
            assert before is not None
            assert image_of(before, sample) == source.rows[sample.key].image
            count += 1
        before = chunk
    assert count == 10


def test_an_image_larger_than_a_chunk_comes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 4000)
    images = [picture(1), picture(2, "PNG", (80, 80)), picture(3)]
    assert len(images[1]) > 8000
    write_tar(tmp_path / "src/raw/0.tar", [(f"0/{i}.jpg", image) for i, image in enumerate(images)])
    write_tar(tmp_path / "src/captions/0.tar", [(f"0/{i}.json", b'{"caption": "x"}') for i in range(3)])
    rows, stock = planned(tmp_path / "src")
    chunks = list(read_samples(rows, stock, POLICY))
    assert [[sample.key for sample in chunk.samples] for chunk in chunks] == [["0/0"], ["0/1"], ["0/2"]]


def test_few_archives_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scattered captions lie in thousands of tars; a process may open about a thousand files."""
    source = make_source(tmp_path / "src", "scattered", shards=3, per_shard=4)
    rows, stock = planned(source.path)
    monkeypatch.setattr(module, "_OPEN_ARCHIVES", 1)
    monkeypatch.setattr(module, "CHUNK_ROWS", 1)
    most = 0
    for _ in read_samples(rows, stock, POLICY):
        links = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.islink(f"/proc/self/fd/{fd}")
        ]
        most = max(most, sum(str(source.path) in link for link in links))
    assert most == 2  # one of images, one of captions
    found, _ = everything(read_samples(rows, stock, POLICY))
    assert found == {key: tuple(row) for key, row in source.rows.items()}


def test_no_rows_are_no_chunks(source: Source) -> None:
    rows, stock = planned(source.path)
    assert list(read_samples(rows.slice(0, 0), stock, POLICY)) == []


# --- policies ---


@pytest.mark.parametrize(
    ("policy", "reason", "kept"),
    [
        (SamplePolicy(min_side=17), "image_too_small", ["wide"]),
        (SamplePolicy(min_side=16), None, ["wide", "square"]),
        (SamplePolicy(max_pixels=16 * 16), "image_too_large", ["square"]),
        (SamplePolicy(max_pixels=17 * 51), None, ["square", "wide"]),
        (SamplePolicy(max_aspect_ratio=2.9), "aspect_ratio", ["square"]),
        (SamplePolicy(max_aspect_ratio=3.0), None, ["square", "wide"]),  # 51 : 17, the limit itself is within it
        (SamplePolicy(caption_key="alt"), "caption_invalid", ["wide"]),
    ],
)  # fmt: skip
def test_policies_decide(tmp_path: Path, policy: SamplePolicy, reason: str | None, kept: list[str]) -> None:
    images = {"square": picture(1, "JPEG", (16, 16)), "wide": picture(2, "PNG", (51, 17))}
    write_tar(tmp_path / "src/raw/0.tar", [(f"{name}.jpg", image) for name, image in images.items()])
    documents = {"square": {"caption": "s"}, "wide": {"caption": "w", "alt": "a"}}
    write_tar(tmp_path / "src/captions/0.tar", [(f"{n}.json", json.dumps(d).encode()) for n, d in documents.items()])
    rows, stock = planned(tmp_path / "src")
    found, rejects = everything(read_samples(rows, stock, policy))
    assert sorted(found) == sorted(kept)
    assert [reject.reason.value for reject in rejects] == ([reason] if reason else [])
    if policy.caption_key == "alt":
        assert found["wide"][1] == "a"


# --- sources that change ---


def first_tar(source: Source, side: str = "raw") -> Path:
    return source.path / side / "00000.tar"


@pytest.mark.parametrize("side", ["raw", "captions"])
def test_a_tar_that_is_not_what_was_planned_is_noticed_before_it_is_read(source: Source, side: str) -> None:
    rows, stock = planned(source.path)
    path = first_tar(source, side)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(SourceChangedError, match="modification time"):
        everything(read_samples(rows, stock, POLICY))
    with path.open("ab") as handle:
        handle.write(bytes(512))
    with pytest.raises(
        SourceChangedError, match=f"it has {status.st_size + 512:,} bytes, it had {status.st_size:,} when"
    ):
        everything(read_samples(rows, stock, POLICY))
    path.unlink()
    with pytest.raises(SourceChangedError, match="No such file"):
        everything(read_samples(rows, stock, POLICY))


@pytest.mark.parametrize("side", ["raw", "captions"])
def test_a_tar_that_changes_while_it_is_read_is_noticed_at_the_end(
    source: Source, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", 4)
    rows, stock = planned(source.path)
    chunks = read_samples(rows, stock, POLICY)
    next(chunks)
    os.utime(first_tar(source, side), ns=(0, 0))
    with pytest.raises(SourceChangedError, match=r"00000\.tar"):
        everything(chunks)


@pytest.mark.parametrize("side", ["raw", "captions"])
def test_a_tar_that_is_cut_while_it_is_read_is_noticed_at_once(
    source: Source, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", 4)
    rows, stock = planned(source.path)
    chunks = read_samples(rows, stock, POLICY)
    next(chunks)
    os.truncate(first_tar(source, side), 1600)
    with pytest.raises(SourceChangedError, match=r"it ends at byte [\d,]+"):
        everything(chunks)


@pytest.mark.parametrize("side", ["raw", "captions"])
def test_an_extracted_file_of_another_size_is_noticed(tmp_path: Path, side: str) -> None:
    source = make_source(tmp_path / "src", "extracted", shards=1, per_shard=3)
    rows, stock = planned(source.path)
    victim = sorted((source.path / side / "00000").iterdir())[1]
    whole = victim.read_bytes()
    victim.write_bytes(whole + b"x")
    with pytest.raises(SourceChangedError, match=victim.name):
        everything(read_samples(rows, stock, POLICY))
    victim.unlink()
    with pytest.raises(SourceError, match=f"{victim.name}: No such file"):
        everything(read_samples(rows, stock, POLICY))


@pytest.mark.parametrize("side", ["raw", "captions"])
def test_an_extracted_file_that_is_cut_while_it_is_read_spoils_no_other_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    """Images of a chunk stand one behind the other: a short one would shift all that follow."""
    source = make_source(tmp_path / "src", "extracted", shards=1, per_shard=3)
    rows, stock = planned(source.path)
    victim = sorted((source.path / side / "00000").iterdir())[0]
    read_at = LocalFile.read_at

    def cut_short(file: LocalFile, offset: int, length: int) -> bytes:
        if file.name == str(victim):
            os.truncate(victim, 10)
        return read_at(file, offset, length)

    monkeypatch.setattr(LocalFile, "read_at", cut_short)
    with pytest.raises(SourceChangedError, match=victim.name):
        everything(read_samples(rows, stock, POLICY))


def test_what_was_planned_may_move_with_its_folder(source: Source, tmp_path: Path) -> None:
    """Paths come from the stock, not from the plan's rows."""
    rows, stock = planned(source.path)
    shutil.copytree(source.path, tmp_path / "copy", copy_function=shutil.copy2)

    def moved(path: str) -> str:
        return path.replace(str(source.path), str(tmp_path / "copy"))

    there = Stock(
        moved(stock.raw_root),
        moved(stock.captions_root),
        {number: replace(archive, path=moved(archive.path)) for number, archive in stock.raw.items()},
        {number: replace(archive, path=moved(archive.path)) for number, archive in stock.annotations.items()},
    )
    shutil.rmtree(source.path)
    assert len(everything(read_samples(rows, there, POLICY))[0]) == len(source.rows)


def test_handles_are_given_back_whatever_happens(source: Source) -> None:
    rows, stock = planned(source.path)
    before = len(os.listdir("/proc/self/fd"))
    chunks = read_samples(rows, stock, POLICY)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    os.utime(first_tar(source), ns=(0, 0))
    with pytest.raises(SourceChangedError):
        everything(read_samples(rows, stock, POLICY))
    assert len(os.listdir("/proc/self/fd")) == before
