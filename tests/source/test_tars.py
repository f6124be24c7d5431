"""Tars: the walk against tarfile, against itself, and against everything that can be wrong with a tar."""

from __future__ import annotations

import io
import os
import random
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder.base.errors import Laion6mError, SourceChangedError
from builder.base.records import CUT, SPARSE, WHOLE, Damage, Member, TarScan
from builder.source import tars
from builder.source.compressed import compression_of, open_compressed
from builder.source.files import LocalFile
from builder.source.tar_headers import Link, checksum_fits, expected_adler, normal_name, number, parse_pax
from builder.source.tars import scan_tar, walk_tar

CORPUS = Path(__file__).parents[2] / "../shared/corpus/tars"
END = bytes(1024)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Held:
    """Bytes in memory as a ByteFile that counts what is read. A streamed one knows no size."""

    name = "held.tar"

    def __init__(self, data: bytes, streamed: bool = False) -> None:
        self.data = data
        self.size = None if streamed else len(data)
        self.total = self.reached = self.longest = 0
        self.back = 0  # bytes, the widest step back

    def read_at(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert length > 0
        assert self.size is None or offset + length <= self.size
        part = self.data[offset : offset + length]
        self.back = max(self.back, self.reached - offset)
        self.reached = max(self.reached, offset + len(part))
        self.total += len(part)
        self.longest = max(self.longest, len(part))
        return part

    def close(self) -> None:
        pass


def header(
    name: bytes = b"a/b.jpg",
    size: bytes | int = 0,
    kind: bytes = b"0",
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    checksum: bytes | None = None,
    signed: bool = False,
) -> bytes:
    block = bytearray(512)
    block[0 : len(name)] = name
    block[100:124] = b"0000644\x000001750\x000001750\x00"
    octal = size.ljust(12, b"\0") if isinstance(size, bytes) else b"%011o\x00" % size
    block[124:136] = octal if len(octal) == 12 else b"\x80" + int(size).to_bytes(11, "big")
    block[136:148] = b"14000000000\x00"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157 : 157 + len(link)] = link
    block[257 : 257 + len(magic)] = magic
    block[345 : 345 + len(prefix)] = prefix
    total = sum(block) - (256 * sum(byte >= 128 for byte in block) if signed else 0)
    block[148:156] = b"%06o\x00 " % total if checksum is None else checksum % total
    assert len(block) == 512
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def entry(name: bytes, data: bytes = b"", **fields: object) -> bytes:
    return header(name, len(data), **fields) + padded(data)  # type: ignore[arg-type]


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    return entry(b"PaxHeaders/x", b"".join(map(record, *zip(*records, strict=True))), kind=kind)


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


def scan(data: bytes, streamed: bool = False) -> TarScan:
    """The scan, after it was found to be the same without the fast path and, but for streams' own ways, as a stream."""
    found = scan_tar(Held(data, streamed))
    for member in found.members:
        assert 0 <= member.offset <= member.offset + member.size <= found.size == len(data)
    for damage in found.damage:
        assert 0 <= damage.offset <= damage.end <= len(data)
    return found


def names(data: bytes) -> list[str]:
    found = scan(data)
    assert found.damage == ()
    return [member.name for member in found.members]


def contents(data: bytes) -> dict[str, bytes]:
    found = scan(data)
    assert found.damage == ()
    return {member.name: data[member.offset : member.offset + member.size] for member in found.members}


# --- what is read ----------------------------------------------------------------------------------------------------


def test_members_are_found_where_their_bytes_are() -> None:
    data = entry(b"00000/", kind=b"5") + entry(b"00000/1.jpg", b"one") + entry(b"00000/2.jpg", b"x" * 512) + END
    assert scan(data) == TarScan((Member("00000/1.jpg", 1024, 3), Member("00000/2.jpg", 2048, 512)), (), len(data))


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (header(b"v7", magic=b""), "v7"),
        (header(b"v7", kind=b"\0", magic=b""), "v7"),
        (header(b"gnu", magic=b"ustar  \0"), "gnu"),
        (header(b"n" * 100), "n" * 100),  # no room for a NUL
        (header(b"name", prefix=b"pre/fix"), "pre/fix/name"),
        (header(b"n" * 100, prefix=b"p" * 155), "p" * 155 + "/" + "n" * 100),
        (header(b"name", magic=b"ustar  \0", prefix=b"14130612002\0"), "name"),  # old GNU: a time stands there
        (header(b"name", magic=b"ustar  \0", prefix=b"\x80" + bytes(11)), "name"),  # the same in base-256
        (header(b"name", magic=b"ustar  \0", prefix=b"folder"), "folder/name"),  # Go before 1.8 wrote this
        (header(b"name", magic=b"", prefix=b"folder"), "name"),
        (header(b"./a//b/./c"), "a/b/c"),
        (header(b"/abs"), "abs"),
        (header(b"../up"), "../up"),
        (header(b"a\0b"), "a"),  # a C string
        (header(b"new\nline"), "new\nline"),
        (header("größe.jpg".encode()), "größe.jpg"),
        (header(b"latin\xe4"), "latin\\xe4"),
        (header(b"half \xed\xa0\xbd of an emoji"), "half \\xed\\xa0\\xbd of an emoji"),  # never a lone surrogate
        (header(b"contiguous", kind=b"7"), "contiguous"),
        (header(b"unknown", kind=b"Z"), "unknown"),  # POSIX: as a regular file
        (header(b""), ""),
        (header(b"signed\xff", signed=True), "signed\\xff"),
        (header(b"spaces", checksum=b"  %o \x00"), "spaces"),
        (header(b"seven digits", checksum=b"%07o\x00"), "seven digits"),
        (header(b"size with spaces", size=b"       7 "), "size with spaces"),
        (header(b"size without an end", size=b"000000000007"), "size without an end"),
        (header(b"base-256", size=b"\x80" + bytes(10) + b"\7"), "base-256"),
        (header(b"NULs before the size", size=b"\0\0\0\0007\0"), "NULs before the size"),  # as GNU tar reads it
    ],
)
def test_a_header_of_any_make_is_read(block: bytes, expected: str) -> None:
    size = 7 if b"7" in block[124:136] or block[124] == 0x80 else 0
    found = scan(block + padded(b"content"[:size]) + END)
    assert found.damage == ()
    assert found.members == (Member(expected, 512, size),)
    expected.encode()


@pytest.mark.parametrize("kind", [b"3", b"4", b"5", b"6", b"D", b"V", b"N", b"A"])
def test_what_is_no_regular_file_is_passed_over(kind: bytes) -> None:
    assert names(entry(b"no file", kind=kind) + entry(b"file", b"x") + END) == ["file"]


def test_a_name_with_a_slash_at_its_end_is_a_directory() -> None:
    for kind in (b"\0", b"0"):
        assert names(entry(b"folder/", kind=kind, magic=b"") + entry(b"folder/x") + END) == ["folder/x"]


def test_dumpdir_data_is_passed_over() -> None:
    assert names(entry(b"folder/", b"Yfile\0\0" * 100, kind=b"D") + entry(b"file", b"x") + END) == ["file"]


def test_long_names_of_any_make_are_read() -> None:
    name = b"folder/" + b"n" * 300
    gnu = entry(b"././@LongLink", name + b"\0", kind=b"L", magic=b"ustar  \0") + entry(name[:100], b"data")
    assert contents(gnu + END) == {name.decode(): b"data"}
    assert contents(pax((b"path", name)) + entry(b"short", b"data") + END) == {name.decode(): b"data"}
    # Repeated, the last one counts, as for GNU tar.
    assert names(entry(b"", b"first\0", kind=b"L") + entry(b"", b"second\0", kind=b"L") + entry(b"x") + END) == [
        "second"
    ]
    assert names(pax((b"path", b"first")) + pax((b"path", b"second")) + entry(b"x") + END) == ["second"]
    # Both kinds: pax, as for libarchive.
    assert names(entry(b"", b"gnu\0", kind=b"L") + pax((b"path", b"pax")) + entry(b"x") + END) == ["pax"]
    assert names(pax((b"path", b"pax")) + entry(b"", b"gnu\0", kind=b"L") + entry(b"x") + END) == ["pax"]


def test_pax_size_is_the_members_and_not_that_of_an_extended_header_in_between() -> None:
    """What CVE-2025-62518 is about: an inner header must not pass for a member, nor a member for data."""
    hidden = entry(b"hidden", b"inner")
    long_name = entry(b"././@LongLink", b"outer\0", kind=b"L")
    data = pax((b"size", b"%d" % len(hidden))) + long_name + header(b"x", size=0) + hidden + entry(b"after", b"z") + END
    assert contents(data) == {"outer": hidden, "after": b"z"}


def test_global_records_hold_until_taken_back() -> None:
    data = pax((b"path", b"all"), (b"comment", b"x"), kind=b"g") + entry(b"1") + pax((b"path", b"own")) + entry(b"2")
    data += entry(b"3") + pax((b"path", b""), kind=b"g") + entry(b"4") + END
    assert names(data) == ["all", "own", "all", "4"]


def test_a_global_comment_alone_changes_nothing() -> None:
    """git archive writes one; an archive of nothing else is empty, not damaged."""
    comment = pax((b"comment", b"c0ffee"), kind=b"g")
    assert names(comment + entry(b"1") + END) == ["1"]
    assert names(comment + END) == []


@pytest.mark.parametrize(
    ("records", "path", "size", "sound"),
    [
        (b"", None, None, True),
        (record(b"path", b"a=b"), "a=b", None, True),
        (record(b"path", b"line\nbreak"), "line\nbreak", None, True),
        (record(b"path", b"cut\0here"), "cut", None, True),
        (record(b"path", b"\xff"), "\\xff", None, True),
        (record(b"path", b"1") + record(b"path", b"2"), "2", None, True),
        (record(b"size", b"12"), None, 12, True),
        (record(b"size", b"-12"), None, -1, True),
        (record(b"size", b"1_2"), None, -1, True),
        (record(b"size", b"9" * 5000), None, -1, True),  # int() would refuse more than 4,300 digits with a ValueError
        (b"30 atime=123.123\n" + record(b"path", b"x"), "x", None, False),  # a wrong length: read on at the next line
        (b"x" + record(b"path", b"x"), None, None, False),
        (b"999999999999999999999 path=x\n", None, None, False),
        (b"0 path=x\n", None, None, False),
        (b"8 novalu\n", None, None, False),
        (record(b"path", b"no newline")[:-1] + b"\0", "no newline", None, False),
        (record(b"path", b"fine") + b"12 path=x", "fine", None, False),
        (b"\xff" * 600, None, None, False),
    ],
)
def test_pax_records_are_read_as_far_as_they_make_sense(
    records: bytes, path: str | None, size: int | None, sound: bool
) -> None:
    found = parse_pax(records)
    assert (found.path, found.size, not found.problems) == (path, size, sound)


def test_malformed_pax_records_are_reported_and_cost_no_member() -> None:
    found = scan(entry(b"", b"nonsense\n" + record(b"path", b"name"), kind=b"x") + entry(b"short", b"x") + END)
    assert [member.name for member in found.members] == ["name"]
    assert found.damage == (Damage(0, 1024, "malformed pax record at byte 0 of an extended header"),)


def test_hostile_pax_records_take_linear_time() -> None:
    """Each claims half a MiB and ends at a newline far away: 100,000 looks of 500 kB each would take minutes."""
    line = b"500000 \n"
    found = parse_pax((line * 131072)[: 1 << 20])
    assert found.problems
    assert parse_pax(b"5 a=b" * 200_000).problems


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"0000644\0", 0o644),
        (b"  644 \0\0", 0o644),
        (b"\0\0\0\0\0\0\0\0", 0),
        (b"0000648\0", None),
        (b"-000644\0", None),
        (b"0o00644\0", None),
        (b"00_0644\0", None),
        (b"\x80\0\0\0\0\0\0\5", 5),
        (b"\xff" * 8, -1),
        (b"\xff" * 7 + b"\xfe", -2),
        (b"\xc0" + bytes(7), -(1 << 62)),  # two's complement in the 63 bits behind the marker
    ],
)
def test_number_fields_are_read_as_gnu_tar_reads_them(raw: bytes, value: int | None) -> None:
    assert number(raw) == value


# --- sparse, split, and links ----------------------------------------------------------------------------------------


def old_sparse(data: bytes, maps: int) -> bytes:
    block = bytearray(header(b"sparse", len(data), kind=b"S", magic=b"ustar  \0"))
    block[482] = maps > 0
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\x00 " % sum(block)
    more = b"".join(bytes(504) + bytes([last < maps - 1]) + bytes(7) for last in range(maps))
    return bytes(block) + more + padded(data)


@pytest.mark.parametrize(
    "data",
    [
        old_sparse(b"stored", 0),
        old_sparse(b"stored", 1),
        old_sparse(b"stored", 3),
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.name", b"sparse")) + entry(b"GNUSparseFile.0/x", b"stored"),
        pax((b"GNU.sparse.map", b"0,6"), (b"path", b"sparse")) + entry(b"x", b"stored"),
    ],
)
def test_sparse_members_are_known_as_such_and_their_data_passed(data: bytes) -> None:
    found = scan(data + entry(b"after", b"x") + END)
    assert [(m.name, m.size, m.state) for m in found.members] == [("sparse", 6, SPARSE), ("after", 1, WHOLE)]
    assert found.damage == ()
    sparse = found.members[0]
    assert (data + END)[sparse.offset : sparse.offset + sparse.size] == b"stored"


def test_a_sparse_map_without_an_end_swallows_no_member() -> None:
    data = old_sparse(b"", 3)[: 512 * 3] + entry(b"after", b"x") + END
    assert "after" in [member.name for member in scan(data).members]


def test_the_rest_of_a_split_file_counts_as_cut() -> None:
    assert scan(entry(b"volume 2", b"rest", kind=b"M") + END).members == (Member("volume 2", 512, 4, CUT),)


@pytest.mark.parametrize(
    ("kind", "name", "target", "found"),
    [
        (b"1", b"d/l", b"d/one", b"new one"),
        (b"1", b"d/l", b"./d//one", b"new one"),
        (b"1", b"d/l", b"one", None),  # a hard link names its target from the top
        (b"1", b"d/l", b"late", None),  # … and only what came before
        (b"2", b"d/l", b"one", b"new one"),
        (b"2", b"d/l", b"../d/one", b"new one"),
        (b"2", b"d/l", b"late", None),
        (b"2", b"d/l", b"../late", b"late one"),  # a symbolic link may come before its target
        (b"2", b"d/e/l", b".././one", b"new one"),
        (b"2", b"l", b"d/one", b"new one"),
        (b"2", b"l", b"/d/one", b"new one"),  # absolute, as absolute names are kept
        (b"2", b"l", b"../d/one", None),  # outside
        (b"2", b"l", b"d", None),  # a directory
        (b"2", b"l", b"l", None),  # itself
        (b"2", b"l", b"", None),
    ],
)
def test_links_read_as_what_they_lead_to(kind: bytes, name: bytes, target: bytes, found: bytes | None) -> None:
    data = entry(b"d/", kind=b"5") + entry(b"d/one", b"old one") + entry(b"d/one", b"new one")
    data += entry(name, kind=kind, link=target) + entry(b"late", b"late one") + END
    assert contents(data).get(name.decode()) == found


def test_a_hard_link_reads_as_what_its_target_was_then_and_a_symbolic_one_as_what_it_became() -> None:
    data = entry(b"one", b"old") + entry(b"hard", kind=b"1", link=b"one") + entry(b"soft", kind=b"2", link=b"one")
    assert contents(data + entry(b"one", b"new") + END) == {"one": b"new", "hard": b"old", "soft": b"new"}
    # A link stands at its own place in the order.
    assert names(data + entry(b"one", b"new") + END) == ["one", "hard", "soft", "one"]


def test_a_link_that_leads_nowhere_hides_nothing() -> None:
    data = entry(b"one", b"data") + entry(b"one", kind=b"1", link=b"none") + entry(b"soft", kind=b"2", link=b"one")
    assert contents(data + END) == {"one": b"data", "soft": b"data"}


def test_a_link_to_a_sparse_or_cut_member_is_sparse_or_cut() -> None:
    found = scan(old_sparse(b"stored", 0) + entry(b"l", kind=b"1", link=b"sparse") + END)
    assert [(m.name, m.state) for m in found.members] == [("sparse", SPARSE), ("l", SPARSE)]


@pytest.mark.parametrize("first", [b"1", b"2"])
def test_chains_of_links_end_and_circles_lead_nowhere(first: bytes) -> None:
    chain = entry(b"0", b"data") + b"".join(entry(b"%d" % i, kind=first, link=b"%d" % (i - 1)) for i in range(1, 5000))
    assert contents(chain + END)["4999"] == b"data"
    circle = entry(b"a", kind=first, link=b"b") + entry(b"b", kind=b"2", link=b"c") + entry(b"c", kind=b"2", link=b"a")
    assert names(circle + END) == []


def test_long_link_names_are_read() -> None:
    target = b"t" * 200
    start = pax((b"path", target)) + entry(b"x", b"data")
    for link in (entry(b"", target + b"\0", kind=b"K"), pax((b"linkpath", target))):
        assert contents(start + link + entry(b"l", kind=b"1", link=b"short") + END)["l"] == b"data"


def test_a_hard_link_may_carry_its_data_again() -> None:
    first, link = entry(b"one", b"data"), entry(b"hard", b"DATA", kind=b"1", link=b"one")
    assert contents(first + link + entry(b"after", b"x") + END) == {"one": b"data", "hard": b"data", "after": b"x"}
    # … which serves where the target is not there.
    assert contents(link + entry(b"after", b"x") + END) == {"hard": b"DATA", "after": b"x"}


@pytest.mark.parametrize("kind", [b"1", b"2", b"5", b"6"])
def test_a_size_without_data_is_not_believed(kind: bytes) -> None:
    """Old tars write a hard link's size, or a symbolic link's length, without the bytes."""
    data = entry(b"one", b"data") + header(b"none", 4000, kind=kind, link=b"one") + entry(b"after", b"x")
    assert [member.name for member in scan(data + END).members][-1] == "after"
    assert scan(entry(b"one", b"data") + header(b"none", 4000, kind=kind) + END).damage == ()


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("a/b", "a/b"),
        ("./a//b", "a/b"),
        ("/a/./b", "a/b"),
        ("a/../b", "a/../b"),
        ("../a", "../a"),
        ("a/.b", "a/.b"),
        ("a.", "a."),
        (".a", ".a"),
        ("a/", "a"),
        ("a/.", "a"),
        ("/", ""),
        (".", ""),
        ("", ""),
        ("a\0b", "a"),
        ("./\0b", ""),
    ],
)
def test_names_are_normalised_once_for_all(name: str, normal: str) -> None:
    assert normal_name(name) == normal
    assert normal_name(normal) == normal


# --- against tarfile, against itself ---------------------------------------------------------------------------------

NAME_PARTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0/\n"), min_size=1, max_size=40
).filter(lambda part: part not in (".", ".."))
NAMES = st.one_of(
    st.lists(NAME_PARTS, min_size=1, max_size=3).map("/".join),
    st.integers(0, 999).map("00000/{:09d}.jpg".format),
    st.integers(80, 260).map(lambda length: "long/" + "n" * (length - 5)),
)
ENTRIES = st.lists(
    st.tuples(NAMES, st.sampled_from("ffffffdhsc"), st.integers(0, 2000), st.floats(0, 2e9) | st.integers(0, 2 << 30)),
    max_size=12,
)


def write_tar(entries: list[tuple[str, str, int, float]], form: int) -> bytes:
    buffer = io.BytesIO()
    kinds = {
        "f": tarfile.REGTYPE,
        "d": tarfile.DIRTYPE,
        "h": tarfile.LNKTYPE,
        "s": tarfile.SYMTYPE,
        "c": tarfile.CHRTYPE,
    }
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, kind, size, mtime in entries:
            info = tarfile.TarInfo(name)
            info.type, info.mtime = kinds[kind], mtime if form == tarfile.PAX_FORMAT else int(mtime)
            if kind in "hs":
                info.linkname = entries[size % len(entries)][0]
            info.size = size if kind == "f" else 0
            try:
                tar.addfile(info, io.BytesIO(bytes(size % 251 for _ in range(info.size))))
            except ValueError:  # ustar has no room for the name
                continue
    return buffer.getvalue()


def by_tarfile(data: bytes) -> list[Member]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8", errors="strict") as tar:
        return [Member(normal_name(info.name), info.offset_data, info.size) for info in tar if info.isreg()]


@pytest.mark.slow
@given(entries=ENTRIES, form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
@FEW
def test_the_walk_finds_what_tarfile_finds(entries: list[tuple[str, str, int, float]], form: int) -> None:
    data = write_tar(entries, form)
    found = list(walk_tar(Held(data)))
    assert [item for item in found if isinstance(item, Member)] == by_tarfile(data)
    assert not any(isinstance(item, Damage) for item in found)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        assert sum(isinstance(item, Link) for item in found) == sum(info.islnk() or info.issym() for info in tar)


def slow_scan(data: bytes) -> TarScan:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tars, "expected_adler", lambda checksum: -1)  # no header passes for a common one
        return scan_tar(Held(data))


FIELDS = st.sampled_from(
    [(0, 100), (124, 136), (148, 156), (156, 157), (257, 265), (345, 357), (0, 512)],
)


@pytest.mark.slow
@given(
    entries=ENTRIES.filter(bool),
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    changes=st.lists(st.tuples(st.integers(0, 40), FIELDS, st.integers(0, 511), st.integers(0, 255)), max_size=4),
    mend=st.booleans(),
)
@settings(FEW, max_examples=200)
def test_the_fast_path_gives_what_the_general_one_gives(
    entries: list[tuple[str, str, int, float]],
    form: int,
    changes: list[tuple[int, tuple[int, int], int, int]],
    mend: bool,
) -> None:
    """Also where fields hold what they should not, with a checksum that fits them all the same (``mend``)."""
    data = bytearray(write_tar(entries, form))
    for block, (start, stop), place, byte in changes:
        at = block * 512 % len(data)
        data[at + start + place % (stop - start)] = byte
        if mend:
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\x00 " % sum(data[at : at + 512])
    assert scan(bytes(data)) == slow_scan(bytes(data))


@pytest.mark.parametrize(
    "size", [b"00000000010\0", b"00000000018\0", b"00000000010x", b"+0000000010\0", b"       10 \0"]
)
@pytest.mark.parametrize("kind", [b"0", b"\0", b"5", b"1"])
@pytest.mark.parametrize("name", [b"a", b"a/", b"", b"./a", b"a//b", b"\xe4"])
def test_odd_common_headers_take_neither_path_by_surprise(size: bytes, kind: bytes, name: bytes) -> None:
    data = header(name, size, kind) + padded(b"12345678") + entry(b"after", b"x") + END
    assert scan(data) == slow_scan(data)


@given(st.binary(min_size=512, max_size=512), st.integers(0, 2))
@FEW
def test_checksums_are_the_sum_of_all_bytes_signed_or_unsigned(raw: bytes, ascii_only: int) -> None:
    block = bytearray(byte & 127 for byte in raw) if ascii_only else bytearray(raw)
    block[148:156] = b" " * 8
    unsigned = sum(block)
    signed = sum(byte - 256 if byte > 127 else byte for byte in block)
    for total in {unsigned, signed, unsigned + 1, max(0, signed - 1), (unsigned + 65521) % (1 << 18)}:
        if total >= 0:
            block[148:156] = b"%06o\x00 " % total
            assert checksum_fits(bytes(block)) == (total in (unsigned, signed))


def test_a_checksum_that_differs_by_adlers_modulus_does_not_fit() -> None:
    """Adler-32 sees sums modulo 65,521 only: an ASCII block never reaches it, any other is summed in full."""
    for byte in (0x7F, 0xFF):
        block = bytearray([byte]) * 512
        block[148:156] = b" " * 8
        total = sum(block)
        for stored, fits in ((total, True), (total - 65521, False), (total + 65521, False)):
            if stored >= 0:
                block[148:156] = b"%06o\x00 " % stored
                assert checksum_fits(bytes(block)) == fits
    assert expected_adler(b"        ") == expected_adler(bytes(8)) == expected_adler(b"no sum\0 ") == -1


@given(entries=ENTRIES, form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
@FEW
def test_a_stream_gives_what_a_file_gives_and_is_read_forward(
    entries: list[tuple[str, str, int, float]], form: int
) -> None:
    data = write_tar(entries, form)
    stream = Held(data, streamed=True)
    assert scan_tar(stream) == scan(data)
    assert stream.back < 512  # a header that straddles the end of what was read


def test_a_stream_that_ends_within_a_member_is_read_again_from_there_only() -> None:
    stream = Held(b"".join(entry(b"%d" % i, bytes(300_000)) for i in range(9))[:-100_000], streamed=True)
    assert [member.state for member in scan_tar(stream).members] == [WHOLE] * 8 + [CUT]
    assert stream.back < 301_000


def test_members_of_a_stream_are_given_before_their_data_has_passed() -> None:
    stream = Held(b"".join(entry(b"%d" % i, bytes(3 << 20)) for i in range(3)) + END, streamed=True)
    for item in walk_tar(stream):
        assert isinstance(item, Member)
        assert stream.reached <= item.offset + tars.WINDOW


# --- damage ----------------------------------------------------------------------------------------------------------

THREE = [entry(b"d/%d.jpg" % i, bytes([i]) * (700 * i)) for i in range(1, 4)]
PLACES = [0, len(THREE[0]), len(THREE[0] + THREE[1])]
SOUND = b"".join(THREE) + END


def found_in(data: bytes) -> list[str]:
    return [member.name for member in scan(data).members]


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [False, True])
def test_a_tar_cut_anywhere_keeps_what_was_whole_and_says_so(streamed: bool) -> None:
    whole = scan(SOUND).members
    for length in range(len(SOUND)):
        found = scan(SOUND[:length], streamed)
        assert [m for m in found.members if m.state == WHOLE] == [m for m in whole if m.offset + m.size <= length]
        cut = [m for m in found.members if m.state == CUT]
        assert cut == [
            Member(m.name, m.offset, length - m.offset, CUT) for m in whole if m.offset <= length < m.offset + m.size
        ]
        assert bool(found.damage) == (length < len(SOUND) - 512), length  # one zero block is end enough
        assert len(found.members) == len(whole) or found.damage[-1].end == length


@pytest.mark.parametrize(
    ("length", "problem"),
    [
        (0, "empty"),
        (100, "cut within a header"),
        (PLACES[1], "no end-of-archive blocks"),
        (PLACES[1] - 5, "no end-of-archive blocks"),  # in the padding: the data is whole
        (PLACES[1] + 7, "cut within a header"),
        (600, '"d/1.jpg" should have 700 bytes, but the archive ends before'),
    ],
)
def test_damage_says_what_is_missing_and_where(length: int, problem: str) -> None:
    (damage,) = scan(SOUND[:length]).damage
    assert (damage.end, damage.problem) == (length, problem)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_damaged_header_costs_its_own_member(lost: int, streamed: bool) -> None:
    data = bytearray(SOUND)
    data[PLACES[lost] + 3] ^= 0x55
    found = scan(bytes(data), streamed)
    assert found.members == scan(SOUND).members[:lost] + scan(SOUND).members[lost + 1 :]
    (damage,) = found.damage
    assert damage.offset == PLACES[lost]
    assert damage.end == (PLACES[lost + 1] if lost < 2 else len(data))


@pytest.mark.parametrize("magic", [b"ustar\x0000", b"ustar  \0", b""])
@pytest.mark.parametrize("size", [512, 5 * 512, 300_032])
def test_garbage_between_members_is_passed_over(magic: bytes, size: int) -> None:
    garbage = random.Random(1).randbytes(size)
    data = entry(b"1", b"a", magic=magic) + garbage + entry(b"2", b"b", magic=magic) + END
    found = scan(data)
    assert [member.name for member in found.members] == ["1", "2"]
    assert [(damage.offset, damage.end) for damage in found.damage] == [(1024, 1024 + size)]


@pytest.mark.parametrize("size", [1, 26, 511, 513, 100_001])
def test_bytes_too_many_shift_what_follows_and_it_is_found(size: int) -> None:
    data = THREE[0] + b"\x01" * size + THREE[1] + THREE[2] + END
    found = scan(data)
    assert [member.name for member in found.members] == ["d/1.jpg", "d/2.jpg", "d/3.jpg"]
    assert found.damage == (Damage(1536, 1536 + size, "no valid header"),)


@pytest.mark.parametrize("magic", [b"ustar\x0000", b""])
@pytest.mark.parametrize("missing", [1, 512, 700, 4096, 90_000])
def test_bytes_too_few_cost_the_member_they_are_missing_from(missing: int, magic: bytes) -> None:
    """The next headers stand within what the member claims; its bytes are not all its own, so it is cut."""
    many = [entry(b"%d" % i, b"i" * 3000, magic=magic) for i in range(40)]
    data = THREE[0] + entry(b"2", b"2" * 100_000)[:-missing] + b"".join(many) + END
    found = scan(data)
    if magic or missing % 512 == 0:  # without a magic headers are found at block boundaries only
        end = min(100_000, 100_352 - missing)
        assert found.members[1] == Member("2", 2048, end, WHOLE if missing == 1 else CUT)
        assert [member.name for member in found.members[2:]] == [str(i) for i in range(40)]
        assert len(found.damage) == 1
    else:
        assert found.damage


@pytest.mark.parametrize("kind", [b"1", b"D", b"4"])  # a hard link, a GNU dumpdir and a device, each with data
@pytest.mark.parametrize("missing", [1, 512, 700])
def test_bytes_too_few_in_what_is_no_file_cost_nothing_else(missing: int, kind: bytes) -> None:
    """What followed stood within the data of the link: it was passed over."""
    data = THREE[0] + entry(b"odd", b"2" * 5000, kind=kind, link=b"d/1.jpg")[:-missing] + THREE[1] + THREE[2] + END
    found = scan(data)
    assert [member.name for member in found.members if member.name != "odd"] == ["d/1.jpg", "d/2.jpg", "d/3.jpg"]
    assert [damage.problem for damage in found.damage] == ["bytes in front of a header are missing"]
    assert found.damage[0].end == 2048 + 5120 - missing


def test_a_tar_within_a_tar_is_not_taken_apart_where_the_next_header_is_damaged() -> None:
    inner = THREE[0] + THREE[1] + THREE[2]
    states_a_size = header(b"link", 90_000, kind=b"1")  # and has no data that could reach beyond
    for nested in (inner, inner + END, inner + b"\x01" * 512, inner + states_a_size):
        data = bytearray(entry(b"nested.tar", nested) + entry(b"lost", b"x" * 700) + entry(b"after") + END)
        data[512 + len(nested)] ^= 0x55
        assert scan(bytes(data)).members == (
            Member("nested.tar", 512, len(nested)),
            Member("after", len(data) - 1024, 0),
        )


def test_a_header_behind_the_window_is_found() -> None:
    """The search goes by steps and windows; a header may straddle any of their borders."""
    for gap in [8192 - 256, 8192, 8192 + 256, tars.WINDOW - 512, tars.WINDOW - 100, tars.WINDOW, tars.WINDOW + 8191]:
        data = b"\x01" * gap + THREE[0] + END
        assert found_in(data) == ["d/1.jpg"]
        assert scan(data).damage == (Damage(0, gap, "no valid header"),)


def test_what_is_no_tar_has_no_members() -> None:
    for data in [b"\xff\xd8\xff" * 1000, b"x", bytes(300), b"ustar" * 1000]:
        found = scan(data)
        assert found.members == ()
        assert found.damage
    assert scan(END) == TarScan((), (), 1024)  # an empty archive


@pytest.mark.parametrize("zeros", [1024, 10240, 300_032])
@pytest.mark.parametrize("streamed", [False, True])
def test_concatenated_tars_are_read_to_the_end(zeros: int, streamed: bool) -> None:
    data = THREE[0] + bytes(zeros) + THREE[1] + bytes(zeros) + THREE[2] + END
    found = scan(data, streamed)
    assert [member.name for member in found.members] == ["d/1.jpg", "d/2.jpg", "d/3.jpg"]
    assert found.damage == ()


def test_a_lone_zero_block_is_a_header_wiped_out() -> None:
    assert scan(THREE[0] + bytes(512) + THREE[1] + END).damage == (Damage(1536, 2048, "a lone zero block"),)
    wiped = THREE[0] + bytes(512) + THREE[1][512:] + THREE[2] + END
    assert found_in(wiped) == ["d/1.jpg", "d/3.jpg"]
    assert [damage.offset for damage in scan(wiped).damage] == [1536]


def test_garbage_behind_the_end_is_no_damage() -> None:
    assert scan(SOUND + b"trailing garbage" * 100).damage == ()
    assert scan(SOUND + b"trailing" * 100).members == scan(SOUND).members
    # … unless a header stands in it: then something may have been lost before it.
    assert scan(SOUND + b"garbage!" * 64 + entry(b"more") + END).damage[0].offset == len(SOUND)


@pytest.mark.parametrize(
    "size",
    [
        b"\x80\0\0\0\x80" + bytes(7),  # 2^63
        b"\x80" + b"\xff" * 11,  # 2^88 - 1
        b"\xff" * 12,  # -1
        b"\xff\xff\xff\xff" + bytes(8),
        b"77777777777\0",  # 8 GiB
        b"00000020000\0",  # a few kB more than there are
        b"notanumber!!",
        b"-0000000001\0",
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_size_that_lies_costs_only_its_member(size: bytes, streamed: bool) -> None:
    data = THREE[0] + header(b"lies", size) + padded(b"short") + THREE[2] + END
    found = scan(data, streamed)
    whole = [member.name for member in found.members if member.state == WHOLE]
    assert whole == ["d/1.jpg", "d/3.jpg"]
    assert len(found.damage) == 1
    assert found.members[1].state == CUT if len(found.members) == 3 else found.damage[0].offset == PLACES[1]


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
@pytest.mark.parametrize("streamed", [False, True])
def test_an_extended_header_has_a_bounded_length(kind: bytes, streamed: bool) -> None:
    data = entry(b"", b"n" * (1 << 20), kind=kind) + THREE[0] + THREE[1] + END  # at the bound
    assert len(scan(data, streamed).members) == 2
    data = entry(b"", b"n" * (1 << 20 | 1), kind=kind) + THREE[0] + THREE[1] + END
    file = Held(data, streamed)
    found = scan_tar(file)
    # A member whose name or size was in it must not come under another's.
    assert [member.name for member in found.members] == (["d/1.jpg"] if kind == b"g" else []) + ["d/2.jpg"]
    assert len(found.damage) == 1
    assert file.longest <= tars.WINDOW
    lies = header(b"", 1 << 40, kind=kind) + THREE[0] + THREE[1] + END
    assert [member.name for member in scan(lies, streamed).members] == ["d/1.jpg", "d/2.jpg"]


@pytest.mark.parametrize("streamed", [False, True])
def test_an_extended_header_without_a_member_is_damage(streamed: bool) -> None:
    extended = pax((b"path", b"name"))
    for tail in (b"", END, END + THREE[0] + END, b"\x01" * 512 + THREE[0] + END, b"\x01" * 100):
        found = scan(extended + tail, streamed)
        assert [member.name for member in found.members] == (["d/1.jpg"] if THREE[0] in tail else [])
        assert found.damage[0].offset == 0
    for length in range(1, len(extended), 37):
        assert scan(extended[:length], streamed).damage


def test_a_pax_size_that_is_no_number_is_damage_and_no_guess() -> None:
    found = scan(pax((b"size", b"4x")) + entry(b"one", b"data") + THREE[0] + END)
    assert [member.name for member in found.members] == ["d/1.jpg"]
    assert [(damage.offset, damage.end) for damage in found.damage] == [(0, 2048)]


def test_a_file_that_shrinks_under_the_walk_is_an_error() -> None:
    file = Held(SOUND)
    file.data = SOUND[:600]
    with pytest.raises(SourceChangedError, match="held"):
        scan_tar(file)


# --- time and memory -------------------------------------------------------------------------------------------------

HOSTILE = {
    "every size reaches past the end": header(b"x", 1 << 40),
    "the same without a magic to search for": header(b"x", 1 << 40, magic=b""),
    "extended headers only": entry(b"", b"x", kind=b"L"),
    "a lone zero block before each header": bytes(512) + entry(b"x"),
    "a damaged header before each": b"\x01" * 512 + entry(b"x"),
    "the magic everywhere": b"ustar " * 256,
    "sparse maps without an end": old_sparse(b"", 1)[:512] + b"\x01" * 512,
    "a path of a megabyte for all": entry(b"x"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("streamed", [False, True])
def test_hostile_archives_are_read_about_once(case: str, streamed: bool) -> None:
    head = pax((b"path", b"./" + b"n" * 1_000_000), kind=b"g") if case.endswith("for all") else b""
    data = head + HOSTILE[case] * (1_500_000 // len(HOSTILE[case]))
    file = Held(data, streamed)
    tracemalloc.start()
    scan_tar(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert file.total <= 2.5 * len(data) + tars.WINDOW
    assert peak < 16 << 20  # a few windows, one extended header, and up to 3,000 entries


def test_long_members_are_not_read_through_and_short_ones_not_one_by_one(tmp_path: Path) -> None:
    long = Held(b"".join(entry(b"%d" % i, bytes(100_000)) for i in range(50)) + END)
    assert len(scan_tar(long).members) == 50
    assert long.total < 50 * 4096
    reads = []

    class Counted(Held):
        def read_at(self, offset: int, length: int) -> bytes:
            reads.append(length)
            return super().read_at(offset, length)

    short = Counted(b"".join(entry(b"%d" % i, bytes(1000)) for i in range(3000)) + END)
    assert len(scan_tar(short).members) == 3000
    assert len(reads) < 40


# --- mutations -------------------------------------------------------------------------------------------------------


def spans(data: bytes) -> list[tuple[int, int, str]]:
    """For each regular file by tarfile: where its first header begins, where its data's padding ends, its name."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        return [(info.offset, info.offset_data + -(-info.size // 512) * 512, info.name) for info in tar if info.isreg()]


@pytest.mark.slow
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("streamed", [False, True])
def test_what_a_mutation_does_not_touch_is_found_exactly(form: int, streamed: bool) -> None:
    chooser = random.Random(form)
    entries = [(f"00000/{'n' * (i * 9)}{i}.jpg", "f", 100 * i * i, i + 0.5) for i in range(14)]
    sound = write_tar(entries, form)
    members = {member.name: member for member in scan(sound).members}
    for _ in range(150):
        data = bytearray(sound)
        start = chooser.randrange(len(data))
        stop = min(len(data), start + chooser.choice([1, 1, 1, 8, 600, 3000]))
        data[start:stop] = chooser.choice([chooser.randbytes(stop - start), bytes(stop - start)])
        if chooser.random() < 0.2:
            del data[stop:]
        found = set(scan(bytes(data), streamed).members)
        for first, last, name in spans(sound):
            if (last <= start or first >= stop) and last <= len(data):
                assert members[name] in found, (start, stop, name)


@given(st.binary(max_size=3000), st.booleans())
@FEW
def test_any_bytes_give_a_scan_that_is_the_same_each_time(data: bytes, streamed: bool) -> None:
    assert scan(data, streamed) == scan(data, streamed)


# --- the corpus ------------------------------------------------------------------------------------------------------

CUT_BY_SOME = {"libarchive__test_read_format_tar_acl_oob_read.tar"}
"""Of which Python 3.13.0's tarfile gives the first member only, that of 3.11 all."""

DEVIATIONS = {
    "commons-compress__COMPRESS-553-fail.tar": "tarfile takes an empty checksum field for a sum of 0, and stops there",
    "commons-compress__pax_gnu_sparse.tar": "sparse: stored size and place here, the expanded file's in tarfile",
    "commons-compress__posix10_sparse.tar": "sparse",
    "commons-compress__winXP_antgnu.tar": "headers stand behind the end: read on here",
    "libarchive__test_read_format_gtar_redundant_L.tar": "two long names: GNU tar takes the last, tarfile the first",
    "libarchive__test_read_format_gtar_sparse_1_13.tar": "sparse",
    "libarchive__test_read_format_gtar_sparse_1_17_posix01.tar": "sparse",
    "libarchive__test_read_format_gtar_sparse_1_17_posix10.tar": "sparse",
    "libarchive__test_read_format_gtar_sparse_length.tar": "sparse",
    "libarchive__test_read_format_tar_timestamp_overflow.tar": "NULs before the size: 14 as in GNU tar, 0 in tarfile",
    "ratarmount__absolute-file-incremental.tar": "tarfile takes old GNU's atime for a folder",
    "ratarmount__incremental-backup.level.1.tar": "the same, and tarfile takes a dumpdir for a file",
    "ratarmount__single-file-incremental.tar": "tarfile takes old GNU's atime for a folder",
    "ratarmount__sparse.pax.sparse-0.0.tar": "sparse",
    "ratarmount__sparse.pax.sparse-1.0.tar": "sparse",
    "tar-rs__sparse-1.tar": "sparse",
    "tar-rs__sparse-large.tar": "sparse",
    "tar-split__pax-global-records.tar": "an empty global path takes the name away in tarfile, here the global one",
    "tar-split__pax-nil-sparse-data.tar": "sparse",
    "tar-split__pax-nil-sparse-hole.tar": "sparse",
}
PATHS = sorted(CORPUS.glob("*")) if CORPUS.is_dir() else []


def open_tar(path: Path) -> LocalFile:
    file = LocalFile(str(path))
    return open_compressed(file) if compression_of(file.read_at(0, 16)) else file  # type: ignore[return-value]


def tarfile_members(path: Path) -> list[tuple[str, int, int]] | None:
    try:
        with tarfile.open(path, encoding="utf-8", errors="backslashreplace") as tar:
            infos = tar.getmembers()
    except (tarfile.ReadError, ValueError, MemoryError, EOFError):
        return None
    regular = [info for info in infos if info.isreg() or info.type not in tarfile.SUPPORTED_TYPES]
    return [(normal_name(info.name), info.offset_data, info.size) for info in regular]


@pytest.mark.slow
@pytest.mark.skipif(not PATHS, reason="the tar corpus is not beside the repository")
@pytest.mark.parametrize("path", PATHS, ids=[path.name for path in PATHS])
def test_every_tar_of_the_corpus_reads_as_tarfile_reads_it_or_better(path: Path) -> None:
    first, second = scan_tar(open_tar(path)), scan_tar(open_tar(path))
    assert first == second
    for member in first.members:
        member.name.encode()
        assert member.offset + member.size <= first.size
    theirs = tarfile_members(path)
    ours = [(m.name, m.offset, m.size) for m in walk_tar(open_tar(path)) if isinstance(m, Member)]
    if theirs is None or path.name in DEVIATIONS:
        assert theirs != ours
    elif path.name in CUT_BY_SOME:
        assert theirs == ours[: len(theirs)]
    else:
        assert theirs == ours


@pytest.mark.skipif(not PATHS, reason="the tar corpus is not beside the repository")
def test_mutated_tars_of_the_corpus_raise_nothing_but_the_projects_errors() -> None:
    chooser = random.Random(5)
    for path in PATHS:
        data = bytearray(path.read_bytes()[:40_000])
        for _ in range(4):
            at = chooser.randrange(len(data))
            data[at : at + chooser.choice([1, 30])] = chooser.randbytes(chooser.choice([1, 30]))
        file = Held(bytes(data), chooser.random() < 0.5)
        if compression_of(bytes(data)):
            continue  # tests/source/test_compressed.py
        try:
            scan_tar(file)
        except Laion6mError:
            continue


def test_a_local_file_is_walked(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(SOUND)
    file = LocalFile(os.fspath(path))
    assert scan_tar(file) == scan(SOUND)
    file.close()
