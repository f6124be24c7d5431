"""Progress: what is counted, what it looks like in each style, and that showing it never ends a run."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from builder.base.words import duration
from builder.engines import views
from builder.engines.progress import Progress, say, show_progress
from builder.engines.views import Bar, JsonLines, Lines, Snapshot, figures, fitting, line

HALFWAY = Snapshot("converting", "images", 1000, 0, 400, 200_000_000, 100, 5.0)


class Stream(io.StringIO):
    """stderr, told whether it is a terminal."""

    def __init__(self, terminal: bool = False) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    show_progress("auto")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.26, "0.3 s"),
        (9.96, "10.0 s"),
        (10.4, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (75, "1 min 15 s"),
        (3599.7, "1 h 0 min"),  # not "60 min"
        (3600 * 30 + 61, "30 h 1 min"),
    ],
)
def test_a_duration_is_said_in_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "converting: 50%, 500/1,000 images, 6.2 s left, 80 images/s, 40.00 MB/s"),  # rates are of this run
        ({"first": 0}, "converting: 40%, 400/1,000 images, 7.5 s left, 80 images/s, 40.00 MB/s"),
        ({"images": 900}, "converting: 100%, 1,000/1,000 images, 180 images/s, 40.00 MB/s"),
        ({"images": 2000}, "converting: 100%, 2,100/1,000 images, 400 images/s, 40.00 MB/s"),  # never over 100 %
        ({"images": 0, "bytes": 0, "first": 0}, "converting: 0%, 0/1,000 images, 5.0 s"),  # nobody knows what is left
        ({"total": 0, "images": 0, "bytes": 0, "first": 0}, "converting: 100%, 0/0 images, 5.0 s"),
        ({"total": None, "first": 0}, "converting: 400 images, 5.0 s, 80 images/s, 40.00 MB/s"),
        (
            {"total": None, "first": 0, "size": 800_000_000},
            "converting: 25%, 200.00 MB of 800.00 MB, 15 s left, 80 images/s, 40.00 MB/s",
        ),
        ({"total": None, "first": 0, "images": 0, "bytes": 0}, "converting: 5.0 s"),
        ({"total": None, "first": 0, "images": 0, "bytes": 0, "seconds": 0.2}, "converting"),
    ],
)
def test_a_line_says_what_is_known(changed: dict[str, Any], words: str) -> None:
    assert line(replace(HALFWAY, **changed)) == words


@pytest.mark.parametrize(
    ("room", "text"),
    [
        (100, "500/1,000 images, 6.2 s left, 80 images/s, 40.00 MB/s"),
        (45, "500/1,000 images, 6.2 s left, 80 images/s"),
        (41, "500/1,000 images, 6.2 s left, 80 images/s"),
        (40, "500/1,000 images, 6.2 s left"),
        (10, ""),
        (-5, ""),
    ],
)
def test_in_a_narrow_terminal_the_least_telling_figures_are_left_out(room: int, text: str) -> None:
    assert fitting(figures(HALFWAY), room) == text


def test_without_a_terminal_lines_come_every_5_seconds_then_every_minute(capsys: pytest.CaptureFixture[str]) -> None:
    view, shown = Lines(), []
    age = view.first
    while age < 300:
        shown.append(age)
        age += view.pause(age)
    assert shown == [*range(5, 61, 5), 120, 180, 240]
    view.show(HALFWAY)
    assert capsys.readouterr().err == line(HALFWAY) + "\n"


def test_json_lines_have_the_same_keys_always(capsys: pytest.CaptureFixture[str]) -> None:
    view = JsonLines()
    view.show(HALFWAY)
    view.show(replace(HALFWAY, total=None, first=0, size=800_000_000))
    view.close(Snapshot("planning", "images", None, 0, 0, 0, 0, 0.0))
    keys = ("stage", "done", "total", "bytes", "rate", "eta")
    written = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    assert [tuple(each.values()) for each in written] == [
        ("converting", 500, 1000, 200_000_000, 80.0, 6.25),
        ("converting", 200_000_000, 800_000_000, 200_000_000, 40_000_000.0, 15.0),
        ("planning", 0, None, 0, 0.0, None),
    ]
    assert {tuple(each) for each in written} == {keys}


def drained(master: int) -> str:
    """All that a terminal has been sent."""
    os.set_blocking(master, False)
    data = b""
    with suppress(BlockingIOError):
        while True:
            data += os.read(master, 65536)
    return data.decode()


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 200])
@pytest.mark.parametrize("total", [1000, None])
def test_the_bar_fits_any_width_also_after_a_resize_and_is_gone_in_the_end(
    columns: int, total: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    master, slave = os.openpty()
    with open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        bar = Bar()
        shown = []
        for width in (columns, 2 * columns, 30):
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
            bar.show(replace(HALFWAY, total=total, first=0))
            parts = [part.rstrip() for part in drained(master).replace("\033[J", "").split("\r")]
            shown.append((width, [part for part in parts if part]))
        bar.close(HALFWAY)
        assert drained(master).endswith("\r")
    os.close(master)
    for width, parts in shown:
        assert max(map(len, parts)) <= width
        assert all(part.startswith("converting") for part in parts)
        assert total is None or " 40%" in parts[-1]
    assert "400" in shown[1][1][-1] or columns < 40


@pytest.mark.parametrize(
    ("style", "terminal", "view"),
    [
        ("auto", True, Bar),
        ("auto", False, Lines),
        ("bar", False, Bar),
        ("lines", True, Lines),
        ("json", True, JsonLines),
        ("none", True, None),
    ],
)
def test_the_style_decides_what_is_shown(
    style: str, terminal: bool, view: type | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Stream(terminal))
    assert [type(each) for each in views.view_of(style)] == ([view] if view else [])
    monkeypatch.setattr(sys, "stderr", None)  # a daemon's, closed
    assert views.view_of(style) == []


def test_counts_go_on_whether_they_are_shown_or_not(capsys: pytest.CaptureFixture[str]) -> None:
    for style, quiet in (("none", False), ("json", True), ("json", False)):
        show_progress(style)
        with Progress("converting", 10, quiet=quiet) as shown:
            shown.update(3, 4)
            shown.update(1, 1)
        assert (shown.images, shown.bytes) == (4, 5)
    first, last = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["done"], last["done"], last["bytes"]) == (0, 4, 5)


def test_a_resumed_stage_begins_at_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    show_progress("json")
    with Progress("converting", 10, done=6) as shown:
        shown.update(1)
    assert [json.loads(text)["done"] for text in capsys.readouterr().err.splitlines()] == [6, 7]


def test_many_threads_count_right() -> None:
    with Progress("pushing", None, 8 * 200, quiet=True) as shown:
        threads = [threading.Thread(target=lambda: [shown.update(1, 1) for _ in range(200)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (shown.images, shown.bytes) == (1600, 1600)


@pytest.mark.parametrize("style", ["bar", "lines", "json"])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("I/O operation on closed file")])
def test_a_terminal_that_goes_away_ends_the_showing_not_the_run(
    style: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(Stream):
        written = threading.Event()

        def write(self, text: str) -> int:
            self.written.set()
            raise error

    gone = Gone()
    for view in (Lines, Bar, JsonLines):
        monkeypatch.setattr(view, "first", 0.0)
    monkeypatch.setattr(sys, "stderr", gone)
    show_progress(style)
    with Progress("converting", 10) as shown:
        assert gone.written.wait(10)
        shown.update(1, 1)
        say("a message")
    assert shown.images == 1


def test_a_message_stands_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(terminal=True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(Bar, "first", 0.0)
    with Progress("pushing", 10) as shown:
        shown.update(1)
        say("a message")
        say("a secret", quiet=True)
    text = stream.getvalue()
    assert "a secret" not in text
    before = text.partition("a message\n")[0]
    assert before.startswith("\rpushing")
    assert before.endswith("\r")
    assert Bar.shown is None


def test_a_log_has_the_begin_and_the_end_of_each_stage(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "builder")
    with Progress("scanning", 12, unit="tars", quiet=True) as shown:
        for _ in range(12):
            shown.update(1)
    begin, end = (record.getMessage() for record in caplog.records)
    assert begin == "scanning: 0%, 0/12 tars"
    assert end.startswith("scanning: 100%, 12/12 tars")


def test_a_process_that_is_forked_meanwhile_can_show_progress_itself(capsys: pytest.CaptureFixture[str]) -> None:
    show_progress("json")
    with Progress("converting", 10):
        process = os.fork()
        if process == 0:
            code = 1
            try:
                with Progress("inside", 1) as inside:
                    inside.update(1)
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(process, 0)[1] == 0
