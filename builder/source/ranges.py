"""Decide which bytes to read at once. Pure: numbers in, reads out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Read(NamedTuple):
    """Bytes ``start`` (inclusive) to ``end`` (exclusive). ``items``: numbers of the wanted ranges that it covers."""

    start: int
    end: int
    items: list[int]


def merge_ranges(offsets: Sequence[int], sizes: Sequence[int], *, max_gap: int, max_size: int) -> list[Read]:
    """Reads that cover all ranges, in file order. Ranges at most ``max_gap`` bytes apart share a read, up to
    ``max_size`` bytes. A larger range is a read of its own. Ranges may repeat and overlap."""
    reads: list[Read] = []
    first = last = 0
    items: list[int] = []
    for item in sorted(range(len(offsets)), key=offsets.__getitem__):
        start = offsets[item]
        end = start + sizes[item]
        if items:
            whole = end if end > last else last
            if start - last <= max_gap and (whole - first <= max_size or whole == last):
                items.append(item)
                last = whole
                continue
            reads.append(Read(first, last, items))
        first, last, items = start, end, [item]
    if items:
        reads.append(Read(first, last, items))
    return reads
