"""Which files of a folder without an index are its shards, and which of them are read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from builder.base.errors import DamagedFileError, SourceError
from builder.read.data_files import data_files


def put(folder: Path, *places: str) -> None:
    for place in places:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).touch()


def found(folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path in data_files(str(folder)) or ()]


def test_only_shards_are_looked_for_and_data_goes_first(tmp_path: Path) -> None:
    put(tmp_path, "x.parquet", ".hidden/y.parquet", "meta/rejects.parquet", "notes.txt", "sub/z.arrow")
    assert found(tmp_path) == ["sub/z.arrow", "x.parquet"]
    put(tmp_path, "data/only.parquet")
    assert found(tmp_path) == ["data/only.parquet"]


def test_a_folder_without_shards_has_none(tmp_path: Path) -> None:
    put(tmp_path, "a.txt", "data/b.txt")
    assert data_files(str(tmp_path)) is None


def test_of_what_save_to_disk_wrote_only_the_files_it_names_are_read(tmp_path: Path) -> None:
    put(tmp_path, "data-00000-of-00001.arrow", "cache-0123456789abcdef.arrow", "cache-0_0_of_2.arrow")
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    assert found(tmp_path) == ["data-00000-of-00001.arrow"]
    (tmp_path / "state.json").unlink()
    assert found(tmp_path) == ["data-00000-of-00001.arrow"]  # what map and shuffle cached is none either
    put(tmp_path, "cache-of-mine.parquet")
    assert found(tmp_path) == ["cache-of-mine.parquet", "data-00000-of-00001.arrow"]  # somebody's own file is
    (tmp_path / "state.json").write_text('{"_data_files": []}')
    assert data_files(str(tmp_path)) == []  # a dataset without rows
    (tmp_path / "state.json").write_text('{"step": 3}')  # of somebody else
    assert len(found(tmp_path)) == 2
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    with pytest.raises(DamagedFileError, match="outside"):
        data_files(str(tmp_path))


@pytest.mark.parametrize("text", ["", "[", "3", '{"_data_files": 3}', '{"_data_files": [3]}', '{"_data_files": [{}]}'])
def test_a_damaged_state_is_a_clear_error(text: str, tmp_path: Path) -> None:
    put(tmp_path, "data-00000-of-00001.arrow")
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(DamagedFileError, match=r"state\.json: JSON"):
        data_files(str(tmp_path))


def test_links_to_folders_are_followed_each_folder_once(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/part/a.parquet", "out/b.parquet")
    (tmp_path / "out" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "out" / "more-again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "out")
    assert found(tmp_path / "out") == ["b.parquet", "more/part/a.parquet"]


# Splits


def test_a_dict_of_splits_is_not_opened_as_one(tmp_path: Path) -> None:
    put(tmp_path, "dataset_dict.json", "train/state.json", "test/state.json")
    with pytest.raises(SourceError, match="Open one of them: test, train"):
        data_files(str(tmp_path))


SPLITS = [
    (("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"), "test"),
    (("train-00000-of-00001.parquet", "own-00000-of-00001.parquet"), "own"),
    (("train.parquet", "val.parquet", "test.parquet"), "test, validation"),
    (("train_0.parquet", "dev_0.parquet"), "validation"),
    (("default/train/0000.parquet", "default/validation/0000.parquet"), "validation"),
    (("training/a-00000-of-00001.parquet", "Test/a-00000-of-00001.parquet"), "test"),
    (("train/a.parquet", "b.parquet"), "files of no split"),
]


@pytest.mark.parametrize(("places", "others"), SPLITS)
def test_splits_are_not_mixed(places: tuple[str, ...], others: str, tmp_path: Path) -> None:
    put(tmp_path, *places)
    with pytest.warns(UserWarning, match=f"only its split train is read, not {others}\\."):
        assert found(tmp_path) == [places[0]]


@pytest.mark.parametrize(
    "places",
    [
        ("a.parquet", "b.parquet"),
        ("trainer.parquet", "latest.parquet", "tests2.parquet"),  # no names of splits
        ("test/a.parquet", "test/b.parquet"),
        ("train/a.parquet", "train/test.parquet.d/b.parquet", "training/c.parquet"),
    ],
)
def test_what_is_of_one_split_is_read_whole(places: tuple[str, ...], tmp_path: Path) -> None:
    put(tmp_path, *places)
    assert found(tmp_path) == sorted(places)


# Shards that are missing


def test_shards_that_the_others_speak_of_are_missed(tmp_path: Path) -> None:
    put(tmp_path, *(f"data/train-{number:05d}-of-00004.parquet" for number in (0, 1, 3)))
    put(tmp_path, "data/b/train-00001-of-00002.parquet", "data/c/train-00000-of-00001.parquet")
    with pytest.warns(UserWarning, match=r"2 shards are missing, .*/data/b/train-…-of-00002, for example") as caught:
        assert len(found(tmp_path)) == 5
    assert len(caught) == 1
