"""A listing that spells paths differently from the archives: under another folder, with backslashes, in another case,
in another Unicode form.

If hardly any listed path is a member's, both are compared in a canonical form. If nearly all agree then, the listing is
read that way. If none does, the error shows one of each side by side.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from builder.base.arrays import TextColumn, Texts, stretches_of, take_text, whole_text
from builder.base.errors import SourceError
from builder.base.ids import path_ids
from builder.base.words import printable
from builder.plan.pairs import NOT_FOUND, Bools, IdLookup, Int64s, Integers, Join, repeated
from builder.source.listing import Listing
from builder.source.tables import ArchiveTable

HARDLY_ANY = 0.05
NEARLY_ALL = 0.5
"""Shares of the listed paths, or of the members: a source may hold only part of the listing, or more."""

_SAMPLE = 1000
_TOGETHER = 1 << 16

Rescan = Callable[[], tuple[Sequence[ArchiveTable], Sequence[ArchiveTable]]]


@dataclass(frozen=True, slots=True)
class _Respelled:
    column: pa.ChunkedArray
    words: str


def respelled(
    listing: Listing, joined: Join, raw: Sequence[ArchiveTable], captions: Sequence[ArchiveTable], rescan: Rescan
) -> tuple[Listing, str] | None:
    """The listing with its paths spelled as in the archives, and how the two differ, in words. None if they agree.
    ``rescan``: scans again and gives the tables with names. Raises SourceError if no path agrees."""
    images = _fits(joined.image_at, sum(int(table.is_image.sum()) for table in raw))
    annotations = listing.recaptions is not None or _fits(
        joined.annotation_at, sum(int(table.is_json.sum()) for table in captions)
    )
    if images and annotations:
        return None
    raw, captions = rescan()
    words = []
    if not images and (found := _respell(listing.images, joined.image_at, raw, "image")):
        listing = replace(listing, images=found.column)
        words.append(f"images {found.words}")
    if not annotations and (found := _respell(listing.annotations, joined.annotation_at, captions, "annotation")):
        listing = replace(listing, annotations=found.column)
        words.append(f"annotations {found.words}")
    return (listing, "; ".join(words)) if words else None


def _fits(at: Integers, members: int) -> bool:
    found = int((at != NOT_FOUND).sum())
    return not len(at) or found > HARDLY_ANY * min(len(at), max(members, 1))


def _respell(paths: Texts, at: Integers, tables: Sequence[ArchiveTable], what: str) -> _Respelled | None:
    names = pa.chunked_array([table.names for table in tables if table.names is not None], type=pa.string())
    kinds = [table.is_image if what == "image" else table.is_json for table in tables]
    wanted = np.flatnonzero(np.concatenate([np.zeros(0, np.bool_), *kinds]))
    if not len(wanted):
        return None
    names, column = take_text(names, wanted), whole_text(paths)
    mine, theirs = _canonical(column), _canonical(names)
    if way := _offsets(mine, theirs):
        listed_cut, member_cut = way
        there = path_ids(_cut(path, member_cut) for path in theirs)
        lookup = IdLookup(there)
        found = lookup.last(path_ids(_cut(path, listed_cut) for path in mine))
        twice = repeated(there)
        if twice.any():  # two members with the same canonical form: ambiguous
            found[np.isin(found, np.flatnonzero(twice))] = NOT_FOUND
        hits = int((found != NOT_FOUND).sum())
        if hits >= NEARLY_ALL * min(len(found), len(names)):
            paths = _written(column, names, found, at != NOT_FOUND, listed_cut)
            example = int(np.flatnonzero(found != NOT_FOUND)[0])
            member = names[int(found[example])].as_py()
            return _Respelled(paths, _words(column[example].as_py(), member, listed_cut, member_cut))
    if not (at != NOT_FOUND).any() and not any(table.damage for table in tables):
        listed, member = column[0].as_py(), _nearest(names, theirs, mine[0])
        raise SourceError(
            f'no {what} that the listing names is in the archives. It names "{printable(listed)}"; a member is called '
            f'"{printable(member)}". Give the listing of this source with --listing. Or give --no-listing: then every '
            "annotation is a sample."
        )
    return None


def _canonical(column: pa.ChunkedArray | pa.StringArray) -> list[str]:
    found: list[str] = []
    for some in _stretches(column):
        for path in some:
            path = path.replace("\\", "/").casefold()
            found.append(path if path.isascii() else unicodedata.normalize("NFC", path))
    return found


def _stretches(column: pa.ChunkedArray | pa.StringArray) -> Iterator[list[str]]:
    for some in stretches_of(column, _TOGETHER):
        yield some.to_pylist()


def _offsets(mine: list[str], theirs: list[str]) -> tuple[int, int] | None:
    """How many leading folders to drop from a listed path, and from a member's, so that they are equal: the most
    frequent answer in a sample. Compares the last two parts of the paths, as names may begin anew in every folder; the
    last part alone if no two agree."""
    for parts in (2, 1):
        votes: Counter[tuple[int, int]] = Counter()
        for some, all_of in ((mine, theirs), (theirs, mine)):
            lookup = IdLookup(path_ids(_last(path, parts) for path in all_of))
            sample = [some[number] for number in np.linspace(0, len(some) - 1, min(len(some), _SAMPLE)).astype(int)]
            for path, at in zip(sample, lookup.last(path_ids(_last(p, parts) for p in sample)), strict=True):
                if at != NOT_FOUND:
                    cuts = _front(path, all_of[at])
                    votes[cuts if some is mine else cuts[::-1]] += 1
        if votes:
            return votes.most_common(1)[0][0]
    return None


def _last(path: str, parts: int) -> str:
    return "/".join(path.split("/")[-parts:])


def _front(one: str, other: str) -> tuple[int, int]:
    """Number of parts before the ending that both paths share."""
    a, b = one.split("/"), other.split("/")
    same = 0
    while same < min(len(a), len(b)) and a[-1 - same] == b[-1 - same]:
        same += 1
    return len(a) - same, len(b) - same


def _cut(path: str, parts: int) -> str:
    return path.split("/", parts)[-1] if parts else path


def _written(
    column: pa.ChunkedArray | pa.StringArray, names: pa.ChunkedArray, found: Int64s, kept: Bools, cut: int
) -> pa.ChunkedArray:
    """The listed paths with the members' names. A path that was found as written stays. One that is not found loses its
    leading folders."""
    paths, first = TextColumn(), 0
    for some in _stretches(column):
        at = found[first : first + len(some)]
        members = iter(take_text(names, at[at != NOT_FOUND]).to_pylist())
        new = []
        for path, place, stays in zip(some, at.tolist(), kept[first : first + len(some)].tolist(), strict=True):
            member = next(members) if place != NOT_FOUND else _cut(path.replace("\\", "/"), cut)
            new.append(path if stays else member)
        paths.add(new)
        first += len(some)
    return paths.done()


def _words(listed: str, member: str, listed_cut: int, member_cut: int) -> str:
    found = []
    plain = listed.replace("\\", "/")
    if "\\" in listed:
        found.append("with / for \\")
    if listed_cut:
        found.append(f"without {'/'.join(plain.split('/')[:listed_cut])}/")
    if member_cut:
        found.append(f"below {'/'.join(member.split('/')[:member_cut])}/")
    mine, other = _cut(plain, listed_cut), _cut(member, member_cut)
    if unicodedata.normalize("NFC", mine) != unicodedata.normalize("NFC", other):
        found.append("in any case of letters")
    if unicodedata.is_normalized("NFC", mine) != unicodedata.is_normalized("NFC", other):
        found.append("in any Unicode form")
    return ", ".join(found) or "in any case of letters and any Unicode form"


def _nearest(names: pa.ChunkedArray, theirs: list[str], listed: str) -> str:
    """A member with the listed file name, in any folder; else the first member."""
    last = _last(listed, 1)
    number = next((number for number, path in enumerate(theirs) if _last(path, 1) == last), 0)
    return str(names[number].as_py())
