"""info says what a folder is without reading an image."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from builder.base.errors import DamagedFileError, InterruptedRunError, SourceError
from builder.base.options import ConvertOptions
from builder.conversion.convert import convert
from builder.conversion.index import index
from builder.jobs.info import describe_info, info
from builder.read.opening import open_dataset
from tests.sources import LAYOUTS, faults_of, make_source


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_source_is_described_by_its_layout_and_sizes(tmp_path: Path, layout: str) -> None:
    made = make_source(tmp_path / "src", layout, per_shard=5)
    found = info(str(made.path))
    kinds = {"scattered": "card", "no_listing": "card", "listing_folder": "card", "img2dataset_key": "img2dataset"}
    assert (found.kind, found.facts["layout"]) == ("source", kinds.get(layout, layout))
    raw = found.facts["raw"]
    assert raw["tars"] + raw["folders"] == 3
    root = made.path if layout.startswith("img2dataset") else made.path / "raw"
    assert raw["bytes"] == sum(path.stat().st_size for path in root.glob("*.tar"))
    listed = {"no_listing": None, "img2dataset": None, "img2dataset_key": None}
    assert found.facts["listed_about"] == listed.get(layout, 15)
    assert found.facts["samples"]
    assert f"laion6m convert {made.path}" in describe_info(found)
    json.dumps(found.to_json())


def test_the_number_of_entries_of_a_long_listing_is_guessed_from_its_size(tmp_path: Path) -> None:
    made = make_source(tmp_path / "src", "card", per_shard=1)
    entries = [{"image": f"00000/{n:09d}.jpg", "annotation": f"00000/{n:09d}.json"} for n in range(40_000)]
    (made.path / "data.json").write_text(json.dumps(entries))
    assert abs(info(str(made.path)).facts["listed_about"] - 40_000) < 400


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "byte 0: the file is empty; expected a JSON list"),
        ('{"image": "a"}', 'entry 0: has no "annotation" and no caption'),
        ('[{"image": "a", "annotation": "b"}', "byte 34: the list is cut off here"),
        ('[{"image": "a"}]', 'entry 0: has no "annotation"'),
    ],
)
def test_what_is_wrong_with_a_listing_is_said_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    made = make_source(tmp_path / "src", "card", per_shard=1)
    assert info(str(made.path)).facts["problems"] == []
    (made.path / "data.json").write_text(text)
    found = info(str(made.path))
    (said,) = found.facts["problems"]
    assert said.startswith(f"{made.path}/data.json: {problem}")
    assert f"problem   {said}" in describe_info(found)
    assert found.next == (f"laion6m convert {made.path} OUT   (after you have mended that)",)
    json.dumps(found.to_json())


def test_every_file_of_a_folder_of_listings_is_looked_at(tmp_path: Path) -> None:
    made = make_source(tmp_path / "src", "listing_folder", per_shard=1)
    (made.path / "data.json/a.json").write_text("[")
    (made.path / "data.json/c.json").write_text("{}")
    cut, other = info(str(made.path)).facts["problems"]
    assert "a.json: byte 1: the list is cut off here" in cut
    assert 'c.json: entry 0: has no "image"' in other


def test_tars_that_look_like_a_part_of_a_source_get_a_note(tmp_path: Path) -> None:
    made = make_source(tmp_path / "src", "card", per_shard=1)
    found = info(str(made.path / "raw"))
    assert f"give {made.path} instead" in found.facts["note"]
    assert f"note      {found.facts['note']}" in describe_info(found)
    assert "note" not in info(str(made.path)).facts


def test_tars_on_one_side_only_are_pointed_out(tmp_path: Path) -> None:
    made = make_source(tmp_path / "src", "card", per_shard=1)
    (made.path / "captions/00001.tar").unlink()
    assert info(str(made.path)).facts["unmatched"] == ["00001.tar"]
    assert "one side only: 00001.tar" in describe_info(info(str(made.path)))


@pytest.mark.parametrize("form", ["parquet", "arrow", "index"])
def test_an_output_is_described_with_its_rejects_and_an_example_of_each(tmp_path: Path, form: str) -> None:
    made = make_source(tmp_path / "src", "card", per_shard=14, faults=faults_of("card"))
    out = str(tmp_path / "out")
    if form == "index":
        index(str(made.path), out, num_proc=1, quiet=True)
    else:
        convert(str(made.path), out, ConvertOptions(format=form), num_proc=1, quiet=True)
    found = info(out)
    text = describe_info(found)
    assert found.kind == form
    assert found.facts["totals"]["rows"] == len(made.rows)
    assert found.facts["totals"]["rejected"] == made.reasons
    assert set(found.facts["examples"]) == set(made.reasons)
    assert f"{len(made.rows):,} of {made.listed:,} listed" in text
    for reason in made.reasons:
        assert reason in text
        assert found.facts["examples"][reason].split(":")[0] in text
    assert "damaged   raw/00002.tar" in text
    assert ("push" in text) == (form != "index")
    json.dumps(found.to_json())


def test_missing_files_are_pointed_out(tmp_path: Path) -> None:
    made = make_source(tmp_path / "src", "card", per_shard=2)
    convert(str(made.path), str(tmp_path / "out"), num_proc=1, quiet=True)
    next((tmp_path / "out/data").iterdir()).unlink()
    found = info(str(tmp_path / "out"))
    assert found.facts["missing"] == ["data/train-00000-of-00001.parquet"]
    assert "missing" in describe_info(found)
    (tmp_path / "out/meta/rejects.parquet").write_bytes(b"?")
    assert info(str(tmp_path / "out")).facts["examples"] == {}


def test_an_unfinished_conversion_tells_how_far_it_got(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_source(tmp_path / "src", "card", shards=3, per_shard=6, faults=("blank_caption",))
    monkeypatch.setattr("builder.plan.plan.FRAMING", 3e-5)  # a shard for each tar
    convert(str(made.path), str(tmp_path / "out"), start=0, end=1, num_proc=1, quiet=True)
    found = info(str(tmp_path / "out"))
    assert found.kind == "unfinished"
    assert 0 < found.facts["shards_done"] < found.facts["shards_planned"]
    assert found.facts["rows"] == sum(key.startswith("00000/") for key in made.rows)
    assert "goes on from there" in describe_info(found)


def test_a_conversion_that_stopped_before_it_had_a_plan_is_unfinished_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_source(tmp_path / "src", "card", per_shard=2)

    def stop(*_: object, **__: object) -> None:
        raise InterruptedRunError(0, 1)

    monkeypatch.setattr("builder.conversion.build.survey", stop)
    with pytest.raises(InterruptedRunError):
        convert(str(made.path), str(tmp_path / "out"), num_proc=1, quiet=True)
    found = info(str(tmp_path / "out"))
    assert (found.facts["shards_done"], found.facts["shards_planned"]) == (0, None)


def test_what_is_nothing_of_ours_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not there"):
        info(str(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match="empty folder"):
        info(str(tmp_path))
    (tmp_path / "file").write_text("?")
    with pytest.raises(SourceError, match="not a folder"):
        info(str(tmp_path / "file"))
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/manifest.json").write_text("{")
    with pytest.raises(DamagedFileError):
        info(str(tmp_path))


def test_names_from_a_source_do_not_steer_the_terminal(tmp_path: Path) -> None:
    made = make_source(tmp_path / "src", "card", shards=1, per_shard=2)
    os.rename(made.path / "raw/00000.tar", made.path / "raw/\x1b[31m.tar")
    assert "\x1b" not in describe_info(info(str(made.path)))


def test_a_selection_tells_its_dataset_and_its_funnel(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    convert(source.path, tmp_path / "out", num_proc=1, quiet=True)
    open_dataset(tmp_path / "out").sample(5, seed=2).save(tmp_path / "sub")
    found = info(tmp_path / "sub")
    assert (found.kind, found.facts["rows"], found.facts["of"]) == ("selection", 5, len(source.rows))
    assert found.facts["dataset"] == str(tmp_path / "out")
    assert found.facts["funnel"] == [{"condition": "sample 5, seed 2", "rows": 5}]
    (tmp_path / "out").rename(tmp_path / "gone")
    assert "missing. Put the dataset back" in describe_info(info(tmp_path / "sub"))


def test_next_commands_quote_the_path(tmp_path: Path) -> None:
    out = tmp_path / "it's here"
    convert(make_source(tmp_path / "src", "card").path, out, num_proc=1, quiet=True)
    found = info(out)
    assert [shlex.split(line)[2] for line in found.next if line.startswith("laion6m")] == [str(out)] * 2
    assert json.dumps(str(out)) in shlex.split(found.next[1])[2]
