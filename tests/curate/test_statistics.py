"""Measures of rows against plain Python, histograms against counting, phrases against captions made to have them."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder import open_dataset
from builder.base.arrays import bools_of, string_array
from builder.base.errors import OptionError
from builder.curate.add_column import add_column
from builder.curate.measures import _words, bar_counts, bar_edges, captions, histogram, measure, measures
from builder.curate.statistics import phrases, statistics
from builder.jobs.demo import demo
from builder.read.view import Rows


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The demo's 291 rows, with a column of scores: none for every third row."""
    folder = tmp_path_factory.mktemp("statistics") / "demo"
    demo(str(folder))
    out = folder / "out"
    keys = open_dataset(out).columns("key").column(0).to_pylist()
    scores = pa.array([None if row % 3 == 0 else row / 2 for row in range(len(keys))], pa.float32())
    pq.write_table(pa.table({"key": keys, "score": scores}), folder / "scores.parquet")
    add_column(str(out), "score", str(folder / "scores.parquet"))
    return open_dataset(out)


WAYS = [
    ("all", lambda rows: rows),
    ("a range", lambda rows: rows[10:200]),
    ("with steps, backwards", lambda rows: rows[200:10:-3]),
    ("in an order of its own", lambda rows: rows.sample(50, seed=1)),
    ("nothing", lambda rows: rows[5:5]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "choose"), WAYS)
def test_measures_are_those_of_the_rows_in_their_order(way: str, choose: object, dataset: Rows) -> None:
    rows = choose(dataset)  # type: ignore[operator]
    samples = [rows[number] for number in range(len(rows))]
    expected = {
        "width": [s.width for s in samples],
        "height": [s.height for s in samples],
        "megapixels": [s.width * s.height / 1e6 for s in samples],
        "ratio": [s.width / s.height for s in samples],
        "size": [len(s.image) for s in samples],
        "caption_length": [len(s.caption) for s in samples],
        "caption_words": [len(s.caption.split()) for s in samples],
        "score": [math.nan if s.row % 3 == 0 else s.row / 2 for s in samples],
    }
    assert set(measures(rows)) == set(expected)
    for name, values in expected.items():
        assert measure(rows, name).tolist() == pytest.approx(values, nan_ok=True), name
    with pytest.raises(OptionError, match="caption_words"):
        measure(rows, "colour")


@pytest.mark.parametrize(("way", "choose"), WAYS)
def test_captions_come_once_each_with_their_positions(
    way: str, choose: object, dataset: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builder.curate.measures.SCAN_ROWS", 64)
    rows = choose(dataset)  # type: ignore[operator]
    found = [(int(at), text) for some, part in captions(rows) for at, text in zip(some, part.to_pylist(), strict=True)]
    assert found == [(at, rows[at].caption) for at in range(len(rows))]
    odd = np.arange(1, len(rows), 2)
    assert [int(at) for some, _ in captions(rows, odd) for at in some] == odd.tolist()


@given(st.lists(st.text(alphabet="ab \n\té👩", max_size=12), max_size=20), st.integers(0, 3))
def test_words_are_counted_as_split_counts_them(texts: list[str], first: int) -> None:
    assert _words(string_array(texts).slice(first)).tolist() == [len(text.split()) for text in texts[first:]]


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 9))
def test_bools_come_out_as_they_went_in(values: list[bool], first: int) -> None:
    assert bools_of(pa.array(values, pa.bool_()).slice(first)).tolist() == values[first:]


@settings(max_examples=200)
@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=60))
def test_bars_hold_every_value_once_between_round_edges(values: list[float]) -> None:
    bars = histogram("x", np.array(values))
    assert sum(bars.counts) == len(values)
    assert len(bars.edges) == len(bars.counts) + 1 <= 60
    assert bars.edges == sorted(set(bars.edges))
    inner = bars.edges[1:-1]
    assert bars.counts == [
        sum(1 for value in values if sum(edge <= value for edge in inner) == at) for at in range(len(bars.counts))
    ]
    assert (bars.minimum, bars.maximum) == (min(values), max(values))


@pytest.mark.parametrize(
    ("low", "high", "whole", "expected"),
    [
        (0, 24, True, (0.0, 25.0, 1.0)),
        (0, 1000, True, (0.0, 1050.0, 50.0)),
        (17, 17, True, (17.0, 18.0, 1.0)),  # all values alike
        (0.0, 0.0, False, (0.0, 1.0, 1.0)),
        (0.5, 2.4, False, (0.5, 2.5, 0.1)),
        (-3.0, 3.0, False, (-3.0, 3.25, 0.25)),
    ],
)
def test_edges_are_numbers_that_people_read(
    low: float, high: float, whole: bool, expected: tuple[float, float, float]
) -> None:
    edges = bar_edges(low, high, whole=whole)
    assert (edges[0], edges[-1]) == expected[:2]
    assert np.diff(edges) == pytest.approx(expected[2])


def test_of_nothing_and_of_nan_there_are_no_bars() -> None:
    for values in (np.zeros(0), np.full(3, np.nan), np.zeros(0, np.int32)):
        bars = histogram("x", values)
        assert (bars.counts, bars.missing) == ([], len(values))
    assert bar_counts(np.array([1, 5]), [0.0, 2.0]).tolist() == [2]


def captioned(folder: Path, texts: list[str]) -> Rows:
    pictures = pa.array([{"bytes": b"GIF89a", "path": "a.gif"}] * len(texts))
    (folder / "data").mkdir()
    table = pa.table({"image": pictures, "caption": texts})
    options = {"compression": "none", "use_dictionary": False}
    pq.write_table(table, folder / "data" / "train-00000-of-00001.parquet", **options)
    return open_dataset(folder)


def test_phrases_are_found_with_their_share(tmp_path: Path) -> None:
    texts = [f"The image shows thing{n} near a quiet lake number{n}" for n in range(80)] + [
        f"Other{n}" for n in range(20)
    ]
    found = phrases(captioned(tmp_path, [*texts, "Twice the same.", "Twice the same."]))
    assert found.sampled == 102
    opening = {each.text: each.share for each in found.openings}
    frequent = {each.text: each.share for each in found.frequent}
    assert frequent["near a quiet lake"] == pytest.approx(80 / 102)
    assert frequent["the image shows"] == pytest.approx(80 / 102)
    assert "near a quiet" not in frequent, "which is only ever a part of the longer one"
    assert opening == {"The image shows": pytest.approx(80 / 102), "Twice the same": pytest.approx(2 / 102)}
    assert [(each.text, round(each.share * 102)) for each in found.repeated] == [("Twice the same.", 2)]


def test_statistics_are_numbers_that_json_can_hold(dataset: Rows) -> None:
    import json

    found = statistics(dataset)
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["rows"] == 291
    assert document["image_bytes"] == sum(len(sample.image) for sample in dataset)
    score = next(bars for bars in document["histograms"] if bars["name"] == "score")
    assert score["missing"] == 97


def test_what_is_not_needed_is_not_imported() -> None:
    code = (
        "import sys, builder.view.view, builder.view.report, builder.curate.statistics as s, pyarrow.compute;"
        "print(*sorted({'pandas', 'PIL', 'torch', 'datasets', 'huggingface_hub', 'duckdb'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
