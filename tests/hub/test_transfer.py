from __future__ import annotations

import io
import threading

import pytest

from builder.hub import transfer
from builder.hub.transfer import Transfer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_BAR_EVERY", "_LINE_EVERY"):
        monkeypatch.setattr(transfer, name, 0.0)


def test_a_terminal_gets_one_bar_that_is_gone_in_the_end() -> None:
    stream = Terminal()
    meter = Transfer("push", stream=stream)
    meter.total = 4_000_000
    meter.at("a", 1_000_000)
    meter.at("b", 1_000_000)
    shown = stream.getvalue()
    assert "\n" not in shown
    assert "50% 2.00 MB of 4.00 MB" in shown
    assert shown.count("█") == 6 + 12
    meter.finish()
    assert stream.getvalue().endswith("\r\033[K")


def test_a_file_that_is_sent_again_is_not_counted_twice() -> None:
    stream = io.StringIO()
    meter = Transfer("push", stream=stream)
    meter.total = 200
    for place in (60, 100, 0, 60, 100, 100):
        meter.at("a", place)
    assert stream.getvalue().splitlines()[-1].startswith("push: 50%, 100 bytes of 200 bytes")


def test_a_line_to_a_person_stands_above_the_bar() -> None:
    stream = Terminal()
    meter = Transfer("push", stream=stream)
    meter.total = 1
    meter.at("a", 1)
    meter.say("a word")
    assert stream.getvalue().endswith("\r\033[Ka word\n")


def test_while_another_bar_has_the_line_there_is_none() -> None:
    stream = Terminal()
    meter = Transfer("push", stream=stream)
    meter.hidden = True
    meter.at("a", 1)
    assert stream.getvalue() == ""
    meter.say("a word")
    assert "a word" in stream.getvalue()


def test_quiet_is_quiet() -> None:
    stream = Terminal()
    meter = Transfer("push", quiet=True, stream=stream)
    meter.at("a", 1)
    meter.say("a word")
    meter.finish()
    assert stream.getvalue() == ""


def test_many_threads_count_right() -> None:
    stream = io.StringIO()
    meter = Transfer("push", stream=stream)
    meter.total = 8 * 200

    def send(path: str) -> None:
        for place in range(1, 201):
            meter.at(path, place)

    threads = [threading.Thread(target=send, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stream.getvalue().splitlines()[-1].startswith("push: 100%, 1.60 kB of 1.60 kB")
