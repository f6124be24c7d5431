"""Archives as columns: the same for a tar, a compressed tar and the folder that either leaves."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.base.errors import SourceError
from builder.base.ids import path_ids
from builder.base.records import CUT, WHOLE
from builder.source.endings import stem_of
from builder.source.layout import Archive
from builder.source.scan import ScanRequest, folder_state, open_archive, scan_archive
from builder.source.tables import ArchiveTable, table_from_ipc, table_to_ipc
from tests.scanned import archive


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_folder(path: Path, members: list[tuple[str, bytes]]) -> Path:
    for name, data in members:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


MEMBERS = [
    ("0/a.jpg", b"image a"),
    ("0/a.json", b'{"url": "http://a"}'),
    ("0/b.PNG", b"image b" * 100),
    ("0/sub/c.JSON", b'{"url": "http://c"}'),
    ("0/x.txt", b""),
]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "folder"])
def test_members_become_columns(tmp_path: Path, kind: str) -> None:
    path = write_folder(tmp_path, MEMBERS) / "0" if kind == "folder" else write_tar(tmp_path / "0.tar", MEMBERS)
    if kind == "tar.gz":
        path = tmp_path / "0.tar.gz"
        path.write_bytes(gzip.compress((tmp_path / "0.tar").read_bytes()))
    table = scan_archive(ScanRequest(archive(path), names=True, field="url"))
    names = [name for name, _ in MEMBERS]
    assert table.names is not None
    assert table.names.to_pylist() == names
    assert (table.ids == path_ids(names)).all()
    assert table.sizes.tolist() == [len(data) for _, data in MEMBERS]
    assert table.states.tolist() == [WHOLE] * 5
    assert table.is_image.tolist() == [True, False, True, False, False]  # endings of any case
    assert table.is_json.tolist() == [False, True, False, True, False]
    assert table.stem_ids is not None
    assert (table.stem_ids == path_ids(["0/a", "0/a", "0/b", "0/sub/c", "0/x"])).all()
    assert table.field_ids is not None
    assert (table.field_ids[1] == path_ids(["http://a"])[0]).all()
    assert table.damage == ()
    assert table.compression == ("gzip" if kind == "tar.gz" else None)
    if kind != "folder":
        assert table.size == (tmp_path / "0.tar").stat().st_size
        file = open_archive(archive(path))
        for offset, (_, data) in zip(table.offsets.tolist(), MEMBERS, strict=True):
            assert file.read_at(offset, len(data)) == data
        file.close()
    else:
        assert table.offsets.tolist() == [0, 7, 26, 726, 745]  # one behind the other, in the order of the paths
        assert table.size == 745


def test_columns_have_the_types_that_pairing_counts_on(tmp_path: Path) -> None:
    for path in (write_tar(tmp_path / "0.tar", MEMBERS), write_tar(tmp_path / "1.tar", [])):
        table = scan_archive(ScanRequest(archive(path)))
        types = [column.dtype for column in (table.ids, table.offsets, table.sizes, table.states, table.is_image)]
        assert types == [np.dtype("<u8"), np.uint32, np.uint32, np.uint8, np.bool_]
        assert table.names is table.stem_ids is table.field_ids is None  # nobody asked
        copy = pickle.loads(pickle.dumps(table))
        assert isinstance(copy, ArchiveTable)
        assert (copy.ids == table.ids).all()


@pytest.mark.parametrize("names", [True, False])
def test_a_table_that_was_stored_has_every_column_and_fact_again(tmp_path: Path, names: bool) -> None:
    path = write_tar(tmp_path / "0.tar", [*MEMBERS, ("0/._a.jpg", b"a companion")])
    with path.open("r+b") as handle:
        handle.truncate(12 * 512)  # damage: no end blocks
    table = scan_archive(ScanRequest(archive(path), names=names, field="url" if names else ""))
    again = table_from_ipc(table_to_ipc(table), "here")
    assert table.damage
    for field in fields(ArchiveTable):
        was, found = getattr(table, field.name), getattr(again, field.name)
        if isinstance(was, np.ndarray):
            assert was.tolist() == found.tolist(), field.name
            assert (was.dtype == np.bool_) == (found.dtype == np.bool_)
        else:
            assert was == found, field.name
    assert table.hidden == 1


def test_a_member_without_a_url_has_the_empty_one(tmp_path: Path) -> None:
    documents = [
        (b'{"url": "http://a"}', "http://a"),
        (b"\xef\xbb\xbf" + b'{"url": "http://bom"}', "http://bom"),
        (b'{"url": null}', ""),
        (b'{"url": 5}', "5"),
        (b'{"url": "\\ud83d"}', ""),  # no UTF-8 has it
        (b"[1]", ""),
        (b"not JSON", ""),
        (b"\xff", ""),
        (b"[" * 100_000, ""),
        (b"", ""),
    ]
    path = write_tar(tmp_path / "0.tar", [(f"{i}.json", data) for i, (data, _) in enumerate(documents)])
    table = scan_archive(ScanRequest(archive(path), field="url"))
    assert table.field_ids is not None
    assert table.field_ids.tolist() == path_ids([url for _, url in documents]).tolist()


def test_urls_of_loose_files_are_read_where_they_lie(tmp_path: Path) -> None:
    """Files of raw/ without a folder: raw/ itself stands for their tar, under an empty name."""
    write_folder(tmp_path / "raw", [("1.jpg", b"x"), ("1.json", b'{"url": "http://1"}')])
    loose = Archive("", str(tmp_path / "raw"), True, 0, 0)
    table = scan_archive(ScanRequest(loose, names=True, field="url"))
    assert table.names is not None
    assert table.field_ids is not None
    assert table.names.to_pylist() == ["1.jpg", "1.json"]
    assert table.field_ids.tolist() == path_ids(["", "http://1"]).tolist()


def test_a_cut_tar_is_noted_and_scanned_as_far_as_it_goes(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [("a.jpg", b"a" * 600), ("b.jpg", b"b" * 600)])
    with path.open("r+b") as handle:
        handle.truncate(512 + 1024 + 512 + 100)
    table = scan_archive(ScanRequest(archive(path), names=True))
    assert table.states.tolist() == [WHOLE, CUT]
    assert table.sizes.tolist() == [600, 100]
    assert len(table.damage) == 1


@pytest.mark.parametrize("content", [b"", b"\0" * 300, b"no tar at all" * 100])
def test_what_is_no_tar_is_damage_not_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0.tar").write_bytes(content)
    table = scan_archive(ScanRequest(archive(tmp_path / "0.tar")))
    assert len(table.offsets) == 0
    assert table.damage


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_an_archive_that_has_gone_is_a_source_error_that_names_it(tmp_path: Path, kind: str) -> None:
    gone = Archive("0", str(tmp_path / "0"), kind == "folder", 5, 0)
    with pytest.raises(SourceError, match=f"cannot (open|read) {tmp_path}/0: No such file"):
        scan_archive(ScanRequest(gone))


def test_a_folder_s_names_are_keys_as_they_would_be_in_a_tar(tmp_path: Path) -> None:
    names = ["0/ä.jpg", "0/full\u3000width.jpg", "0/👩‍👩.jpg", "0/a b.jpg", "0/no\u00a0break.jpg", "0/two\nlines.jpg"]
    members = sorted((name, name.encode()) for name in names)
    from_folder = scan_archive(ScanRequest(archive(write_folder(tmp_path, members) / "0"), names=True))
    from_tar = scan_archive(ScanRequest(archive(write_tar(tmp_path / "0.tar", members)), names=True))
    assert from_folder.names is not None
    assert from_tar.names is not None
    assert from_folder.names.to_pylist() == from_tar.names.to_pylist() == [name for name, _ in members]
    assert from_folder.damage == ()


def test_a_file_name_that_is_no_utf8_is_damage(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [("0/a.jpg", b"aaa"), ("0/z.jpg", b"zzz")]) / "0"
    with open(os.fsencode(folder) + b"/caf\xe9.jpg", "wb") as handle:
        handle.write(b"12345")
    table = scan_archive(ScanRequest(archive(folder), names=True))
    assert table.names is not None
    assert table.names.to_pylist() == ["0/a.jpg", "0/z.jpg"]
    assert [(damage.end - damage.offset, "caf\\xe9" in damage.problem) for damage in table.damage] == [(5, True)]


def test_a_folder_is_walked_to_the_bottom_and_through_links_but_not_in_circles(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [("0/1/2/3/a.jpg", b"a"), ("0/b.jpg", b"bb"), ("elsewhere/d.jpg", b"d")]) / "0"
    (folder / "loop").symlink_to(folder)
    (folder / "1" / "2" / "up").symlink_to(folder / "1")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "c.jpg").symlink_to(folder / "b.jpg")  # a link to a file reads as that file
    (folder / "nowhere.jpg").symlink_to(folder / "gone.jpg")
    table = scan_archive(ScanRequest(archive(folder), names=True))
    assert table.names is not None
    assert table.names.to_pylist() == ["0/1/2/3/a.jpg", "0/b.jpg", "0/c.jpg", "0/linked/d.jpg"]
    assert table.sizes.tolist() == [1, 2, 2, 1]


def test_loose_files_are_scanned_without_the_folders_among_them(tmp_path: Path) -> None:
    raw = write_folder(tmp_path, [("raw/a.jpg", b"a"), ("raw/.b.jpg", b"b"), ("raw/0/c.jpg", b"c")]) / "raw"
    table = scan_archive(ScanRequest(Archive("", str(raw), True, 0, 0), names=True))
    assert table.names is not None
    assert table.names.to_pylist() == ["a.jpg"]


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda folder: (folder / "1" / "new.jpg").write_bytes(b""),
    "removed": lambda folder: (folder / "1" / "a.jpg").unlink(),
    "renamed": lambda folder: (folder / "1" / "a.jpg").rename(folder / "1" / "b.jpg"),
    "moved": lambda folder: (folder / "1" / "a.jpg").rename(folder / "a.jpg"),
    "longer": lambda folder: (folder / "1" / "a.jpg").write_bytes(b"xxxx"),
    "another time": lambda folder: os.utime(folder / "1" / "a.jpg", ns=(0, 0)),
    "swapped": lambda folder: (
        (folder / "1" / "a.jpg").rename(folder / "x"),
        (folder / "c.jpg").rename(folder / "1" / "a.jpg"),
        (folder / "x").rename(folder / "c.jpg"),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_state_of_a_folder_is_another_one_when_any_file_in_it_is(change: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [("0/1/a.jpg", b"aaa"), ("0/c.jpg", b"ccc")]) / "0"
    for number, name in enumerate(("1/a.jpg", "c.jpg")):
        os.utime(folder / name, ns=(number, 1_000_000_000 + number))
    before = folder_state(archive(folder))
    assert folder_state(archive(folder)) == before
    CHANGES[change](folder)
    assert folder_state(archive(folder)) != before


@pytest.mark.parametrize(
    ("path", "stem"),
    [
        ("00000/1.jpg", "00000/1"),
        ("00000/1.tar.gz", "00000/1.tar"),
        ("00.000/1", "00.000/1"),  # a dot in a folder's name begins no extension
        ("00.000/1.jpg", "00.000/1"),
        ("1.jpg", "1"),
        ("1", "1"),
        (".jpg", ".jpg"),  # a leading dot begins a name
        ("00000/.jpg", "00000/.jpg"),
        ("00000/.a.jpg", "00000/.a"),
        ("1.", "1"),
        ("a b.c d", "a b"),
        ("", ""),
    ],
)
def test_a_stem_is_the_path_without_its_extension(path: str, stem: str) -> None:
    assert stem_of(path) == stem


@given(st.text("ab./", max_size=12))
def test_stems_are_what_os_path_says_but_for_runs_of_leading_dots(path: str) -> None:
    if "/." in f"/{path}":
        assert path.startswith(stem_of(path))
    else:
        assert stem_of(path) == os.path.splitext(path)[0]


def test_a_million_members_cost_columns_not_objects(tmp_path: Path) -> None:
    """Not a million: enough to see what one costs when the table is sent to the parent process."""
    path = write_tar(tmp_path / "0.tar", [(f"0/{i:09d}.json", json.dumps(i).encode()) for i in range(3000)])
    assert len(pickle.dumps(scan_archive(ScanRequest(archive(path))))) < 3000 * 40
