"""Odd tars and images of other projects' test suites, where they lie beside the repository (../shared/corpus): all of
it through every command, the same outcome each time, and never less than Python's tarfile and GNU tar find."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from builder.base.errors import Laion6mError
from builder.base.options import ConvertOptions, SamplePolicy
from builder.base.records import WHOLE, Member
from builder.conversion.convert import convert
from builder.jobs.extract import extract
from builder.jobs.info import info
from builder.source.files import ByteFile
from builder.source.layout import Archive
from builder.source.scan import open_archive
from builder.source.tar_headers import normal_name
from builder.source.tars import scan_tar
from builder.verification.verify import verify
from stress.common import account, write_tar
from tests.outputs import output_bytes, read_rejects, read_rows

pytestmark = pytest.mark.slow

CORPUS = Path(__file__).parents[2] / "../shared/corpus"
TARS = sorted((CORPUS / "tars").iterdir()) if (CORPUS / "tars").is_dir() else []
IMAGES = sorted((CORPUS / "images").iterdir()) if (CORPUS / "images").is_dir() else []

needs_tars = pytest.mark.skipif(not TARS, reason="needs ../shared/corpus/tars")
needs_images = pytest.mark.skipif(not IMAGES, reason="needs ../shared/corpus/images")


def ours(path: Path) -> dict[str, bytes | None] | None:
    """Members by name, the last of a name; None for what is not whole. None where the tar is refused."""
    try:
        file = open_archive(Archive(path.name, str(path), False, path.stat().st_size, 0))
    except Laion6mError:
        return None
    try:
        members = scan_tar(file).members
        return {m.name: _bytes(file, m) if m.state == WHOLE else None for m in members}
    finally:
        file.close()


def _bytes(file: ByteFile, member: Member) -> bytes:
    return file.read_at(member.offset, member.size) if member.size else b""


def by_tarfile(path: Path) -> dict[str, bytes] | None:
    """The same of Python's tarfile; None where it stops with an error."""
    found = {}
    try:
        with tarfile.open(path, encoding="utf-8", errors="backslashreplace") as tar:
            for member in tar:
                handle = tar.extractfile(member) if member.isreg() and not member.issparse() else None
                if handle is not None:
                    found[normal_name(member.name)] = handle.read()
    except (tarfile.TarError, OSError, ValueError, EOFError, MemoryError, KeyError):
        return None
    return found


def by_gnu_tar(path: Path, folder: Path, ours: dict[str, bytes | None]) -> dict[str, bytes] | None:
    """Files that GNU tar extracts, those left out that are not whole for us: one is 8 GB of holes. None where it is not
    happy."""
    folder.mkdir()
    done = subprocess.run(
        ["tar", "--no-same-owner", "-xf", path.resolve(), "-C", folder], capture_output=True, check=False
    )
    if done.returncode:
        return None
    files = (each for each in folder.rglob("*") if each.is_file() and not each.is_symlink())
    names = {each: os.fsencode(each.relative_to(folder)).decode("utf-8", "backslashreplace") for each in files}
    return {name: each.read_bytes() for each, name in names.items() if ours.get(name, b"") is not None}


OTHERWISE = {
    "commons-compress__COMPRESS-553-fail.tar": "tarfile takes an empty checksum field for a sum of 0",
    "libarchive__test_read_format_gtar_redundant_L.tar": "two long names: GNU tar takes the last, tarfile the first",
    "libarchive__test_read_format_tar_timestamp_overflow.tar": "NULs before the size: 14 for GNU tar, 0 for tarfile",
    "ratarmount__absolute-file-incremental.tar": "tarfile takes old GNU's atime for a folder",
    "ratarmount__incremental-backup.level.1.tar": "the same",
    "ratarmount__single-file-incremental.tar": "the same",
    "tar-split__invalid-go17.tar": "a prefix that GNU tar leaves out, as the magic is old GNU's; tarfile takes it",
    "tar-split__pax-global-records.tar": "an empty path takes the name away in tarfile, here the global one",
}
"""Tars in which tarfile or GNU tar find something else, and why that is not followed."""
_MANY = 2000  # members: GNU tar takes longer for these than for all others


@needs_tars
def test_tars_hold_all_that_tarfile_and_gnu_tar_find_in_them(tmp_path: Path) -> None:
    differ = {}
    compared = 0
    for path in TARS:
        found = ours(path)
        if found is None:
            continue
        others = [by_tarfile(path)]
        if shutil.which("tar") and len(found) < _MANY:
            others.append(by_gnu_tar(path, tmp_path / path.name, found))
        for name, data in ((name, data) for other in others if other for name, data in other.items()):
            compared += 1
            if name not in found or found[name] not in (data, None):
                differ[path.name] = name
    assert compared > 1000
    assert differ.keys() == OTHERWISE.keys(), differ


@needs_tars
def test_tars_go_through_every_command(tmp_path: Path) -> None:
    """Each as a raw tar of one source that lists all that is in them: nothing raises, each entry is a row or a reject,
    the same with any number of processes, and what was converted is what verify and extract see."""
    source = tmp_path / "source"
    (source / "raw").mkdir(parents=True)
    (source / "captions").mkdir()
    listed = {"not/there.jpg"}
    taken = 0
    for number, path in enumerate(TARS):
        found = ours(path)
        if found is not None:
            listed |= found.keys() - {""}
            shutil.copy(path, source / "raw" / f"{number:05d}.tar")
            taken += 1
    names = sorted(listed)
    documents = {f"{number}.json": b'{"caption": "A caption."}' for number in range(len(names))}
    write_tar(source / "captions" / "00000.tar", documents)
    entries = [{"image": name, "annotation": f"{number}.json"} for number, name in enumerate(names)]
    (source / "data.json").write_text(json.dumps(entries))
    assert info(str(source)).kind == "source"
    outcomes = []
    for number in (1, 2, 3):
        out = tmp_path / f"out{number}"
        convert(str(source), str(out), ConvertOptions(), num_proc=number, quiet=True)
        outcomes.append(output_bytes(out))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    account(out, len(names))
    assert taken > len(TARS) * 0.9
    assert verify(str(out), source=str(source), num_proc=1, quiet=True).problems == ()
    extract(str(source), str(tmp_path / "files"), num_proc=1, quiet=True)
    for row in read_rows(out):
        assert (tmp_path / "files" / "raw" / row.path).read_bytes() == row.image


@needs_images
def test_images_named_jpg_are_the_same_rows_and_rejects_each_time(tmp_path: Path) -> None:
    """All kinds of broken, and kinds that nobody expects; the same verdicts each time, decoded or not."""
    images = [path.read_bytes() for path in IMAGES]
    names = [f"{number % 3:05d}/{number:04d}" for number in range(len(images))]
    source = tmp_path / "source"
    for side in ("raw", "captions"):
        (source / side).mkdir(parents=True)
    for shard in range(3):
        mine = [number for number in range(len(images)) if number % 3 == shard]
        write_tar(source / "raw" / f"{shard:05d}.tar", {f"{names[n]}.jpg": images[n] for n in mine})
        documents = {f"{names[n]}.json": b'{"caption": "A caption."}' for n in mine}
        write_tar(source / "captions" / f"{shard:05d}.tar", documents)
    entries = [{"image": f"{name}.jpg", "annotation": f"{name}.json"} for name in names]
    (source / "data.json").write_text(json.dumps(entries))
    found = []
    options = ConvertOptions(policy=SamplePolicy(max_aspect_ratio=0), max_shard_size=1_000_000)
    for number in (1, 2, 3):
        out = tmp_path / f"out{number}"
        convert(str(source), str(out), options, num_proc=number, quiet=True)
        counted = account(out, len(names), dict(enumerate(images)))
        assert min(counted.rows, counted.rejects) > 50
        assert all(reject["detail"] for reject in read_rejects(out))
        problems = verify(str(out), source=str(source), decode=True, num_proc=number, quiet=True).problems
        assert all("does not decode" in problem for problem in problems)
        found.append((output_bytes(out), counted.rejected, problems))
    assert found[0] == found[1] == found[2]
