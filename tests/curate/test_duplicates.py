"""duplicates over a dataset: what it finds, what it writes, and that it gives the same however often it is stopped."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from builder.base.errors import InterruptedRunError, OptionError, OutputError, SourceError
from builder.curate import duplicates as module
from builder.curate import fingerprints
from builder.curate.columns import write_column
from builder.curate.duplicates import DuplicatesSummary, describe_duplicates, duplicates
from builder.curate.fingerprints import UNREAD
from builder.read.opening import open_dataset
from tests.curate import pictures
from tests.outputs import run_command

ORIGINALS = [pictures.photo(seed) for seed in range(6)]


def copies_of(number: int, image: Image.Image) -> dict[str, bytes]:
    """A picture and copies of it. Of the same size are the first and four more; the first is to be kept."""
    original = pictures.encoded(image, quality=92)
    files = {f"{number}-original.jpg": original, f"{number}-same.jpg": original}
    return files | {
        f"{number}-{kind}.jpg": make(image) for kind, make in pictures.COPIES.items() if kind != "another shape"
    }


IMAGES = {name: data for number in range(3) for name, data in copies_of(number, ORIGINALS[number]).items()}
ALONE = {f"{number}-alone.jpg": pictures.encoded(ORIGINALS[number]) for number in range(3, 6)}


def run(out: Path, **options: Any) -> DuplicatesSummary:
    return duplicates(out, **({"num_proc": 1, "quiet": True} | options))


def kept_in(out: Path) -> dict[str, str | None]:
    rows = open_dataset(out)
    keys = (row.key.removeprefix("00000/") for row in rows)
    kept = rows.column("duplicate_of").to_pylist()
    return dict(zip(keys, (key and key.removeprefix("00000/") for key in kept), strict=True))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.dataset(tmp_path_factory.mktemp("duplicates"), IMAGES | ALONE)


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def test_copies_are_found_and_the_first_of_the_largest_is_kept(out: Path) -> None:
    summary = run(out)
    kinds = len(pictures.COPIES)  # one of them left out, and one copy of the same bytes
    counts = summary.to_json()
    assert counts.pop("seconds") >= 0
    assert counts == {
        "rows": 3 * (kinds + 1) + 3,
        "fingerprinted": 3 * (kinds + 1) + 3,
        "exact": 3,
        "groups": 3,
        "duplicates": 3 * kinds,
        "mirrored": 6,
    }
    for name, kept in kept_in(out).items():
        number, _, kind = name.partition("-")
        assert kept == (None if kind in ("original", "alone") else f"{number}-original"), name
    hashes = open_dataset(out).column("phash")
    assert (hashes.type, hashes.null_count) == (pa.uint64(), 0)
    assert "6 mirrored" in describe_duplicates(summary, out)


def test_the_larger_is_kept_though_it_comes_later(tmp_path: Path) -> None:
    large = pictures.photo(1, 320, 240)
    images = {"a.jpg": pictures.encoded(large.resize((160, 120))), "b.jpg": pictures.encoded(large)}
    out = pictures.dataset(tmp_path, images)
    run(out)
    assert kept_in(out) == {"a": "b", "b": None}


@pytest.mark.slow
def test_processes_and_repetitions_make_no_difference(out: Path) -> None:
    run(out)
    written = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and ".laion6m" not in path.parts}
    for num_proc, fresh in ((1, False), (2, True)):
        if fresh:
            shutil.rmtree(out / ".laion6m" / "duplicates")
        run(out, num_proc=num_proc)
        assert {path: path.read_bytes() for path in written} == written


@pytest.mark.slow
@pytest.mark.parametrize("form", ["index", "arrow", "webdataset"])
def test_each_kind_of_dataset_gives_the_same(made: Path, out: Path, tmp_path: Path, form: str) -> None:
    """An index over tars knows no digests: the bytes are compared by those that this pass makes."""
    other = pictures.dataset(tmp_path / form, IMAGES | ALONE, form)
    assert run(other).exact == run(out).exact == 3
    assert kept_in(other) == kept_in(out)


def test_an_interrupted_run_goes_on_where_it_was(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(out)
    expected = kept_in(out)
    shutil.rmtree(out / ".laion6m" / "duplicates")
    monkeypatch.setattr(fingerprints, "PART_ROWS", 10)
    read: list[int] = []

    def stopped(part: fingerprints.Part, report: Any) -> Any:
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(part.first)
        return fingerprints.write_part(part, report)

    monkeypatch.setattr(module, "write_part", stopped)
    with pytest.raises(InterruptedRunError, match="2 of 5"):
        run(out)
    monkeypatch.setattr(module, "write_part", lambda part, report: read.append(part.first) or part)
    torn = out / ".laion6m/duplicates/parts/00001.bin"
    torn.write_bytes(torn.read_bytes()[:-1])
    monkeypatch.setattr(
        module,
        "write_part",
        lambda part, report: (read.append(part.first), fingerprints.write_part(part, report))[1],
    )
    run(out)
    assert read == [0, 10, 10, 20, 30, 40], "the first part stayed; the one that was cut was made again"
    assert kept_in(out) == expected


def test_fingerprints_of_other_rows_do_not_count(out: Path, tmp_path: Path) -> None:
    run(out)
    other = pictures.dataset(tmp_path / "other", dict(reversed((IMAGES | ALONE).items())))
    shutil.copytree(out / ".laion6m/duplicates", other / ".laion6m/duplicates", dirs_exist_ok=True)
    run(other)
    assert open_dataset(other).find("00000/3-alone")["phash"] == open_dataset(out).find("00000/3-alone")["phash"]


def test_plain_pictures_are_duplicates_only_by_their_bytes(tmp_path: Path) -> None:
    images = {f"{number}.png": pictures.encoded(image, "PNG") for number, image in enumerate(pictures.PLAIN.values())}
    noise = [Image.new("RGB", (160, 120), (200 + shade, 200, 210)) for shade in range(10)]
    images |= {f"shade {number}.png": pictures.encoded(image, "PNG") for number, image in enumerate(noise)}
    images["again.png"] = images["0.png"]
    out = pictures.dataset(tmp_path, images)
    summary = run(out)
    assert (summary.exact, summary.groups, summary.duplicates) == (1, 1, 1)
    assert kept_in(out)["again"] == "0"
    assert open_dataset(out).column("phash").null_count == 0


def drawing(seed: int) -> Image.Image:
    """A few lines in the middle of a white page, where another drawing has others."""
    page, rng = Image.new("RGB", (200, 150), "white"), np.random.default_rng(seed)
    for ends in rng.uniform((80, 50, 80, 50), (120, 100, 120, 100), (5, 4)):
        ImageDraw.Draw(page).line(ends.tolist(), "black", 3)
    return page


@pytest.mark.slow
def test_drawings_on_white_are_told_apart_and_their_copies_found(tmp_path: Path) -> None:
    images = {f"{seed}.png": pictures.encoded(drawing(seed), "PNG") for seed in range(40)}
    images |= {f"{seed}-copy.jpg": pictures.encoded(drawing(seed).resize((180, 135))) for seed in range(40)}
    out = pictures.dataset(tmp_path, images)
    run(out)
    kept = kept_in(out)
    assert [name for name in kept if "-copy" not in name and kept[name]] == []
    assert sum(kept[f"{seed}-copy"] == str(seed) for seed in range(40)) >= 36


def broken_png() -> bytes:
    """Whole by its chunks, so it is a row; what is in them does not decode."""
    data = pictures.encoded(ORIGINALS[0], "PNG")
    at = data.index(b"IDAT")
    length = int.from_bytes(data[at - 4 : at], "big")
    body = b"IDAT" + b"\xff" * length
    return data[:at] + body + zlib.crc32(body).to_bytes(4, "big") + data[at + length + 8 :]


def test_what_does_not_decode_has_no_phash_and_is_counted(tmp_path: Path) -> None:
    images = {"a.png": broken_png(), "b.png": broken_png(), "c.jpg": pictures.encoded(ORIGINALS[1])}
    out = pictures.dataset(tmp_path, images)
    summary = run(out)
    assert (summary.rows, summary.fingerprinted, summary.exact) == (3, 1, 1)
    assert open_dataset(out).column("phash").is_null().to_pylist() == [True, True, False]
    assert kept_in(out) == {"a": None, "b": "a", "c": None}
    assert "2 images do not decode" in describe_duplicates(summary, out)
    prints = fingerprints._fingerprints(list(images.values()))
    assert prints["state"].tolist()[:2] == [UNREAD, UNREAD]


def test_a_smaller_distance_finds_less(out: Path) -> None:
    strict, usual = run(out, distance=1), run(out)
    assert strict.exact == usual.exact
    assert strict.duplicates < usual.duplicates
    assert run(out, distance=0).duplicates <= strict.duplicates


@pytest.mark.parametrize("distance", [-1, 17, 2.0, True])
def test_a_distance_is_a_number_of_bits(out: Path, distance: Any) -> None:
    with pytest.raises(OptionError, match="0 to 16"):
        run(out, distance=distance)


def test_somebody_elses_column_is_not_written_over(out: Path) -> None:
    write_column(str(out), "phash", pa.array(["mine"] * len(open_dataset(out))))
    with pytest.raises(OutputError, match="did not make"):
        run(out)
    assert open_dataset(out)[0]["phash"] == "mine"


def test_a_dataset_without_an_index_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="laion6m index"):
        duplicates(tmp_path)
    with pytest.raises(SourceError, match="s3://bucket/data"):
        duplicates("s3://bucket/data")


def test_the_command_prints_counts(out: Path) -> None:
    done = run_command("duplicates", str(out), "--num-proc", "1", "--json")
    assert done.code == 0, done.stderr
    names = ["rows", "fingerprinted", "exact", "groups", "duplicates", "mirrored", "seconds"]
    assert list(json.loads(done.stdout)) == names
    assert run_command("duplicates", str(out), "--distance", "40").code == 2
