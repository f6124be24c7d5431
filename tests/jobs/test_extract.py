"""extract gives the files back byte for byte, and nothing in a source can make it write elsewhere."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.base.errors import OptionError, OutputError, SourceError
from builder.base.options import ConvertOptions, Slice
from builder.conversion.convert import convert
from builder.conversion.index import index
from builder.curate.columns import write_column
from builder.jobs import extract_files
from builder.jobs.extract import Extraction, captions_of, describe_extraction, extract
from builder.jobs.extract_rows import image_name
from builder.read.opening import open_dataset
from builder.store.tree import NameRefusedError, Tree
from tests.sources import LAYOUTS, Source, faults_of, make_source, picture


def run(path: Path, out: Path, **options: Any) -> Extraction:
    return extract(str(path), str(out), num_proc=options.pop("num_proc", 1), quiet=True, **options)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below, by its path; a link counts as what it is, not as what it leads to."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = b"-> " + os.fsencode(os.readlink(path))
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def by_gnu_tar(source: Path, out: Path) -> dict[str, bytes]:
    """What the card's script leaves: ``tar -xf`` of every tar, side by side."""
    for side in ("raw", "captions"):
        (out / side).mkdir(parents=True)
        for tar in sorted((source / side).glob("*.tar")):
            subprocess.run(["tar", "-xf", tar, "-C", out / side, "--no-same-owner"], check=True)
    return files(out)


def write_tar(path: Path, members: Iterable[tuple[str | tarfile.TarInfo, bytes]], mode: str = "w", **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, **how) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def link(name: str, target: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_source_comes_out_as_gnu_tar_leaves_it(
    tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract_files, "_PIECE", (1 << 10, 64 << 10))  # many pieces to a tar
    made = make_source(tmp_path / "src", "card", per_shard=25, faults=("rewritten", "unlisted", "image_missing", "bom"))
    result = run(made.path, tmp_path / "out", num_proc=processes)
    assert (tmp_path / "out/data.json").read_bytes() == (made.path / "data.json").read_bytes()
    (tmp_path / "out/data.json").unlink()
    expected = by_gnu_tar(made.path, tmp_path / "tar")
    assert files(tmp_path / "out") == expected
    assert (result.files, result.failed) == (len(expected), 0)
    assert result.images == sum(name.startswith("raw/") for name in expected)
    assert result.captions == result.files - result.images
    assert result.bytes == sum(map(len, expected.values()))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["source", "parquet", "arrow", "index"])
def test_every_row_comes_back_byte_for_byte_from_every_form(tmp_path: Path, layout: str, kind: str) -> None:
    wanted = [fault for fault in faults_of(layout) if fault != "cut_tar"]
    made = make_source(tmp_path / "src", layout, shards=2, per_shard=14, faults=wanted)
    path = made.path
    if kind == "index":
        index(str(path), str(tmp_path / "form"), ConvertOptions(recaptions=made.recaptions), num_proc=1, quiet=True)
    elif kind != "source":
        options = ConvertOptions(format=kind, recaptions=made.recaptions)
        convert(str(path), str(tmp_path / "form"), options, num_proc=1, quiet=True)
    result = run(path if kind == "source" else tmp_path / "form", tmp_path / "out")
    assert result.failures == ()
    found = files(tmp_path / "out")
    for key, row in made.rows.items():
        assert found[f"raw/{made.paths[key]}"] == row.image
    if kind == "source":
        return
    listed = json.loads(found.pop("data.json"))
    assert {entry["image"] for entry in listed} == {made.paths[key] for key in made.rows}
    assert len(found) == 2 * len(made.rows)
    for entry in listed:
        document = found[f"captions/{entry['annotation']}"]
        key = next(key for key, path in made.paths.items() if path == entry["image"])
        assert document.decode("utf-8-sig") == made.rows[key].document
    if layout in ("card", "listing_folder"):
        originals = by_gnu_tar(made.path, tmp_path / "tar")
        assert all(originals[name] == data for name, data in found.items())  # with its BOM, where it had one


def test_data_json_of_rows_is_in_the_order_of_the_listing(tmp_path: Path) -> None:
    made = make_source(tmp_path / "src", "card", per_shard=6)
    listing = json.loads((made.path / "data.json").read_text())[::-1]
    (made.path / "data.json").write_text(json.dumps(listing))
    convert(str(made.path), str(tmp_path / "converted"), num_proc=1, quiet=True)
    run(tmp_path / "converted", tmp_path / "out")
    assert (tmp_path / "out/data.json").read_bytes() == (made.path / "data.json").read_bytes()


@pytest.mark.parametrize(
    ("start", "end", "folders"),
    [
        (0, -1, [0, 1, 2, 3]),
        (1, 3, [1, 2]),
        (2, -1, [2, 3]),
        (0, 0, []),
        (3, 99, [3]),
    ],
)
@pytest.mark.parametrize("kind", ["source", "index"])
def test_start_and_end_slice_the_sorted_tars(
    tmp_path: Path, kind: str, start: int, end: int, folders: list[int]
) -> None:
    made = make_source(tmp_path / "src", "card", shards=4, per_shard=3)
    path = made.path
    if kind == "index":
        path = tmp_path / "ix"
        index(str(made.path), str(path), num_proc=1, quiet=True)
    run(path, tmp_path / "out", start=start, end=end)
    found = files(tmp_path / "out")
    assert len(json.loads(found.pop("data.json"))) == len(made.rows)  # of all, so that slices may share one OUT
    wanted = {f"{number:05d}" for number in folders}
    assert {(name.split("/")[0], name.split("/")[1]) for name in found} == {
        (side, folder) for side in ("raw", "captions") for folder in wanted
    }


def test_start_and_end_slice_the_shards_of_a_converted_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_source(tmp_path / "src", "card", shards=4, per_shard=3)
    monkeypatch.setattr("builder.plan.plan.FRAMING", 3e-5)  # a shard for each tar
    convert(str(made.path), str(tmp_path / "converted"), num_proc=1, quiet=True)
    shards = len(list((tmp_path / "converted/data").iterdir()))
    assert shards >= 4
    run(tmp_path / "converted", tmp_path / "head", end=shards // 2)
    run(tmp_path / "converted", tmp_path / "tail", start=shards // 2)
    run(tmp_path / "converted", tmp_path / "whole")
    head, tail, whole = files(tmp_path / "head"), files(tmp_path / "tail"), files(tmp_path / "whole")
    assert head | tail == whole
    assert set(head) & set(tail) == {"data.json"}


@given(raws=st.integers(0, 12), captions=st.integers(0, 30), cuts=st.lists(st.integers(0, 15), max_size=5).map(sorted))
def test_slices_share_out_every_captions_archive_once(raws: int, captions: int, cuts: list[int]) -> None:
    parts = [Slice(start, end) for start, end in pairwise([0, *cuts, -1])]
    assert [number for part in parts for number in captions_of(part, raws, captions)] == list(range(captions))
    assert captions_of(Slice(0, 99), raws, captions) == range(captions)
    if raws == captions:
        assert all(captions_of(part, raws, captions) == part.of(raws) for part in parts)


@pytest.mark.parametrize(("raws", "captions"), [(2, 4), (4, 2), (3, 5), (1, 4)])
def test_slices_together_write_all_captions_whatever_the_number_of_their_tars(
    tmp_path: Path, raws: int, captions: int
) -> None:
    names = [f"{number:03d}" for number in range(12)]
    for number in range(raws):
        write_tar(tmp_path / f"src/raw/{number:05d}.tar", [(f"{name}.jpg", b"i") for name in names[number::raws]])
    for number in range(captions):
        members = [(f"{name}.json", b"{}") for name in names[number::captions]]
        write_tar(tmp_path / f"src/captions/{number:05d}.tar", members)
    results = [run(tmp_path / "src", tmp_path / "out", start=number, end=number + 1) for number in range(raws)]
    assert sum(result.images for result in results) == sum(result.captions for result in results) == 12
    assert len(files(tmp_path / "out")) == 24


def test_slices_out_of_range_are_refused(tmp_path: Path) -> None:
    made = make_source(tmp_path / "src", "card", shards=1, per_shard=2)
    with pytest.raises(OptionError, match="start"):
        run(made.path, tmp_path / "out", start=-1)


HOSTILE = [
    ("../evil.jpg", "lead out"),
    ("00000/../../../evil.jpg", "lead out"),
    ("00000/..", "lead out"),
    ("a" * 300 + ".jpg", "longer"),
    ("00000/" + "b" * 300 + "/c.jpg", "longer"),
]


def test_names_that_would_leave_the_folder_are_refused_and_the_others_go_on(tmp_path: Path) -> None:
    good = [(f"00000/{number}.jpg", picture(number)) for number in range(6)]
    members = [*good[:3], *((name, b"evil") for name, _ in HOSTILE), *good[3:], ("/abs/olute.jpg", b"inside")]
    write_tar(tmp_path / "src/raw/00000.tar", members)
    result = run(tmp_path / "src", tmp_path / "deep/er/out")
    found = files(tmp_path / "deep")
    assert found == {f"er/out/raw/{name}": data for name, data in [*good, ("abs/olute.jpg", b"inside")]}
    assert result.failed == len(HOSTILE)
    for name, why in HOSTILE:
        assert any(name in failure and why in failure for failure in result.failures)
    assert "not written" in describe_extraction(result)


@pytest.mark.parametrize("what", ["raw", "raw/00000", "raw/00000/0.jpg"])
def test_links_that_lie_in_the_folder_are_never_followed(tmp_path: Path, what: str) -> None:
    write_tar(tmp_path / "src/raw/00000.tar", [("00000/0.jpg", b"image"), ("1.jpg", b"other")])
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "00000").mkdir()
    (outside / "0.jpg").write_bytes(b"precious")
    planted = tmp_path / "out" / what
    planted.parent.mkdir(parents=True)
    planted.symlink_to(outside / "0.jpg" if what.endswith("jpg") else outside)
    result = run(tmp_path / "src", tmp_path / "out", overwrite=True)
    assert files(outside) == {"0.jpg": b"precious"}
    if what.endswith("jpg"):  # a link in the file's own place is replaced by the file
        assert result.failed == 0
        assert files(tmp_path / "out")[what] == b"image"
    else:
        assert result.failed == (2 if what == "raw" else 1)
        assert all("symbolic link" in failure for failure in result.failures)


def test_a_file_that_is_there_is_replaced_not_written_into(tmp_path: Path) -> None:
    write_tar(tmp_path / "src/raw/00000.tar", [("00000/0.jpg", b"image")])
    elsewhere = tmp_path / "precious"
    elsewhere.write_bytes(b"precious")
    (tmp_path / "out/raw/00000").mkdir(parents=True)
    os.link(elsewhere, tmp_path / "out/raw/00000/0.jpg")
    assert run(tmp_path / "src", tmp_path / "out", overwrite=True).failed == 0
    assert elsewhere.read_bytes() == b"precious"
    assert (tmp_path / "out/raw/00000/0.jpg").read_bytes() == b"image"


def test_what_stands_in_the_way_costs_its_own_files_only(tmp_path: Path) -> None:
    write_tar(tmp_path / "src/raw/00000.tar", [("00000/0.jpg", b"0"), ("00001/1.jpg", b"1"), ("00002/2.jpg", b"2")])
    (tmp_path / "out/raw/00000/0.jpg").mkdir(parents=True)
    (tmp_path / "out/raw/00001").write_bytes(b"a file")
    result = run(tmp_path / "src", tmp_path / "out")
    assert (tmp_path / "out/raw/00002/2.jpg").read_bytes() == b"2"
    assert (result.failed, result.files) == (2, 1)


@pytest.mark.parametrize("kind", ["card", "converted", "listing_folder"])
def test_a_data_json_that_cannot_be_written_is_counted_and_named(tmp_path: Path, kind: str) -> None:
    made = make_source(tmp_path / "src", "card" if kind == "converted" else kind, per_shard=3)
    path, parts = made.path, 1
    planted = tmp_path / "out/data.json"
    if kind == "converted":
        path = tmp_path / "converted"
        convert(str(made.path), str(path), num_proc=1, quiet=True)
    if kind == "listing_folder":
        parts = len(list((path / "data.json").iterdir()))
        planted.parent.mkdir()
        planted.write_bytes(b"a file")
    else:
        planted.mkdir(parents=True)
    result = run(path, tmp_path / "out")
    assert result.images == result.captions == len(made.rows)
    assert result.failed == len(result.failures) == parts
    assert all(failure.startswith("data.json") for failure in result.failures)
    assert not list((tmp_path / "out").rglob("*.part"))


def test_links_come_out_as_files_with_the_bytes_they_lead_to(tmp_path: Path) -> None:
    members = [
        ("00000/a.jpg", b"first"),
        link("00000/hard.jpg", "00000/a.jpg", tarfile.LNKTYPE),
        link("00000/soft.jpg", "a.jpg", tarfile.SYMTYPE),
        link("00000/secret.jpg", "/etc/passwd", tarfile.SYMTYPE),  # leads to no member
        link("00000/up.jpg", "../../../../etc/passwd", tarfile.SYMTYPE),
    ]
    write_tar(tmp_path / "src/raw/00000.tar", members)
    run(tmp_path / "src", tmp_path / "out")
    assert files(tmp_path / "out/raw") == {f"00000/{name}.jpg": b"first" for name in ("a", "hard", "soft")}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_of_members_with_one_name_the_last_counts_across_tars_too(
    tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract_files, "_PIECE", (1, 1))  # every member is a piece
    write_tar(tmp_path / "src/raw/00000.tar", [("x/1.jpg", b"old"), ("./x/2.jpg", b"2"), ("x//1.jpg", b"new")])
    write_tar(tmp_path / "src/raw/00001.tar", [("x/2.jpg", b"two"), ("y/3.jpg", b"")])
    (tmp_path / "src/data.json").write_text("[]")  # without a listing those of another tar are other samples
    result = run(tmp_path / "src", tmp_path / "out", num_proc=processes)
    assert result.replaced == 2
    assert files(tmp_path / "out/raw") == {"x/1.jpg": b"new", "x/2.jpg": b"two", "y/3.jpg": b""}
    assert result.files == 3


def test_members_that_are_not_whole_are_named_and_left_out(tmp_path: Path) -> None:
    made = make_source(tmp_path / "src", "card", per_shard=4, faults=("cut_tar",))
    result = run(made.path, tmp_path / "out")
    lost = made.paths[next(key for key, reason in made.rejects.items() if reason == "tar_damaged")]
    assert not (tmp_path / "out/raw" / lost).exists()
    assert any(lost in failure for failure in result.failures)
    assert result.images == len(made.rows)


def test_compressed_tars_come_out_through_their_library(tmp_path: Path) -> None:
    made = make_source(tmp_path / "src", "card", shards=2, per_shard=10)
    expected = by_gnu_tar(made.path, tmp_path / "tar")
    for tar in made.path.glob("*/*.tar"):
        tar.with_suffix(".tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
        tar.unlink()
    run(made.path, tmp_path / "out", num_proc=2)
    (tmp_path / "out/data.json").unlink()
    assert files(tmp_path / "out") == expected


def test_a_listing_in_parts_is_copied_in_parts(tmp_path: Path) -> None:
    made = make_source(tmp_path / "src", "listing_folder", per_shard=3)
    run(made.path, tmp_path / "out")
    assert files(tmp_path / "out/data.json") == files(made.path / "data.json")


def test_a_second_run_writes_the_same_again(tmp_path: Path) -> None:
    made = make_source(tmp_path / "src", "card", per_shard=5)
    run(made.path, tmp_path / "out")
    before = files(tmp_path / "out")
    victim = tmp_path / "out/raw" / made.paths[next(iter(made.rows))]
    victim.write_bytes(bytes(victim.stat().st_size))  # of the right size, but not the right file
    run(made.path, tmp_path / "out", num_proc=2, overwrite=True)
    assert files(tmp_path / "out") == before


@pytest.fixture(params=["source", "converted", "index"])
def extractable(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """What extract takes."""
    made = make_source(tmp_path / "src", "card", per_shard=3)
    out = tmp_path / "made"
    if request.param == "converted":
        convert(str(made.path), str(out), num_proc=1, quiet=True)
    elif request.param == "index":
        index(str(made.path), str(out), num_proc=1, quiet=True)
    return made.path if request.param == "source" else out


def test_nothing_that_is_there_is_written_over(extractable: Path, tmp_path: Path) -> None:
    """And nothing else is written."""
    out = tmp_path / "out"
    planted = ["captions/00001/000000004.json", "raw/00000/000000001.jpg", "raw/00000/000000002.jpg"]
    for name in planted:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / planted[0]).write_bytes(b"mine")
    (out / planted[1]).symlink_to("/nowhere")
    (out / planted[2]).write_bytes(b"mine")
    before = files(out)
    with pytest.raises(OutputError) as caught:
        run(extractable, out)
    assert all(name in str(caught.value) for name in planted)
    assert "--overwrite" in str(caught.value)
    assert files(out) == before
    assert run(extractable, out, overwrite=True).failed == 0
    assert not set(planted) & {name for name, data in files(out).items() if data == b"mine" or data[:2] == b"->"}


def test_the_first_three_names_are_given(tmp_path: Path) -> None:
    made = make_source(tmp_path / "src", "card", per_shard=5)
    run(made.path, tmp_path / "out")
    (tmp_path / "out/data.json").unlink()
    with pytest.raises(OutputError) as caught:
        run(made.path, tmp_path / "out")
    named = [name for name in files(tmp_path / "out") if name in str(caught.value)]
    assert len(named) == 3
    assert all(name.startswith("raw/00000/") for name in named)


def test_a_data_json_of_others_is_not_replaced(extractable: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "data.json").write_text("[]")
    with pytest.raises(OutputError, match=r"data\.json"):
        run(extractable, out)
    assert files(out) == {"data.json": b"[]"}


def test_a_source_of_others_is_not_added_to(extractable: Path, tmp_path: Path) -> None:
    other = make_source(tmp_path / "other", "no_listing", per_shard=2)
    before = files(other.path)
    with pytest.raises(OutputError, match=r"holds a source \(.*00000\.tar"):
        run(extractable, other.path)
    assert files(other.path) == before


def test_slices_share_an_out_and_its_listing(extractable: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(extractable, whole)
    count = 1 if (extractable / "data").exists() else 3
    for number in range(count):
        run(extractable, out, start=number, end=number + 1)
    assert files(out) == files(whole)


def test_a_slice_behind_the_last_shard_is_refused(extractable: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="start 9: there are"):
        run(extractable, tmp_path / "out", start=9)
    assert not (tmp_path / "out").exists()


def test_what_appears_while_files_are_written_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look before is not the last word: another process may be at the same folder."""
    made = make_source(tmp_path / "src", "card", per_shard=2)
    victim = tmp_path / "out/raw" / made.paths[next(iter(made.rows))]
    victim.parent.mkdir(parents=True)
    monkeypatch.setattr(extract_files, "refuse_existing", lambda *_: victim.write_bytes(b"mine"))
    result = run(made.path, tmp_path / "out")
    assert victim.read_bytes() == b"mine"
    assert (result.failed, result.images) == (1, len(made.rows) - 1)
    assert "another file is in its place" in result.failures[0]


@pytest.mark.parametrize("inside", ["", "raw", "captions/deeper", "data.json"])
def test_out_must_not_lie_in_the_source(tmp_path: Path, inside: str) -> None:
    made = make_source(tmp_path / "src", "card", per_shard=2)
    before = files(made.path)
    with pytest.raises(SourceError, match="outside"):
        run(made.path, made.path / inside)
    assert files(made.path) == before


def test_files_have_plain_modes_whatever_the_tar_says(tmp_path: Path) -> None:
    member = tarfile.TarInfo("00000/0.jpg")
    member.mode, member.uid, member.mtime = 0o6777, 12345, 1
    write_tar(tmp_path / "src/raw/00000.tar", [(member, b"image")])
    run(tmp_path / "src", tmp_path / "out")
    status = (tmp_path / "out/raw/00000/0.jpg").stat()
    assert status.st_mode & 0o7111 == 0
    assert status.st_uid == os.getuid()
    assert status.st_mtime > 1e9


@pytest.mark.parametrize(
    "name", ["", "/", "a//b", "./a", "a/.", "..", "a/../../b", "/a", "a\0b", "a/", "d/" * 2048, "é" * 2048]
)
def test_a_tree_refuses_what_is_no_plain_path_below_it(tmp_path: Path, name: str) -> None:
    with Tree(str(tmp_path / "tree")) as tree, pytest.raises(NameRefusedError):
        tree.write(name, [b"?"])
    assert files(tmp_path) == {}


def test_a_tree_is_as_deep_as_a_path_may_be_long(tmp_path: Path) -> None:
    """A tar of node-tar's tests has a name of 200,000 folders: a recursion over strings of half a gigabyte once."""
    deep = "d/" * 900
    try:
        with Tree(str(tmp_path / "tree")) as tree:
            assert tree.write(f"{deep}a", [b"content"]) == 7
            assert tree.write(f"{deep}b", [b"content"]) == 7
            assert tree.write("d/d/c", [b"content"]) == 7
        folder = os.open(tmp_path / "tree", os.O_RDONLY)
        for _ in range(900):
            below = os.open("d", os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = below
        assert sorted(os.listdir(folder)) == ["a", "b"]
        os.close(folder)
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "tree"], check=True)  # Python's own way recurses


def test_a_tree_leaves_no_part_of_a_file_that_could_not_be_read(tmp_path: Path) -> None:
    def blocks() -> Iterable[bytes]:
        yield b"half"
        raise SourceError("gone")

    with Tree(str(tmp_path)) as tree:
        tree.write("whole", [b"before"], whole=True)
        for name, whole in (("a/b", False), ("whole", True)):
            with pytest.raises(SourceError):
                tree.write(name, blocks(), whole=whole)
    assert files(tmp_path) == {"whole": b"before"}


def test_a_tree_writes_into_more_folders_than_it_keeps_open(tmp_path: Path) -> None:
    names = [f"{number % 50}/x/{number}" for number in range(120)]
    with Tree(str(tmp_path)) as tree:
        for name in names:
            tree.write(name, [name.encode()])
    assert files(tmp_path) == {name: name.encode() for name in names}


@given(st.lists(st.integers(1, 1000), max_size=60), st.integers(1, 5000))
def test_pieces_cover_all_and_are_even(weights: list[int], most: int) -> None:
    pieces = extract_files.cut_evenly(np.array(weights, dtype=np.int64), most)
    assert [number for lo, hi in pieces for number in range(lo, hi)] == list(range(len(weights)))
    for lo, hi in pieces:
        assert sum(weights[lo:hi]) < most + 2 * max(weights) or hi == lo + 1


def test_a_source_that_is_none_is_a_clear_error(tmp_path: Path, made_nothing: Path) -> None:
    with pytest.raises(SourceError, match="empty folder"):
        run(made_nothing, tmp_path / "out")


@pytest.fixture
def made_nothing(tmp_path: Path) -> Path:
    folder = tmp_path / "nothing"
    folder.mkdir()
    return folder


def test_extracting_an_extracted_source_copies_it(tmp_path: Path) -> None:
    made: Source = make_source(tmp_path / "src", "extracted", per_shard=3)
    run(made.path, tmp_path / "out")
    assert files(tmp_path / "out") == files(made.path)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two keys that differ in their endings only, and a caption of several lines."""
    root = tmp_path_factory.mktemp("forms")
    source = make_source(root / "src", "card", per_shard=5, faults=("stem_twin",))
    convert(source.path, root / "out", num_proc=1, quiet=True)
    return root / "out"


@pytest.mark.parametrize("num_proc", [1, 2])
def test_imagefolder_is_what_datasets_reads(converted: Path, tmp_path: Path, num_proc: int) -> None:
    import datasets

    write_column(
        str(converted), "score", pa.array([float(row) for row in range(len(open_dataset(converted)))]), replace=True
    )
    result = extract(converted, tmp_path / "folder", form="imagefolder", num_proc=num_proc, quiet=True)
    rows = {row.key: row for row in open_dataset(converted)}
    assert (result.images, result.captions, result.failed) == (len(rows), 0, 0)
    found = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "folder"), split="train", cache_dir=str(tmp_path / "hf")
    )
    found = found.cast_column("image", datasets.Image(decode=False))
    assert len(found) == len(rows)
    for row in found:
        mine = rows[row["key"]]
        assert Path(row["image"]["path"]).read_bytes() == mine.image
        assert (row["caption"], row["width"], row["height"]) == (mine.caption, mine.width, mine.height)
        assert row["score"] == mine["score"]


def test_captions_lie_beside_their_images_in_one_line(converted: Path, tmp_path: Path) -> None:
    result = extract(converted, tmp_path / "folder", form="captions", num_proc=1, quiet=True)
    rows = list(open_dataset(converted))
    assert result.images == result.captions == len(rows)
    files = sorted(path for path in (tmp_path / "folder").rglob("*") if path.is_file())
    assert len(files) == 2 * len(rows)
    for row in rows:
        image = tmp_path / "folder" / image_name(row.key, row.path)
        assert image.read_bytes() == row.image
        assert image.with_suffix(".txt").read_text() == " ".join(row.caption.split())  # kohya cuts off the last ending


@pytest.mark.parametrize(
    ("key", "path", "name"),
    [
        ("0/1", "0/1.jpg", "0/1.jpg"),
        ("0/1.png", "0/1.png", "0/1.png.png"),  # of two that differ in their endings only
        ("00002/1", "1.JPG", "00002/1.JPG"),  # names begin anew in every tar
        ("0/1", "0/1.jpg!large", "0/1.jpg"),
        ("0/1", "0/1", "0/1.jpg"),
    ],
)
def test_a_file_is_named_by_the_key_with_an_image_s_ending(key: str, path: str, name: str) -> None:
    assert image_name(key, path) == name


def test_numbers_that_json_lacks_are_null(converted: Path, tmp_path: Path) -> None:
    count = len(open_dataset(converted))
    write_column(
        str(converted),
        "score",
        pa.array([float("nan"), float("inf")] + [None] * (count - 2), pa.float64()),
        replace=True,
    )
    extract(converted, tmp_path / "folder", form="imagefolder", num_proc=1, quiet=True)
    lines = (tmp_path / "folder/metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["score"] for line in lines] == [None] * count


def test_forms_of_rows_need_rows(tmp_path: Path) -> None:
    source = make_source(tmp_path / "src", "card", shards=1, per_shard=3)
    with pytest.raises(SourceError, match="laion6m index"):
        extract(source.path, tmp_path / "folder", form="captions", num_proc=1, quiet=True)
    index(source.path, num_proc=1, quiet=True)
    assert extract(source.path, tmp_path / "folder", form="captions", num_proc=1, quiet=True).captions == 3
    with pytest.raises(OptionError, match="imagefolder"):
        extract(source.path, tmp_path / "folder", form="webdataset", quiet=True)


@pytest.mark.parametrize("form", ["imagefolder", "captions"])
def test_other_forms_write_over_nothing_either(form: str, tmp_path: Path) -> None:
    made = make_source(tmp_path / "src", "card", per_shard=2)
    convert(str(made.path), str(tmp_path / "made"), num_proc=1, quiet=True)
    run(tmp_path / "made", tmp_path / "out", form=form)
    before = files(tmp_path / "out")
    with pytest.raises(OutputError, match=r"00000/000000000\.jpg"):
        run(tmp_path / "made", tmp_path / "out", form=form)
    for name in before:
        if name.endswith(".jpg"):
            (tmp_path / "out" / name).unlink()
    if form == "captions":
        with pytest.raises(OutputError, match=r"00000/000000000\.txt"):
            run(tmp_path / "made", tmp_path / "out", form=form)
    run(tmp_path / "made", tmp_path / "out", form=form, overwrite=True)
    assert files(tmp_path / "out") == before


def anew(folder: Path) -> Path:
    """Three tars of pairs; every tar has the same two names."""
    for tar in range(3):
        members = [
            (f"{number:06d}{ending}", picture(10 * tar + number) if ending == ".jpg" else b'{"caption": "a cat"}')
            for number in range(2)
            for ending in (".jpg", ".json")
        ]
        write_tar(folder / "raw" / f"{tar:05d}.tar", members)
    return folder


@pytest.mark.parametrize(("start", "end"), [(0, -1), (1, 2), (2, 3)])
def test_names_that_begin_anew_in_every_tar_lose_no_file(start: int, end: int, tmp_path: Path) -> None:
    source = anew(tmp_path / "src")
    result = run(source, tmp_path / "out", start=start, end=end)
    tars = range(3)[start : end if end > 0 else None]
    found = files(tmp_path / "out")
    assert {name: data for name, data in found.items() if name.endswith("jpg")} == {
        f"raw/{tar:05d}/{number:06d}.jpg": picture(10 * tar + number) for tar in tars for number in range(2)
    }
    assert (result.images, result.captions, result.replaced, result.failed) == (2 * len(tars), 2 * len(tars), 0, 0)
    assert "names begin anew in every tar" in describe_extraction(result)


def test_members_that_a_later_one_replaces_are_counted(tmp_path: Path) -> None:
    names = ["a/1.jpg", "a/1.json", "a/1.jpg"]
    write_tar(tmp_path / "src" / "raw" / "a.tar", [(name, picture(at)) for at, name in enumerate(names)])
    result = run(tmp_path / "src", tmp_path / "out")
    assert (result.files, result.replaced) == (2, 1)
    assert result.to_json()["replaced"] == 1
    assert "1 member was replaced by a later one of the same name" in describe_extraction(result)
