"""Which bytes to read at once. Pure: numbers in, reads out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Read(NamedTuple):
    """Bytes ``start`` (inclusive) to ``end`` (exclusive); it serves the wanted ranges in ``items`` (their numbers)."""

    start: int
    end: int
    items: list[int]


def merge_ranges(offsets: Sequence[int], sizes: Sequence[int], *, max_gap: int, max_size: int) -> list[Read]:
    """Reads that cover all ranges, in file order. Ranges no more than ``max_gap`` bytes apart share a read while it
    stays within ``max_size`` bytes; a larger range is a read of its own. Ranges may repeat and overlap."""
    reads: list[Read] = []
    for item in sorted(range(len(offsets)), key=offsets.__getitem__):
        start, end = offsets[item], offsets[item] + sizes[item]
        if reads:
            last = reads[-1]
            whole = max(last.end, end)
            if start - last.end <= max_gap and (whole - last.start <= max_size or whole == last.end):
                last.items.append(item)
                reads[-1] = last._replace(end=whole)
                continue
        reads.append(Read(start, end, [item]))
    return reads
