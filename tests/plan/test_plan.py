from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.base.arrays import string_array
from builder.base.ids import path_ids
from builder.base.records import CUT, SPARSE, WHOLE, Damage
from builder.plan import plan as planning
from builder.plan.plan import Cut, Plan, cut_shards
from builder.source.endings import IMAGE_ENDINGS, stem_of
from builder.source.layout import Archive, Layout
from builder.source.listing import Listing
from builder.source.tables import ArchiveTable
from tests.scanned import plan_of_tables

MB = 1_000_000


class Member(NamedTuple):
    name: str
    offset: int
    size: int = 100
    state: int = WHOLE


def table(members: Sequence[Member], size: int | None = None, damage: tuple[Damage, ...] = ()) -> ArchiveTable:
    names = [member.name for member in members]
    return ArchiveTable(
        ids=path_ids(names),
        offsets=np.array([member.offset for member in members], dtype=np.int64),
        sizes=np.array([member.size for member in members], dtype=np.int64),
        states=np.array([member.state for member in members], dtype=np.uint8),
        is_image=np.array([name.endswith(IMAGE_ENDINGS) for name in names], dtype=np.bool_),
        is_json=np.array([name.endswith(".json") for name in names], dtype=np.bool_),
        size=max([m.offset + m.size for m in members], default=0) if size is None else size,
        damage=damage,
        compression=None,
    )


def listing(entries: Sequence[tuple[str, str]]) -> Listing:
    images, annotations = [image for image, _ in entries], [annotation for _, annotation in entries]
    return Listing(string_array(images), string_array(annotations))


def layout(raw: int, captions: int) -> Layout:
    def archives(side: str, count: int) -> tuple[Archive, ...]:
        return tuple(Archive(f"{n:05d}.tar", f"/s/{side}/{n:05d}.tar", False, 1, 1) for n in range(count))

    return Layout("card", "/s", "/s/raw", "/s/captions", archives("raw", raw), archives("captions", captions), ())


def plan_of(
    entries: Sequence[tuple[str, str]],
    raw: Sequence[ArchiveTable],
    captions: Sequence[ArchiveTable],
    max_shard_size: int = 500 * MB,
) -> Plan:
    plan = plan_of_tables(layout(len(raw), len(captions)), listing(entries), raw, captions, max_shard_size)
    assert plan.listed == len(entries) == plan.rows.num_rows + plan.rejects.num_rows
    assert len(plan.bounds) == plan.shards + 1
    assert plan.bounds[0] == 0
    assert plan.bounds[-1] == plan.rows.num_rows
    assert list(plan.bounds) == sorted(plan.bounds)
    return plan


def pair(number: int, folder: str = "00000") -> tuple[str, str]:
    return f"{folder}/{number}.jpg", f"{folder}/{number}.json"


def reasons(plan: Plan) -> dict[int, str]:
    return dict(
        zip(plan.rejects.column("position").to_pylist(), plan.rejects.column("reason").to_pylist(), strict=True)
    )


@pytest.mark.parametrize(
    ("sizes", "text", "expected"),
    [
        ([], 0, [(0, 0, 0, 0)]),  # nothing at all is one empty shard
        ([0], 0, [(0, 0, 0, 0)]),
        ([40, 40, 40], 0, [(0, 0, 1, 40), (2, 0, 2, 40)]),
        ([98], 0, [(0, 0, 0, 98)]),  # 0.98 of 100 are the room
        ([99], 0, [(0, 0, 0, 49), (0, 49, 0, 99)]),
        ([10, 250, 10], 0, [(0, 0, 0, 10), (1, 0, 1, 83), (1, 83, 1, 166), (1, 166, 1, 250), (2, 0, 2, 10)]),
        ([40, 40], 80, [(0, 0, 0, 40), (1, 0, 1, 40)]),  # as much text again: half the room
        ([0, 0, 0], 0, [(0, 0, 2, 0)]),
        ([0, 98, 0], 0, [(0, 0, 2, 0)]),  # an empty tar is no reason for a shard of its own
    ],
)
def test_shards_are_stretches_of_archives(
    sizes: list[int], text: int, expected: list[tuple[int, int, int, int]]
) -> None:
    assert cut_shards(sizes, text, 100) == tuple(Cut(*each) for each in expected)


@given(
    sizes=st.lists(st.integers(0, 5000) | st.integers(0, 10**7), max_size=40),
    text=st.integers(0, 10**6),
    largest=st.integers(1000, 10**6),
)
def test_shards_cover_every_byte_once_in_order_and_stay_below_the_limit(
    sizes: list[int], text: int, largest: int
) -> None:
    cuts = cut_shards(sizes, text, largest)
    covered: list[tuple[int, int, int]] = []
    for cut in cuts:
        for archive in range(cut.first, min(cut.last + 1, len(sizes))):
            start = cut.start if archive == cut.first else 0
            end = cut.end if archive == cut.last else sizes[archive]
            covered.append((archive, start, end))
    whole: list[tuple[int, int, int]] = []
    for archive, start, end in covered:
        if whole and whole[-1][0] == archive:
            assert whole[-1][2] == start
            whole[-1] = (archive, whole[-1][1], end)
        else:
            whole.append((archive, start, end))
    assert whole == [(number, 0, size) for number, size in enumerate(sizes)]
    factor = 1 + text / max(1, sum(sizes))
    for cut in cuts:
        held = sum(sizes[cut.first : cut.last]) - cut.start + cut.end if sizes else 0
        assert (held - 1) * factor <= largest  # parts of an archive are whole bytes


def test_rows_follow_archive_and_offset_whatever_the_listings_order() -> None:
    raw = [
        table([Member("00000/9.jpg", 512), Member("00000/1.jpg", 2048)]),
        table([Member("00001/0.jpg", 512), Member("00000/5.jpg", 1024)]),
    ]
    captions = [table([Member(f"00000/{n}.json", n * 512) for n in (5, 9, 1)] + [Member("00001/0.json", 9999)])]
    entries = [pair(5), pair(0, "00001"), pair(1), pair(9)]
    rows = plan_of(entries, raw, captions).rows
    assert rows.column("path").to_pylist() == ["00000/9.jpg", "00000/1.jpg", "00001/0.jpg", "00000/5.jpg"]
    assert rows.column("position").to_pylist() == [3, 2, 1, 0]
    assert rows.column("archive").to_pylist() == [0, 0, 1, 1]
    assert rows.column("offset").to_pylist() == [512, 2048, 512, 1024]
    assert rows.column("annotation_offset").to_pylist() == [9 * 512, 512, 9999, 5 * 512]


def test_a_later_member_of_the_same_name_wins_across_archives_too() -> None:
    raw = [
        table([Member("a.jpg", 512, 1), Member("a.jpg", 1024, 2), Member("b.jpg", 2048, 3)]),
        table([Member("b.jpg", 512, 4), Member("c.jpg", 1024, 5, CUT), Member("c.jpg", 2048, 6)]),
    ]
    captions = [table([Member(f"{name}.json", number) for number, name in enumerate("abcc")])]
    plan = plan_of([(f"{name}.jpg", f"{name}.json") for name in "abc"], raw, captions)
    assert plan.rows.column("size").to_pylist() == [2, 4, 6]
    assert plan.rows.column("annotation_offset").to_pylist() == [0, 1, 3]
    assert plan.unlisted == 0


def test_a_second_entry_of_an_image_is_a_duplicate_and_the_first_counts() -> None:
    raw = [table([Member("00000/1.jpg", 512), Member("00000/2.jpg", 1024)])]
    captions = [table([Member("00000/1.json", 1), Member("00000/2.json", 2)])]
    entries = [("00000/1.jpg", "00000/2.json"), pair(1), pair(2), pair(1)]
    plan = plan_of(entries, raw, captions)
    assert plan.rows.column("position").to_pylist() == [0, 2]
    assert plan.rows.column("annotation_offset").to_pylist() == [2, 2]
    assert reasons(plan) == {1: "duplicate", 3: "duplicate"}


def test_a_second_entry_of_a_lost_image_is_a_duplicate_all_the_same() -> None:
    plan = plan_of([pair(1), pair(1)], [table([])], [table([Member("00000/1.json", 1)])])
    assert reasons(plan) == {0: "image_missing", 1: "duplicate"}


@pytest.mark.parametrize(
    ("paths", "keeping"),
    [
        (["a/1.jpg", "a/2.jpg"], []),
        (["a/1.jpg", "a/1.png", "a/2.jpg"], ["a/1.jpg", "a/1.png"]),
        (["a/1.jpg", "b/1.jpg"], []),  # the folder is part of the key
        (["a/1.jpg", "a/1.png", "a/1.jpg.gif"], ["a/1.jpg", "a/1.png", "a/1.jpg.gif"]),  # a kept one is in the way
        (["a/1", "a/1.jpg"], ["a/1", "a/1.jpg"]),
        (["a.b/1", "a.b/2.jpg"], []),  # a dot in the folder ends no name
        (["a/1.jpg", "a/1.jpg", "a/1.jpg"], []),  # duplicates are no others
        ([], []),
    ],
)
def test_keys_keep_their_endings_where_they_would_be_the_same_without(paths: list[str], keeping: list[str]) -> None:
    raw = [table([Member(path, 512 * number) for number, path in enumerate(dict.fromkeys(paths))])]
    captions = [table([Member("c.json", 0)])]
    rows = plan_of([(path, "c.json") for path in paths], raw, captions).rows
    kept = zip(rows.column("path").to_pylist(), rows.column("keeps_ending").to_pylist(), strict=True)
    assert [path for path, keeps in kept if keeps] == keeping


def test_nothing_listed_is_a_plan_of_no_rows() -> None:
    plan = plan_of([], [table([Member("00000/1.jpg", 512)])], [table([])])
    assert (plan.shards, plan.rows.num_rows, plan.unlisted) == (1, 0, 1)


def test_shards_do_not_depend_on_the_listing() -> None:
    raw = [table([Member(f"{n:05d}/{i}.jpg", i * 400_000, 399_000) for i in range(10)]) for n in range(3)]
    captions = [table([Member(f"{n:05d}/{i}.json", i) for n in range(3) for i in range(10)])]
    entries = [pair(i, f"{n:05d}") for n in range(3) for i in range(10)]
    whole = plan_of(entries, raw, captions, MB)
    assert whole.owners == (0,) * 5 + (1,) * 5 + (2,) * 5
    for some in (entries[::3], entries[7:12], []):
        assert plan_of(some, raw, captions, MB).owners == whole.owners


def test_a_row_belongs_to_the_shard_in_which_its_image_begins() -> None:
    edge = math.ceil(1_400_000 / 2)  # one tar in two even parts
    offsets = [0, edge - 1, edge, edge + 5, 1_399_000]
    raw = [table([Member(f"00000/{i}.jpg", offset, 10) for i, offset in enumerate(offsets)], 1_400_000)]
    captions = [table([Member(f"00000/{i}.json", i, 0) for i in range(5)], 0)]
    assert plan_of([pair(i) for i in range(5)], raw, captions, MB).bounds == (0, 2, 5)


def test_unlisted_images_are_counted_once_and_only_where_no_entry_names_them() -> None:
    members = [Member("00000/1.jpg", 0), Member("00000/2.jpg", 600), Member("00000/2.jpg", 1200)]
    members += [Member("00000/notes.txt", 1800), Member("00000/3.JPG".lower(), 2400, 100, SPARSE)]
    raw = [table(members)]
    assert plan_of([pair(1), pair(3)], raw, [table([Member("00000/1.json", 0)])]).unlisted == 1


names = st.sampled_from([f"{folder}{stem}{end}" for folder in ("", "0/") for stem in "ab" for end in (".jpg", ".png")])
documents = st.sampled_from(["a.json", "0/a.json", "0/b.json"])
states = st.sampled_from([WHOLE, WHOLE, WHOLE, CUT, SPARSE])


@given(
    entries=st.lists(st.tuples(names, documents), max_size=12),
    images=st.lists(st.lists(st.tuples(names, states), max_size=5), min_size=1, max_size=3),
    annotations=st.lists(st.lists(st.tuples(documents, states), max_size=4), min_size=1, max_size=2),
    damaged=st.booleans(),
)
def test_every_entry_is_a_row_or_a_reject_as_the_slow_way_says(
    entries: list[tuple[str, str]],
    images: list[list[tuple[str, int]]],
    annotations: list[list[tuple[str, int]]],
    damaged: bool,
) -> None:
    damage = (Damage(0, 9, "garbage"),) if damaged else ()

    def tables(archives: list[list[tuple[str, int]]]) -> list[ArchiveTable]:
        return [table([Member(n, 512 * i, 9, s) for i, (n, s) in enumerate(a)], damage=damage) for a in archives]

    plan = plan_of(entries, tables(images), tables(annotations))
    image = {name: (number, i, state) for number, a in enumerate(images) for i, (name, state) in enumerate(a)}
    document = {name: state for a in annotations for name, state in a}
    rows, lost, seen = [], {}, set()
    for position, (path, its_document) in enumerate(entries):
        if path in seen:
            lost[position] = "duplicate"
        elif image.get(path, (0, 0, CUT))[2] != WHOLE:
            lost[position] = "tar_damaged" if path in image or damaged else "image_missing"
        elif document.get(its_document, CUT) != WHOLE:
            lost[position] = "tar_damaged" if its_document in document or damaged else "caption_missing"
        else:
            rows.append((*image[path][:2], position))
        seen.add(path)
    assert plan.rows.column("position").to_pylist() == [position for *_, position in sorted(rows)]
    guesses = {p: r for p, r in reasons(plan).items() if r != lost[p]}
    # Damage explains a loss only where the archive in question can be guessed: by its number or by its neighbours.
    assert set(guesses.values()) <= {"image_missing", "caption_missing"}
    assert reasons(plan).keys() == lost.keys()
    assert all(lost[position] == "tar_damaged" for position in guesses)


def test_a_plan_of_many_samples_is_quick_enough_to_be_made_of_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six million entries must not become six million Python objects: planning looks at columns alone."""
    calls = []
    monkeypatch.setattr(planning, "stem_of", lambda path: calls.append(path) or stem_of(path))
    count = 5000
    raw = [table([Member(f"00000/{i}.jpg", i * 512) for i in range(count)])]
    captions = [table([Member(f"00000/{i}.json", i * 512) for i in range(count)])]
    plan = plan_of([pair(i) for i in range(count)], raw, captions)
    assert plan.rows.num_rows == count
    assert len(calls) == 1  # where all have one ending
    assert isinstance(plan.rows.column("archive").type, pa.DataType)


@given(
    st.lists(
        st.sampled_from(["a.jpg", "b.jpg", "a.png", "a/.jpg", "a/.jpg.jpg", ".jpg", "a.jpg.jpg", "jpg", "c.JPG"]),
        min_size=1,
    )
)
def test_one_ending_of_all_is_a_short_cut_to_the_same_keys(paths: list[str]) -> None:
    listing = Listing(pa.array(paths), pa.array(paths))
    duplicate = np.array([path in paths[:place] for place, path in enumerate(paths)], dtype=np.bool_)
    found = planning.endings_kept(listing, duplicate)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "_one_ending", lambda listing: False)
        assert planning.endings_kept(listing, duplicate).tolist() == found.tolist()
