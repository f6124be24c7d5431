"""Selections: saved and opened again as the same view; samples and splits that depend on keys alone."""

from __future__ import annotations

import os
import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from builder import convert
from builder.base.errors import DamagedFileError, IndexMismatchError, OptionError, OutputError, SourceError
from builder.curate.columns import write_column
from builder.curate.select import select
from builder.read.opening import open_dataset
from builder.read.view import Rows
from tests.curate.shelf import KINDS, keys_of, make
from tests.sources import make_source


@pytest.fixture(params=KINDS)
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make(tmp_path, request.param)


def views(rows: Rows) -> dict[str, Rows]:
    return {
        "all": rows[:],
        "some, ascending": rows[3:20:2],
        "backwards": rows[20:2:-3],
        "one": rows[5:6],
        "none": rows[:0],
        "a sample": rows.sample(7, seed=3),
    }


@pytest.mark.parametrize("which", ["all", "some, ascending", "backwards", "one", "none", "a sample"])
def test_a_selection_opens_as_the_view_that_was_saved(out: Path, which: str, tmp_path: Path) -> None:
    view = views(open_dataset(out))[which]
    view.save(tmp_path / "sub")
    again = open_dataset(tmp_path / "sub")
    assert keys_of(again) == keys_of(view)
    assert list(again.rows) == list(view.rows)
    assert again.identity == view.identity
    assert [s.image for s in again] == [s.image for s in view]
    assert again.steps[: len(view.steps)] == view.steps
    assert keys_of(pickle.loads(pickle.dumps(again))) == keys_of(view)
    assert sorted(os.listdir(tmp_path / "sub" / "meta")) == ["rows.arrow", "selection.json"]


def test_a_selection_of_a_selection_names_the_dataset(out: Path, tmp_path: Path) -> None:
    open_dataset(out)[4:20].save(tmp_path / "a")
    open_dataset(tmp_path / "a")[2:6].save(tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    assert [s.row for s in open_dataset(tmp_path / "b")] == [6, 7, 8, 9]


def test_a_selection_moves_with_its_dataset_or_without_it(out: Path, tmp_path: Path) -> None:
    open_dataset(out)[4:20].save(tmp_path / "sub")
    (tmp_path / "elsewhere").mkdir()
    alone = shutil.copytree(tmp_path / "sub", tmp_path / "elsewhere" / "deeper" / "sub")
    assert len(open_dataset(alone)) == 16
    if out.name == "out" and (out / "data").exists():  # an index points at its source, which would stay
        (tmp_path / "new").mkdir()
        shutil.move(str(out), tmp_path / "new" / "out")
        shutil.move(tmp_path / "sub", tmp_path / "new" / "sub")
        assert len(open_dataset(tmp_path / "new" / "sub")) == 16
        with pytest.raises(SourceError, match="select again"):
            open_dataset(alone)


def test_a_dataset_that_changed_is_refused(tmp_path: Path) -> None:
    out = make(tmp_path)
    open_dataset(out)[4:20].save(tmp_path / "sub")
    shutil.rmtree(out)
    source = make_source(tmp_path / "other", shards=2, per_shard=12)
    convert(source.path, out, num_proc=1, quiet=True)
    assert len(open_dataset(out)) == 24  # as many rows as before
    with pytest.raises(IndexMismatchError, match="select again"):
        open_dataset(tmp_path / "sub")


@pytest.mark.parametrize("file", ["selection.json", "rows.arrow"])
def test_a_damaged_selection_is_an_error_at_any_byte(file: str, tmp_path: Path) -> None:
    out = make(tmp_path)
    open_dataset(out)[3:9].save(tmp_path / "sub")
    path = tmp_path / "sub" / "meta" / file
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises((DamagedFileError, SourceError)):
            open_dataset(tmp_path / "sub")
    for size in range(0, len(whole), 11):
        path.write_bytes(whole[:size])
        with pytest.raises((DamagedFileError, SourceError)):
            open_dataset(tmp_path / "sub")


def test_a_folder_with_something_in_it_is_never_written_into(tmp_path: Path) -> None:
    rows = open_dataset(make(tmp_path))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine").write_text("x")
    with pytest.raises(OutputError, match="there already"):
        rows[:3].save(tmp_path / "sub")
    assert os.listdir(tmp_path / "sub") == ["mine"]
    (tmp_path / "empty").mkdir()
    rows[:3].save(tmp_path / "empty")
    assert len(open_dataset(tmp_path / "empty")) == 3


# Samples and splits


def test_samples_and_splits_are_the_same_for_other_shards_formats_and_orders(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", shards=4, per_shard=30)
    convert(source.path, tmp_path / "a", num_proc=1, quiet=True)
    convert(source.path, tmp_path / "b", format="arrow", max_shard_size=1_000_000, num_proc=1, quiet=True)
    a, b = open_dataset(tmp_path / "a"), open_dataset(tmp_path / "b")
    assert keys_of(a.sample(20, seed=1)) == keys_of(b.sample(20, seed=1))
    assert set(keys_of(a.sample(20, seed=1))) == set(keys_of(a[::-1].sample(20, seed=1)))
    shares = {"train": 0.7, "val": 0.3}
    one, two = a.split(shares), b[::-1].split({"val": 0.3, "train": 0.7})
    assert {name: set(keys_of(rows)) for name, rows in one.items()} == {
        name: set(keys_of(rows)) for name, rows in two.items()
    }


def test_splits_and_samples_of_a_source_stay_what_they_are(tmp_path: Path) -> None:
    """A model was trained on them: another version must give the same."""
    rows = open_dataset(make(tmp_path))
    assert keys_of(rows.sample(4)) == GOLDEN_SAMPLE
    assert keys_of(rows.split({"train": 0.8, "val": 0.2})["val"]) == GOLDEN_VAL


GOLDEN_SAMPLE = ["00000/000000007", "00001/000000015", "00002/000000017", "00002/000000022"]
GOLDEN_VAL = [f"{n // 8:05d}/{n:09d}" for n in (2, 3, 10, 12, 14, 18, 20, 21, 22)]


def test_splits_are_disjoint_whole_and_of_the_right_shares(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", shards=2, per_shard=150)
    convert(source.path, tmp_path / "out", num_proc=1, quiet=True)
    rows = open_dataset(tmp_path / "out")
    parts = rows.split({"train": 0.6, "val": 0.25, "test": 0.15}, seed=5)
    assert list(parts) == ["train", "val", "test"]
    assert Counter(key for part in parts.values() for key in keys_of(part)) == Counter(keys_of(rows))
    assert [abs(len(part) / 300 - share) < 0.08 for part, share in zip(parts.values(), (0.6, 0.25, 0.15), strict=True)]
    assert keys_of(rows.split({"train": 0.6, "val": 0.25, "test": 0.15}, seed=6)["val"]) != keys_of(parts["val"])
    assert sum(map(len, rows.split({"a": 0.1, "b": 0.2}).values())) < 150  # the rest is in none
    overlap = set(keys_of(rows.sample(100, seed=5))) & set(keys_of(rows.split({"a": 1 / 3, "b": 2 / 3}, seed=5)["a"]))
    assert 15 < len(overlap) < 55  # a sample says nothing of a split with the same seed
    small, large = set(keys_of(rows.sample(50, seed=2))), set(keys_of(rows.sample(90, seed=2)))
    assert small < large


@pytest.mark.parametrize(
    "shares", [{}, {"a": 0.6, "b": 0.5}, {"a": 0}, {"a": -0.1}, {"a": float("nan")}, {"../a": 1.0}, {"": 1.0}]
)
def test_shares_that_cannot_be_are_refused(shares: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(OptionError):
        open_dataset(make(tmp_path)).split(shares)


@pytest.mark.parametrize("count", [0, -1, 25, True, 2.0])
def test_samples_that_cannot_be_are_refused(count: int, tmp_path: Path) -> None:
    with pytest.raises(OptionError):
        open_dataset(make(tmp_path)).sample(count)


# Duplicates


@pytest.fixture
def grouped(tmp_path: Path) -> Rows:
    """Rows 1 and 2 are copies of row 0; row 5 is one of row 9."""
    out = make(tmp_path)
    keys = keys_of(open_dataset(out))
    copies: list[str | None] = [None] * len(keys)
    copies[1] = copies[2] = keys[0]
    copies[5] = keys[9]
    write_column(str(out), "duplicate_of", pa.array(copies, pa.string()))
    return open_dataset(out)


def test_unique_keeps_one_of_each_group_also_where_the_one_to_keep_is_gone(grouped: Rows) -> None:
    assert [s.row for s in grouped.unique()] == [0, 3, 4, *range(6, 24)]
    assert [s.row for s in grouped[1:6].unique()] == [1, 3, 4, 5]
    assert [s.row for s in grouped[5::-1].unique()] == [5, 4, 3, 0]
    assert grouped.unique().steps[-1].rows == 21


def test_duplicates_are_never_on_both_sides(grouped: Rows) -> None:
    for seed in range(40):
        parts = grouped.split({"a": 0.5, "b": 0.5}, seed=seed)
        side = {sample.row: name for name, part in parts.items() for sample in part}
        assert side[0] == side[1] == side[2]
        assert side[5] == side[9]


def test_without_a_look_for_duplicates_unique_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="laion6m duplicates"):
        open_dataset(make(tmp_path)).unique()


# select


def test_select_does_all_in_order_and_counts(grouped: Rows, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    keys = keys_of(grouped)
    (tmp_path / "take.txt").write_text("\n".join([keys[7], "nobody", keys[8]]))
    made = select(
        grouped.folder, tmp_path / "sub", where="position < 20 and width > 0", without=tmp_path / "take.txt",
        unique=True, sample=5, seed=2, quiet=True,
    )  # fmt: skip
    assert [step.condition for step in made.funnel] == [
        "position < 20", "width > 0", "without take.txt", "unique", "sample 5, seed 2",
    ]  # fmt: skip
    assert [step.rows for step in made.funnel] == [20, 20, 18, 15, 5]
    assert made.to_json()["lists"] == {"without": {"names": 3, "found": 2}}
    assert (made.rows, made.of) == (5, 24)
    assert len(open_dataset(tmp_path / "sub")) == 5


def test_select_with_splits_writes_a_selection_for_each_or_nothing(tmp_path: Path) -> None:
    out = make(tmp_path)
    made = select(out, tmp_path / "parts", split={"train": 0.8, "val": 0.2}, quiet=True)
    assert made.splits == {name: len(open_dataset(tmp_path / "parts" / name)) for name in ("train", "val")}
    assert sum(made.splits.values()) == 24
    with pytest.raises(OptionError):
        select(out, tmp_path / "no", split={"train": 0.8, "val": 0.3}, quiet=True)
    assert not (tmp_path / "no").exists()
    with pytest.raises(OptionError, match="say which rows"):
        select(out, tmp_path / "no", quiet=True)


def test_a_selection_is_small(tmp_path: Path) -> None:
    rows = open_dataset(make(tmp_path))
    rows[::2].save(tmp_path / "sub")
    assert sum(path.stat().st_size for path in (tmp_path / "sub").rglob("*") if path.is_file()) < 2000
    assert np.asarray(open_dataset(tmp_path / "sub").rows).dtype == np.int64
