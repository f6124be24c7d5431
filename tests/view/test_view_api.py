"""What the page asks for: rows, one row, histograms, rejects, duplicates, selections. Over every kind of dataset."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder import open_dataset
from builder.cli.commands import main
from builder.conversion.convert import convert
from builder.conversion.index import index
from builder.curate.add_column import add_column
from builder.curate.duplicates import duplicates
from builder.jobs.demo import demo
from builder.view.api import _annotation
from tests.servers import FileServer
from tests.sources import make_source
from tests.view.asked import HOSTILE, foreign, get, rows
from tests.view.conftest import Visit, Visitor


@pytest.fixture(scope="module")
def kinds(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo's rows, by every way to them."""
    folder = tmp_path_factory.mktemp("kinds")
    out, source = demo_folder / "out", demo_folder / "source"
    index(str(source), str(folder / "index"), digest=True, quiet=True)
    convert(str(source), str(folder / "arrow"), format="arrow", num_proc=1, quiet=True)
    open_dataset(out)[:].save(folder / "selection")
    table = pq.read_table(out / "data" / "train-00000-of-00001.parquet").select(["image", "caption"])
    (folder / "foreign").mkdir()
    pq.write_table(table, folder / "foreign" / "some.parquet")  # compressed, with a dictionary: as pyarrow does
    return {"parquet": out} | {name: folder / name for name in ("index", "arrow", "selection", "foreign")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "index", "arrow", "selection", "foreign"])
@pytest.mark.filterwarnings("ignore:.*compressed or dictionary-encoded")
def test_every_kind_of_dataset_can_be_looked_at(kind: str, kinds: dict[str, Path], visit: Visit) -> None:
    visitor = visit(kinds[kind])
    dataset = get(visitor, "/api/dataset")
    assert dataset["rows"] == 291
    page = rows(visitor, search="golden")
    assert page["total"] == len([row for row in rows(visitor)["rows"] if "golden" in row["caption"].lower()]) > 10
    row = page["rows"][0]["row"]
    assert "golden" in get(visitor, f"/api/rows/{row}")["caption"].lower()
    assert visitor.ask(f"/images/{row}").body == open_dataset(kinds[kind])[row].image
    assert visitor.ask(f"/thumbnails/{row}").headers["Content-Type"] in ("image/jpeg", "image/png")
    assert sum(get(visitor, "/api/histograms/width")["counts"]) == 291
    assert get(visitor, "/api/phrases")["openings"][0]["text"].endswith("rings on")


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ("RINGS", lambda caption: True),
        ("red tall", lambda caption: "red" in caption and "tall" in caption),
        ('"wide apart"', lambda caption: "wide apart" in caption),
        ('"wide apart" teal square', lambda caption: False),
        ("a.b", lambda caption: False),
        ("(", lambda caption: False),
        ('"', lambda caption: True),
        ("   ", lambda caption: True),
        ("ééé", lambda caption: False),
    ],
)
def test_words_are_searched_in_any_case_and_all_must_occur(
    search: str, expected: Callable[[str], bool], visitor: Visitor
) -> None:
    found = rows(visitor, search=search)
    assert [row["row"] for row in found["rows"]] == [
        row["row"] for row in rows(visitor)["rows"] if expected(row["caption"].lower())
    ]


@pytest.mark.parametrize("order", ["width", "-width", "caption_length", "-ratio", "random"])
def test_orders_hold_every_row_once(order: str, visitor: Visitor) -> None:
    found = rows(visitor, sort=order)["rows"]
    assert sorted(row["row"] for row in found) == list(range(291))
    if order.endswith("width"):
        widths = [row["width"] for row in found]
        assert widths == sorted(widths, reverse=order[0] == "-")
    if order == "random":
        assert found == rows(visitor, sort=order)["rows"] != rows(visitor)["rows"]


def test_pages_of_a_search_hold_each_hit_once(visitor: Visitor) -> None:
    whole = [row["row"] for row in rows(visitor, search="red")["rows"]]
    pages = [get(visitor, "/api/rows", search="red", offset=offset, limit=7)["rows"] for offset in range(0, 70, 7)]
    assert [row["row"] for page in pages for row in page] == whole


@pytest.mark.parametrize("caption", HOSTILE)
def test_hostile_captions_travel_as_json_and_nothing_else(caption: str, tmp_path: Path, visit: Visit) -> None:
    folder = foreign(tmp_path, [caption])
    visitor = visit(folder)
    reply = visitor.ask("/api/rows")
    assert reply.json["rows"][0]["caption"] == caption
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    words = caption.split()[0].replace('"', "")
    assert rows(visitor, search=words)["total"] == 1


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", 200),
        (b"<!doctype html><script>alert(1)</script>", 200),
        (b"GIF89a/*<script>*/=1;", 200),
        (b"%PDF-1.7", 200),
        (b"", 200),
    ],
)
def test_what_is_no_image_of_the_list_is_a_download(data: bytes, status: int, tmp_path: Path, visit: Visit) -> None:
    visitor = visit(foreign(tmp_path, ["x"], [data]))
    reply = visitor.ask("/images/0")
    assert (reply.status, reply.body) == (status, data)
    assert "sandbox" in reply.headers["Content-Security-Policy"]
    if data.startswith(b"GIF89a"):
        assert reply.headers["Content-Type"] == "image/gif", "which a browser does not run"
    else:
        assert reply.headers["Content-Type"] == "application/octet-stream"
        assert reply.headers["Content-Disposition"].startswith("attachment")
    refused = visitor.ask("/thumbnails/0")
    assert refused.status == 415
    assert refused.json["error"]


def test_one_row_has_all_there_is_to_say_of_it(demo_folder: Path, visit: Visit, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    convert(str(source.path), str(tmp_path / "out"), num_proc=1, quiet=True)
    reader = open_dataset(tmp_path / "out")
    keys = reader.columns("key").column(0).to_pylist()
    pq.write_table(pa.table({"key": keys, "score": [0.5] * len(keys)}), tmp_path / "scores.parquet")
    add_column(str(tmp_path / "out"), "score", str(tmp_path / "scores.parquet"))
    visitor = visit(tmp_path / "out")
    row = get(visitor, "/api/rows/1")
    assert row["columns"] == {"score": 0.5}
    assert row["annotation"] == json.loads(reader[1].annotation)
    with open(tmp_path / "out" / row["place"]["file"], "rb") as file:
        file.seek(row["place"]["offset"])
        assert file.read(row["place"]["size"]) == reader[1].image
    assert "score" in [each["name"] for each in get(visitor, "/api/dataset")["measures"]]
    assert rows(visitor, filter="score:0.6:")["total"] == 0


def test_rejects_are_shown_by_reason_with_their_bytes_where_the_source_is(demo_folder: Path, visit: Visit) -> None:
    visitor = visit(demo_folder / "out", source=str(demo_folder / "source"))
    found = get(visitor, "/api/rejects")
    assert (found["total"], sum(found["reasons"].values())) == (10, 10)
    cut = get(visitor, "/api/rejects", reason="image_truncated")["rows"]
    assert [each["reason"] for each in cut] == ["image_truncated"] * 2
    assert all(each["picture"] for each in cut)
    assert visitor.ask(f"/rejects/{cut[0]['number']}").headers["Content-Type"] == "image/jpeg"
    page = next(each for each in found["rows"] if each["reason"] == "image_unreadable")
    reply = visitor.ask(f"/rejects/{page['number']}")
    assert reply.body.startswith(b"<html>")
    assert reply.headers["Content-Type"] == "application/octet-stream"
    without = visit(demo_folder / "out")
    assert not any(each["picture"] for each in get(without, "/api/rejects")["rows"])
    assert without.ask("/rejects/0").status == 404


def test_equal_images_are_a_group_without_anybody_having_looked_for_them(visitor: Visitor) -> None:
    found = get(visitor, "/api/duplicates", limit=3)
    assert found["total"] > 3
    group = found["groups"][0]
    assert [each["kept"] for each in group] == [True] + [False] * (len(group) - 1)
    images = {visitor.ask(f"/images/{each['row']}").body for each in group}
    assert len(images) == 1 < len(group)
    assert get(visitor, f"/api/rows/{group[-1]['row']}/similar") == group
    assert "laion6m duplicates" in found["note"]


def test_a_dataset_without_a_row_can_be_looked_at(tmp_path: Path, visit: Visit) -> None:
    visitor = visit(foreign(tmp_path, []))
    assert rows(visitor)["total"] == rows(visitor, search="x", sort="-width")["total"] == 0
    assert get(visitor, "/api/histograms/width")["counts"] == []
    assert get(visitor, "/api/phrases")["sampled"] == 0
    assert get(visitor, "/api/duplicates")["groups"] == []


def test_an_image_that_is_not_what_was_indexed_is_told_in_words(
    demo_folder: Path, visit: Visit, tmp_path: Path
) -> None:
    folder = foreign(tmp_path, ["one", "two"])
    visitor = visit(folder)
    shard = folder / "data" / "train-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    reply = visitor.ask("/images/0")
    assert reply.status == 409
    assert "train-00000-of-00001.parquet" in reply.json["error"]


def test_behind_a_url_only_what_is_seen_is_fetched(
    demo_folder: Path, visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("LAION6M_CACHE", str(tmp_path / "cache"))
    with FileServer(demo_folder / "out") as files:
        visitor = visit(files.url)
        assert rows(visitor, search="teal")["total"] > 10
        assert sum(get(visitor, "/api/histograms/size")["counts"]) == 291
        before = len(files.requests)
        assert visitor.ask("/thumbnails/7").headers["Content-Type"] == "image/jpeg"
        fetched = [
            wanted for method, path, wanted in files.requests[before:] if (method, path[-8:]) == ("GET", ".parquet")
        ]
        assert fetched
        assert all(fetched), "never a whole shard"
        assert len(fetched) < 6
        assert get(visitor, "/api/dataset")["rows"] == 291
        assert get(visitor, "/api/rejects")["total"] == 0


@pytest.mark.parametrize(
    ("document", "shown"),
    [
        ('{"a": [1, 2.5, null, true, "x"]}', {"a": [1, 2.5, None, True, "x"]}),
        ('{"a": NaN, "b": -Infinity}', {"a": "NaN", "b": "-Infinity"}),
        ('{"a": 1e999}', {"a": "1e999"}),  # infinite to Python
        ('{"a": 12345678901234567890}', {"a": "12345678901234567890"}),  # JavaScript would round it
        ("[" * 100_000, "[" * 100_000),
        ("not JSON <b>", "not JSON <b>"),
        ("", ""),
    ],
)
def test_annotations_are_shown_as_a_tree_or_as_text(document: str, shown: object) -> None:
    assert _annotation(document) == shown
    json.dumps(_annotation('{"a": ' * 5000 + "1" + "}" * 5000), allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 1, "nowhere"),
        (["{out}", "--port", "70000"], 2, "0 to 65535"),
        (["{out}", "--port", "{taken}"], 2, "in use"),
        (["{out}", "--host", "198.51.100.7"], 2, "198.51.100.7"),
        (["{out}", "--source", "nowhere"], 1, "nowhere"),
    ],
)
def test_what_cannot_be_shown_is_an_error_in_words(
    arguments: list[str], code: int, words: str, demo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        values = {"out": demo_folder / "out", "taken": taken.getsockname()[1]}
        assert main(["view", "--no-browser", *(each.format(**values) for each in arguments)]) == code
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_groups_are_those_that_duplicates_found_the_kept_one_first(tmp_path: Path, visit: Visit) -> None:
    demo(str(tmp_path / "demo"))
    out = tmp_path / "demo" / "out"
    duplicates(str(out), quiet=True)
    dataset = open_dataset(out)
    kept = {sample.key for sample in dataset.unique()}
    for path, count in ((out, 291), (tmp_path / "some", 100)):
        if count == 100:
            dataset.sample(count, seed=3).save(path)
        visitor = visit(path)
        found = get(visitor, "/api/duplicates", limit=100)
        assert found["total"] == len(found["groups"]) > 5
        assert found["rows"] == sum(map(len, found["groups"]))
        assert found["note"] == ""
        others = open_dataset(path).column("duplicate_of").to_pylist()
        for group in found["groups"]:
            named = {others[each["row"]] or each["key"] for each in group}
            assert len(named) == 1, "all name the same one"
            if count == 291:
                assert group[0]["key"] in kept
                assert not {each["key"] for each in group[1:]} & kept
        alone = count - found["rows"]
        assert alone + found["total"] == len(open_dataset(path).unique())
