"""Listings that nobody wrote: one entry for each annotation."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from builder.base.errors import LayoutError
from builder.base.records import Damage
from builder.plan.implied import listing_of_annotations, refuse_unpaired
from builder.source.layout import EXPECTED, Archive, Layout
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


def layout(root: Path, *, flat: bool = False, captions: bool = False) -> Layout:
    raw = str(root if flat else root / "raw")
    archive = Archive("0.tar", f"{raw}/0.tar", False, 0, 0)
    return Layout("card", str(root), raw, raw, (archive,), (archive,) if captions else (), ())


@pytest.mark.parametrize(
    ("flat", "captions", "raw", "annotations", "found"),
    [
        (True, False, ["a.jpg"], None, "no annotation (*.json, *.txt) in its tars, and no data.json"),
        (True, False, ["a.json"], None, "annotations (*.json) but no image in its tars"),
        (True, False, ["a.jpg", "b.json"], None, None),
        (False, False, ["0/a.jpg"], None, "no annotation (*.json, *.txt) in raw/, and no data.json"),
        (False, True, ["0/a.jpg"], ["0/a.xml"], "no annotation (*.json, *.txt) in captions/, and no data.json"),
        (False, True, ["0/a.txt"], ["0/a.json"], None),  # counted, each as image_missing
        (False, True, ["0/a.jpg"], ["1/b.json"], None),
    ],
)
def test_what_no_sample_can_come_of_is_refused(
    flat: bool, captions: bool, raw: list[str], annotations: list[str] | None, found: str | None, tmp_path: Path
) -> None:
    images = [scanned(tmp_path / "r.tar", raw)]
    documents = images if annotations is None else [scanned(tmp_path / "c.tar", annotations)]
    with nullcontext() if found is None else pytest.raises(LayoutError) as caught:
        refuse_unpaired(layout(tmp_path, flat=flat, captions=captions), images, documents)
    if found is not None:
        assert caught.value.args == (str(tmp_path), found, EXPECTED)


def test_damage_may_be_why_there_is_no_annotation_and_is_reported_as_such(tmp_path: Path) -> None:
    table = replace(scanned(tmp_path / "0.tar", ["a.jpg"]), damage=(Damage(0, 512, "no header"),))
    refuse_unpaired(layout(tmp_path, flat=True), [table], [table])


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
