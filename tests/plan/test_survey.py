from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from builder.base.errors import DamagedFileError, ListingError, SourceError
from builder.base.options import ConvertOptions
from builder.engines.local import SerialEngine
from builder.plan.identity import describe_source
from builder.plan.kept import load_survey, save_survey
from builder.plan.survey import Survey, shard_rows, survey
from builder.source.layouts import recognise
from builder.store.ledger import Ledger
from builder.store.seals import file_digest, seal
from tests.sources import LAYOUTS, Source, faults_of, make_source


def survey_of(source: Source, **options: int) -> Survey:
    layout = recognise(str(source.path), source.recaptions)
    return survey(layout, ConvertOptions(recaptions=source.recaptions, **options), SerialEngine())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_planned_in_full(layout: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", layout, faults=faults_of(layout), shards=4)
    found = survey_of(source)
    known = {"image_missing", "caption_missing", "duplicate", "tar_damaged"}  # without reading what is inside
    lost = sorted(reason for reason in source.rejects.values() if reason in known)
    assert sorted(found.plan.rejects.column("reason").to_pylist()) == lost
    assert found.plan.listed == source.listed
    assert found.plan.unlisted == source.unlisted
    assert found.plan.rows.num_rows == source.listed - len(lost)
    assert found.compressed == ()


def test_what_is_wrong_with_a_listing_is_raised_though_it_is_read_beside_the_scan(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    (source.path / "data.json").write_text('[{"image": 3}]')
    with pytest.raises(ListingError, match="entry 0"):
        survey_of(source)


def test_what_is_wrong_with_the_archives_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "src")
    layout = recognise(str(source.path))
    (source.path / "data.json").write_text("[")
    (source.path / "raw" / "00000.tar").unlink()
    with pytest.raises(SourceError, match=r"cannot read .*00000\.tar"):
        survey(layout, ConvertOptions(), SerialEngine())


def test_damage_is_noted_by_side_and_archive(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    (source.path / "raw" / "00001.tar").write_bytes(b"")
    with (source.path / "captions" / "00002.tar").open("r+b") as handle:
        handle.seek(512)
        handle.write(b"!" * 512)
    found = survey_of(source)
    assert sorted(found.damage) == ["captions/00002.tar", "raw/00001.tar"]
    assert all(place.startswith("bytes ") for places in found.damage.values() for place in places)
    reasons = found.plan.rejects.column("reason").to_pylist()
    assert set(reasons) == {"tar_damaged"}
    assert 9 <= len(reasons) <= 10  # all of one tar, and what the bad header stood for


def test_compressed_archives_are_named(tmp_path: Path) -> None:
    import gzip

    source = make_source(tmp_path / "src")
    plain = source.path / "captions" / "00001.tar"
    plain.with_suffix(".tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    found = survey_of(source)
    assert found.compressed == ("captions/00001.tar.gz",)
    assert found.plan.rows.num_rows == 24


def test_a_plan_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", faults=faults_of("card"), shards=4)
    ledger = Ledger(str(tmp_path / "out"))
    made = survey_of(source)
    assert load_survey(made.layout, ledger) is None
    save_survey(made, ledger)
    back = load_survey(made.layout, ledger)
    assert back is not None
    assert back.plan.rows.equals(made.plan.rows.slice(0, made.plan.rows.num_rows), check_metadata=True)
    assert back.plan.rejects.equals(made.plan.rejects)
    assert (back.plan.bounds, back.plan.owners) == (made.plan.bounds, made.plan.owners)
    assert (back.plan.unlisted, back.plan.listed) == (made.plan.unlisted, made.plan.listed)
    assert (back.damage, back.compressed) == (made.damage, made.compressed)
    assert not os.listdir(ledger.path("tmp"))


@pytest.mark.parametrize("name", ["plan.arrow", "plan-rejects.arrow", "plan.json"])
@pytest.mark.parametrize("keep", [0, 7, -1])
def test_a_damaged_plan_says_what_to_remove(name: str, keep: int, tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", faults=["image_missing"])
    ledger = Ledger(str(tmp_path / "out"))
    made = survey_of(source)
    save_survey(made, ledger)
    path = Path(ledger.path(name))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedFileError, match="Remove it") as caught:
        load_survey(made.layout, ledger)
    os.unlink(str(caught.value).partition(":")[0])
    assert load_survey(made.layout, ledger) is None


@pytest.mark.parametrize("name", ["plan.arrow", "plan-rejects.arrow", "plan.json"])
def test_a_flipped_bit_of_a_plan_is_noticed(name: str, tmp_path: Path) -> None:
    """An offset in it that is another one would be other bytes in the output, with checksums that fit."""
    source = make_source(tmp_path / "src", faults=["image_missing"])
    ledger = Ledger(str(tmp_path / "out"))
    made = survey_of(source)
    save_survey(made, ledger)
    path = Path(ledger.path(name))
    data = path.read_bytes()
    for place in range(0, len(data), 37):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        path.unlink()  # an earlier one may be mapped still
        path.write_bytes(changed)
        with pytest.raises(DamagedFileError, match="Remove it"):
            load_survey(made.layout, ledger)


def test_a_plan_without_its_facts_is_damaged(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    os.makedirs(ledger.path())
    for name in ("plan.arrow", "plan-rejects.arrow"):
        with pa.ipc.new_stream(ledger.path(name), pa.schema([("a", pa.int8())])):
            pass
    names = ("plan.arrow", "plan-rejects.arrow")
    Path(ledger.path("plan.json")).write_bytes(seal({name: file_digest(ledger.path(name)) for name in names}))
    layout = recognise(str(make_source(tmp_path / "src").path))
    with pytest.raises(DamagedFileError, match="plan"):
        load_survey(layout, ledger)


def test_shards_hold_all_rows_and_the_archives_they_lie_in(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", "scattered", faults=["image_missing"])
    found = survey_of(source)
    parts = [shard_rows(found, number) for number in range(found.plan.shards)]
    assert pa.concat_tables(rows for rows, _ in parts).equals(found.plan.rows.slice(0, found.plan.rows.num_rows))
    for rows, stock in parts:
        assert set(stock.raw) == set(rows.column("archive").to_pylist())
        assert set(stock.annotations) == set(rows.column("annotation_archive").to_pylist())
        assert [archive.name for archive in stock.annotations.values()] == ["part-a.tar", "part-b.tar"]


def test_a_shard_of_no_rows_needs_no_archives(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    (source.path / "data.json").write_text("[]")
    rows, stock = shard_rows(survey_of(source), 0)
    assert (rows.num_rows, stock.raw, stock.annotations) == (0, {}, {})


@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.utime(path / "raw" / "00001.tar", ns=(1, 1)),
        lambda path: os.utime(path / "captions" / "00001.tar", ns=(1, 1)),
        lambda path: os.utime(path / "data.json", ns=(1, 1)),
        lambda path: os.truncate(path / "raw" / "00001.tar", 4096),
        lambda path: (path / "raw" / "00001.tar").rename(path / "raw" / "00007.tar"),
        lambda path: shutil.copy2(path / "raw" / "00001.tar", path / "raw" / "00007.tar"),
        lambda path: (path / "data.json").unlink(),
        lambda path: shutil.rmtree(path / "captions"),
    ],
)
def test_any_change_makes_it_another_source(change: object, tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    before = describe_source(recognise(str(source.path)))
    assert describe_source(recognise(str(source.path))) == before
    change(source.path)  # type: ignore[operator]
    assert describe_source(recognise(str(source.path))) != before


def test_a_source_is_known_by_what_is_in_it_not_by_where_it_is(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    before = describe_source(recognise(str(source.path)))
    source.path.rename(tmp_path / "elsewhere")
    assert describe_source(recognise(str(tmp_path / "elsewhere"))) == before


def test_recaptions_of_one_name_in_two_folders_are_both_known(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", "img2dataset")
    files = [tmp_path / name / "part.parquet" for name in "ab"]
    for file in files:
        file.parent.mkdir()
        shutil.copyfile(source.recaptions[0], file)
    layout = recognise(str(source.path), tuple(map(str, files)))
    before = describe_source(layout)
    os.utime(files[0], ns=(1, 1))
    assert describe_source(layout) != before


def test_a_listing_that_went_away_is_a_source_error(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    layout = recognise(str(source.path))
    (source.path / "data.json").unlink()
    with pytest.raises(SourceError, match=r"data\.json: No such file"):
        survey(layout, ConvertOptions(), SerialEngine())
