"""Listings that nobody wrote: one entry for each recaption."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder.base.errors import ListingError
from builder.plan.recaptions import listing_of_recaptions, wanted_field
from builder.source.listing import Listing
from builder.source.tables import ArchiveTable
from tests.scanned import entries, scanned


def parquet(path: Path, columns: dict[str, Any]) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def sidecar(url: str | None) -> bytes:
    return json.dumps({"url": url, "caption": "alt"}).encode()


@pytest.fixture
def raw(tmp_path: Path) -> list[ArchiveTable]:
    """Two tars as img2dataset leaves them; 3 has no sidecar, and the sidecar of 4 no image."""
    first = {"1.jpg": b"i", "1.json": sidecar("http://1"), "1.txt": b"t", "2.webp": b"i", "2.json": sidecar("http://2")}
    second = {"3.jpg": b"i", "4.json": sidecar("http://4"), "5.jpg": b"i", "5.json": sidecar(None)}
    return [scanned(tmp_path / "0.tar", first, field="url"), scanned(tmp_path / "1.tar", second, field="url")]


def documents(listing: Listing) -> list[dict[str, Any]]:
    assert listing.recaptions is not None
    return [json.loads(document) for document in listing.recaptions.to_pylist()]


def test_recaptions_are_joined_by_key(tmp_path: Path, raw: list[ArchiveTable]) -> None:
    file = parquet(tmp_path / "r.parquet", {"key": ["3", "1", "9"], "re_caption": ["c", "a", "z"], "score": [1, 2, 3]})
    listing = listing_of_recaptions([file], raw, "auto").listing
    assert entries(listing) == [("3.jpg", "3.json"), ("1.jpg", "1.json"), ("9.jpg", "9.json")]
    assert documents(listing)[1] == {"key": "1", "re_caption": "a", "score": 2}


def test_recaptions_are_joined_by_url(tmp_path: Path, raw: list[ArchiveTable]) -> None:
    file = parquet(tmp_path / "r.parquet", {"url": ["http://2", "http://1", "http://9"], "re_caption": ["b", "a", "z"]})
    listing = listing_of_recaptions([file], raw, "auto").listing
    assert entries(listing)[:2] == [("2.webp", "2.json"), ("1.jpg", "1.json")]
    assert "http://9" in entries(listing)[2][0]  # found nowhere: named as far as it has a name
    assert len(listing) == 3


@pytest.mark.parametrize("url", ["http://9", "9", None, ""])
def test_the_url_counts_where_there_are_both(tmp_path: Path, raw: list[ArchiveTable], url: str | None) -> None:
    """Keys are numbers within one download: in another of the same list they are other images'. A recaption whose url
    leads nowhere must not come out with the image that happens to have its key, nor by way of its name."""
    columns = {"url": pa.array(["http://2", url], pa.string()), "key": ["1", "1"], "re_caption": ["b", "whose?"]}
    listing = listing_of_recaptions([parquet(tmp_path / "r.parquet", columns)], raw, "auto").listing
    assert entries(listing)[0] == ("2.webp", "2.json")
    there = {name for table in raw if table.names is not None for name in table.names.to_pylist()}
    assert not there & set(entries(listing)[1])
    assert len(listing) == 2


@pytest.mark.parametrize("url", [None, ""])
def test_a_recaption_without_a_url_is_joined_with_nothing(
    tmp_path: Path, raw: list[ArchiveTable], url: str | None
) -> None:
    """Members without a url of their own (images, texts) must not be what it is found at."""
    columns = {"url": pa.array(["http://1", url], pa.string()), "re_caption": ["a", "whose?"]}
    listing = listing_of_recaptions([parquet(tmp_path / "r.parquet", columns)], raw, "auto").listing
    found = entries(listing)
    assert found[0] == ("1.jpg", "1.json")
    assert found[1][0] not in {"1.jpg", "2.webp", "3.jpg", "5.jpg"}


def test_recaptions_without_url_and_key_do_not_become_duplicates_of_each_other(
    tmp_path: Path, raw: list[ArchiveTable]
) -> None:
    columns = {"url": pa.array([None, None], pa.string()), "re_caption": ["a", "b"]}
    images = listing_of_recaptions([parquet(tmp_path / "r.parquet", columns)], raw, "auto").listing.images.to_pylist()
    assert len(set(images)) == 2
    assert all("r.parquet" in image for image in images)


def test_a_sidecar_without_its_image_names_the_sample(tmp_path: Path, raw: list[ArchiveTable]) -> None:
    file = parquet(tmp_path / "r.parquet", {"url": ["http://4"], "re_caption": ["d"]})
    assert entries(listing_of_recaptions([file], raw, "auto").listing) == [("4.jpg", "4.json")]


def test_files_of_recaptions_follow_one_another_each_joined_by_what_it_has(
    tmp_path: Path, raw: list[ArchiveTable]
) -> None:
    files = [
        parquet(tmp_path / "b.parquet", {"key": ["3"], "re_caption": ["c"]}),
        parquet(tmp_path / "a.parquet", {"url": ["http://1"], "re_caption": ["a"]}),
        parquet(
            tmp_path / "empty.parquet", {"url": pa.array([], pa.string()), "re_caption": pa.array([], pa.string())}
        ),
    ]
    assert entries(listing_of_recaptions(files, raw, "auto").listing) == [("3.jpg", "3.json"), ("1.jpg", "1.json")]
    assert wanted_field(files, None)
    assert not wanted_field(files[:1], None)


@pytest.mark.parametrize(
    ("columns", "caption_key", "document"),
    [
        ({"caption": ["a"]}, "auto", {"key": "1", "re_caption": "a"}),  # else the alt text would be taken for it
        ({"caption": ["alt"], "re_caption": ["a"]}, "auto", {"key": "1", "caption": "alt", "re_caption": "a"}),
        ({"text": ["a"], "caption": ["alt"]}, "text", {"key": "1", "text": "a", "caption": "alt"}),
        ({"re_caption": pa.array([None], pa.string())}, "auto", {"key": "1", "re_caption": None}),
        (
            {"re_caption": ["a"], "at": [datetime(2026, 1, 2)]},
            "auto",
            {"key": "1", "re_caption": "a", "at": "2026-01-02 00:00:00"},
        ),
        ({"re_caption": ["a"], "size": [[1, 2]]}, "auto", {"key": "1", "re_caption": "a", "size": [1, 2]}),
        ({"re_caption": pa.array(["a"]).dictionary_encode()}, "auto", {"key": "1", "re_caption": "a"}),
    ],
)
def test_a_recaption_s_columns_are_its_document(
    tmp_path: Path, raw: list[ArchiveTable], columns: dict[str, Any], caption_key: str, document: dict[str, Any]
) -> None:
    file = parquet(tmp_path / "r.parquet", {"key": ["1"], **columns})
    assert documents(listing_of_recaptions([file], raw, caption_key).listing) == [document]


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.binary(2), pa.list_(pa.binary()), pa.struct([("bytes", pa.binary())])],
    ids=str,
)
def test_columns_with_bytes_in_them_are_left_out(tmp_path: Path, raw: list[ArchiveTable], kind: pa.DataType) -> None:
    """Recaptions that carry their images along: JSON has no bytes."""
    value: Any = {"bytes": b"xx"} if pa.types.is_struct(kind) else [b"xx"] if pa.types.is_list(kind) else b"xx"
    columns = {"key": ["1"], "image": pa.array([value], kind), "re_caption": ["a"]}
    listing = listing_of_recaptions([parquet(tmp_path / "r.parquet", columns)], raw, "auto").listing
    assert documents(listing) == [{"key": "1", "re_caption": "a"}]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
@pytest.mark.parametrize("joined", ["key", "url"])
def test_text_that_is_not_marked_as_text_is_text(
    tmp_path: Path, raw: list[ArchiveTable], kind: pa.DataType, joined: str
) -> None:
    """As ClickHouse's String and Hive write it. What is no text stays out, as where text is marked."""
    columns = {
        joined: pa.array([b"1"], kind),
        "re_caption": pa.array(["ä caption".encode()], kind),
        "source": pa.array([None], kind),
        "model": pa.array([b"InternVL"], kind),
        "image": pa.array([b"\xff\xd8"], kind),
    }
    listing = listing_of_recaptions([parquet(tmp_path / "r.parquet", columns)], raw, "auto").listing
    assert documents(listing) == [{joined: "1", "re_caption": "ä caption", "model": "InternVL"}]


def test_a_caption_of_bytes_that_is_no_text_is_an_error(tmp_path: Path, raw: list[ArchiveTable]) -> None:
    columns = {"key": ["1"], "re_caption": pa.array([b"\xff"], pa.binary())}
    with pytest.raises(ListingError, match="utf-8"):
        listing_of_recaptions([parquet(tmp_path / "r.parquet", columns)], raw, "auto")


def test_a_field_that_is_only_called_binary_is_kept(tmp_path: Path, raw: list[ArchiveTable]) -> None:
    columns = {"key": ["1"], "re_caption": ["a"], "x": pa.array([{"binary": "text"}])}
    listing = listing_of_recaptions([parquet(tmp_path / "r.parquet", columns)], raw, "auto").listing
    assert documents(listing) == [{"key": "1", "re_caption": "a", "x": {"binary": "text"}}]


def test_a_number_is_a_key_too(tmp_path: Path, raw: list[ArchiveTable]) -> None:
    file = parquet(tmp_path / "r.parquet", {"key": [3], "re_caption": ["c"]})
    assert entries(listing_of_recaptions([file], raw, "auto").listing) == [("3.jpg", "3.json")]


@pytest.mark.parametrize(
    ("columns", "caption_key", "says"),
    [
        ({"key": ["1"]}, "auto", "found key; a column re_caption or caption is needed"),
        ({"re_caption": ["a"]}, "auto", "found re_caption; a column url or key is needed"),
        ({"key": ["1"], "re_caption": ["a"]}, "text", "found key, re_caption; a column text is needed"),
    ],
)
def test_missing_columns_are_named(
    tmp_path: Path, raw: list[ArchiveTable], columns: dict[str, Any], caption_key: str, says: str
) -> None:
    file = parquet(tmp_path / "r.parquet", columns)
    with pytest.raises(ListingError) as caught:
        listing_of_recaptions([file], raw, caption_key)
    assert caught.value.args[:2] == (file, "columns")
    assert says in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b'{"key": 1}', b"PAR1" + b"\xff" * 100 + b"\x40\0\0\0PAR1"])
def test_what_is_no_parquet_is_a_listing_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.parquet").write_bytes(content)
    with pytest.raises(ListingError, match="not a Parquet file"):
        wanted_field([str(tmp_path / "r.parquet")], None)


def test_damage_inside_a_parquet_file_is_a_listing_error(tmp_path: Path, raw: list[ArchiveTable]) -> None:
    file = tmp_path / "r.parquet"
    parquet(file, {"key": ["1"] * 1000, "re_caption": [f"caption {i}" for i in range(1000)]})
    data = bytearray(file.read_bytes())
    data[4:400] = b"\xa5" * 396
    file.write_bytes(data)
    with pytest.raises(ListingError, match=r"r\.parquet"):
        listing_of_recaptions([str(file)], raw, "auto")


def test_without_archives_every_recaption_is_still_an_entry(tmp_path: Path) -> None:
    for name, value in (("key", "1"), ("url", "http://1")):
        file = parquet(tmp_path / "r.parquet", {name: [value], "re_caption": ["a"]})
        assert len(listing_of_recaptions([file], [], "auto").listing) == 1
