"""Lists of samples to take or to leave out: by whatever the file names them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder.base.errors import SourceError
from builder.curate.columns import write_column
from builder.curate.lists import read_list
from builder.curate.select import by_list
from builder.read.opening import open_dataset
from builder.read.sample import Sample
from builder.read.view import Rows
from tests.curate.shelf import KINDS, make, write_lines


def phash(row: int) -> int:
    return 2**63 + row * 3


@pytest.fixture(scope="module", params=KINDS)
def rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    out = make(tmp_path_factory.mktemp("lists"), request.param)
    write_column(str(out), "phash", pa.array([phash(row) for row in range(24)], pa.uint64()))
    return open_dataset(out)


NAMES: dict[str, Callable[[Sample], str]] = {
    "key": lambda s: s.key,
    "path": lambda s: s.path,
    "url": lambda s: str(json.loads(s.annotation)["url"]),
    "sha256": lambda s: hashlib.sha256(s.image).hexdigest(),
    "phash": lambda s: f"{phash(s.row):016x}",
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("form", ["txt", "csv", "jsonl", "parquet"])
def test_rows_are_found_by_every_name_in_every_form(kind: str, form: str, rows: Rows, tmp_path: Path) -> None:
    names = [NAMES[kind](rows[row]) for row in (3, 8, 21)]
    path = tmp_path / f"list.{form}"
    if form == "txt":
        path.write_text("\ufeff# a takedown list\n\n" + "\r\n".join([*names, names[0]]) + "\n", encoding="utf-8")
    elif form == "csv":
        path.write_text(f"reason,{kind}\n" + "".join(f"asked,{name}\n" for name in names))
    elif form == "jsonl":
        write_lines(path, [{kind: name} for name in names])
    else:
        pq.write_table(pa.table({"why": ["x"] * 3, kind: names}), path)
    listed = read_list(rows.reader, path)
    assert listed.rows.nonzero()[0].tolist() == [3, 8, 21]
    assert (listed.names, listed.found) == (3, 3)


def test_lines_of_several_kinds_are_found_together_and_unknown_ones_counted(rows: Rows, tmp_path: Path) -> None:
    names = [name(rows[row]) for row, name in enumerate(NAMES.values())]
    (tmp_path / "list").write_text("\n".join([*names, "nobody", "https://example.org/nothing.jpg", "f" * 64]))
    listed = read_list(rows.reader, tmp_path / "list")
    assert listed.rows.nonzero()[0].tolist() == [0, 1, 2, 3, 4]
    assert (listed.names, listed.found) == (8, 5)


def test_a_view_keeps_its_order_and_loses_what_the_list_names(rows: Rows, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n".join(rows[row].key for row in (4, 5, 6)))
    view = rows[8:2:-1]
    assert [s.row for s in by_list(view, "without", tmp_path / "list.txt")[0]] == [8, 7, 3]
    assert [s.row for s in by_list(view, "keys", tmp_path / "list.txt")[0]] == [6, 5, 4]


def test_a_list_that_names_nothing_here_is_an_error_for_keys_and_none_for_without(rows: Rows, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("nobody\n")
    with pytest.raises(SourceError, match="has 1 name; none is in"):
        by_list(rows, "keys", tmp_path / "list.txt")
    view, count = by_list(rows, "without", tmp_path / "list.txt")
    assert (len(view), count.found) == (24, 0)


def test_names_that_nothing_could_be_compared_with_are_an_error_not_zero_rows(tmp_path: Path) -> None:
    """A takedown list that is not applied must not look applied."""
    rows = open_dataset(make(tmp_path))
    (tmp_path / "list.txt").write_text(f"{5:016x}\n")
    with pytest.raises(SourceError, match="laion6m duplicates"):
        by_list(rows, "without", tmp_path / "list.txt")
    (tmp_path / "list.csv").write_text(f"phash\n{5:016x}\n")
    with pytest.raises(SourceError, match="laion6m duplicates"):
        by_list(rows, "without", tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("list.csv", b"name\nx\n", "key or path or url or sha256 or phash"),
        ("list.txt", b"\xff\xfe", "not UTF-8"),
        ("none.txt", None, "No such file"),
    ],
)
def test_lists_that_cannot_be_read_are_errors(
    name: str, content: bytes | None, words: str, rows: Rows, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=words):
        read_list(rows.reader, tmp_path / name)
