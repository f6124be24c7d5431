from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest

from builder.base.arrays import string_array
from builder.base.ids import path_ids
from builder.base.options import MAX_ANNOTATION_BYTES, MAX_IMAGE_BYTES
from builder.base.records import CUT, SPARSE, WHOLE, Damage
from builder.source.layout import Archive, Layout
from builder.source.listing import Listing
from builder.source.tables import ArchiveTable
from tests.scanned import plan_of_tables


class Loss(NamedTuple):
    key: str
    reason: str
    detail: str
    source: str


Members = Sequence[tuple[str, int, int]]
GARBAGE = (Damage(1024, 4096, "bad checksum"),)


def tar(name: str, members: Members, damage: tuple[Damage, ...] = ()) -> tuple[Archive, ArchiveTable]:
    names = [name for name, _, _ in members]
    nothing = np.zeros(len(members), dtype=np.bool_)
    return Archive(name, f"/s/{name}", ".tar" not in name, 1, 1), ArchiveTable(
        ids=path_ids(names),
        offsets=np.arange(len(members), dtype=np.int64) * 512,
        sizes=np.array([size for _, size, _ in members], dtype=np.int64),
        states=np.array([state for _, _, state in members], dtype=np.uint8),
        is_image=nothing,
        is_json=nothing,
        size=512 * len(members),
        damage=damage,
        compression=None,
    )


def losses(
    entries: Sequence[tuple[str, str]],
    raw: Sequence[tuple[Archive, ArchiveTable]],
    captions: Sequence[tuple[Archive, ArchiveTable]],
) -> list[Loss]:
    images, annotations = [image for image, _ in entries], [annotation for _, annotation in entries]
    listing = Listing(string_array(images), string_array(annotations))
    sides = [tuple(archive for archive, _ in side) for side in (raw, captions)]
    layout = Layout("card", "/s", "/s/raw", "/s/captions", sides[0], sides[1], ())
    plan = plan_of_tables(layout, listing, [t for _, t in raw], [t for _, t in captions], 10**9)
    assert plan.rows.num_rows + plan.rejects.num_rows == len(entries)
    return [Loss(r["key"], r["reason"], r["detail"], r["source"]) for r in plan.rejects.to_pylist()]


GOOD = ("00000/1.jpg", 10, WHOLE)
DOCUMENT = ("00000/1.json", 10, WHOLE)
ENTRY = ("00000/1.jpg", "00000/1.json")


@pytest.mark.parametrize(
    ("raw", "captions", "reason", "detail", "source"),
    [
        # by the number of its tar
        ([tar("00000.tar", [])], None, "image_missing", "00000/1.jpg is not there", "00000.tar"),
        ([tar("00000", [])], None, "image_missing", "00000/1.jpg is not there", "00000"),
        ([tar("00000.tar.gz", [])], None, "image_missing", "00000/1.jpg is not there", "00000.tar.gz"),
        (
            [tar("00007.tar", []), tar("00008.tar", [])],
            None,
            "image_missing",
            "00000/1.jpg is in none of 2 archives; there is no 00000.tar",
            "",
        ),
        (
            [tar("00000.tar", [], GARBAGE), tar("00001.tar", [])],
            None,
            "tar_damaged",
            "00000/1.jpg not found; byte 1024: bad checksum",
            "00000.tar",
        ),
        # damage elsewhere explains nothing
        (
            [tar("00000.tar", []), tar("00001.tar", [], GARBAGE)],
            None,
            "image_missing",
            "00000/1.jpg is not there",
            "00000.tar",
        ),
        # found, but not whole
        ([tar("x.tar", [("00000/1.jpg", 9, CUT)])], None, "tar_damaged", "00000/1.jpg is cut off", "x.tar"),
        ([tar("x.tar", [("00000/1.jpg", 9, SPARSE)])], None, "tar_damaged", "00000/1.jpg is stored sparse", "x.tar"),
        (
            [tar("x.tar", [("00000/1.jpg", MAX_IMAGE_BYTES + 1, WHOLE)])],
            None,
            "image_too_large",
            "268,435,457 bytes are more than the 268,435,456 read of one image",
            "x.tar",
        ),
        # and the same for annotations
        (None, [tar("00000.tar", [])], "caption_missing", "00000/1.json is not there", "00000.tar"),
        (
            None,
            [tar("9.tar", [])],
            "caption_missing",
            "00000/1.json is in none of 1 archives; there is no 00000.tar",
            "",
        ),
        (None, [tar("9.tar", [("00000/1.json", 9, CUT)])], "tar_damaged", "00000/1.json is cut off", "9.tar"),
        (
            None,
            [tar("00000.tar", [], GARBAGE)],
            "tar_damaged",
            "00000/1.json not found; byte 1024: bad checksum",
            "00000.tar",
        ),
        (
            None,
            [tar("9.tar", [("00000/1.json", MAX_ANNOTATION_BYTES + 1, WHOLE)])],
            "caption_invalid",
            "33,554,433 bytes are more than the 33,554,432 read of one annotation",
            "9.tar",
        ),
        # the image is looked at first
        ([tar("00000.tar", [])], [tar("00000.tar", [])], "image_missing", "00000/1.jpg is not there", "00000.tar"),
    ],
)
def test_a_loss_has_a_reason_a_detail_and_a_place(
    raw: list[tuple[Archive, ArchiveTable]] | None,
    captions: list[tuple[Archive, ArchiveTable]] | None,
    reason: str,
    detail: str,
    source: str,
) -> None:
    found = losses([ENTRY], raw or [tar("00000.tar", [GOOD])], captions or [tar("00000.tar", [DOCUMENT])])
    assert found == [Loss("00000/1", reason, detail, source)]


def test_what_is_as_large_as_is_read_is_no_loss() -> None:
    raw = [tar("x.tar", [("00000/1.jpg", MAX_IMAGE_BYTES, WHOLE)])]
    assert losses([ENTRY], raw, [tar("x.tar", [("00000/1.json", MAX_ANNOTATION_BYTES, WHOLE)])]) == []


@pytest.mark.parametrize(
    ("path", "reason", "source"),
    [
        ("b.jpg", "tar_damaged", "1.tar"),  # between two that lie in the damaged tar
        ("d.jpg", "tar_damaged", "1.tar"),  # behind its last
        ("0.jpg", "image_missing", "0.tar"),  # before all, next to one in a sound tar
        ("z.jpg", "image_missing", "2.tar"),
        ("x.jpg", "tar_damaged", "1.tar"),  # between a damaged and a sound one: it may have been in the damaged
    ],
)
def test_flat_names_are_placed_by_their_neighbours(path: str, reason: str, source: str) -> None:
    names = [["1.jpg"], ["a.jpg", "c.jpg", "w.jpg"], ["y.jpg"]]
    raw = [
        tar(f"{number}.tar", [(name, 9, WHOLE) for name in some], GARBAGE if number == 1 else ())
        for number, some in enumerate(names)
    ]
    entries = [(name, "c.json") for some in names for name in some] + [(path, "c.json")]
    (loss,) = losses(entries, raw, [tar("c.tar", [("c.json", 9, WHOLE)])])
    assert (loss.reason, loss.source) == (reason, source)


def test_flat_names_are_in_no_archive_in_particular_where_none_is_damaged() -> None:
    raw = [tar("0.tar", [("a.jpg", 9, WHOLE)])]
    entries = [("a.jpg", "c.json"), ("b.jpg", "c.json")]
    (loss,) = losses(entries, raw, [tar("c.tar", [("c.json", 9, WHOLE)])])
    assert loss == Loss("b", "image_missing", "b.jpg is in none of 1 archives", "")


def test_when_nothing_at_all_was_found_damage_still_explains_it() -> None:
    raw = [tar("0.tar", [], GARBAGE)]
    (loss,) = losses([("a.jpg", "c.json")], raw, [tar("c.tar", [("c.json", 9, WHOLE)])])
    assert (loss.reason, loss.source) == ("tar_damaged", "0.tar")


def test_a_lost_image_that_has_a_twin_keeps_its_ending_in_its_key() -> None:
    raw = [tar("00000.tar", [("00000/1.png", 9, WHOLE)])]
    entries = [ENTRY, ("00000/1.png", "00000/1.json")]
    assert [loss.key for loss in losses(entries, raw, [tar("00000.tar", [DOCUMENT])])] == ["00000/1.jpg"]
