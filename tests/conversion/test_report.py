from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest

from builder.base.records import Totals
from builder.base.words import size
from builder.conversion.report import describe_summary
from builder.conversion.summary import Summary

DONE = Summary(
    out="OUT",
    totals=Totals(rows=1952, rejected={}, unlisted=0, shards=4, image_bytes=1_500_000_000),
    examples={},
    damage={},
    complete=True,
    did=4,
    missing=0,
    seconds=61.2,
    read_images=976,
    read_bytes=750_000_000,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (1_699_539_753, "1.70 GB"),
        (10**15, "1000.00 TB"),
    ],
)
def test_a_size_has_three_digits_and_a_unit(count: int, text: str) -> None:
    assert size(count) == text


def test_a_whole_run_is_summed_up_with_what_to_do_next() -> None:
    assert describe_summary(DONE).splitlines() == [
        "1,952 rows of 1,952 listed samples in 4 shards, 1.50 GB of images",
        "1 min 1 s: 16 images/s, 12 MB/s",  # of this run: half of it was there
        "none rejected",
        "next: laion6m verify OUT",
        "      python -c 'from builder import open_dataset; print(open_dataset(\"OUT\")[0])'",
    ]


def test_rejects_are_told_by_reason_most_first_each_with_an_example() -> None:
    totals = replace(DONE.totals, rejected={"image_missing": 2, "caption_invalid": 30}, unlisted=7)
    examples = {"image_missing": "a: a.jpg is not there (0.tar)", "caption_invalid": "b: caption is blank (0.tar)"}
    lines = describe_summary(replace(DONE, totals=totals, examples=examples)).splitlines()
    assert lines[0].startswith("1,952 rows of 1,984 listed samples")
    assert lines[2:6] == [
        "32 rejected:",
        "         30  caption_invalid   e.g. b: caption is blank (0.tar)",
        "          2  image_missing     e.g. a: a.jpg is not there (0.tar)",
        "left out: 7 images of the source that no listing names",
    ]


def test_damaged_archives_are_named_the_first_few_of_them() -> None:
    damage = {
        f"raw/{number}.tar": ["bytes 0 to 9: cut", "bytes 20 to 30: odd"][: 1 + number % 2] for number in range(7)
    }
    lines = [line for line in describe_summary(replace(DONE, damage=damage)).splitlines() if "damaged" in line]
    assert lines[0] == "damaged: raw/0.tar, bytes 0 to 9: cut"
    assert lines[1] == "damaged: raw/1.tar, bytes 0 to 9: cut, and 1 more"
    assert lines[5:] == ["damaged: 2 more archives. meta/manifest.json names them"]


def test_a_run_that_found_all_done_says_so() -> None:
    assert describe_summary(replace(DONE, did=0)).splitlines()[1].endswith("1 min 1 s: everything was done before")


def test_a_slice_says_how_to_finish() -> None:
    last = describe_summary(replace(DONE, complete=False, missing=12)).splitlines()[-1]
    assert "12 shards are still to do" in last
    assert "run the same command without --start and --end" in last


def test_a_run_of_no_time_at_all_divides_by_nothing() -> None:
    assert "0 s" in describe_summary(replace(DONE, seconds=0.0)).splitlines()[1]


def test_the_json_of_a_run_has_the_contracts_fields() -> None:
    assert DONE.to_json() == {
        "rows": 1952,
        "listed": 1952,
        "rejected": {},
        "unlisted": 0,
        "shards": 4,
        "image_bytes": 1_500_000_000,
        "unread": {},
        "replaced": 0,
        "damage": {},
        "seconds": 61.2,
        "out": "OUT",
    }


def test_text_of_the_source_cannot_steer_the_terminal() -> None:
    totals = replace(DONE.totals, rejected={"image_missing": 1})
    examples = {"image_missing": "a\033[2J\nnone rejected: a.jpg"}
    text = describe_summary(replace(DONE, totals=totals, examples=examples, damage={"raw/\r\x07.tar": ["x"]}))
    assert not set(text) & set("\033\r\x07")
    assert "none rejected" not in text.splitlines()


def test_the_next_commands_open_a_url_with_the_same_options_but_without_their_secrets() -> None:
    options = {"s3": {"endpoint_url": "http://127.0.0.1:9000", "key": "AKIA", "secret": "hush"}}
    *_, verify, read = describe_summary(replace(DONE, out="s3://bucket/a b"), options).splitlines()
    command = shlex.split(verify.removeprefix("next: "))
    assert command[:4] == ["laion6m", "verify", "s3://bucket/a b", "--storage-options"]
    assert json.loads(command[4]) == {"s3": {"endpoint_url": "http://127.0.0.1:9000", "key": "…", "secret": "…"}}
    assert "storage_options={'s3': {'endpoint_url': 'http://127.0.0.1:9000'" in shlex.split(read)[2]
    compile(shlex.split(read)[2], "next", "exec")


def test_a_folder_needs_no_storage_options_though_its_source_did() -> None:
    assert describe_summary(DONE, {"anon": True}) == describe_summary(DONE)
