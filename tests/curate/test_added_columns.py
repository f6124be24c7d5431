"""Columns of numbers, booleans, strings and lists: from files and annotations, joined by what there is."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder import add_column, verify
from builder.base.errors import DamagedFileError, IndexMismatchError, OptionError, OutputError, SourceError
from builder.curate.columns import write_column
from builder.curate.tables import typed, typed_texts
from builder.read.columns import open_any
from builder.read.opening import open_dataset
from tests.curate.shelf import KINDS, keys_of, make, write_lines


@pytest.fixture(params=KINDS)
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make(tmp_path, request.param)


VALUES: list[tuple[str, Callable[[int], Any], pa.DataType]] = [
    ("int", lambda i: i - 3, pa.int64()),
    ("float", lambda i: i / 7, pa.float64()),
    ("bool", lambda i: i % 3 == 0, pa.bool_()),
    ("text", lambda i: f"ein Bild, {i} × ü", pa.string()),
    ("list", lambda i: ["a", str(i)][: i % 3], pa.list_(pa.string())),
    ("holes", lambda i: None if i % 2 else i, pa.int64()),
]


def to_parquet(path: Path, entries: list[dict[str, Any]]) -> Path:
    names = list(entries[0])
    pq.write_table(pa.table({name: [entry[name] for entry in entries] for name in names}), path)
    return path


def to_csv(path: Path, entries: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(entries[0]))
        writer.writeheader()
        writer.writerows(entries)
    return path


FORMATS = {"t.parquet": to_parquet, "t.csv": to_csv, "t.jsonl": write_lines}


@pytest.mark.parametrize(
    ("value", "kind", "file"),
    [
        pytest.param(value, kind, file, id=f"{name}-{file}")
        for name, value, kind in VALUES
        for file in FORMATS
        if (name, file) != ("list", "t.csv")  # CSV has no lists
    ],
)
def test_values_come_back_whatever_file_they_came_in(
    value: Callable[[int], Any], kind: pa.DataType, file: str, tmp_path: Path
) -> None:
    out = make(tmp_path)
    keys = keys_of(open_dataset(out))
    expected = [value(i) for i in range(len(keys))]
    entries = [{"key": key, "score": each} for key, each in zip(keys, expected, strict=True)]
    summary = add_column(out, "score", FORMATS[file](tmp_path / file, entries[::-1]), quiet=True)
    assert (summary.matched, summary.missing, summary.stray) == (24, 0, 0)
    rows = open_dataset(out)
    assert rows.column("score").to_pylist() == expected
    assert rows.column("score").type == kind
    assert [sample["score"] for sample in rows] == expected
    assert rows[20:3:-2].column("score").to_pylist() == expected[20:3:-2]


def test_columns_lie_in_parquet_files_of_the_shards_rows_and_verify_knows_them(out: Path, tmp_path: Path) -> None:
    keys = keys_of(open_dataset(out))
    file = write_lines(tmp_path / "t.jsonl", [{"key": key, "n": i} for i, key in enumerate(keys)])
    add_column(out, "n", file, quiet=True)
    read = [pq.read_table(path) for path in sorted((out / "columns" / "n").glob("*.parquet"))]
    assert pa.concat_tables(read).to_pydict() == {"key": keys, "n": list(range(24))}
    files = open_dataset(out).reader._index.column("file").tolist()
    assert [len(table) for table in read] == [files.count(number) for number in sorted(set(files))]
    assert verify(out, quiet=True).ok
    mapped = out / "meta" / "columns" / "n.arrow"
    data = bytearray(mapped.read_bytes())
    data[len(data) // 2] ^= 1
    mapped.write_bytes(data)
    assert not verify(out, quiet=True).ok


def test_counts_say_what_matched_is_missing_strays_and_comes_again(tmp_path: Path) -> None:
    out = make(tmp_path)
    keys = keys_of(open_dataset(out))
    entries: list[dict[str, object]] = [{"key": key, "n": i} for i, key in enumerate(keys[:20])]
    entries += [{"key": "nobody", "n": 5}, {"key": "nobody else", "n": 6}, {"key": keys[0], "n": 99}]
    summary = add_column(out, "n", write_lines(tmp_path / "t.jsonl", entries), quiet=True)
    assert (summary.matched, summary.missing, summary.stray, summary.repeated) == (20, 4, 2, 1)
    assert open_dataset(out).column("n").to_pylist() == [*range(20), None, None, None, None]


JOINS: list[tuple[str, Callable[[Any], str]]] = [
    ("key", lambda s: s.key),
    ("path", lambda s: s.path),
    ("sha256", lambda s: hashlib.sha256(s.image).hexdigest().upper()),  # no annotation has one: of the bytes
]


@pytest.mark.parametrize(("on", "name_of"), JOINS)
def test_rows_are_found_by(on: str, name_of: Callable[[Any], str], out: Path, tmp_path: Path) -> None:
    rows = open_dataset(out)
    entries: list[dict[str, object]] = [{on: name_of(sample), "n": sample.row} for sample in rows]
    add_column(out, "n", write_lines(tmp_path / "t.jsonl", entries[::-1]), quiet=True)
    assert open_dataset(out).column("n").to_pylist() == list(range(24))


def test_a_url_is_looked_up_in_the_annotations(tmp_path: Path) -> None:
    out = make(tmp_path)
    documents = [json.loads(sample.annotation) for sample in open_dataset(out)]
    urls = [document["url"] for document in documents]
    file = to_csv(tmp_path / "t.csv", [{"url": url, "n": i} for i, url in enumerate(urls)])
    assert add_column(out, "n", file, quiet=True).matched == 24


def test_several_files_are_one_table_and_a_folder_of_tables_is_its_files(tmp_path: Path) -> None:
    out = make(tmp_path)
    keys = keys_of(open_dataset(out))
    (tmp_path / "tables").mkdir()
    to_parquet(tmp_path / "tables" / "a.parquet", [{"key": key, "n": 1} for key in keys[:10]])
    to_csv(tmp_path / "tables" / "b.csv", [{"key": key, "n": 2.5} for key in keys[10:]])
    add_column(out, "n", tmp_path / "tables", quiet=True)
    add_column(out, "m", [tmp_path / "tables" / "a.parquet", tmp_path / "tables" / "b.csv"], quiet=True)
    assert open_dataset(out).column("n").to_pylist() == [1.0] * 10 + [2.5] * 14
    assert open_dataset(out).column("m").to_pylist() == [1.0] * 10 + [2.5] * 14


def test_keys_of_digits_stay_text_and_compressed_files_are_read(tmp_path: Path) -> None:
    out = make(tmp_path)
    keys = keys_of(open_dataset(out))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress("\n".join(["key,v", *(f"{k},007" for k in keys)]).encode()))
    add_column(out, "v", tmp_path / "t.csv.gz", quiet=True)
    assert set(open_dataset(out).column("v").to_pylist()) == {"007"}


WRONG: list[tuple[str, bytes, str]] = [
    ("t.jsonl", b'{"key": "x", "n": 1}\n{"key": ', "line 2"),
    ("t.jsonl", b'{"key": "x", "n": 1}\n[1]\n', "line 2"),
    ("t.jsonl", b'{"key": 1.5, "n": 1}\n', "not a string"),
    ("t.jsonl", b'{"name": "x", "n": 1}\n', "key or path or url or sha256"),
    ("t.jsonl", b"", "no JSON objects"),
    ("t.jsonl", b'{"key": "x", "a": 1, "b": 2}\n', "no column n; it has key, a, b"),
    ("t.jsonl", b'{"key": "x", "n": {"a": 1}}\n', "no numbers"),
    ("t.jsonl", b'{"key": "x", "n": null}\n', "only nulls"),
    ("t.jsonl", b'{"key": "x", "n": 1}\n', "none of 1 value"),
    ("t.csv", b"key,n\nx\n", "t.csv"),
    ("t.csv", b"", "t.csv"),
    ("t.csv", b"key,n\nx,\xff\xfe\n", "t.csv"),
    ("t.parquet", b"PAR1", "t.parquet"),
    ("t.xlsx", b"PK", "not a table"),
]


@pytest.mark.parametrize(("name", "content", "words"), WRONG)
def test_tables_that_cannot_be_used_are_errors_that_name_the_place(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    out = make(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=words):
        add_column(out, "n", [tmp_path / name], quiet=True)
    assert open_dataset(out).added_columns() == []


def test_columns_of_types_that_cannot_be_are_refused(tmp_path: Path) -> None:
    out = make(tmp_path)
    keys = keys_of(open_dataset(out))
    pq.write_table(pa.table({"key": keys, "n": pa.array([{"a": 1}] * 24)}), tmp_path / "t.parquet")
    with pytest.raises(OptionError, match="struct"):
        add_column(out, "n", tmp_path / "t.parquet", quiet=True)
    with pytest.raises(OptionError, match="24 rows"):
        write_column(str(out), "n", pa.array([1, 2]))
    with pytest.raises(OptionError, match="annotation"):
        add_column(out, "n", quiet=True)
    with pytest.raises(OptionError):
        add_column(out, "Caption", field="url", quiet=True)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (pa.array(["x"] * 24, pa.large_string()), pa.string()),
        (pa.array(["x", None] * 12).dictionary_encode(), pa.string()),
        (pa.array([1.5] * 24, pa.float32()).cast(pa.float16()), pa.float32()),
        (pa.array([2**63 + 5] * 24, pa.uint64()), pa.uint64()),
        (pa.array([["x"]] * 24, pa.large_list(pa.large_string())), pa.list_(pa.string())),
        (pa.array([True, None] * 12), pa.bool_()),
        (pa.array([3] * 24, pa.int8()), pa.int8()),
    ],
)
def test_arrow_types_are_kept_or_cast_to_one_that_means_the_same(
    given: pa.Array, kept: pa.DataType, tmp_path: Path
) -> None:
    out = make(tmp_path)
    write_column(str(out), "n", given)
    column = open_dataset(out).column("n")
    assert column.type == kept
    assert column.to_pylist() == given.to_pylist()


def test_a_column_is_made_once_and_replaced_on_purpose_only(tmp_path: Path) -> None:
    out = make(tmp_path)
    write_column(str(out), "n", pa.array(range(24)))
    with pytest.raises(OutputError, match="already"):
        write_column(str(out), "n", pa.array(range(24)))
    with pytest.raises(OutputError, match="already"):
        write_column(str(out), "N", pa.array(range(24)))  # SQL would not tell them apart
    write_column(str(out), "n", pa.array(range(24, 48)), replace=True)
    assert open_dataset(out).column("n").to_pylist() == list(range(24, 48))


def test_a_column_of_another_index_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    out, other = make(tmp_path), make(tmp_path / "other", shard=1_000_000)
    write_column(str(out), "n", pa.array(range(24)))
    for place in ("columns/n", "meta/columns"):
        (other / place).parent.mkdir(parents=True, exist_ok=True)
        (out / place).rename(other / place)
    document = json.loads((other / "meta" / "manifest.json").read_text())
    assert document["kind"] == "parquet"
    (other / "data").rename(other / "data2")
    (other / "data2").rename(other / "data")
    rows = open_dataset(other)
    assert rows[0].key  # what does not need the column works
    if rows.identity != open_dataset(out).identity:
        with pytest.raises(IndexMismatchError, match="again since"):
            rows.column("n")


# A field of the annotations


def test_a_field_of_the_annotations_is_a_typed_column(out: Path) -> None:
    summary = add_column(out, "link", field="url", quiet=True)
    rows = open_dataset(out)
    expected = [json.loads(sample.annotation).get("url") for sample in rows]
    assert rows.column("link").to_pylist() == expected
    assert (summary.type, summary.matched) == ("string", 24)
    with pytest.raises(SourceError, match="no annotation"):
        add_column(out, "none", field="nothing", quiet=True)


TYPED: list[tuple[list[Any], list[Any], str, int]] = [
    ([1, 2, None], [1, 2, None], "int64", 0),
    ([1, 2.5], [1.0, 2.5], "double", 0),
    ([True, None, False], [True, None, False], "bool", 0),
    (["1", "2.5", ""], ["1", "2.5", ""], "string", 0),  # "" is no number
    (["1", "2"], [1, 2], "int64", 0),
    (["0.5", "1e-3"], [0.5, 0.001], "double", 0),
    (["007", "008"], ["007", "008"], "string", 0),  # somebody's names
    ([0.5, 0.25, "n/a", "0.75"], [0.5, 0.25, None, 0.75], "double", 1),
    (["a", "b", 3, True], ["a", "b", "3", None], "string", 1),
    ([["a"], [], ["b", "c"], 5], [["a"], [], ["b", "c"], None], "list<item: string>", 1),
    ([2**63, 1], [2**63, 1], "uint64", 0),
    ([2**70, 1], [float(2**70), 1.0], "double", 0),
    ([{"a": 1}, 5], [None, 5], "int64", 1),
]


@pytest.mark.parametrize(("values", "expected", "kind", "invalid"), TYPED)
def test_types_are_found_by_looking(values: list[Any], expected: list[Any], kind: str, invalid: int) -> None:
    column, wrong = typed(values, "n")
    assert column.to_pylist() == expected
    assert (str(column.type), wrong) == (kind, invalid)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["1", None, "-3"], [1, None, -3]),
        (["1", "2.5", "nan"], [1.0, 2.5, "nan"]),
        (["true", "False", None], [True, False, None]),
        (["007", "1"], ["007", "1"]),
        (["1", "x"], ["1", "x"]),
        ([None, None], [None, None]),
        (["18446744073709551615"], [2**64 - 1]),
    ],
)
def test_texts_are_typed_where_all_of_them_agree(texts: list[str | None], expected: list[Any]) -> None:
    found = typed_texts(pa.chunked_array([pa.array(texts, pa.string())])).to_pylist()
    assert [str(value) for value in found] == [str(value) for value in expected]


# Files that lie


def test_a_mapped_column_that_lies_about_its_buffers_is_an_error(tmp_path: Path) -> None:
    out = make(tmp_path)
    write_column(str(out), "n", pa.array([f"text {i}" for i in range(24)]))
    path = out / "meta" / "columns" / "n.arrow"
    whole = path.read_bytes()
    offsets = pa.array([f"text {i}" for i in range(24)]).buffers()[1].to_pybytes()[: 25 * 4]
    at = whole.index(offsets)
    for lie in (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff"):
        path.write_bytes(whole[: at + 40] + lie + whole[at + 44 :])
        with pytest.raises(DamagedFileError):
            open_any(str(out), "n")


def test_a_selection_says_where_its_columns_are_added(tmp_path: Path) -> None:
    out = make(tmp_path)
    open_dataset(out)[:5].save(tmp_path / "sub")
    with pytest.raises(SourceError, match="Columns belong to its dataset"):
        add_column(tmp_path / "sub", "n", field="url", quiet=True)
    add_column(out, "n", field="url", quiet=True)
    assert len(open_dataset(tmp_path / "sub").column("n")) == 5
