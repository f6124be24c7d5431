"""JSON that takes memory or time out of all proportion, listings in odd dress."""

from __future__ import annotations

import json
import tarfile
import time
from pathlib import Path

import pytest

from builder.base.errors import ListingError
from builder.base.records import Reason, SampleProblem
from builder.conversion.convert import convert
from builder.source import listing_json
from builder.source.captions import MOST_VALUES, excess, merge_recaption, read_annotation
from builder.source.listing import read_listing
from builder.source.tars import scan_tar
from stress.common import MemoryFile, account
from tests.sources import make_source

SECONDS = 5.0  # of this process, for what takes some hundredths


def refused(document: bytes) -> str:
    with pytest.raises(SampleProblem) as caught:
        read_annotation(document)
    assert caught.value.reason is Reason.CAPTION_INVALID
    return caught.value.detail


@pytest.mark.parametrize(
    "document",
    [
        b'{"caption": [' + b"[{" * 600 + b'\\"' * 1_000_000,  # a string for ever about to end: quadratic for patterns
        b'{"caption": [' + b"[{" * 600 + b'"' + b'\\"' * 1_000_000,
        b'{"caption": ' + b'"a",' * 1_000_000,
        b'{"caption": "x", "y": [' + b"[]," * 1_000_000 + b"1]}",
        b'{"caption": "x", "y": [' + b"{}," * 1_000_000 + b"1]}",
        b'{"caption": "x"' + b"".join(b',"%x":1' % number for number in range(300_000)) + b"}",
        b"[" * 4_000_000,
        b'{"a":' * 1_000_000,
        b'"' * 4_000_001,
        b"\\" * 4_000_001,
        b"}" * 4_000_000,
    ],
)
def test_a_document_made_to_be_slow_is_refused_quickly(document: bytes) -> None:
    started = time.process_time()
    assert refused(document)
    assert time.process_time() - started < SECONDS


def test_values_are_counted_outside_of_strings_alone() -> None:
    long = 'a, [b], {c} and \\"d\\" \\\\ ' * 60_000
    assert read_annotation(f'{{"caption": "{long}"}}'.encode()).caption == json.loads(f'"{long}"')
    most = b'{"caption": "x", "y": [' + b"1," * (MOST_VALUES - 4) + b"1]}"
    assert read_annotation(most).caption == "x"
    assert "more than 100,000 values" in refused(most.replace(b"1,", b"1,1,", 10))
    assert excess(most) == ""
    with pytest.raises(SampleProblem, match="sidecar is made of more than"):
        merge_recaption(b"[" + b"1," * 200_000 + b"1]", '{"re_caption": "x"}')


ENTRY = b'{"image": "a/b.jpg", "annotation": "a/b.json"}'


@pytest.mark.parametrize("comma", [b",", b" ,", b"\n, ", b"\r\n\t,\r\n"])
@pytest.mark.parametrize("stretch", [100, 1000, 8 << 20])
def test_a_listing_may_have_blanks_before_its_commas(
    comma: bytes, stretch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long one was parsed as a whole for that: 80 bytes of memory for each 3 of JSON."""
    monkeypatch.setattr(listing_json, "STRETCH", stretch)
    monkeypatch.setattr(listing_json, "_WHOLE", 2000)
    found = read_listing([MemoryFile(b"[" + comma.join([ENTRY] * 200) + b"]")])
    assert len(found) == 200
    assert set(found.images.to_pylist()) == {"a/b.jpg"}


@pytest.mark.slow
@pytest.mark.parametrize("item", [b"[],", b"{},", b"1,", b'"x",', b"}"])
def test_a_listing_without_entries_is_an_error_before_it_is_all_in_memory(item: bytes) -> None:
    endless = MemoryFile(b"[" + item * (24 << 20))
    started = time.process_time()
    with pytest.raises(ListingError):
        read_listing([endless])
    assert time.process_time() - started < 4 * SECONDS
    assert endless.taken <= 3 * (8 << 20)


def test_a_split_members_rest_that_is_cut_once_more_is_one_member() -> None:
    """In a stream, whose end is not known beforehand, it was noted twice, once with bytes that are not there."""
    head = tarfile.TarInfo("a.jpg")
    head.size, head.type = 65_535, b"M"
    data = head.tobuf(tarfile.GNU_FORMAT) + bytes(range(1, 255)) * 10
    for known in (True, False):
        scan = scan_tar(MemoryFile(data, known))
        assert [(member.offset, member.size) for member in scan.members] == [(512, len(data) - 512)]


def test_a_listing_with_a_tenth_of_duplicates_has_each_once(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", shards=2, per_shard=50)
    listing = source.path / "data.json"
    entries = json.loads(listing.read_text())
    doubled = [each for place, entry in enumerate(entries) for each in ([entry] * 2 if place % 10 == 0 else [entry])]
    listing.write_text(json.dumps(doubled))
    totals = convert(str(source.path), str(tmp_path / "out"), num_proc=1, quiet=True).totals
    assert (totals.rows, totals.rejected) == (100, {"duplicate": 10})
    account(tmp_path / "out", 110)
