import io
import os
import pickle
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from builder.base.errors import DamagedFileError
from builder.read import folders
from builder.read.folders import Folder


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_tar(tmp_path / "00000.tar", [("00000/a.jpg", b"first"), ("00000/b.jpg", b"b"), ("00000/a.jpg", b"again")])
    write_tar(tmp_path / "00001.tar", [("./00001/c.jpg", b"c" * 5000), ("flat.txt", b""), ("00000/stray.jpg", b"s")])
    (tmp_path / "00002").mkdir()
    (tmp_path / "00002" / "d.jpg").write_bytes(b"file")
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000" / "b.jpg").write_bytes(b"extracted")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("00002/d.jpg", b"file"),
        ("00000/b.jpg", b"extracted"),  # a file goes before a member of the same name
        ("00000/a.jpg", b"again"),  # as extracting would leave it
        ("./00000/a.jpg", b"again"),
        ("00001/c.jpg", b"c" * 5000),
        ("flat.txt", b""),
        ("00000/stray.jpg", b"s"),  # in a tar of another number
    ],
)
def test_a_path_is_read_from_its_file_or_its_tar(path: str, content: bytes, root: Path) -> None:
    assert Folder(root).read(path) == content
    assert pickle.loads(pickle.dumps(Folder(root))).read(path) == content


@pytest.mark.parametrize("path", ["00000/nowhere.jpg", "nowhere", "00002/d.jpg/x", "00000/aa.jpg", "00000/a.jp"])
def test_what_is_nowhere_is_named(path: str, root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=path):
        Folder(root).read(path)


def test_a_member_that_its_tar_ends_within_is_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("0/a.jpg", b"x" * 4000)])
    os.truncate(tmp_path / "0.tar", 1024)
    with pytest.raises(DamagedFileError, match=r"0/a\.jpg"):
        Folder(tmp_path).read("0/a.jpg")


def test_a_tar_cut_after_it_was_scanned_is_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("0/a.jpg", b"x" * 4000)])
    folder = Folder(tmp_path)
    folder.read("0/a.jpg")
    os.truncate(tmp_path / "0.tar", 1024)
    with pytest.raises(DamagedFileError, match="512 of 4000 bytes"):
        folder.read("0/a.jpg")


def test_each_tar_is_scanned_once_and_few_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_OPEN_TARS", 2)
    for number in range(6):
        write_tar(tmp_path / f"{number}.tar", [(f"{number}/a", bytes([number]))])
    scanned = []
    scan = folders._scan
    monkeypatch.setattr(folders, "_scan", lambda file: scanned.append(file.name) or scan(file))
    folder = Folder(tmp_path)
    for _ in range(2):
        assert [folder.read(f"{number}/a") for number in range(6)] == [bytes([number]) for number in range(6)]
    assert len(scanned) == 6
    assert len(folder._files) == 2


def test_threads_may_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_OPEN_TARS", 2)
    for number in range(6):
        write_tar(tmp_path / f"{number}.tar", [(f"{number}/{i}", b"%d %d" % (number, i)) for i in range(50)])
    paths = [(number, i) for i in range(50) for number in range(6)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns as often as they can: what may come in between does
    try:
        for _ in range(10):
            folder = Folder(tmp_path)
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(lambda path, folder=folder: folder.read(f"{path[0]}/{path[1]}"), paths))
            assert found == [b"%d %d" % path for path in paths]
    finally:
        sys.setswitchinterval(before)
