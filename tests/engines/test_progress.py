from __future__ import annotations

import io

import pytest

from builder.base.words import duration
from builder.engines import progress
from builder.engines.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress.time, "monotonic", made.monotonic)
    return made


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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


def test_without_a_terminal_a_line_comes_every_few_seconds(clock: Clock) -> None:
    stream = io.StringIO()
    shown = Progress("convert", 1000, 10**9, stream=stream)
    for _ in range(80):
        clock.now += 0.125
        shown.update(10, 5_000_000)
    shown.finish()
    assert stream.getvalue() == (
        "convert: 40%, 400/1,000 images, 80 images/s, 40 MB/s, 7.5 s left\n"
        "convert: 80%, 800/1,000 images, 80 images/s, 40 MB/s, 2.5 s left\n"
    )


def test_on_a_terminal_the_line_is_rewritten_and_left_clean(clock: Clock) -> None:
    stream = Terminal()
    shown = Progress("index", 100, 0, stream=stream)
    clock.now += 0.5
    shown.update(25, 0)
    shown.update(1, 0)  # too soon after the last
    clock.now += 0.5
    shown.update(24, 0)
    shown.finish()
    text = stream.getvalue()
    assert text.count("\r") == 3
    assert "\n" not in text
    assert "index ██████░░░░░░░░░░░░░░░░░░  25% 25/100 images, 50 images/s, 0 MB/s, 1.5 s left" in text
    assert "████████████░░░░░░░░░░░░  50% 50/100" in text
    assert text.endswith("\r\033[K")


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_quiet_shows_nothing_and_counts_on(stream: io.StringIO, clock: Clock) -> None:
    shown = Progress("convert", 10, 10, quiet=True, stream=stream)
    clock.now += 60
    shown.update(3, 4)
    shown.update(1, 1)
    shown.finish()
    assert stream.getvalue() == ""
    assert (shown.images, shown.bytes) == (4, 5)


@pytest.mark.parametrize(
    ("total", "done", "share"),
    [
        (0, 0, "100%"),  # nothing to do is done
        (10, 0, "0%"),  # and no time left can be told yet
        (10, 20, "100%"),  # never more than all
    ],
)
def test_odd_counts_divide_by_nothing(total: int, done: int, share: str, clock: Clock) -> None:
    stream = io.StringIO()
    shown = Progress("convert", total, 0, stream=stream)
    clock.now += 6
    shown.update(done, 0)
    assert stream.getvalue().startswith(f"convert: {share}, {done}/{total} images")
    assert stream.getvalue().endswith(" 0.0 s left\n")


def test_where_nobody_knows_how_many_images_there_are_bytes_tell_the_share(clock: Clock) -> None:
    stream = io.StringIO()
    shown = Progress("convert", None, 1000, stream=stream)
    clock.now += 6
    shown.update(3, 250)
    assert stream.getvalue().startswith("convert: 25%, 3 images,")
    assert stream.getvalue().endswith(" 18 s left\n")


def test_a_stream_is_stderr_unless_given(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    shown = Progress("convert", 10, 0)
    clock.now += 6
    shown.update(1, 0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("convert: 10%")
