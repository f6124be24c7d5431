"""Folders that lack some of their files, and files that are named one by one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from builder import info
from builder.base.errors import IndexMismatchError, OptionError, SourceError
from builder.base.options import ConvertOptions
from builder.conversion.convert import convert
from builder.conversion.index import index
from builder.read.opening import open_dataset
from builder.read.reader import Reader
from builder.read.view import View
from tests.outputs import make_large_source
from tests.servers import FileServer
from tests.sources import make_source


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of several shards."""
    folder = tmp_path_factory.mktemp("missing")
    make_large_source(folder / "src", per_tar=20)
    convert(str(folder / "src"), str(folder / "out"), ConvertOptions(max_shard_size=10**6), num_proc=1, quiet=True)
    assert len(list((folder / "out" / "data").iterdir())) > 3
    return folder / "out"


@pytest.fixture
def part(whole: Path, tmp_path: Path) -> Path:
    """The same, as an unfinished download leaves it: the first shard and meta/."""
    for name in ("data", "meta"):
        shutil.copytree(whole / name, tmp_path / "part" / name)
    for shard in sorted((tmp_path / "part" / "data").iterdir())[1:]:
        shard.unlink()
    return tmp_path / "part"


def missing_of(whole: Path) -> list[str]:
    return [f"data/{shard.name}" for shard in sorted((whole / "data").iterdir())[1:]]


def test_a_whole_folder_is_opened_without_a_word_and_dropping_drops_nothing(whole: Path) -> None:
    every = open_dataset(whole)
    kept = open_dataset(whole, missing="drop")
    assert [sample.key for sample in kept] == [sample.key for sample in every]


def test_nothing_is_said_where_that_is_asked_for(part: Path) -> None:
    assert open_dataset(part, missing="ignore")[0].image


def test_an_unfinished_download_says_how_much_is_missing_and_reads_what_is_here(part: Path, whole: Path) -> None:
    gone = missing_of(whole)
    with pytest.warns(UserWarning, match=f"lacks {len(gone)} of its {len(gone) + 1} files, .*{gone[0]}") as said:
        rows = open_dataset(part)
    assert said[0].filename == __file__  # it points at the call, not into the package
    every = open_dataset(whole)
    assert len(rows) == len(every)
    assert rows[0].image == every[0].image
    assert rows[-1].caption == every[-1].caption
    with pytest.raises(IndexMismatchError, match="No such file"):
        rows[-1].image  # noqa: B018


def test_missing_rows_can_be_left_out(part: Path, whole: Path) -> None:
    every = open_dataset(whole)
    here = every.shards[0].rows
    rows = open_dataset(part, missing="drop")
    assert isinstance(rows, View)
    assert [sample.image for sample in rows] == [sample.image for sample in every[:here]]
    assert [sample.annotation for sample in rows] == [sample.annotation for sample in every[:here]]
    assert every[-1].key not in rows


def test_rows_of_a_shard_that_was_cut_are_left_out_too(part: Path, whole: Path) -> None:
    second = missing_of(whole)[0]
    (part / second).write_bytes((whole / second).read_bytes()[:-100])
    assert len(open_dataset(part, missing="drop")) == open_dataset(whole).shards[0].rows


def test_a_selection_of_an_unfinished_download_drops_its_missing_rows(part: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="lacks"):
        rows = open_dataset(part)
    rows[::2].save(tmp_path / "sub")
    kept = open_dataset(tmp_path / "sub", missing="drop")
    assert [sample.row for sample in kept] == list(range(0, rows.shards[0].rows, 2))
    with pytest.warns(UserWarning, match="lacks"):
        assert len(open_dataset(tmp_path / "sub")) == -(-len(rows) // 2)


def test_a_selection_of_a_url_drops_nothing(whole: Path, tmp_path: Path) -> None:
    with FileServer(whole) as server:
        open_dataset(server.url)[::2].save(tmp_path / "sub")
        assert len(open_dataset(tmp_path / "sub", missing="drop")) == len(open_dataset(tmp_path / "sub")) > 0


def test_of_an_index_over_tars_rows_without_their_image_or_their_caption_are_left_out(
    tmp_path: Path,
) -> None:
    make_source(tmp_path / "src")
    index(str(tmp_path / "src"), str(tmp_path / "index"), num_proc=1, quiet=True)
    every = open_dataset(tmp_path / "index")
    (tmp_path / "src" / "raw" / "00000.tar").unlink()
    (tmp_path / "src" / "captions" / "00002.tar").unlink()
    with pytest.warns(UserWarning, match=f"lacks 2 of its {len(every.shards)} files"):
        open_dataset(tmp_path / "index")
    kept = open_dataset(tmp_path / "index", missing="drop")
    assert {sample.key[:5] for sample in kept} == {"00001"}
    assert all(sample.annotation for sample in kept)
    assert info(str(tmp_path / "index")).facts["missing"] == [
        str(tmp_path / "src" / "raw" / "00000.tar"),
        str(tmp_path / "src" / "captions" / "00002.tar"),
    ]


def test_other_words_for_missing_are_refused(whole: Path) -> None:
    with pytest.raises(OptionError, match="one of warn, drop, ignore"):
        open_dataset(whole, missing="keep")  # type: ignore[arg-type]


def test_info_names_the_files_to_fetch(part: Path, whole: Path) -> None:
    gone = missing_of(whole)
    (part / gone[-1]).write_bytes(b"cut")
    found = info(str(part))
    assert (found.facts["missing"], found.facts["cut"]) == ([*gone[:-1], "README.md"], gone[-1:])
    text = "\n".join(found.lines)
    assert all(name in text for name in gone)
    assert any(line.startswith("hf download USER/NAME --repo-type dataset") for line in found.next)


# Files that are named


def test_files_can_be_named_one_by_one(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAION6M_CACHE", str(tmp_path / "cache"))
    every = open_dataset(whole)
    first, *_, last = sorted((whole / "data").iterdir())
    ends = [shard.rows for shard in every.shards]
    expected = [*every[len(every) - ends[-1] :], *every[: ends[0]]]
    rows = open_dataset([last, str(first)])  # in the order in which they are named
    assert isinstance(rows, Reader)
    assert [(sample.key, sample.image, sample.caption) for sample in rows] == [
        (sample.key, sample.image, sample.caption) for sample in expected
    ]
    assert rows[0].annotation == expected[0].annotation
    monkeypatch.chdir(whole / "data")
    assert [sample.key for sample in open_dataset((first.name,))] == [sample.key for sample in every[: ends[0]]]
    assert [sample.key for sample in open_dataset(first.name)] == [sample.key for sample in every[: ends[0]]]


def test_files_of_several_folders_can_be_named(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAION6M_CACHE", str(tmp_path / "cache"))
    files = []
    for number, shard in enumerate(sorted((whole / "data").iterdir())[:2]):
        (tmp_path / str(number)).mkdir()
        files.append(shutil.copy(shard, tmp_path / str(number) / "a.parquet"))
    every = open_dataset(whole)
    rows = open_dataset(files)
    assert [sample.image for sample in rows] == [sample.image for sample in every[: len(rows)]]


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ([], "give at least one file"),
        (["data"], "is a folder, and a list names files"),
        (["nothing.parquet"], "is not there"),
        (["meta/manifest.json"], r"neither a folder nor a \.parquet or \.arrow file"),
        (["hf://datasets/a/b/c.parquet"], "only name files of this machine"),
        ("meta/manifest.json", r"neither a folder nor a \.parquet or \.arrow file"),
    ],
)
def test_what_is_no_list_of_files_is_said_to_be_none(
    paths: list[str], words: str, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole)
    with pytest.raises((SourceError, OptionError), match=words):
        open_dataset(paths)


def test_opening_lists_each_folder_once(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = []
    names = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(str(folder)) or names(folder))
    open_dataset(whole)
    assert listed == [str(whole / "data")]
