"""Bytes on their way: each file counts once, whatever is sent again."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from builder.engines.progress import show_progress
from builder.hub.transfer import Transfer


@pytest.fixture(autouse=True)
def as_json() -> Iterator[None]:
    show_progress("json")
    yield
    show_progress("auto")


def shown(capsys: pytest.CaptureFixture[str]) -> list[tuple[int, int]]:
    documents = map(json.loads, capsys.readouterr().err.splitlines())
    return [(document["done"], document["total"]) for document in documents]


def test_a_file_that_is_sent_again_is_not_counted_twice(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Transfer("pushing")
    meter.begin(200)
    for place in (60, 100, 0, 60, 100, 100):
        meter.at("a", place)
    meter.finish()
    assert shown(capsys) == [(0, 200), (100, 200)]


def test_what_was_sent_while_another_bar_had_the_line_is_done_at_the_begin(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Transfer("pushing")
    meter.at("a", 50)
    assert shown(capsys) == []
    meter.begin(150)
    meter.at("a", 50)
    meter.at("b", 100)
    meter.finish()
    meter.finish()
    assert shown(capsys) == [(50, 150), (150, 150)]


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Transfer("pushing", quiet=True)
    meter.begin(1)
    meter.at("a", 1)
    meter.say("a word")
    meter.finish()
    assert capsys.readouterr().err == ""


def test_a_line_to_a_person_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    Transfer("pushing").say("a word")
    assert capsys.readouterr().err == "a word\n"
