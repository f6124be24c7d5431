"""Options refuse what is out of range, quote it, and give plain values to files."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import FrozenInstanceError
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.base.errors import OptionError
from builder.base.options import (
    GROUP_BYTES,
    MAX_PIXELS,
    ConvertOptions,
    SamplePolicy,
    Slice,
    default_num_proc,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500MB", 500_000_000),
        ("500mb", 500_000_000),
        (" 64 MiB ", 64 << 20),
        ("1.5GB", 1_500_000_000),
        ("0.29MB", 290_000),  # 0.29 has no exact binary form
        ("7", 7),
        (7, 7),
        ("7B", 7),
        ("2K", 2000),
        ("2KiB", 2048),
        ("1G", 10**9),
        ("1GiB", 1 << 30),
        ("0", 0),
    ],
)
def test_sizes_are_bytes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "5 TB", "-5", "5e3", "1,000", "0x10", "1..5", "five", "9" * 400, "inf"])
def test_what_is_no_size_is_an_option_error_that_quotes_it(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_size(text)
    assert caught.value.args[1] == text


@given(st.integers(0, 10**9), st.integers(0, 999), st.sampled_from([("KB", 10**3), ("MB", 10**6), ("GB", 10**9)]))
def test_decimals_are_exact(whole: int, thousandths: int, unit: tuple[str, int]) -> None:
    text = f"{whole}.{thousandths:03d}"
    assert parse_size(text + unit[0]) == Fraction(text) * unit[1]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"caption_key": ""}, "caption_key"),
        ({"max_aspect_ratio": 0.5}, "max_aspect_ratio"),  # no image's longer side is shorter than its shorter side
        ({"max_aspect_ratio": -1}, "max_aspect_ratio"),
        ({"max_aspect_ratio": float("nan")}, "max_aspect_ratio"),
        ({"max_aspect_ratio": float("inf")}, "max_aspect_ratio"),  # the manifest's JSON has no infinity: 0 is no limit
        ({"min_side": 0}, "min_side"),
        ({"min_side": -1}, "min_side"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"max_aspect_ratio": "2"}, "max_aspect_ratio"),  # as a config or a shell may hand it on
        ({"min_side": "512"}, "min_side"),
        ({"max_pixels": None}, "max_pixels"),
        ({"max_aspect_ratio": True}, "max_aspect_ratio"),
    ],
)
def test_a_policy_out_of_range_is_refused_by_name(options: dict[str, Any], name: str) -> None:
    with pytest.raises(OptionError) as caught:
        SamplePolicy(**options)
    assert caught.value.args[:1] == (name,)
    if options[name] is not None and options[name] is not True:  # these are no words of a user
        assert str(options[name]) in str(caught.value)


def test_a_text_for_a_number_is_refused_with_what_is_taken() -> None:
    wanted = 'max_aspect_ratio "2": not a number. Give 1 or more, or 0 for no limit'
    with pytest.raises(OptionError, match=wanted):
        SamplePolicy(max_aspect_ratio="2")  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"max_aspect_ratio": 0}, {"max_aspect_ratio": 1}, {"min_side": 1}, {}])
def test_the_edges_of_the_ranges_are_allowed(options: dict[str, Any]) -> None:
    assert pickle.loads(pickle.dumps(SamplePolicy(**options))) == SamplePolicy(**options)


@pytest.mark.parametrize(
    "options", [{"format": "csv"}, {"format": "Parquet"}, {"max_shard_size": 999_999}, {"max_shard_size": 0}]
)
def test_convert_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        ConvertOptions(**options)


def test_the_defaults_are_those_of_the_contract() -> None:
    assert ConvertOptions().to_json() == {
        "format": "parquet",
        "policy": {"caption_key": "auto", "max_aspect_ratio": 3.0, "min_side": None, "max_pixels": MAX_PIXELS},
        "max_shard_size": 500_000_000,
        "recaptions": [],
    }
    assert MAX_PIXELS == 178_956_970
    assert GROUP_BYTES <= 100_000_000


def test_options_as_json_hold_no_folder_names() -> None:
    """Else the same source in another folder would give another manifest."""
    options = ConvertOptions(recaptions=("/data/a/one.parquet", "two.parquet"))
    document = options.to_json()
    assert document["recaptions"] == ["one.parquet", "two.parquet"]
    assert json.loads(json.dumps(document)) == document


def test_options_cannot_be_changed_behind_a_job() -> None:
    with pytest.raises(FrozenInstanceError):
        ConvertOptions().format = "arrow"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("start", "end", "count", "taken"),
    [
        (0, -1, 5, [0, 1, 2, 3, 4]),
        (2, -1, 5, [2, 3, 4]),
        (1, 3, 5, [1, 2]),
        (3, 3, 5, []),
        (3, 99, 5, [3, 4]),  # past the end: what there is
        (9, -1, 5, []),
        (9, 12, 5, []),
        (0, 0, 5, []),
        (0, -1, 0, []),
    ],
)
def test_a_slice_takes_what_the_card_s_script_takes(start: int, end: int, count: int, taken: list[int]) -> None:
    assert list(Slice(start, end).of(count)) == taken


@given(st.integers(0, 50), st.lists(st.integers(0, 60), max_size=5))
def test_neighbouring_slices_take_every_tar_once(count: int, inner: list[int]) -> None:
    edges = [0, *sorted(inner)]
    parts = [Slice(start, end).of(count) for start, end in zip(edges, [*edges[1:], -1], strict=True)]
    assert [number for part in parts for number in part] == list(range(count))


@pytest.mark.parametrize(("start", "end", "name"), [(-1, -1, "start"), (3, 2, "end"), (0, -2, "end")])
def test_a_slice_that_cannot_be_is_refused(start: int, end: int, name: str) -> None:
    with pytest.raises(OptionError) as caught:
        Slice(start, end)
    assert caught.value.args[0] == name


def test_as_many_processes_as_this_one_may_use() -> None:
    assert 1 <= default_num_proc() <= (os.cpu_count() or 1)
