"""verify finds what is wrong, names the rows, and never ends in a traceback."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from builder.base import schema
from builder.base.errors import SourceError
from builder.base.options import ConvertOptions, SamplePolicy
from builder.conversion.convert import convert
from builder.conversion.index import index
from builder.store.manifest import Manifest, read_manifest
from builder.verification import verify as verifying
from builder.verification.shards import WINDOW, stretches
from builder.verification.verify import Verification, describe_verification, verify
from tests.sources import LAYOUTS, Source, faults_of, make_source

FORMATS = ("parquet", "arrow", "webdataset")
NAMED = re.compile(r"row (\d+) \(([^)]*)\)")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_source(tmp_path_factory.mktemp("verify") / "src", "card", per_shard=14, faults=faults_of("card"))


@pytest.fixture(scope="module")
def made(source: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The source in every form; small shards are not possible (1 MB is the least), so each has one shard."""
    root = tmp_path_factory.mktemp("verify-out")
    for form in FORMATS:
        convert(str(source.path), str(root / form), ConvertOptions(format=form), num_proc=1, quiet=True)
    index(str(source.path), str(root / "index"), num_proc=1, quiet=True)
    index(str(source.path), str(root / "digests"), digest=True, num_proc=1, quiet=True)
    return {path.name: path for path in root.iterdir()}


def copy(made: dict[str, Path], form: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[form], tmp_path / form))


def check(out: Path, **options: Any) -> Verification:
    return verify(str(out), num_proc=1, quiet=True, **options)


def rows_named(result: Verification) -> set[int]:
    return {int(row) for problem in result.problems for row, _ in NAMED.findall(problem)}


def flip(path: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def shard_of(out: Path) -> Path:
    return next((out / "data").iterdir())


def index_of(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.ipc.open_file((out / "meta/index.arrow").read_bytes()).read_all().to_pylist()
    return rows


def rewrite_manifest(out: Path, **changes: Any) -> None:
    """A manifest that says something else, with a checksum that fits."""
    old = read_manifest(str(out))
    fields = {name: getattr(old, name) for name in ("kind", "versions", "options", "source", "totals", "files")}
    (out / "meta/manifest.json").write_bytes(Manifest(**(fields | changes)).to_json())


@pytest.mark.parametrize("form", [*FORMATS, "index", "digests"])
@pytest.mark.parametrize("decode", [False, True])
def test_what_was_just_made_is_sound_and_equals_its_source(
    made: dict[str, Path], source: Source, form: str, decode: bool
) -> None:
    result = check(made[form], source=str(source.path), decode=decode)
    assert result.problems == ()
    assert result.ok
    assert result.rows == len(source.rows)
    assert set(result.to_json()) == {"ok", "rows", "problems"}
    assert "sound" in describe_verification(result)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_proved_against_its_source(tmp_path: Path, layout: str) -> None:
    made = make_source(tmp_path / "src", layout, shards=2, per_shard=14, faults=faults_of(layout))
    options = ConvertOptions(recaptions=made.recaptions)
    convert(str(made.path), str(tmp_path / "out"), options, num_proc=1, quiet=True)
    result = check(tmp_path / "out", source=str(made.path))  # recaptions are found beside the source, by name
    assert result.problems == ()
    assert result.rows == len(made.rows)


def test_processes_make_no_difference(made: dict[str, Path], source: Source, tmp_path: Path) -> None:
    out = copy(made, "parquet", tmp_path)
    flip(shard_of(out), 100)
    one = verify(str(out), source=str(source.path), num_proc=1, quiet=True)
    two = verify(str(out), source=str(source.path), num_proc=2, quiet=True)
    assert one.problems == two.problems != ()


@pytest.mark.parametrize("form", FORMATS)
def test_a_flipped_bit_in_an_image_names_its_row(made: dict[str, Path], tmp_path: Path, form: str) -> None:
    out = copy(made, form, tmp_path)
    rows = index_of(out)
    victim = rows[5]
    flip(shard_of(out), victim["offset"] + victim["size"] // 2, 3)
    result = check(out)
    assert not result.ok
    assert rows_named(result) == {5}
    assert any(f"row 5 ({victim['key']})" in problem for problem in result.problems)
    assert "convert again" in describe_verification(result)


@pytest.mark.parametrize("form", [*FORMATS, "digests"])
def test_a_flipped_bit_anywhere_is_found(made: dict[str, Path], tmp_path: Path, form: str) -> None:
    out = copy(made, form, tmp_path)
    rng = random.Random(form)
    (out / ".gitignore").unlink(missing_ok=True)  # its owner's, once it is written
    for path in sorted(path for path in out.rglob("*") if path.is_file() and schema.WORK not in path.parts):
        sound = path.read_bytes()
        for _ in range(25):
            offset, bit = rng.randrange(len(sound)), rng.randrange(8)
            flip(path, offset, bit)
            result = check(out)
            edited = path.name == "README.md" and result.notes  # as its owner may
            assert not result.ok or edited, (path, offset, bit)
            if "data" in path.parts:
                assert rows_named(result), (path, offset, bit, result.problems)
            path.write_bytes(sound)
    assert check(out).ok


def test_damage_of_a_whole_shard_names_twenty_rows_and_counts_the_rest(made: dict[str, Path], tmp_path: Path) -> None:
    out = copy(made, "parquet", tmp_path)
    rows = index_of(out)
    path = shard_of(out)
    data = bytearray(path.read_bytes())
    for row in rows:
        data[row["offset"]] ^= 1
    path.write_bytes(data)
    result = check(out)
    assert len(rows_named(result)) == 20
    assert any(f"and {len(rows) - 20} more" in problem for problem in result.problems)


@pytest.mark.parametrize("keep", [0, 3, 1000, -1])
@pytest.mark.parametrize("form", FORMATS)
def test_a_cut_shard_is_a_problem_with_rows(made: dict[str, Path], tmp_path: Path, form: str, keep: int) -> None:
    out = copy(made, form, tmp_path)
    path = shard_of(out)
    path.write_bytes(path.read_bytes()[:keep])
    result = check(out)
    assert not result.ok
    assert any("the manifest says" in problem for problem in result.problems)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("data/train-00000-of-00001.parquet", "lost"),
        ("meta/index.arrow", "missing"),
        ("meta/rejects.parquet", "missing"),
        ("README.md", "missing"),
    ],
)
def test_a_missing_file_is_named(made: dict[str, Path], source: Source, tmp_path: Path, name: str, word: str) -> None:
    out = copy(made, "parquet", tmp_path)
    (out / name).unlink()
    result = check(out, source=str(source.path))
    assert any(problem.startswith(name) and word in problem for problem in result.problems), result.problems


def test_a_missing_or_unreadable_manifest_is_a_problem(made: dict[str, Path], tmp_path: Path) -> None:
    out = copy(made, "parquet", tmp_path)
    (out / "meta/manifest.json").write_bytes(b"{")
    assert "manifest.json" in check(out).problems[0]
    (out / "meta/manifest.json").unlink()
    assert "not finished" in check(out).problems[0]
    with pytest.raises(SourceError, match="not there"):
        check(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["data/extra.parquet", "meta/notes.txt", "data/deeper/file"])
def test_a_file_that_nobody_named_is_a_problem(made: dict[str, Path], tmp_path: Path, name: str) -> None:
    out = copy(made, "parquet", tmp_path)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_bytes(b"?")
    assert [problem.split(":")[0] for problem in check(out).problems] == [name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"listed": 7}, "do not add up"),
        ({"shards": 2}, "2 shards"),
        ({"image_bytes": 1}, "bytes of images"),
        ({"rejected": {"too_ugly": 1}}, "too_ugly"),
        ({"rows": 1}, "the manifest says"),
        ({"rows": -1}, "cannot be right"),  # not a count
        ({"rows": None}, "cannot be right"),
    ],
)
def test_counts_that_do_not_add_up_are_problems(
    made: dict[str, Path], tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    out = copy(made, "parquet", tmp_path)
    rewrite_manifest(out, totals=read_manifest(str(out)).totals | change)
    assert any(words in problem for problem in check(out).problems), check(out).problems


@pytest.mark.parametrize(
    "files",
    [
        {"../../etc/hostname": {"size": 1, "xxh3_128": ""}},
        {"data/x": {"size": "1", "xxh3_128": ""}},
        {"data/x": {}},
        {"data/x": 7},
    ],
)
def test_a_hostile_manifest_is_a_problem(made: dict[str, Path], tmp_path: Path, files: dict[str, Any]) -> None:
    out = copy(made, "parquet", tmp_path)
    rewrite_manifest(out, files=files)
    assert not check(out).ok


def rewrite_index(out: Path, row: int, column: str, value: Any) -> None:
    """An index with one value changed, its checksum in the manifest made to fit: only comparing finds it."""
    path = out / "meta/index.arrow"
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    values = table.column(column).to_pylist()
    values[row] = value
    at = table.schema.get_field_index(column)
    field = table.schema.field(column)
    changed = table.set_column(at, field, pa.array(values, field.type)).combine_chunks()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(changed, max_chunksize=schema.INDEX_BATCH_ROWS)
    facts = {"size": path.stat().st_size, "xxh3_128": xxhash.xxh3_128_hexdigest(path.read_bytes())}
    rewrite_manifest(out, files=read_manifest(str(out)).files | {"meta/index.arrow": facts})


CONTRADICTIONS: list[tuple[str, Any]] = [
    ("offset", 5),
    ("offset", -1),
    ("offset", 1 << 60),
    ("size", 3),
    ("width", 1),
    ("height", 1),
    ("position", 0),
    ("position", 1 << 40),
    ("position", -5),
    ("file", 1),
    ("file", -1),
    ("annotation_file", 0),
    ("annotation_size", 1),
    ("digest", bytes(16)),
    ("digest", None),
    ("key", "another"),
    ("path", "another.jpg"),
    ("caption", "another"),
    ("find_hash", 1),
    ("find_row", 1 << 40),
]
NOT_IN_A_TAR = ("width", "height", "annotation_file")
"""A tar's members do not hold sizes. Its documents lie in file 0, which is the file that the index names here."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "column", "value"),
    [
        (form, column, value)
        for form in FORMATS
        for column, value in CONTRADICTIONS
        if form != "webdataset" or column not in NOT_IN_A_TAR
    ],
)
def test_an_index_that_contradicts_its_shard_names_the_row(
    made: dict[str, Path], tmp_path: Path, form: str, column: str, value: Any
) -> None:
    out = copy(made, form, tmp_path)
    rewrite_index(out, 7, column, value)
    result = check(out)
    assert not result.ok
    if not column.startswith("find"):  # which row is lost by those depends on the hash
        assert 7 in rows_named(result), result.problems


@pytest.mark.parametrize("column", ["key", "caption", "path"])
def test_a_bit_that_makes_text_of_the_index_no_utf8_names_the_row(
    made: dict[str, Path], tmp_path: Path, column: str
) -> None:
    """Arrow refuses the whole batch for it."""
    out = copy(made, "parquet", tmp_path)
    path = out / "meta/index.arrow"
    data = bytearray(path.read_bytes())
    with pa.ipc.open_file(pa.py_buffer(bytes(data))) as file:
        values = file.get_batch(0).column(column)
    text = values.buffers()[2].to_pybytes()
    data[data.index(text) + values[3].as_buffer().size * 3 // 2] ^= 0x80  # somewhere in the first rows
    path.write_bytes(data)
    result = check(out)
    assert any("not UTF-8" in problem and "row 1 (" in problem for problem in result.problems), result.problems


def test_every_image_is_checked_in_spite_of_damage_before_it(made: dict[str, Path], tmp_path: Path) -> None:
    out = copy(made, "parquet", tmp_path)
    rows = index_of(out)
    path = shard_of(out)
    data = bytearray(path.read_bytes())
    first, last = rows[0], rows[-1]
    data[first["offset"] - 3] ^= 0x40  # the length in front of the first image: no page of the group can be walked
    data[last["offset"] + 9] ^= 1
    path.write_bytes(data)
    result = check(out)
    assert any("checksum" in p and f"row {len(rows) - 1} (" in p for p in result.problems), result.problems
    assert rows_named(result) >= {0, len(rows) - 1}


@pytest.mark.parametrize(
    ("column", "change"),
    [("reason", "duplicate"), ("position", 0)],
)
def test_rejects_that_do_not_fit_the_counts_are_problems(
    made: dict[str, Path], tmp_path: Path, column: str, change: Any
) -> None:
    out = copy(made, "parquet", tmp_path)
    path = out / "meta/rejects.parquet"
    table = pq.read_table(path)
    values = [change, *table.column(column).to_pylist()[1:]]
    at = table.schema.get_field_index(column)
    field = table.schema.field(column)
    pq.write_table(table.set_column(at, field, pa.array(values, field.type)), path)
    facts = {"size": path.stat().st_size, "xxh3_128": xxhash.xxh3_128_hexdigest(path.read_bytes())}
    rewrite_manifest(out, files=read_manifest(str(out)).files | {"meta/rejects.parquet": facts})
    assert not check(out).ok


def test_images_that_do_not_decode_are_listed_by_key(tmp_path: Path) -> None:
    made = make_source(tmp_path / "src", "card", shards=1, per_shard=4)
    tar = made.path / "raw/00000.tar"
    key, row = list(made.rows.items())[3]
    assert row.image.startswith(b"\x89PNG")
    data = tar.read_bytes()
    at = data.index(row.image)
    half = len(row.image) // 2
    tar.write_bytes(data[: at + half] + bytes(100) + data[at + half + 100 :])  # the end marker stays
    convert(str(made.path), str(tmp_path / "out"), num_proc=1, quiet=True)
    assert check(tmp_path / "out").ok
    result = check(tmp_path / "out", decode=True)
    assert [key in problem and "decode" in problem for problem in result.problems] == [True]


# --source


def test_another_source_is_a_problem_not_an_error(made: dict[str, Path], tmp_path: Path) -> None:
    for layout, shards in (("card", 1), ("openuni", 3), ("extracted", 2)):
        other = make_source(tmp_path / layout, layout, shards=shards, per_shard=5)
        result = check(made["parquet"], source=str(other.path))
        assert any("it is not the one OUT was made from" in problem for problem in result.problems)


@pytest.mark.parametrize("what", ["nowhere", "empty", "OUT itself"])
def test_what_is_no_source_is_an_error_before_anything_is_read(
    made: dict[str, Path], tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    path = made["parquet"] if what == "OUT itself" else tmp_path / what
    monkeypatch.setattr(verifying, "read_manifest", None)
    with pytest.raises(SourceError, match=path.name):
        check(made["parquet"], source=str(path))


def same_size_change(source: Source, out: Path, what: str) -> str:
    """Change one byte in a copy of the source; returns the key of the sample it belongs to."""
    shutil.copytree(source.path, out)
    key, row = list(source.rows.items())[3]
    side, content = ("raw", row.image) if what == "image" else ("captions", row.document.encode())
    tar = out / side / f"{key.split('/')[0]}.tar"
    data = bytearray(tar.read_bytes())
    at = data.index(content)
    if what == "image":
        data[at + len(content) // 2] ^= 1
    else:
        at = data.index(b"https://example.org" if what == "annotation" else b"Caption", at)
        data[at + 1] ^= 1
    tar.write_bytes(data)
    return key


@pytest.mark.parametrize("form", [*FORMATS, "index", "digests"])
@pytest.mark.parametrize("what", ["image", "annotation", "caption"])
def test_a_sample_that_is_another_in_the_source_is_named(
    made: dict[str, Path], source: Source, tmp_path: Path, form: str, what: str
) -> None:
    key = same_size_change(source, tmp_path / "changed", what)
    result = check(made[form], source=str(tmp_path / "changed"))
    assert rows_named(result) == {3}
    assert all(key in problem for problem in result.problems)


def test_samples_gained_lost_or_rejected_otherwise_are_found(
    made: dict[str, Path], source: Source, tmp_path: Path
) -> None:
    listing = json.loads((source.path / "data.json").read_text())
    changes = {
        "lost": listing[:3] + listing[4:],
        "gained": [*listing, {"image": "00000/new.jpg", "annotation": "00000/new.json"}],
        "swapped": [listing[1], listing[0], *listing[2:]],
        "other caption": [{**listing[0], "annotation": listing[2]["annotation"]}, *listing[1:]],
    }
    for name, entries in changes.items():
        changed = Path(shutil.copytree(source.path, tmp_path / name))
        (changed / "data.json").write_text(json.dumps(entries))
        result = check(made["parquet"], source=str(changed))
        assert not result.ok, name
        assert len(result.problems) < 10, name


def test_an_image_that_became_bad_since_is_found_as_a_row_that_is_none(
    made: dict[str, Path], source: Source, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(source.path, tmp_path / "changed"))
    key, row = list(source.rows.items())[2]
    tar = changed / "raw" / f"{key.split('/')[0]}.tar"
    data = tar.read_bytes()
    tar.write_bytes(data.replace(row.image, bytes(len(row.image))))
    result = check(made["parquet"], source=str(changed))
    assert rows_named(result) == {2}
    assert any("image_unreadable" in problem for problem in result.problems)


def test_options_other_than_the_defaults_are_taken_from_the_manifest(tmp_path: Path) -> None:
    made = make_source(tmp_path / "src", "card", per_shard=10, faults=("too_wide",))
    options = ConvertOptions(policy=SamplePolicy(max_aspect_ratio=0, min_side=20, caption_key="TEXT"))
    convert(str(made.path), str(tmp_path / "out"), options, num_proc=1, quiet=True)
    assert check(tmp_path / "out", source=str(made.path)).problems == ()


def test_recaptions_are_found_by_name_or_given(tmp_path: Path) -> None:
    made = make_source(tmp_path / "a" / "src", "img2dataset", per_shard=5)
    convert(str(made.path), str(tmp_path / "out"), ConvertOptions(recaptions=made.recaptions), num_proc=1, quiet=True)
    moved = tmp_path / Path(made.recaptions[0]).name
    shutil.move(made.recaptions[0], moved)
    assert "--recaptions" in check(tmp_path / "out", source=str(made.path)).problems[0]
    assert check(tmp_path / "out", source=str(made.path), recaptions=(str(moved),)).problems == ()
    other = moved.with_name("other.parquet")
    moved.rename(other)
    assert "other.parquet" in check(tmp_path / "out", source=str(made.path), recaptions=(str(other),)).problems[0]


def test_an_index_whose_tar_changed_names_the_rows(source: Source, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(source.path, tmp_path / "src"))
    index(str(moved), str(tmp_path / "ix"), digest=True, num_proc=1, quiet=True)
    tar = moved / "raw/00001.tar"
    tar.write_bytes(tar.read_bytes() + bytes(512))
    result = check(tmp_path / "ix")
    rows = {row for row, key in enumerate(source.rows) if key.startswith("00001/")}
    assert rows_named(result) == rows
    (moved / "captions/00000.tar").unlink()
    rows |= {row for row, key in enumerate(source.rows) if key.startswith("00000/")}
    assert rows_named(check(tmp_path / "ix")) == rows


def test_stretches_cover_the_file_once_and_hold_every_image_whole() -> None:
    rng = random.Random(7)
    for _ in range(50):
        starts, ends, at = [], [], 0
        for _ in range(rng.randrange(40)):
            at += rng.choice([0, 1, 50, WINDOW, 3 * WINDOW])
            starts.append(at)
            at += rng.choice([0, 1, 1000, WINDOW // 3, WINDOW - 1, WINDOW, 2 * WINDOW + 5])
            ends.append(at)
        size = at + rng.randrange(3 * WINDOW)
        seen, before, row = [], 0, 0
        for begin, end, first, last in stretches(starts, ends, size):
            assert begin == before
            assert first == row
            before, row = end, last
            assert all(begin <= starts[image] and ends[image] <= end for image in range(first, last))
            assert end - begin <= WINDOW or last - first == 1
            seen += range(first, last)
        assert before == size
        assert seen == list(range(len(starts))) or size == 0
