"""data.json: every entry in its order, or an error with the place."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from builder.base.arrays import whole_text
from builder.base.errors import ListingError
from builder.base.ids import column_ids, path_ids
from builder.source import listing_json
from builder.source.files import LocalFile
from builder.source.listing import Listing, read_listing
from tests.held import Held


def read(*texts: str | bytes) -> list[tuple[str, str]]:
    """The entries of one or more listings, as (image, annotation)."""
    return pairs(read_listing([Held(text if isinstance(text, bytes) else text.encode()) for text in texts]))


def pairs(found: Listing) -> list[tuple[str, str]]:
    return list(zip(found.images.to_pylist(), whole_text(found.annotations).to_pylist(), strict=True))


def entry(image: Any, annotation: Any = "a.json", **others: Any) -> dict[str, Any]:
    return {"image": image, "annotation": annotation, **others}


def refused(text: str | bytes) -> tuple[str, str]:
    """Place and problem."""
    with pytest.raises(ListingError) as caught:
        read(text)
    assert caught.value.args[0] == "data.json"
    return caught.value.args[1], caught.value.args[2]


@pytest.fixture(params=[listing_json.STRETCH, 64, 7], ids=["whole", "64 bytes", "7 bytes"])
def stretch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The same listing read in one piece, and in stretches that end anywhere."""
    monkeypatch.setattr(listing_json, "STRETCH", request.param)
    return int(request.param)


THREE = [entry("00000/1.jpg", "00000/1.json"), entry("00000/2.jpg", "00000/2.json"), entry("00001/3.png", "x.json")]
THREE_PAIRS = [("00000/1.jpg", "00000/1.json"), ("00000/2.jpg", "00000/2.json"), ("00001/3.png", "x.json")]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(THREE),
        json.dumps(THREE, indent=4),
        json.dumps(THREE, separators=(",", ":")),
        "\ufeff" + json.dumps(THREE),
        " \n\t\r " + json.dumps(THREE) + "\n \n",
        json.dumps(THREE, indent=0).replace("\n", "\r\n"),
    ],
    ids=["as dump writes it", "indented", "tight", "BOM", "blanks around it", "CRLF"],
)
def test_entries_come_in_their_order(text: str, stretch: int) -> None:
    assert read(text) == THREE_PAIRS


def test_an_empty_list_has_no_entries(stretch: int) -> None:
    assert read("[]") == read(" [ \n ] ") == []


def test_several_listings_follow_one_another() -> None:
    assert read(json.dumps(THREE[:1]), "[]", json.dumps(THREE[1:])) == THREE_PAIRS


def test_other_keys_are_passed_over(stretch: int) -> None:
    others: dict[str, Any] = {"url": "http://x/},{", "meta": {"a": {"b": [{"c": 1}, {"d": 2}]}, "e": 2}, "n": None}
    text = json.dumps([entry(f"{i}.jpg", f"{i}.json", **others, id=i) for i in range(20)])
    assert read(text) == [(f"{i}.jpg", f"{i}.json") for i in range(20)]


def test_nested_fields_do_not_make_a_long_listing_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stretch that ends behind a nested object must not be given up for the rest of the file at once, which is read
    only up to a bound."""
    monkeypatch.setattr(listing_json, "STRETCH", 500)
    monkeypatch.setattr(listing_json, "_WHOLE", 2000)
    entries = [
        entry(f"{i}.jpg", f"{i}.json", meta={"a": {"b": 1}, "c": {"d": "},"}, "e": "x" * (i % 7)}) for i in range(200)
    ]
    assert read(json.dumps(entries)) == [(f"{i}.jpg", f"{i}.json") for i in range(200)]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("./00000/1.jpg", "00000/1.jpg"),
        ("00000/./1.jpg", "00000/1.jpg"),
        ("00000//1.jpg", "00000/1.jpg"),
        ("/00000/1.jpg", "00000/1.jpg"),  # tar strips the slash too
        ("././/1.jpg", "1.jpg"),
        ("../1.jpg", "../1.jpg"),  # stays: it is a key, and matches only a member of that name
        ("00000/../1.jpg", "00000/../1.jpg"),
        ("00000/a.b/.hidden.jpg", "00000/a.b/.hidden.jpg"),
        ("00000/ä図🎨.jpg", "00000/ä図🎨.jpg"),
        ("1.jpg\0.txt", "1.jpg"),  # names end at a NUL, in a tar as well
        ("half \ud83d.jpg", "half \\ud83d.jpg"),  # no file system holds it, no column does
        ("with\nnewline/./1.jpg", "with\nnewline/1.jpg"),
        (".", ""),  # what is odd about these three lies at their ends
        ("a/.", "a"),
        ("a/", "a"),
        ("back\\slash.jpg", "back\\slash.jpg"),
        ("", ""),
    ],
)
def test_paths_are_normalised(written: str, meant: str, stretch: int) -> None:
    for position in range(3):  # wherever in the list the odd one stands
        entries = [entry(f"{i}.jpg", f"{i}.json") for i in range(3)]
        entries[position] = entry(written, written)
        assert read(json.dumps(entries))[position] == (meant, meant)
        assert len(read(json.dumps(entries, ensure_ascii="\ud83d" in written))) == 3


@pytest.mark.parametrize("together", [1, 2, 100])
def test_the_ids_of_a_column_are_those_of_its_paths(together: int) -> None:
    found = read_listing([Held(json.dumps([entry("./a.jpg", "/b.json"), entry("ä", "ä")]).encode())])
    assert len(found) == 2
    for column, paths in ((found.images, ["a.jpg", "ä"]), (whole_text(found.annotations), ["b.json", "ä"])):
        assert (np.concatenate(list(column_ids(column, together))) == path_ids(paths)).all()


def test_a_path_s_id_is_its_xxh3() -> None:
    ids = path_ids(["a", "ä", ""])
    assert ids.shape == (3, 2)
    assert ids.tobytes() == b"".join(xxhash.xxh3_128_digest(path.encode()) for path in ["a", "ä", ""])
    assert path_ids([]).shape == (0, 2)


def test_duplicates_stay_in_the_listing() -> None:
    """They are counted later, as rejects: ten per cent of them must not shorten what was listed."""
    entries = [entry(f"{i % 90}.jpg", f"{i}.json") for i in range(100)]
    assert read(json.dumps(entries)) == [(f"{i % 90}.jpg", f"{i}.json") for i in range(100)]


WHOLE = json.dumps(THREE).encode()


@pytest.mark.parametrize("length", range(1, len(WHOLE)))
def test_wherever_it_is_cut_off_the_error_says_where(length: int) -> None:
    place, problem = refused(WHOLE[:length])
    assert "cut off" in problem or "Expecting" in problem
    assert place.startswith("byte ")
    # a string that is not closed is reported from its opening quote
    assert length - 25 <= int(place.removeprefix("byte ")) <= length


@pytest.mark.parametrize("length", [len(WHOLE) // 3, len(WHOLE) - 1])
def test_a_cut_in_a_later_stretch_has_its_place_in_the_file(length: int, stretch: int) -> None:
    place, problem = refused(WHOLE[:length])
    assert "cut off" in problem
    assert length - 25 <= int(place.removeprefix("byte ")) <= length


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        (b"", "byte 0", "empty"),
        (b" \n ", "byte 3", "blank"),
        (b"\xef\xbb\xbf", "byte 3", "blank"),
        (b"{}", "entry 0", 'has no "image"'),
        (b'{\n "a": 1}', "byte 0", "found an object; expected"),
        (b'\xef\xbb\xbf {"image": "a"}', "entry 0", 'no "annotation" and no caption'),
        (b"null", "byte 0", "null"),
        (b'"[]"', "byte 0", "expected a JSON list"),
        (b"\xff\xfe[\0]\0", "byte 0", "expected a JSON list"),  # UTF-16
        (b"[] []", "byte 3", "Extra data"),
        (b"[1]", "entry 0", "1 is not an object"),
        (b"[[]]", "entry 0", "[] is not an object"),
        (b"[null]", "entry 0", "null is not an object"),
        (b'["image"]', "entry 0", "not an object"),
        (b'[{"annotation": "a"}]', "entry 0", 'has no "image"; its keys: annotation'),
        (b"[{}]", "entry 0", "its keys: none"),
        (b'[{"image": "a", "annotation": null}]', "entry 0", '"annotation" is null, not a path'),
        (b'[{"image": 5, "annotation": "a"}]', "entry 0", '"image" is 5, not a path'),
        (b'[{"image": ["a"], "annotation": "a"}]', "entry 0", "not a path"),
        (b'[{"image": true, "annotation": "a"}]', "entry 0", '"image" is true'),
        (b'[{"image": "a", "annotation": "b"}, {"image": "a"}]', "entry 1", 'has no "annotation"'),
        (b'[{"image": "a", "annotation": "b"}, 7]', "entry 1", "7 is not an object"),
        (b'[{"image": "\xff", "annotation": "b"}]', "byte 12", "not UTF-8"),
        (b'[{"image": "\xed\xa0\xbd", "annotation": "b"}]', "byte 12", "not UTF-8"),  # a surrogate in three bytes
        (b'[{"image": "a" "annotation": "b"}]', "byte 15", "Expecting ',' delimiter"),
        (b"[" * 100_000, "after byte 0", "nested too deeply"),
        (b'[{"image": "a", "annotation": "b", "n": ' + b"1" * 5000 + b"}]", "after byte 0", "digits"),
    ],
)
def test_what_is_no_listing_is_an_error_with_its_place(text: bytes, place: str, problem: str) -> None:
    found = refused(text)
    assert found[0] == place
    assert problem in found[1]


def test_an_entry_is_numbered_within_its_file(stretch: int) -> None:
    text = json.dumps([*THREE, *THREE, {"image": "a"}])
    assert refused(text)[0] == "entry 6"
    with pytest.raises(ListingError, match="entry 6"):
        read(json.dumps(THREE), text)


@pytest.mark.parametrize("bad", [b'"\xff"', b'"\xed\xa0\xbd"'])
def test_bytes_that_are_no_utf8_are_refused_in_every_stretch(bad: bytes, stretch: int) -> None:
    for position in range(3):
        entries = [b'{"image": "1.jpg", "annotation": "1.json"}'] * 3
        entries[position] = b'{"image": ' + bad + b', "annotation": "1.json"}'
        text = b"[" + b", ".join(entries) + b"]"
        place, problem = refused(text)
        assert problem == "not UTF-8"
        assert place == f"byte {text.index(bad) + 1}"


def test_an_error_quotes_no_more_than_a_glimpse() -> None:
    _, problem = refused(json.dumps([entry({"x" * 1000: "y" * 100_000})]))
    assert len(problem) < 200


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@given(
    st.lists(
        st.tuples(names, names, st.none() | names | st.lists(st.dictionaries(names, names, max_size=2))), max_size=12
    ),
    st.integers(1, 200),
    st.sampled_from([None, 0, 2]),
    st.booleans(),
)
def test_stretches_change_nothing(
    entries: list[tuple[str, str, Any]], size: int, indent: int | None, ascii_only: bool
) -> None:
    documents = [{"x": other, "image": image, "annotation": annotation} for image, annotation, other in entries]
    text = json.dumps(documents, indent=indent, ensure_ascii=ascii_only)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing_json, "STRETCH", size)
        found = read(text)
    assert found == read(text)
    assert len(found) == len(entries)


def test_memory_is_that_of_the_columns_not_of_the_objects(tmp_path: Path) -> None:
    count = 60_000
    path = tmp_path / "data.json"
    path.write_text(json.dumps([entry(f"00000/{i:09d}.jpg", f"00000/{i:09d}.json") for i in range(count)]))
    file = LocalFile(str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing_json, "STRETCH", 1 << 16)
        tracemalloc.start()
        try:
            found = read_listing([file])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    file.close()
    assert len(found) == count
    assert peak < 150 * count  # as objects: some 450 bytes each


def test_a_listing_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(Held):
        asked = 0

        def read_at(self, offset: int, length: int) -> bytes:
            self.asked += length
            assert self.asked < 1 << 20, "read on and on"
            return b"[" + b" " * (length - 1) if offset == 0 else b" " * length

    monkeypatch.setattr(listing_json, "STRETCH", 1 << 10)
    monkeypatch.setattr(listing_json, "_WHOLE", 1 << 16)
    with pytest.raises(ListingError, match="an entry is longer than"):
        read_listing([Endless(b"")])


def test_no_files_are_an_empty_listing() -> None:
    empty = read_listing([])
    assert len(empty) == len(empty.images) == len(empty.annotations) == 0
