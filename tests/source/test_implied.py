"""Listings that nobody wrote: one entry for each annotation."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.source.implied import listing_of_annotations
from tests.scanned import entries, scanned


def test_every_annotation_is_an_entry_with_the_image_of_its_name(tmp_path: Path) -> None:
    raw = [scanned(tmp_path / "0.tar", ["0/a.jpg", "0/b.png", "0/free.jpg", "0/notes.txt"])]
    captions = [
        scanned(tmp_path / "y.tar", ["0/b.json", "0/gone.json", "0/readme.txt"]),
        scanned(tmp_path / "x.tar", ["0/a.json"]),
    ]
    assert entries(listing_of_annotations(raw, captions)) == [
        ("0/b.png", "0/b.json"),  # in the order of the annotations' archives
        ("0/gone.jpg", "0/gone.json"),  # listed all the same, and counted as missing later
        ("0/a.jpg", "0/a.json"),
    ]


def test_annotations_may_lie_beside_the_images(tmp_path: Path) -> None:
    raw = [scanned(tmp_path / "0.tar", ["0/a.jpg", "0/a.json", "0/b.json", "0/b.webp", "0/free.jpg"])]
    assert entries(listing_of_annotations(raw, raw)) == [("0/a.jpg", "0/a.json"), ("0/b.webp", "0/b.json")]


def test_an_annotation_that_occurs_twice_is_one_entry(tmp_path: Path) -> None:
    captions = [scanned(tmp_path / "0.tar", ["0/a.json", "0/b.json"]), scanned(tmp_path / "1.tar", ["0/a.json"])]
    raw = [scanned(tmp_path / "r.tar", ["0/a.jpg", "0/b.jpg"])]
    assert entries(listing_of_annotations(raw, captions)) == [("0/b.jpg", "0/b.json"), ("0/a.jpg", "0/a.json")]


def test_of_two_images_of_one_stem_the_later_one_is_meant(tmp_path: Path) -> None:
    raw = [scanned(tmp_path / "0.tar", ["0/a.jpg", "0/a.png", "0/a.json"])]
    assert entries(listing_of_annotations(raw, raw)) == [("0/a.png", "0/a.json")]


def test_dots_in_names_are_part_of_the_key(tmp_path: Path) -> None:
    raw = [scanned(tmp_path / "0.tar", ["0.0/a.b.jpg", "0.0/a.b.json", "0.0/a.jpg", "0.0/a.json"])]
    assert entries(listing_of_annotations(raw, raw)) == [("0.0/a.b.jpg", "0.0/a.b.json"), ("0.0/a.jpg", "0.0/a.json")]


def test_without_annotations_nothing_is_listed(tmp_path: Path) -> None:
    raw = [scanned(tmp_path / "0.tar", ["0/a.jpg"])]
    assert entries(listing_of_annotations(raw, [])) == []
    assert entries(listing_of_annotations([], [])) == []
    assert entries(listing_of_annotations(raw, raw)) == []


def test_annotations_without_any_image_are_still_entries(tmp_path: Path) -> None:
    captions = [scanned(tmp_path / "0.tar", ["0/a.json"])]
    assert entries(listing_of_annotations([], captions)) == [("0/a.jpg", "0/a.json")]
    assert entries(listing_of_annotations([scanned(tmp_path / "r.tar", [])], captions)) == [("0/a.jpg", "0/a.json")]


def test_archives_scanned_without_names_are_a_mistake_of_ours(tmp_path: Path) -> None:
    table = scanned(tmp_path / "0.tar", ["0/a.json"], names=False)
    with pytest.raises(ValueError, match="without names"):
        listing_of_annotations([table], [table])
