"""builder.load_dataset on whichever version of datasets is installed: layouts, losses, options, caching, formats."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what datasets imports may be deprecated
    import datasets

    from builder.hf import builder as hf
    from builder.hf import units as hf_units
from builder import index, load_dataset, open_dataset
from builder.base import schema
from builder.base.errors import LayoutError, OptionError, SourceError
from builder.base.options import ConvertOptions, SamplePolicy
from builder.conversion.convert import convert
from builder.source.layouts import recognise
from tests.sources import LAYOUTS, Row, Source, faults_of, make_source

FORKS = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
FAULTS = ("too_wide", "caption_missing", "image_missing", "duplicate", "unlisted", "blank_caption")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_source(tmp_path_factory.mktemp("card") / "source", faults=FAULTS)


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    """load_dataset("laion6m.py", split="train") with a cache of its own."""

    def loaded(data_dir: Path | str | None, **options: Any) -> Any:
        where = None if data_dir is None else str(data_dir)
        given = {"split": "train", "cache_dir": str(tmp_path / "cache")} | options
        return load_dataset("laion6m.py", data_dir=where, **given)

    return loaded


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, logger="builder")
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("builder")]


def contents(rows: Any) -> dict[str, Row]:
    """What a dataset holds, in its order, without decoding."""
    plain = rows.cast_column("image", datasets.Image(decode=False))
    return {row["key"]: Row(row["image"]["bytes"], row["caption"], row["annotation"]) for row in plain}


def same(rows: Any, source: Source) -> bool:
    """All of the source's rows, byte for byte and in order."""
    found = contents(rows)
    return found == source.rows and list(found) == list(source.rows)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_its_rows_mapped_and_streamed(
    layout: str, tmp_path: Path, load: Callable[..., Any], said: Callable[[], list[str]]
) -> None:
    source = make_source(tmp_path / "source", layout, faults=faults_of(layout), per_shard=12)
    given = {"recaptions": list(source.recaptions)} if source.recaptions else {}
    rows = load(source.path, **given)
    assert same(rows, source)
    line = next(line for line in said() if line.startswith(f"{len(source.rejects)} of {source.listed} listed samples"))
    assert all(f"{reason} {count}" in line for reason, count in source.reasons.items())
    assert same(load(source.path, streaming=True, **given), source)


def test_images_decode_and_columns_have_their_types(source: Source, load: Callable[..., Any]) -> None:
    rows = load(source.path)
    assert rows.features == datasets.Features(
        {
            "key": datasets.Value("string"),
            "image": datasets.Image(),
            "caption": datasets.Value("string"),
            "width": datasets.Value("int32"),
            "height": datasets.Value("int32"),
            "annotation": datasets.Value("string"),
        }
    )
    assert all(row["image"].size == (row["width"], row["height"]) for row in rows)
    plain = rows.cast_column("image", datasets.Image(decode=False))
    assert {row["key"]: row["image"]["path"] for row in plain}.items() <= source.paths.items()


@pytest.mark.slow
@FORKS
@pytest.mark.parametrize("processes", [2, 7])
def test_more_processes_than_tars_give_the_same_rows_and_one_count_of_losses(
    source: Source,
    load: Callable[..., Any],
    said: Callable[[], list[str]],
    processes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hf_units, "_TINY", 1)  # so that three small tars are many units, as large ones are
    rows = load(source.path, num_proc=processes)
    assert same(rows, source)
    assert len(rows.cache_files) == processes
    (line,) = said()
    assert f"{len(source.rejects)} of {source.listed} listed samples are left out" in line
    assert all(f"{reason} {count}" in line for reason, count in source.reasons.items())


def test_streaming_needs_no_cache_and_can_be_shuffled(
    source: Source, load: Callable[..., Any], tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    stream = load(source.path, streaming=True)
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    (known,) = said()  # before the first row: what planning found
    assert "caption_missing 1, duplicate 1, image_missing 1" in known
    assert {row["key"] for row in stream.shuffle(seed=1, buffer_size=4)} == set(source.rows)
    assert "aspect_ratio 1" in " ".join(said()[1:])


def test_a_damaged_tar_is_said(tmp_path: Path, load: Callable[..., Any], said: Callable[[], list[str]]) -> None:
    source = make_source(tmp_path / "source", faults=("cut_tar",))
    assert same(load(source.path), source)
    assert any("raw/00002.tar is damaged: bytes" in line for line in said())


@pytest.mark.parametrize("form", ["parquet", "arrow", "webdataset"])
def test_a_converted_folder_gives_the_rows_of_its_source(
    source: Source, tmp_path: Path, load: Callable[..., Any], form: str
) -> None:
    out = tmp_path / "out"
    convert(str(source.path), str(out), ConvertOptions(format=form), num_proc=1, quiet=True)
    rows = load(out)
    assert same(rows, source)
    assert same(load(out, streaming=True), source)
    assert rows.data.table.equals(load(source.path).data.table)
    with pytest.raises(OptionError, match=r"min_side 45: .* was converted without this option"):
        load(out, min_side=45)
    assert same(load(out, max_aspect_ratio=3.0), source)  # what it was converted with
    next((out / "data").iterdir()).rename(out / "data" / f"train-00001-of-00002{schema.SUFFIXES[form]}")
    with pytest.raises(SourceError, match="holds 1 shard"):
        load(out)


def test_a_selection_is_loaded_without_options_that_choose_rows(
    source: Source, tmp_path: Path, load: Callable[..., Any]
) -> None:
    convert(str(source.path), str(tmp_path / "out"), num_proc=1, quiet=True)
    open_dataset(str(tmp_path / "out"))[:2].save(str(tmp_path / "two rows"))
    assert len(load(tmp_path / "two rows")) == 2
    way_on = "is a selection. Leave the option out. To choose other rows, use laion6m select"
    for option, value, shown in (
        ("min_side", 45, "45"),
        ("caption_key", "x", '"x"'),
        ("recaptions", "r.csv", r"\[.*\]"),
    ):
        with pytest.raises(OptionError, match=f"^{option} {shown}: '{tmp_path}/two rows' {way_on}$"):
            load(tmp_path / "two rows", **{option: value})


def test_options_choose_rows(source: Source, load: Callable[..., Any]) -> None:
    count = len(source.rows)
    sides = [min(row["width"], row["height"]) for row in load(source.path)]
    assert len(load(source.path, max_aspect_ratio=0)) == count + 1
    middle = sorted(sides)[count // 2]
    assert len(load(source.path, min_side=middle)) == sum(side >= middle for side in sides) < count


@pytest.mark.parametrize(
    ("option", "reason"), [({"max_pixels": 1}, "too_large 21"), ({"caption_key": "x"}, "invalid 22")]
)
def test_a_choice_that_leaves_no_row_is_an_error(
    source: Source, load: Callable[..., Any], option: dict[str, Any], reason: str
) -> None:
    with pytest.raises(
        SourceError, match=f"^{source.path} has no rows: 25 of 25 listed samples are left out.*{reason}"
    ):
        load(source.path, **option)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"caption_key": ""}, "caption_key"),
        ({"max_aspect_ratio": 0.5}, "max_aspect_ratio"),
        ({"data_files": "x.tar"}, "data_files"),
        ({"recaptions": "nowhere.parquet"}, "nowhere.parquet"),
        ({"crop": True}, "crop"),
    ],
)
def test_bad_options_are_refused(
    source: Source, load: Callable[..., Any], options: dict[str, Any], problem: str
) -> None:
    with pytest.raises((OptionError, SourceError, TypeError), match=problem):
        load(source.path, **options)


def test_defaults_are_those_of_the_command_line() -> None:
    assert hf.Config().policy == SamplePolicy()


def test_folders_that_are_no_source_are_refused(tmp_path: Path, load: Callable[..., Any]) -> None:
    with pytest.raises(SourceError, match="is not there"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LayoutError, match="empty"):
        load(tmp_path / "empty")


@pytest.mark.parametrize("layout", ["card", "extracted"])
def test_of_an_index_it_is_said_how_it_is_opened(layout: str, tmp_path: Path, load: Callable[..., Any]) -> None:
    source = make_source(tmp_path / "source", layout)
    index(str(source.path), str(tmp_path / "index"), num_proc=1, quiet=True)
    with pytest.raises(SourceError) as caught:
        load(tmp_path / "index")
    assert str(caught.value) == (
        f"{tmp_path}/index is an index over {source.path}. Open it with builder.open_dataset, and call "
        f"to_datasets() on the result. Or load the source itself: give {source.path} as data_dir."
    )
    assert len(open_dataset(str(tmp_path / "index")).to_datasets()) == len(source.rows)
    index(str(source.path), num_proc=1, quiet=True)
    assert len(load(source.path)) == len(source.rows)  # a source that has one is a source


def test_of_a_conversion_without_shards_it_is_not_said_that_it_is_an_index(
    source: Source, tmp_path: Path, load: Callable[..., Any]
) -> None:
    convert(str(source.path), str(tmp_path / "out"), num_proc=1, quiet=True)
    shutil.rmtree(tmp_path / "out" / "data")
    with pytest.raises(LayoutError, match="is not a source this tool knows"):
        load(tmp_path / "out")


def touch(source: Path) -> None:
    tar = source / "raw" / "00001.tar"
    os.utime(tar, ns=(1, tar.stat().st_mtime_ns + 1))


def relist(source: Path) -> None:
    (source / "data.json").write_text((source / "data.json").read_text() + " ")


def add_tar(source: Path) -> None:
    shutil.copy(source / "raw" / "00001.tar", source / "raw" / "00009.tar")


@pytest.mark.parametrize("change", [touch, relist, add_tar])
def test_the_cache_is_reused_while_the_source_rests(
    source: Source, tmp_path: Path, load: Callable[..., Any], change: Callable[[Path], None]
) -> None:
    copy = Path(shutil.copytree(source.path, tmp_path / "copy"))
    first = load(copy).cache_files
    assert load(copy).cache_files == first
    assert load(str(copy) + "/").cache_files == first
    assert load(copy, min_side=2).cache_files != first
    change(copy)
    assert load(copy).cache_files != first


def test_a_file_added_to_an_extracted_folder_is_a_change(tmp_path: Path, load: Callable[..., Any]) -> None:
    files = make_source(tmp_path / "source", "extracted").path
    first = load(files).cache_files
    assert load(files).cache_files == first
    folder = next(path for path in (files / "raw").iterdir() if path.is_dir())
    (folder / "new.jpg").write_bytes(b"")
    assert load(files).cache_files != first


def test_a_tar_that_changes_after_it_was_looked_at_is_an_error(source: Source, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source.path, tmp_path / "copy"))
    builder = hf.load_dataset_builder("laion6m", data_dir=str(copy), cache_dir=str(tmp_path / "cache"))
    touch(copy)
    with pytest.raises(Exception, match="generating") as caught:
        builder.download_and_prepare()
    assert "modification time" in str(caught.value.__cause__)


def test_download_and_prepare_writes_parquet(source: Source, tmp_path: Path) -> None:
    builder = hf.load_dataset_builder("laion6m.py", data_dir=str(source.path), cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare(str(tmp_path / "out"), file_format="parquet")
    (file,) = (tmp_path / "out").glob("*.parquet")
    assert file.name == "laion6m-train.parquet"
    again = datasets.load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(tmp_path / "c"))
    assert same(again, source)
    assert pq.ParquetFile(file).num_row_groups == 1  # small units are gathered


def test_other_datasets_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n')
    rows = load_dataset("json", data_files=str(tmp_path / "a.jsonl"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["x"][:] == [1]


def test_nothing_looks_through_data_dir(
    source: Source, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def glob(*_: Any, **__: Any) -> None:
        raise AssertionError("globbed")

    monkeypatch.setattr("datasets.load.get_data_patterns", glob)
    monkeypatch.setattr("datasets.data_files.resolve_pattern", glob)
    assert same(load(source.path), source)


def test_a_folder_in_the_usual_place_is_taken(
    source: Source, tmp_path: Path, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(source.path, tmp_path / "data" / "laion6m")
    monkeypatch.chdir(tmp_path)
    assert same(load(None), source)


def test_a_pickled_unit_holds_its_own_rows_only(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_units, "_TINY", 1)
    units = hf_units.plan_layout(recognise(str(source.path)), ConvertOptions()).units
    assert len(units) > 10
    keys: list[str] = []
    lost: Counter[str] = Counter()
    for unit in units:
        data = pickle.dumps(unit)
        assert len(data) < 8_000
        for table in pickle.loads(data).tables(SamplePolicy(), lost):
            keys += table["key"].to_pylist()
    assert keys == list(source.rows)
    assert lost == {"aspect_ratio": 1, "caption_invalid": 1}


def test_a_stream_outlives_a_change_of_the_working_directory(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.path.parent)
    rows = load_dataset("laion6m.py", data_dir="source", split="train", streaming=True)
    monkeypatch.chdir(tmp_path)
    assert [row["key"] for row in rows] == list(source.rows)


def test_what_is_sent_to_each_process_does_not_grow_with_the_source(tmp_path: Path) -> None:
    sizes = []
    for count in (2, 200):
        made = make_source(tmp_path / f"src{count}", shards=1, per_shard=count)
        built = hf.load_dataset_builder("laion6m.py", data_dir=str(made.path), cache_dir=str(tmp_path / "cache"))
        built._split_generators(datasets.StreamingDownloadManager())
        sizes.append(len(pickle.dumps(built._planned)))
    assert sizes[1] < sizes[0] + 100


def test_a_listing_and_what_recaptions_are_joined_by_can_be_given(load: Callable[..., Any], tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    few = json.loads((source.path / "data.json").read_text())[:5]
    (tmp_path / "few.jsonl").write_text("\n".join(map(json.dumps, few)))
    assert load(source.path, listing=str(tmp_path / "few.jsonl")).num_rows == 5
    assert load(source.path, listing=False).num_rows == len(source.rows)
    flat = make_source(tmp_path / "flat", "img2dataset")
    assert load(flat.path, recaptions=flat.recaptions, on="url").num_rows == len(flat.rows)
