"""What is looked at before a conversion begins, and what a plan of it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.base.errors import OptionError, OutputError, SourceError
from builder.base.options import ConvertOptions
from builder.conversion import before
from builder.conversion.convert import convert
from builder.conversion.preview import Preview, describe_preview, preview
from builder.read.opening import open_dataset
from builder.verification.verify import verify
from tests.outputs import make_large_source, output_bytes, read_rejects
from tests.sources import Source, faults_of, make_source


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return make_source(tmp_path / "src", faults=faults_of("card"), shards=4)


def cut_listing(source: Source) -> None:
    (source.path / "data.json").write_text('[{"image": ')


@pytest.mark.parametrize(
    ("options", "spoil", "error"),
    [
        ({"caption_key": "nowhere"}, lambda _: None, OptionError),
        ({"min_side": 100_000}, lambda _: None, SourceError),  # no row at all
        ({}, cut_listing, SourceError),
        ({"start": 4}, lambda _: None, OptionError),
    ],
)
def test_a_refused_conversion_leaves_no_out(
    options: dict[str, int], spoil: Callable[[Source], None], error: type[Exception], source: Source, tmp_path: Path
) -> None:
    spoil(source)
    with pytest.raises(error):
        convert(source.path, tmp_path / "out", num_proc=1, quiet=True, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()  # one that was there stays
    with pytest.raises(error):
        convert(source.path, tmp_path / "out", num_proc=1, quiet=True, **options)  # type: ignore[arg-type]
    assert (tmp_path / "out").is_dir()


def test_a_field_that_no_annotation_has_stops_at_once_and_names_those_there_are(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    with pytest.raises(OptionError, match=r"caption_key \"text\": none of the first 24 .*field text; .*caption"):
        convert(source.path, tmp_path / "out", caption_key="text", num_proc=1, quiet=True)
    convert(source.path, tmp_path / "out", caption_key="caption", num_proc=1, quiet=True)  # another job, same OUT


def test_a_source_whose_annotations_have_another_field_is_refused_with_the_fields_there_are(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", "extracted", shards=1, per_shard=120)
    for document in (source.path / "captions").rglob("*.json"):
        document.write_text(json.dumps({"text": "a caption", "url": "x"}))
    said = (
        r"none of the first 120 annotations has a caption: no field re_caption or caption; fields: text, url\. "
        "Name the caption's field: --caption-key NAME"
    )
    with pytest.raises(SourceError, match=f"^{said}$"):
        convert(source.path, tmp_path / "out", num_proc=1, quiet=True)
    assert convert(source.path, tmp_path / "out", caption_key="text", num_proc=1, quiet=True).totals.rows == 120


def test_one_annotation_that_has_the_field_is_enough(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", "extracted")
    document = next(iter(sorted((source.path / "captions").rglob("*.json"))[-1:]))
    document.write_text(json.dumps({"text": "a caption", "url": "x"}))
    assert convert(source.path, tmp_path / "out", caption_key="text", num_proc=1, quiet=True).totals.rows == 1


def test_room_is_compared_with_what_is_needed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(tmp_path / "src")
    monkeypatch.setattr(before, "free_bytes", lambda out: 1000)
    with pytest.raises(OutputError, match=r"out needs .* kB, but its disk has 1\.00 kB free"):
        convert(source.path, tmp_path / "out", num_proc=1, quiet=True)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(before, "free_bytes", lambda out: None)  # not every file system says
    convert(source.path, tmp_path / "out", num_proc=1, quiet=True)
    monkeypatch.setattr(before, "free_bytes", lambda out: 0)
    assert convert(source.path, tmp_path / "out", num_proc=1, quiet=True).did == 0  # all is there: none is needed


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 3, 10, 1000])
def test_the_first_samples_of_the_plan_are_a_whole_dataset(limit: int, source: Source, tmp_path: Path) -> None:
    whole = convert(source.path, tmp_path / "whole", num_proc=1, quiet=True)
    few = convert(source.path, tmp_path / "few", limit=limit, num_proc=1, quiet=True)
    assert few.totals.listed == min(limit, whole.totals.listed)
    assert few.complete
    keys = [sample.key for sample in open_dataset(tmp_path / "few")]
    assert keys == [sample.key for sample in open_dataset(tmp_path / "whole")][: few.totals.rows]
    assert verify(tmp_path / "few", num_proc=1, quiet=True).ok
    assert verify(tmp_path / "few", source=source.path, num_proc=1, quiet=True).ok
    assert len(read_rejects(tmp_path / "few")) == few.totals.listed - few.totals.rows
    if limit > whole.totals.listed:
        assert output_bytes(tmp_path / "few").keys() == output_bytes(tmp_path / "whole").keys()


def test_shards_behind_the_limit_are_not_made(tmp_path: Path) -> None:
    make_large_source(tmp_path / "src", tars=3)
    few = convert(tmp_path / "src", tmp_path / "few", limit=2, max_shard_size="1MB", num_proc=1, quiet=True)
    assert (few.totals.rows, few.totals.shards) == (2, 1)


@pytest.mark.parametrize("limit", [0, -1, True, 1.5])
def test_a_limit_is_a_whole_number_of_one_or_more(limit: int, source: Source, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="limit"):
        convert(source.path, tmp_path / "out", limit=limit, num_proc=1, quiet=True)


def plan(source: Source, out: Path, limit: int | None = None, **part: int) -> Preview:
    options = ConvertOptions(limit=limit)
    return preview(source.path, out, options, num_proc=1, quiet=True, **part)  # type: ignore[arg-type]


def test_a_plan_says_what_the_conversion_then_does_and_writes_nothing(source: Source, tmp_path: Path) -> None:
    found = plan(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = convert(source.path, tmp_path / "out", num_proc=1, quiet=True)
    said, did = found.to_json(), done.to_json()
    assert did.keys() < said.keys()
    for name in ("rows", "listed", "rejected", "unlisted", "shards", "unread", "replaced", "damage", "out"):
        assert said[name] == did[name], name
    assert found.layout == "card"
    assert found.needed > done.totals.image_bytes
    assert found.free
    text = describe_preview(found)
    assert f"{done.totals.rows:,} expected of {done.totals.listed:,} listed" in text
    assert "nothing was written" in text


def test_a_plan_of_a_slice_or_of_a_few_samples_counts_these(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    assert plan(source, tmp_path / "out", limit=5).to_json()["listed"] == 5
    assert plan(source, tmp_path / "out", start=1, end=2).to_json()["rows"] == 0  # its tar lies in the first's shard
    with pytest.raises(OptionError, match="start 9"):
        plan(source, tmp_path / "out", start=9)


def test_a_plan_says_where_there_is_not_enough_room(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builder.conversion.preview.free_bytes", lambda out: 10)
    assert "not enough room" in describe_preview(plan(source, tmp_path / "out"))
