"""Which layout a folder has is seen by looking; what fits none is an error that says what was found."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.base.errors import LayoutError, SourceError
from builder.source.layout import Archive, Layout
from builder.source.layouts import meant_instead, recognise
from tests.sources import LAYOUTS, make_source


def folder(root: Path, *paths: str) -> str:
    """A folder with these files in it, each of which holds its own path; a path that ends in / is a folder."""
    root.mkdir(parents=True, exist_ok=True)
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            (root / path).mkdir(exist_ok=True)
        else:
            (root / path).write_text(path)
    return str(root)


def names(archives: tuple[Archive, ...]) -> list[str]:
    return [archive.name for archive in archives]


KINDS = {
    "card": "card",
    "scattered": "card",
    "openuni": "openuni",
    "extracted": "extracted",
    "no_listing": "card",
    "listing_folder": "card",
    "img2dataset": "img2dataset",
    "img2dataset_key": "img2dataset",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_recognised(tmp_path: Path, layout: str) -> None:
    source = make_source(tmp_path / "src", layout, shards=2, per_shard=2)
    found = recognise(str(source.path), source.recaptions)
    assert found.kind == KINDS[layout]
    assert len(found.raw) == 2
    assert bool(found.captions) == (layout not in ("openuni", "img2dataset", "img2dataset_key"))
    assert len(found.listing) == {"no_listing": 0, "img2dataset": 0, "img2dataset_key": 0, "listing_folder": 2}.get(
        layout, 1
    )
    assert found.annotations == (found.captions or found.raw)
    assert all(archive.is_folder == (layout == "extracted") for archive in found.raw + found.captions)


def test_an_archive_is_known_by_its_name_size_and_time(tmp_path: Path) -> None:
    path = folder(tmp_path / "src", "raw/00000.tar", "captions/00000.tar", "data.json")
    os.utime(tmp_path / "src/raw/00000.tar", ns=(1, 1_700_000_000_123_456_789))
    raw, captions = recognise(path).raw[0], recognise(path).captions[0]
    assert raw == Archive("00000.tar", f"{path}/raw/00000.tar", False, 13, 1_700_000_000_123_456_789)
    assert captions.path == f"{path}/captions/00000.tar"


@pytest.mark.parametrize(
    ("found", "raw"),
    [
        (["10.tar", "9.tar", "b.tar", "a.tar"], ["10.tar", "9.tar", "a.tar", "b.tar"]),  # by name, not by number
        (
            ["0.tar.gz", "1.tgz", "2.tar.zst", "3.TAR", "4.tar.xz"],
            ["0.tar.gz", "1.tgz", "2.tar.zst", "3.TAR", "4.tar.xz"],
        ),
        (["0.tar", "0.tar.part", "1.tar.aria2", "notes.txt", ".hidden.tar"], ["0.tar"]),
        (["00000/a.jpg", "00001.tar"], ["00000", "00001.tar"]),  # some extracted, some not
        (["00000/a.jpg", "00000.tar", "00001.tar"], ["00000.tar", "00001.tar"]),  # what a tar left beside it
        (["00000/a.jpg", "00000.tar.gz"], ["00000.tar.gz"]),
        (["a/1.jpg", "a.b.tar"], ["a", "a.b.tar"]),  # no: a.b.tar leaves a.b
        (["a.b/1.jpg", "a.b.tar"], ["a.b.tar"]),
        (["1.jpg", "2.jpg"], [""]),  # files without a folder: raw/ itself stands for their tar
        (["1.jpg", "00000/a.jpg"], ["", "00000"]),  # as tars of both kinds leave them
        (["1.jpg", "0.tar", "00000/a.jpg"], ["0.tar", "00000"]),  # beside tars, single files are what one of them left
        (["é.tar", "z.tar"], ["z.tar", "é.tar"]),
    ],
)
def test_archives_of_raw(tmp_path: Path, found: list[str], raw: list[str]) -> None:
    path = folder(tmp_path, *(f"raw/{name}" for name in found), "captions/x.tar")
    assert names(recognise(path).raw) == raw


def test_a_source_with_an_index_and_a_folder_data_in_it_is_a_source(tmp_path: Path) -> None:
    path = folder(tmp_path, "raw/0.tar", "meta/manifest.json", "data/train-00000-of-00001.parquet")
    assert names(recognise(path).raw) == ["0.tar"]


def test_captions_may_be_extracted_where_images_are_not(tmp_path: Path) -> None:
    layout = recognise(folder(tmp_path, "raw/00000.tar", "captions/00000/a.json"))
    assert layout.raw[0].is_folder is False
    assert layout.captions[0].is_folder is True
    assert layout.captions_root == str(tmp_path / "captions")


def test_recaptions_make_it_img2dataset_whatever_else_is_there(tmp_path: Path) -> None:
    """Each recaption is a listed sample: a data.json or captions beside them are of another dataset."""
    path = folder(tmp_path, "raw/0.tar", "captions/0.tar", "data.json", "re.parquet")
    layout = recognise(path, (f"{path}/re.parquet",))
    assert (layout.kind, layout.captions, layout.listing) == ("img2dataset", (), ())
    assert layout.captions_root == layout.raw_root == f"{path}/raw"


def test_tars_at_the_top_with_files_and_folders_around_them(tmp_path: Path) -> None:
    path = folder(tmp_path, "00000.tar", "00000_stats.json", "00000.parquet", "logs/x.txt")
    layout = recognise(path)
    assert (layout.kind, names(layout.raw), layout.raw_root) == ("img2dataset", ["00000.tar"], path)


def test_listings_of_a_folder_follow_their_names(tmp_path: Path) -> None:
    path = folder(tmp_path, "raw/0.tar", "data.json/b.json", "data.json/a.json", "data.json/readme.txt")
    assert recognise(path).listing == (f"{path}/data.json/a.json", f"{path}/data.json/b.json")


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ([], ["an empty folder", "Expected raw/*.tar"]),
        (["notes.txt"], ["found notes.txt.", "Expected raw/*.tar"]),
        (["raw/"], ["raw (raw/ is an empty folder)"]),
        ([f"{number}.jpg" for number in range(9)], ["0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg, 5.jpg and 3 more"]),
        (["captions/0.tar", "data.json"], ["captions, data.json"]),
        (["raw/0.tar", "data.json/notes.txt"], ["a folder without *.json files"]),
        (["data/train-00000-of-00001.parquet", "meta/manifest.json"], ["converted folder", "it was made from"]),
    ],
)
def test_what_fits_no_layout_is_described(tmp_path: Path, found: list[str], says: list[str]) -> None:
    path = folder(tmp_path / "src", *found)
    with pytest.raises(LayoutError) as caught:
        recognise(path)
    assert [words for words in [path, *says] if words not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("found", "given", "meant"),
    [
        (["raw/0/a.jpg", "captions/0/a.json"], "raw", "{root}"),
        (["raw/0/a.jpg", "data.json"], "raw", "{root}"),
        (["raw/0/a.jpg", "captions/0/a.json"], "captions/", "{root}"),
        (["raw/0.tar", "captions/0.tar"], "raw/0.tar", "{root}"),
        (["raw/0/a.jpg"], "raw", None),  # nothing around it
        (["captions/0/a.json", "data.json"], "captions", None),  # nor here: what lies around it is no source
        (["it/raw/0.tar", "other/x.txt"], ".", "{root}/it"),
        (["it/raw/0.tar", "at/raw/0.tar", "on/raw/0.tar"], "", "{root}/at instead, or one of 2 others in it."),
        (["it/it/raw/0.tar"], "", None),
    ],
)
def test_a_part_of_a_source_or_what_it_lies_in_leads_to_the_source(
    tmp_path: Path, found: list[str], given: str, meant: str | None
) -> None:
    root = os.path.normpath(folder(tmp_path / "src", *found))
    with pytest.raises(SourceError) as caught:
        recognise(os.path.join(root, given) if given != "." else root)
    if meant is None:
        assert "instead" not in str(caught.value)
        assert "Expected raw/*.tar" in str(caught.value)
    else:
        assert f"give {meant.format(root=root)}" in str(caught.value)


def test_behind_a_url_the_name_alone_tells() -> None:
    assert meant_instead("s3://b/src/raw/") == "If this is the raw/ of a source, give s3://b/src instead."
    assert meant_instead("s3://b/src") == ""


def test_a_source_with_an_index_beside_its_tars_is_still_a_source(tmp_path: Path) -> None:
    assert recognise(folder(tmp_path, "raw/0.tar", "meta/manifest.json")).kind == "openuni"


@pytest.mark.parametrize(
    ("path", "recaptions", "says"),
    [
        ("missing", (), "missing is not there"),
        ("src/raw/0.tar", (), "is not a folder. Expected"),
        ("src", ("nowhere.parquet",), "the recaptions file .*nowhere.parquet is not there"),
    ],
)
def test_what_is_not_there_is_said(tmp_path: Path, path: str, recaptions: tuple[str, ...], says: str) -> None:
    folder(tmp_path / "src", "raw/0.tar")
    with pytest.raises(SourceError, match=says):
        recognise(str(tmp_path / path), recaptions)


def test_a_link_to_nowhere_is_an_error_that_names_it(tmp_path: Path) -> None:
    """A Hub cache is a folder of links, whose targets may have been cleaned away."""
    path = folder(tmp_path, "raw/0.tar")
    (tmp_path / "raw/1.tar").symlink_to(tmp_path / "gone")
    with pytest.raises(SourceError, match=r"1\.tar"):
        recognise(path)


@pytest.mark.parametrize("name", ["data.json", "data.json/b.json"])
@pytest.mark.parametrize("make", [lambda path: path.symlink_to("gone"), os.mkfifo], ids=["link to nowhere", "pipe"])
def test_a_listing_that_cannot_be_read_is_not_taken_for_none(
    name: str, make: Callable[[Path], object], tmp_path: Path
) -> None:
    path = folder(tmp_path, "raw/0.tar", *(["data.json/a.json"] if "/" in name else []))
    make(tmp_path / name)
    with pytest.raises(SourceError, match=f"cannot read .*{name}: it is a broken link"):
        recognise(path)


def test_links_to_tars_and_folders_are_followed(tmp_path: Path) -> None:
    folder(tmp_path / "store", "blob", "00001/a.jpg")
    path = folder(tmp_path / "src", "raw/")
    (tmp_path / "src/raw/00000.tar").symlink_to(tmp_path / "store/blob")
    (tmp_path / "src/raw/00001").symlink_to(tmp_path / "store/00001")
    raw = recognise(path).raw
    assert [(archive.name, archive.is_folder, archive.size) for archive in raw] == [
        ("00000.tar", False, 4),
        ("00001", True, 0),
    ]


def test_a_pipe_is_no_tar(tmp_path: Path) -> None:
    """Opening it would wait for ever."""
    path = folder(tmp_path, "raw/0.tar")
    os.mkfifo(tmp_path / "raw/1.tar")
    with pytest.raises(SourceError, match=r"1\.tar"):
        recognise(path)


def test_the_name_of_a_tar_can_be_written_down_whatever_bytes_it_has(tmp_path: Path) -> None:
    path = folder(tmp_path, "raw/0.tar")
    with open(os.fsencode(path) + b"/raw/caf\xe9.tar", "wb"):
        pass
    layout = recognise(path)
    assert names(layout.raw) == ["0.tar", "caf\\xe9.tar"]
    assert os.path.exists(layout.raw[1].path)


def test_a_layout_crosses_process_boundaries(tmp_path: Path) -> None:
    import pickle

    layout = recognise(folder(tmp_path, "raw/0.tar", "data.json"))
    copy = pickle.loads(pickle.dumps(layout))
    assert isinstance(copy, Layout)
    assert copy == layout
