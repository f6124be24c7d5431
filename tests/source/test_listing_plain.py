"""The quick way to read a listing gives what the careful one does, or nothing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.base.arrays import OtherEnding, take_text, whole_text
from builder.source import listing_json
from builder.source.listing import read_listing
from builder.source.listing_plain import plain_entries
from builder.source.tar_headers import normal_name

NAMES = st.text(alphabet='ab/."\\é\n 0', max_size=6)
ENTRIES = st.lists(st.fixed_dictionaries({"image": NAMES, "annotation": NAMES}), min_size=1, max_size=6)
SEPARATORS = st.sampled_from([(", ", ": "), (",", ":"), (",\n  ", " : ")])


class Memory:
    """A listing's file."""

    name = "data.json"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size: int | None = len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]

    def close(self) -> None:
        pass


def told(text: bytes) -> list[tuple[str, str]] | None:
    """The entries in a text; None where it is left to ``json``."""
    found = plain_entries(text)
    if found is None:
        return None
    sides = []
    for data, lengths in ((found.images, found.image_lengths), found.written()):
        at, paths = 0, []
        for length in lengths.tolist():
            paths.append(data[at : at + length].decode())
            at += length
        sides.append(paths)
    return list(zip(*sides, strict=True))


@given(ENTRIES, SEPARATORS)
def test_what_it_reads_is_what_json_reads(entries: list[dict[str, str]], separators: tuple[str, str]) -> None:
    text = json.dumps(entries, separators=separators)[1:-1].encode()
    assert told(text) in (None, [(entry["image"], entry["annotation"]) for entry in entries])


@given(ENTRIES, st.integers(0, 300), st.sampled_from(b'{}[]",:\\ ax\n\0\x1f'))
def test_a_byte_that_is_another_is_seen(entries: list[dict[str, str]], at: int, byte: int) -> None:
    text = bytearray(json.dumps(entries)[1:-1].encode())
    text[at % len(text)] = byte
    found = told(bytes(text))
    if found is not None:
        value: list[dict[str, Any]] = json.loads(b"[" + bytes(text) + b"]")
        assert found == [(entry["image"], entry["annotation"]) for entry in value]


@pytest.mark.parametrize("width", [1, 9], ids=["lengths that differ", "one length"])
@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":")])
def test_the_form_that_everybody_writes_is_read_so(width: int, separators: tuple[str, str]) -> None:
    entries = [{"image": f"0/{n:0{width}d}.jpg", "annotation": f"0/{n:0{width}d}.json"} for n in range(200)]
    text = json.dumps(entries, separators=separators)[1:-1].encode()
    assert told(text) == [(entry["image"], entry["annotation"]) for entry in entries]


@pytest.mark.parametrize(
    "text",
    [
        '{"image": "a", "annotation": "b", "more": "c", "x": "y"}',
        '{"annotation": "b", "image": "a"}',
        '{"image": "a", "annotation": "b"}, {"image": "a", "annotation": "b"}, []',
        '{"image": "/a", "annotation": "b"}',
        '{"image": "a", "annotation": "./b"}',
        '{"image": "é", "annotation": "b"}',
        '{"image": "a\\n", "annotation": "b"}',
        '{"image": "a", "annotation": "b"} {"image": "a", "annotation": "b"}',
        "",
    ],
)
def test_all_else_is_left_to_json(text: str) -> None:
    assert plain_entries(text.encode()) is None


@given(ENTRIES, st.integers(7, 90))
def test_a_listing_read_in_both_ways_is_the_same(entries: list[dict[str, str]], stretch: int) -> None:
    data = json.dumps(entries * 3).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing_json, "STRETCH", stretch)
        quick = read_listing([Memory(data)])
        patch.setattr(listing_json, "plain_entries", lambda text: None)
        careful = read_listing([Memory(data)])
    assert quick.images.to_pylist() == careful.images.to_pylist()
    assert whole_text(quick.annotations).to_pylist() == whole_text(careful.annotations).to_pylist()


STEMS = st.lists(st.text(alphabet="ab/0", min_size=1, max_size=5).map(lambda stem: f"x{stem}y"), min_size=1, max_size=9)


@given(STEMS, st.sampled_from(["{}.json", "{}.txt", "other/{}.json"]), st.integers(0, 8), st.integers(30, 200))
def test_annotations_that_follow_from_their_images_are_the_same_as_written_down(
    stems: list[str], odd: str, at: int, stretch: int
) -> None:
    """One annotation may be another: in the first stretch, between them, or in the last, which ``json`` reads."""
    entries = [{"image": f"{stem}.jpg", "annotation": f"{stem}.json"} for stem in stems]
    entries[at % len(entries)]["annotation"] = odd.format(stems[at % len(stems)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing_json, "STRETCH", stretch)
        found = read_listing([Memory(json.dumps(entries).encode())])
    annotations = whole_text(found.annotations).to_pylist()
    assert annotations == [normal_name(entry["annotation"]) for entry in entries]
    assert found.images.to_pylist() == [normal_name(entry["image"]) for entry in entries]
    backwards = np.arange(len(entries))[::-1]
    assert take_text(found.annotations, backwards).to_pylist() == annotations[::-1]


@pytest.mark.parametrize("stems", [["a", "bcd", "ef"], ["ab", "cd", "ef"]], ids=["lengths that differ", "one length"])
def test_a_listing_in_the_usual_form_keeps_no_annotations_in_memory(stems: list[str]) -> None:
    entries = [{"image": f"{stem}.jpg", "annotation": f"{stem}.json"} for stem in stems * 9]
    found = read_listing([Memory(json.dumps(entries).encode())])
    assert isinstance(found.annotations, OtherEnding)
    assert whole_text(found.annotations).to_pylist() == [f"{stem}.json" for stem in stems * 9]
