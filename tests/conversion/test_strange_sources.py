"""Sources as people really have them: what can be read gives the rows of the card layout, what cannot is said."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import shutil
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder.base.errors import JobMismatchError, LayoutError, ListingError, SourceError
from builder.conversion.convert import convert
from builder.conversion.index import index
from builder.conversion.summary import Summary
from builder.read.opening import open_dataset
from builder.store.manifest import read_manifest
from builder.verification.verify import verify
from tests.sources import picture

FOLDERS = ("00000", "00001")
SAMPLES = [f"{folder}/{number:06d}" for folder in FOLDERS for number in range(3)]
IMAGES = {key: picture(number) for number, key in enumerate(SAMPLES)}
CAPTIONS = {key: f"caption of {key}" for key in SAMPLES}

Entries = list[dict[str, Any]]


def tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))


def document(caption: str, **fields: Any) -> bytes:
    return json.dumps({**fields, "caption": caption}).encode()


def card(root: Path, *, listing: bool = True, name: Callable[[str], str] = str) -> Path:
    """A source in the card layout; ``name``: a member's name from that of the plain layout."""
    for folder in FOLDERS:
        mine = [key for key in SAMPLES if key.startswith(folder)]
        tar(root / "raw" / f"{folder}.tar", {name(f"{key}.jpg"): IMAGES[key] for key in mine})
        tar(root / "captions" / f"{folder}.tar", {name(f"{key}.json"): document(CAPTIONS[key]) for key in mine})
    if listing:
        (root / "data.json").write_text(json.dumps(entries()))
    return root


def entries(path: Callable[[str], str] = str) -> Entries:
    return [{"image": path(f"{key}.jpg"), "annotation": path(f"{key}.json")} for key in SAMPLES]


def run(source: Path, out: Path, **options: Any) -> Summary:
    return convert(str(source), str(out), num_proc=1, quiet=True, **options)


def rows(out: Path) -> dict[str, tuple[bytes, str]]:
    return {row.key: (row.image, row.caption) for row in open_dataset(str(out))}


EXPECTED = {key: (IMAGES[key], CAPTIONS[key]) for key in SAMPLES}


# Names that begin anew in every tar


def pairs(root: Path, tars: int = 3, ending: str = ".json", place: str = "raw") -> dict[str, tuple[bytes, str]]:
    expected = {}
    for number in range(tars):
        members = {}
        for sample in range(2):
            text = f"{sample} of tar {number}"
            members[f"{sample:06d}.jpg"] = picture(10 * number + sample)
            members[f"{sample:06d}{ending}"] = document(text) if ending == ".json" else text.encode()
            expected[f"{number:05d}/{sample:06d}"] = picture(10 * number + sample), text
        tar(root / place / f"{number:05d}.tar", members)
    return expected


@pytest.mark.parametrize("ending", [".json", ".txt", ".jpg.json"])
@pytest.mark.parametrize("place", ["raw", "."])
def test_names_that_begin_anew_in_every_tar_are_samples_of_their_own(ending: str, place: str, tmp_path: Path) -> None:
    expected = pairs(tmp_path / "src", ending=ending.replace(".jpg", ""), place=place)
    summary = run(tmp_path / "src", tmp_path / "out")
    assert rows(tmp_path / "out") == expected
    assert any("begins with its tar's name" in note for note in summary.notes)
    assert read_manifest(str(tmp_path / "out")).source["keys"] == "tar/name"
    assert verify(str(tmp_path / "out"), source=str(tmp_path / "src"), quiet=True).ok
    index(str(tmp_path / "src"), str(tmp_path / "index"), num_proc=1, quiet=True)
    assert rows(tmp_path / "index") == expected


def test_captions_in_tars_of_their_own_go_with_the_tar_of_the_same_number(tmp_path: Path) -> None:
    for number in range(2):
        tar(tmp_path / f"src/raw/{number}.tar", {"a.jpg": picture(number)})
        tar(tmp_path / f"src/captions/{number}.tar", {"a.json": document(f"of {number}")})
    run(tmp_path / "src", tmp_path / "out")
    assert rows(tmp_path / "out") == {f"{n}/a": (picture(n), f"of {n}") for n in range(2)}


def test_a_name_that_comes_again_in_its_own_tar_or_in_a_listed_source_is_replaced_and_counted(tmp_path: Path) -> None:
    source = card(tmp_path / "src")
    tar(source / "raw/00002.tar", {"00000/000000.jpg": picture(99)})  # as a later tar's extraction would do
    summary = run(source, tmp_path / "out")
    assert rows(tmp_path / "out") == {**EXPECTED, "00000/000000": (picture(99), CAPTIONS["00000/000000"])}
    assert (summary.replaced, summary.to_json()["replaced"]) == (1, 1)
    assert run(source, tmp_path / "out").replaced == 1  # a rerun knows it too


# What is there and not read


def damaged_zip(raw: Path) -> None:
    (raw / "00001.tar").rename(raw / "00001.zip")


UNREAD: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    "split parts": (lambda raw: (raw / "00001.tar").rename(raw / "00001.tar.part-aa"), "split_part", True),
    "what split makes": (lambda raw: (raw / "00001.tar").rename(raw / "xaa"), "split_part", True),
    "zip": (damaged_zip, "archive", True),
    "a tar by another name": (lambda raw: (raw / "00001.tar").rename(raw / "second half"), "archive", True),
    "a browser's download": (lambda raw: (raw / "00001.tar").rename(raw / "00001.tar.crdownload"), "unfinished", True),
    "rsync's temporary file": (lambda raw: (raw / "00001.tar").rename(raw / ".00001.tar.Ab12Cd"), "unfinished", True),
    "a folder of zips": (
        lambda raw: ((raw / "more").mkdir(), (raw / "00001.tar").rename(raw / "more/a.zip")),
        "archive",
        True,
    ),
    "in a folder beside raw": (
        lambda raw: ((raw.parent / "part2").mkdir(), (raw / "00001.tar").rename(raw.parent / "part2/00001.tar")),
        "archive",
        True,
    ),
    "notes": (lambda raw: (raw / "notes.txt").write_text("x"), "file", False),
    "what a tar left": (lambda raw: (raw / "00001").mkdir(), "extracted", False),
    "an image beside tars": (lambda raw: (raw / "1.jpg").write_bytes(picture(1)), "image", False),
    "companions": (lambda raw: (raw / "._00001.tar").write_bytes(b"x"), "hidden", False),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_read_is_counted_with_an_example(name: str, tmp_path: Path) -> None:
    source = card(tmp_path / "src", listing=False)
    change, kind, trouble = UNREAD[name]
    change(source / "raw")
    summary = run(source, tmp_path / "out")
    assert summary.unread[kind] == 1
    assert summary.to_json()["unread"] == summary.unread
    assert summary.examples_unread[kind]
    assert bool(summary.trouble) == trouble


@pytest.mark.parametrize("place", ["raw/more", "raw/a/b", "captions/more"])
def test_tars_in_subfolders_are_read(place: str, tmp_path: Path) -> None:
    source = card(tmp_path / "src")
    (source / place).mkdir(parents=True)
    side = place.partition("/")[0]
    (source / side / "00001.tar").rename(source / place / "00001.tar")
    summary = run(source, tmp_path / "out")
    assert rows(tmp_path / "out") == EXPECTED
    assert not summary.trouble
    assert any(place.partition("/")[2] in note for note in summary.notes)
    assert verify(str(tmp_path / "out"), source=str(source), quiet=True).ok


def test_folders_of_pairs_at_the_top_are_read(tmp_path: Path) -> None:
    """As img2dataset leaves them with output_format=files."""
    for key in SAMPLES:
        (tmp_path / "src" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / f"{key}.jpg").write_bytes(IMAGES[key])
        (tmp_path / "src" / f"{key}.json").write_bytes(document(CAPTIONS[key]))
    (tmp_path / "src/00000_stats.json").write_text("{}")
    assert run(tmp_path / "src", tmp_path / "out").unread == {"file": 1}
    assert rows(tmp_path / "out") == EXPECTED


def test_members_that_a_desktop_put_beside_others_are_no_samples(tmp_path: Path) -> None:
    source = card(tmp_path / "src", listing=False)
    for side, ending in (("raw", "jpg"), ("captions", "json")):
        names = [f"00000/._000000.{ending}", f"__MACOSX/00000/000000.{ending}", f".ipynb_checkpoints/a.{ending}"]
        tar(source / side / "00002.tar", dict.fromkeys(names, b"\0\5\x16\7"))
    summary = run(source, tmp_path / "out")
    assert rows(tmp_path / "out") == EXPECTED
    assert (summary.totals.rejected, summary.totals.unlisted, summary.unread) == ({}, 0, {"hidden": 6})


# Listings


def as_table(delimiter: str, *, header: bool = True) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerows([["image", "caption"]] if header else [])
    writer.writerows([[f"{key}.jpg", CAPTIONS[key]] for key in SAMPLES])
    return text.getvalue().encode()


PLAIN = json.dumps(entries()).encode()
LINES = "\n".join(map(json.dumps, entries())).encode()
INLINE = json.dumps([{"image": f"{key}.jpg", "caption": CAPTIONS[key]} for key in SAMPLES]).encode()
LLAVA = json.dumps(
    [
        {
            "id": key,
            "image": f"{key}.jpg",
            "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": CAPTIONS[key]}],
        }
        for key in SAMPLES
    ]
).encode()
LISTINGS = {
    "data.jsonl": LINES,
    "data.ndjson": LINES + b"\n\n",
    "data.json.gz": gzip.compress(PLAIN),
    "data.json.bz2": bz2.compress(PLAIN),
    "data.jsonl.xz": lzma.compress(LINES),
    "DATA.JSON": PLAIN,
    "raw/data.json": PLAIN,
    "data.csv": as_table(","),
    "data.tsv": as_table("\t"),
    "data.csv.gz": gzip.compress(as_table(",", header=False)),
    "data.json": INLINE,
    "data.json/llava.json": LLAVA,
}


@pytest.mark.parametrize("name", LISTINGS)
def test_a_listing_is_read_in_whatever_form(name: str, tmp_path: Path) -> None:
    source = card(tmp_path / "src", listing=False)
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_bytes(LISTINGS[name])
    tar(source / "raw/00002.tar", {"00002/0.jpg": picture(50)})  # listed nowhere: it is the listing that decides
    summary = run(source, tmp_path / "out")
    assert rows(tmp_path / "out") == EXPECTED
    assert (summary.totals.listed, summary.totals.unlisted) == (6, 1)
    assert verify(str(tmp_path / "out"), source=str(source), quiet=True).ok


def test_a_listing_that_is_named_is_read_in_place_of_the_one_that_is_there(tmp_path: Path) -> None:
    source = card(tmp_path / "src")
    (tmp_path / "some.jsonl").write_bytes(b"\n".join(LINES.split(b"\n")[:2]))
    assert run(source, tmp_path / "out", listing=str(tmp_path / "some.jsonl")).totals.listed == 2
    assert run(source, tmp_path / "all", listing=False).totals.listed == 6
    (source / "data.json").write_text("[")  # not even looked at
    assert not run(source, tmp_path / "none", listing=False).trouble
    with pytest.raises(SourceError, match=r"the listing .* is not there"):
        run(source, tmp_path / "out2", listing="nowhere.json")


def test_a_second_listing_is_trouble(tmp_path: Path) -> None:
    source = card(tmp_path / "src")
    (source / "data.jsonl").write_bytes(LINES)
    summary = run(source, tmp_path / "out")
    assert summary.unread == {"listing": 1}
    assert summary.trouble


def test_a_listing_by_another_name_is_an_error_that_names_it(tmp_path: Path) -> None:
    source = card(tmp_path / "src", listing=False)
    (source / "metadata.jsonl").write_bytes(INLINE[1:].partition(b"}")[0] + b"}")
    with pytest.raises(SourceError, match=r"metadata\.jsonl.*--listing"):
        run(source, tmp_path / "out")
    assert run(source, tmp_path / "out", listing=False).totals.rows == 6


@pytest.mark.parametrize("name", ["data.json.incomplete", "data.json.part", "data.json.aria2", ".data.json.Ab12Cd"])
def test_a_listing_that_is_still_downloading_is_an_error(name: str, tmp_path: Path) -> None:
    source = card(tmp_path / "src", listing=name.endswith("aria2"))
    (source / name).write_bytes(PLAIN[:100])
    with pytest.raises(ListingError, match="the download is not finished"):
        run(source, tmp_path / "out")


# Listings that write paths in another way


def windows(path: str) -> str:
    return "D:\\laion\\raw\\" + path.replace("/", "\\")


SPELLINGS: dict[str, tuple[Callable[[str], str], Callable[[str], str], str]] = {
    # how the listing writes a path; how the archives do; what is said of it
    "below raw/": (lambda path: f"raw/{path}", str, "without raw/"),
    "an absolute folder": (lambda path: f"/data/laion6m/x/{path}", str, "without data/laion6m/x/"),
    "backslashes": (windows, str, "with / for \\"),
    "an ending in capitals": (lambda path: path.replace(".j", ".J"), str, "in any case"),
    "members in capitals": (str, str.upper, "in any case"),
    "members below a folder": (str, lambda path: f"images/{path}", "below images/"),
    "both below some folder": (lambda path: f"a/{path}", lambda path: f"b/c/{path}", "without a/, below b/c/"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_listing_may_write_paths_in_another_way(name: str, tmp_path: Path) -> None:
    listed, stored, words = SPELLINGS[name]
    source = card(tmp_path / "src", listing=False, name=stored)
    (source / "data.json").write_text(json.dumps(entries(listed)))
    summary = run(source, tmp_path / "out")
    assert summary.totals.rows == 6
    assert sorted(image for image, _ in rows(tmp_path / "out").values()) == sorted(IMAGES.values())
    assert {caption for _, caption in rows(tmp_path / "out").values()} == set(CAPTIONS.values())
    assert any(words in note for note in summary.notes)
    assert words in read_manifest(str(tmp_path / "out")).source["listed_paths"]
    assert run(source, tmp_path / "out").did == 0
    assert verify(str(tmp_path / "out"), source=str(source), quiet=True).ok


def test_unicode_forms_are_one_name(tmp_path: Path) -> None:
    name = "00000/é.jpg"
    tar(tmp_path / "src/raw/0.tar", {unicodedata.normalize("NFD", name): picture(1)})
    tar(tmp_path / "src/captions/0.tar", {unicodedata.normalize("NFD", "00000/é.json"): document("a")})
    listed = {"image": unicodedata.normalize("NFC", name), "annotation": unicodedata.normalize("NFC", "00000/é.json")}
    (tmp_path / "src/data.json").write_text(json.dumps([listed]))
    assert run(tmp_path / "src", tmp_path / "out").totals.rows == 1


def test_a_source_that_is_a_part_of_what_is_listed_is_left_as_it_is(tmp_path: Path) -> None:
    source = card(tmp_path / "src", listing=False)
    more = [{"image": f"99/{n}.jpg", "annotation": f"99/{n}.json"} for n in range(400)]
    (source / "data.json").write_text(json.dumps(more + entries()))
    summary = run(source, tmp_path / "out")
    assert (summary.totals.rows, summary.totals.rejected) == (6, {"image_missing": 400})


def test_names_that_two_members_could_mean_are_not_guessed(tmp_path: Path) -> None:
    tar(tmp_path / "src/raw/0.tar", {f"{n}/{case}.JPG": picture(n) for n in range(4) for case in "xX"})
    tar(tmp_path / "src/captions/0.tar", {f"{n}/x.json": document(str(n)) for n in range(4)})
    listed = [{"image": f"{n}/x.jpg", "annotation": f"{n}/x.json"} for n in range(4)]
    (tmp_path / "src/data.json").write_text(json.dumps(listed))
    with pytest.raises(SourceError, match=r'"0/x\.jpg"; a member is called "0/'):
        run(tmp_path / "src", tmp_path / "out")


def test_a_listing_of_other_images_stops_with_a_path_of_each_and_leaves_out_free(tmp_path: Path) -> None:
    source = card(tmp_path / "src", listing=False)
    (source / "data.json").write_text(json.dumps([{"image": "elsewhere.png", "annotation": "elsewhere.json"}]))
    with pytest.raises(SourceError, match=r'names "elsewhere\.png"; a member is called "00000/000000\.jpg"'):
        run(source, tmp_path / "out")
    assert run(source, tmp_path / "out", listing=False).totals.rows == 6


# Damage


def test_damage_without_a_listing_is_in_the_summary_and_its_json(tmp_path: Path) -> None:
    source = card(tmp_path / "src", listing=False)
    os.truncate(source / "captions/00001.tar", 1100)
    summary = run(source, tmp_path / "out")
    assert list(summary.to_json()["damage"]) == ["captions/00001.tar"]
    assert summary.trouble == ("1 damaged archive",)


def pointer(path: Path) -> None:
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3\n")


@pytest.mark.parametrize("name", ["raw/00001.tar", "captions/00000.tar", "data.json"])
def test_a_pointer_of_git_lfs_is_an_error_that_names_the_way_out(name: str, tmp_path: Path) -> None:
    source = card(tmp_path / "src")
    pointer(source / name)
    with pytest.raises(SourceError, match="git lfs pull"):
        run(source, tmp_path / "out")


@pytest.mark.parametrize("listing", [True, False])
def test_a_tail_of_zeros_is_a_download_that_was_not_finished(listing: bool, tmp_path: Path) -> None:
    source = card(tmp_path / "src", listing=listing)
    path = source / "raw/00001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3] + bytes(2 << 20))
    summary = run(source, tmp_path / "out")
    assert "Download it again" in str(summary.damage["raw/00001.tar"])
    assert set(summary.totals.rejected) == {"tar_damaged"}


def test_some_zeros_behind_a_tar_are_none(tmp_path: Path) -> None:
    source = card(tmp_path / "src")
    path = source / "raw/00001.tar"
    path.write_bytes(path.read_bytes() + bytes(1 << 19))
    assert run(source, tmp_path / "out").damage == {}


def test_a_downloaders_control_file_is_damage(tmp_path: Path) -> None:
    source = card(tmp_path / "src")
    (source / "raw/00001.tar.aria2").write_bytes(b"\0")
    summary = run(source, tmp_path / "out")
    assert list(summary.damage) == ["raw/00001.tar"]
    assert summary.unread == {"unfinished": 1}


# Captions in other shapes


@pytest.mark.parametrize("extra", ["README.md", "readme.txt", ".gitkeep", "notes.pdf"])
def test_captions_with_nothing_but_a_readme_are_none(extra: str, tmp_path: Path) -> None:
    expected = pairs(tmp_path / "src", tars=1)
    (tmp_path / "src/captions").mkdir()
    (tmp_path / "src/captions" / extra).write_text("x")
    assert run(tmp_path / "src", tmp_path / "out").totals.rows == len(expected)


def test_json_comes_before_text_and_text_alone_will_do(tmp_path: Path) -> None:
    members = {"a.jpg": picture(1), "a.txt": b"alt", "b.jpg": picture(2), "b.txt": "naïve\n".encode()}
    tar(tmp_path / "src/raw/0.tar", {**members, "a.json": document("meant"), "c.txt": b"of no image"})
    run(tmp_path / "src", tmp_path / "out")
    found = {row.key: (row.caption, row.annotation) for row in open_dataset(str(tmp_path / "out"))}
    assert found["a"] == ("meant", document("meant").decode())
    assert found["b"] == ("naïve", '{"caption": "naïve"}')
    assert len(found) == 2


# Recaptions


def flat(root: Path, **fields: Callable[[int], Any]) -> Path:
    members = {}
    for n in range(6):
        members[f"{n:09d}.jpg"] = picture(n)
        members[f"{n:09d}.json"] = document(f"alt {n}", **{name: value(n) for name, value in fields.items()})
    tar(root / "00000.tar", members)
    return root


def table(path: Path, columns: dict[str, list[Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    else:
        records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        if path.suffix == ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(columns))
                writer.writeheader()
                writer.writerows(records)
        else:
            path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


RECAPTIONS = [f"about {n}" for n in range(6)]


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".csv"])
def test_recaptions_come_in_files_of_any_form_and_in_folders(ending: str, tmp_path: Path) -> None:
    source = flat(tmp_path / "src", url=lambda n: f"http://{n}")
    for part in range(2):
        some = range(3 * part, 3 * part + 3)
        columns = {"url": [f"http://{n}" for n in some], "re_caption": [RECAPTIONS[n] for n in some]}
        table(tmp_path / "re" / f"{part}{ending}", columns)
    summary = run(source, tmp_path / "out", recaptions=str(tmp_path / "re"))
    assert [row.caption for row in open_dataset(str(tmp_path / "out"))] == RECAPTIONS
    assert "6 of 6 recaptions belong to an image, joined by url" in summary.notes


@pytest.mark.parametrize(
    ("on", "column", "values"),
    [
        ("sha256", "sha256", [f"{n:064X}" for n in range(6)]),  # in whatever case
        ("url=TEXT_URL", "TEXT_URL", [f"http://{n}" for n in range(6)]),
        ("key", "key", [f"{n:09d}" for n in range(6)]),
        ("path=file", "file", [f"{n:09d}.jpg" for n in range(6)]),
        ("hash", "hash", list(range(6))),
    ],
)
def test_what_recaptions_are_joined_by_can_be_named(on: str, column: str, values: list[Any], tmp_path: Path) -> None:
    source = flat(tmp_path / "src", url=lambda n: f"http://{n}", sha256=lambda n: f"{n:064x}", hash=int)
    file = table(tmp_path / "re.parquet", {"url": ["http://x"] * 6, column: values, "re_caption": RECAPTIONS})
    if column != "url":
        file = table(tmp_path / "re.parquet", {column: values, "re_caption": RECAPTIONS})
    summary = run(source, tmp_path / "out", recaptions=file, on=on)
    assert [row.caption for row in open_dataset(str(tmp_path / "out"))] == RECAPTIONS
    assert f"joined by {on.removeprefix('path=')}" in str(summary.notes)
    assert verify(str(tmp_path / "out"), source=str(source), recaptions=(file,), quiet=True).ok


def test_recaptions_of_no_image_are_an_error_with_a_value_of_each(tmp_path: Path) -> None:
    source = flat(tmp_path / "src")
    file = table(tmp_path / "re.parquet", {"key": ["other"], "re_caption": ["x"]})
    with pytest.raises(SourceError, match=r'joined by key: one says "other", an image is called "000000000\.jpg"'):
        run(source, tmp_path / "out", recaptions=file)


@pytest.mark.parametrize("field", ["sha256", "md5", "url"])
def test_recaptions_that_contradict_the_sidecars_are_no_captions_of_theirs(field: str, tmp_path: Path) -> None:
    source = flat(tmp_path / "src", **{field: lambda n: f"value-{n}"})
    keys = [f"{n:09d}" for n in range(6)]
    for wrong in (1, 6):
        stated = [f"value-{n + 1 if n < wrong else n}" for n in range(6)]
        columns = {"key": keys, field: stated, "re_caption": RECAPTIONS}
        file = table(tmp_path / f"re{wrong}.parquet", columns)
        if wrong == 1:
            summary = run(source, tmp_path / "some", recaptions=file, on="key")
            assert summary.totals.rejected == {"caption_invalid": 1}
            assert f"its {field} is value-1, the image's is value-0" in summary.examples["caption_invalid"]
        else:
            with pytest.raises(SourceError, match=f"belong to other images: 6 of 6 .*{field} is value-1"):
                run(source, tmp_path / "all", recaptions=file, on="key")


# Copies


def touch(folder: Path, ns: int) -> None:
    for path in folder.rglob("*"):
        os.utime(path, ns=(1, ns + len(path.name)))


def test_a_source_copied_without_its_times_is_the_same_source(tmp_path: Path) -> None:
    source = card(tmp_path / "src")
    run(source, tmp_path / "out")
    touch(source, 10**18)
    assert run(source, tmp_path / "out").did == 0
    members = {f"{key}.jpg".replace("1/", "9/"): IMAGES[key] for key in SAMPLES if key.startswith("00001")}
    tar(source / "raw/00001.tar", members)  # the same size
    touch(source, 2 * 10**18)
    with pytest.raises(JobMismatchError, match=r"1 file of the source with other contents, such as raw/00001\.tar"):
        run(source, tmp_path / "out")


@pytest.mark.parametrize("ns", [-(10**18), 11 * 10**18, 2**63 + 5])
def test_times_long_ago_and_far_ahead_are_times(ns: int, tmp_path: Path) -> None:
    source = card(tmp_path / "src")
    for side in ("raw", "captions"):
        for path in (source / side).iterdir():
            shutil.unpack_archive(path, source / side, "tar")
            path.unlink()
    try:
        for path in source.rglob("*"):
            os.utime(path, ns=(ns, ns))
    except OSError:
        pytest.skip("this file system has no such time")
    run(source, tmp_path / "out")
    assert run(source, tmp_path / "out").did == 0
    index(str(source), str(tmp_path / "index"), num_proc=1, quiet=True)
    assert rows(tmp_path / "index") == rows(tmp_path / "out") == EXPECTED


def test_a_source_of_nothing_that_is_read_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "src/raw").mkdir(parents=True)
    (tmp_path / "src/raw/00000.zip").write_bytes(b"PK\3\4")
    with pytest.raises(LayoutError, match=r"1 × archive, such as raw/00000\.zip"):
        run(tmp_path / "src", tmp_path / "out")


@pytest.mark.parametrize("place", ["raw", "."])
def test_what_the_tool_made_in_a_source_is_no_part_of_it(place: str, tmp_path: Path) -> None:
    expected = pairs(tmp_path / "src", place=place)
    run(tmp_path / "src", tmp_path / "src/made", format="webdataset")  # tars, in a folder of the source
    summary = run(tmp_path / "src", tmp_path / "out")
    assert rows(tmp_path / "out") == expected
    assert (summary.unread, summary.trouble) == ({"folder": 1}, ())


@pytest.mark.parametrize(("name", "words"), [("0.tar.part", "Finish the download"), ("re.parquet", "--recaptions")])
def test_a_source_without_annotations_says_where_they_may_be(name: str, words: str, tmp_path: Path) -> None:
    source = card(tmp_path / "src", listing=False)
    shutil.rmtree(source / "captions")
    (source / "captions").mkdir()
    (source / "captions" / name).write_bytes(b"x")
    with pytest.raises(LayoutError, match=f"captions/{name}.*{words}"):
        run(source, tmp_path / "out")
