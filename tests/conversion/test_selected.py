"""Selections out again: shards of their own, files, tables of datasets, training; all the rows that were selected."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from builder import add_column, convert, extract, load_dataset, verify
from builder.base.errors import DamagedFileError, OptionError, SourceError
from builder.base.options import ConvertOptions
from builder.conversion import selected
from builder.conversion.report import describe_summary
from builder.curate.columns import write_column
from builder.read.opening import open_dataset
from builder.read.view import Rows
from tests.curate.shelf import KINDS, keys_of, make
from tests.outputs import leftovers, output_bytes
from tests.sources import LAYOUTS, faults_of, make_source


@pytest.fixture(params=KINDS)
def selection(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Rows 4, 6, … 18 of a dataset with a column."""
    out = make(tmp_path, request.param)
    write_column(str(out), "n", pa.array(range(24)))
    open_dataset(out)[4:20:2].save(tmp_path / "sub")
    return tmp_path / "sub"


def same_rows(one: Rows, other: Rows) -> bool:
    facts = [
        [(s.key, s.path, s.image, s.caption, s.width, s.height, s.annotation, s.annotation_path) for s in rows]
        for rows in (one, other)
    ]
    return facts[0] == facts[1]


@pytest.mark.parametrize("form", ["parquet", "arrow", "webdataset"])
def test_a_selection_becomes_a_dataset_of_its_own(selection: Path, form: str, tmp_path: Path) -> None:
    summary = convert(selection, tmp_path / "own", format=form, num_proc=1, quiet=True)
    own, rows = open_dataset(tmp_path / "own"), open_dataset(selection)
    assert (summary.totals.rows, summary.totals.listed) == (8, 8)
    assert same_rows(own, rows)
    assert own.column("n").to_pylist() == list(range(4, 20, 2))
    assert own.column("position").to_pylist() == list(range(8))
    assert verify(tmp_path / "own", decode=True, quiet=True).problems == ()
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "src")
    assert all(sample.image for sample in open_dataset(tmp_path / "own"))


@pytest.mark.slow
def test_the_same_bytes_whatever_the_processes_and_the_shards_hold_what_was_asked(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", shards=4, per_shard=40)
    convert(source.path, tmp_path / "out", num_proc=1, quiet=True)
    open_dataset(tmp_path / "out")[::-1].save(tmp_path / "sub")
    for name, processes in (("a", 1), ("b", 2)):
        convert(tmp_path / "sub", tmp_path / name, max_shard_size=1_000_000, num_proc=processes, quiet=True)
    assert output_bytes(tmp_path / "a") == output_bytes(tmp_path / "b")
    assert keys_of(open_dataset(tmp_path / "a")) == keys_of(open_dataset(tmp_path / "sub"))


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selected, "FRAMING", 0.01)  # 10 kB: several shards
    out = make(tmp_path)
    convert(out, tmp_path / "whole", max_shard_size=1_000_000, num_proc=1, quiet=True)
    assert len(open_dataset(tmp_path / "whole").shards) > 2
    write = selected._write_shard
    left = [2]

    def stop(unit: selected._Unit, report: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return write(unit, report)  # type: ignore[arg-type]

    monkeypatch.setattr(selected, "_write_shard", stop)
    with pytest.raises(BaseException):  # noqa: B017 - whatever an interruption is to the engine
        convert(out, tmp_path / "parts", max_shard_size=1_000_000, num_proc=1, quiet=True)
    monkeypatch.setattr(selected, "_write_shard", write)
    summary = convert(out, tmp_path / "parts", max_shard_size=1_000_000, num_proc=1, quiet=True)
    assert summary.did < len(open_dataset(tmp_path / "whole").shards)
    assert output_bytes(tmp_path / "parts") == output_bytes(tmp_path / "whole")
    assert leftovers(tmp_path / "parts") == leftovers(tmp_path / "whole")


def test_an_image_that_is_not_what_was_indexed_is_an_error_not_a_row(tmp_path: Path) -> None:
    out = make(tmp_path, "arrow")
    open_dataset(out)[2:9].save(tmp_path / "sub")
    sample = open_dataset(tmp_path / "sub")[3]
    path = next((out / "data").iterdir())
    data = bytearray(path.read_bytes())
    data[data.index(sample.image) + len(sample.image) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFileError, match=sample.key):
        convert(tmp_path / "sub", tmp_path / "own", num_proc=1, quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_source_is_converted_without_what_a_list_names(layout: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", layout, shards=3, per_shard=8, faults=faults_of(layout)[:4])
    keys = list(source.rows)
    how = ConvertOptions(recaptions=source.recaptions)
    (tmp_path / "take.txt").write_text("\n".join([keys[2], source.paths[keys[5]]]))
    summary = convert(source.path, tmp_path / "out", how, without=tmp_path / "take.txt", num_proc=1, quiet=True)
    rows = open_dataset(tmp_path / "out")
    assert keys_of(rows) == [key for key in keys if key not in (keys[2], keys[5])]
    assert [s.image for s in rows] == [source.rows[s.key].image for s in rows]
    assert summary.totals.rejected == source.reasons
    assert summary.totals.listed == source.listed - 2
    assert summary.totals.unlisted == source.unlisted
    assert verify(tmp_path / "out", quiet=True).problems == ()
    convert(source.path, tmp_path / "two", how, keys=tmp_path / "take.txt", num_proc=1, quiet=True)
    assert keys_of(open_dataset(tmp_path / "two")) == [keys[2], keys[5]]


def test_a_list_that_names_nothing_of_a_source_leaves_no_out(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src")
    (tmp_path / "keys.txt").write_text("nobody\n")
    with pytest.raises(SourceError, match="has 1 name; none is in"):
        convert(source.path, tmp_path / "out", keys=tmp_path / "keys.txt", num_proc=1, quiet=True)
    assert not (tmp_path / "out").exists()


def test_what_does_not_go_with_a_selection_is_refused(selection: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="select"):
        convert(selection, tmp_path / "own", min_side=5, quiet=True)
    with pytest.raises(OptionError, match="as a whole"):
        convert(selection, tmp_path / "own", start=1, quiet=True)
    with pytest.raises(OptionError, match="selection"):
        verify(selection, source=tmp_path / "src", quiet=True)
    for place in (selection, selection / "x", tmp_path / "out" / "x"):
        with pytest.raises(SourceError, match="Choose an OUT outside"):
            convert(selection, place, quiet=True)
    assert not (tmp_path / "own").exists()
    open_dataset(selection)[:0].save(tmp_path / "none")
    with pytest.raises(SourceError, match="no row"):
        convert(tmp_path / "none", tmp_path / "own", quiet=True)


@pytest.mark.slow
def test_verify_of_a_selection_sees_its_files_its_dataset_and_its_rows(selection: Path, tmp_path: Path) -> None:
    result = verify(selection, decode=True, quiet=True)
    assert (result.ok, result.rows) == (True, 8)
    (selection / "meta" / "more").write_text("x")
    assert "does not belong to a selection" in verify(selection, quiet=True).problems[0]
    (selection / "meta" / "more").unlink()
    rows = (selection / "meta" / "rows.arrow").read_bytes()
    (selection / "meta" / "rows.arrow").write_bytes(rows[:-9])
    assert not verify(selection, quiet=True).ok
    (selection / "meta" / "rows.arrow").write_bytes(rows)
    assert verify(selection, quiet=True).ok
    shutil.move(tmp_path / "out", tmp_path / "gone")
    assert not verify(selection, quiet=True).ok


def test_extract_writes_the_selected_rows_and_they_convert_again(selection: Path, tmp_path: Path) -> None:
    extract(selection, tmp_path / "files", num_proc=1, quiet=True)
    convert(tmp_path / "files", tmp_path / "again", num_proc=1, quiet=True)
    assert same_rows(open_dataset(tmp_path / "again"), open_dataset(selection))


@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset_gives_the_selected_rows(selection: Path, streaming: bool, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    options = {} if streaming else {"cache_dir": str(tmp_path / "cache")}
    table = load_dataset("laion6m.py", data_dir=str(selection), split="train", streaming=streaming, **options)
    assert [row["key"] for row in table] == keys_of(open_dataset(selection))
    named = load_dataset(str(selection), split="train", streaming=streaming, **options)
    assert [row["key"] for row in named] == [row["key"] for row in table], "its path alone means the same"
    with pytest.raises(OptionError, match="selection"):
        load_dataset("laion6m.py", data_dir=str(selection), split="train", min_side=4, **options)


def test_columns_of_arrays_stay_behind_with_a_note_and_images_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = make(tmp_path, KINDS[0])
    latents = tmp_path / "latents"
    for sample in open_dataset(out):
        path = latents / f"{sample.path}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.zeros(3, np.float32))
    add_column(out, "latent", str(latents), num_proc=1)
    open_dataset(out)[4:20:2].save(tmp_path / "sub")
    summary = convert(tmp_path / "sub", tmp_path / "an own", num_proc=1)
    (note,) = summary.notes
    assert note == (
        "columns of arrays were not copied: latent. "
        f"To add one again: laion6m add-column '{tmp_path / 'an own'}' latent --from FOLDER"
    )
    assert note in capsys.readouterr().err
    assert note in describe_summary(summary)
    assert (summary.read_images, summary.read_bytes) == (8, summary.totals.image_bytes)
