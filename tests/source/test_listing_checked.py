"""A look at data.json that keeps nothing of it says what reading it would."""

from __future__ import annotations

import json

import pytest

from builder.base.errors import ListingError
from builder.source import listing_json
from builder.source.listing import check_listing, read_listing
from tests.held import Held

ENTRIES = [{"image": f"0/{n}.jpg", "annotation": f"0/{n}.json"} for n in range(2_000)]
TEXT = json.dumps(ENTRIES).encode()


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_json, "STRETCH", 512)


WRONG = [
    b"",
    b" ",
    b"{}",
    b"<html>",
    b'[{"image": "a"}]',
    b'[{"image": 1, "annotation": "a"}]',
    b"[1]",
    b'[{"image": "\xff"}]',
    b"[" * 9999,
    TEXT[:-1],
    TEXT[: len(TEXT) // 2],
    TEXT + b"]",
    TEXT[:-1] + b', {"image": "x"}]',
    b'[{"image": "x"}, ' + TEXT[1:],
    TEXT[:-40] + b"\0" * 40,
]


@pytest.mark.parametrize("data", WRONG, ids=lambda data: repr(data[-24:]))
@pytest.mark.parametrize("most", [4096, 1 << 30], ids=["its ends", "all"])
def test_what_is_wrong_at_an_end_is_said_as_reading_says_it(data: bytes, most: int) -> None:
    with pytest.raises(ListingError) as said:
        read_listing([Held(data)])
    with pytest.raises(ListingError) as checked:
        check_listing(Held(data), most)
    assert checked.value.args == said.value.args


@pytest.mark.parametrize("text", [TEXT, json.dumps(ENTRIES, indent=1).encode() + b"\n"])
def test_of_a_long_one_that_is_sound_only_the_ends_are_read(text: bytes) -> None:
    file = Held(text)
    check_listing(file, 4096)
    assert file.read < 3 * 4096
    check_listing(file, len(text))
    assert file.read > len(text)


@pytest.mark.parametrize(
    "last", [{"image": "x", "annotation": "y", "note": "}, {" * 300}, {"image": "x", "annotation": "y", "n": "-" * 999}]
)
def test_an_end_that_is_hard_to_tell_is_read_from_the_beginning(last: dict[str, str]) -> None:
    text = json.dumps([*ENTRIES, last]).encode()
    file = Held(text)
    check_listing(file, 4096)
    assert file.read > len(text)


def test_what_is_wrong_in_the_middle_of_a_short_one_is_found() -> None:
    middle = TEXT.index(b'"image": "0/1000.jpg"')
    with pytest.raises(ListingError, match=f"byte {middle}"):
        check_listing(Held(TEXT[:middle] + b"?" + TEXT[middle:]), len(TEXT) + 1)
