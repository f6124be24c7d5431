"""Which bytes are read at once: every wanted byte, in few reads of bounded size."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from builder.source.files import Read, merge_ranges

wanted = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)), max_size=20)


@given(wanted, st.integers(0, 30), st.integers(1, 100))
def test_every_range_lies_in_the_one_read_that_serves_it(
    ranges: list[tuple[int, int]], max_gap: int, max_size: int
) -> None:
    reads = merge_ranges([o for o, _ in ranges], [s for _, s in ranges], max_gap=max_gap, max_size=max_size)
    served = [(read, item) for read in reads for item in read.items]
    assert sorted(item for _, item in served) == list(range(len(ranges)))
    for read, item in served:
        offset, size = ranges[item]
        assert read.start <= offset
        assert offset + size <= read.end


@given(wanted, st.integers(0, 30), st.integers(1, 100))
def test_reads_are_in_file_order_bounded_and_begin_and_end_with_what_is_wanted(
    ranges: list[tuple[int, int]], max_gap: int, max_size: int
) -> None:
    reads = merge_ranges([o for o, _ in ranges], [s for _, s in ranges], max_gap=max_gap, max_size=max_size)
    assert [read.start for read in reads] == sorted(read.start for read in reads)
    for read in reads:
        assert read.start == min(ranges[item][0] for item in read.items)
        assert read.end == max(sum(ranges[item]) for item in read.items)
        assert read.end - read.start <= max(max_size, *(ranges[item][1] for item in read.items))
        stretch = sorted(ranges[item] for item in read.items)
        reach = stretch[0][0]
        for offset, size in stretch:
            assert offset - reach <= max_gap
            reach = max(reach, offset + size)


def test_neighbours_share_a_read_up_to_the_gap() -> None:
    assert merge_ranges([0, 110, 221], [100, 100, 100], max_gap=10, max_size=1000) == [
        Read(0, 210, [0, 1]),
        Read(221, 321, [2]),  # 11 bytes apart
    ]


def test_the_bound_is_on_the_read_not_on_what_is_wanted_of_it() -> None:
    assert merge_ranges([0, 100, 200], [100, 100, 100], max_gap=0, max_size=200) == [
        Read(0, 200, [0, 1]),
        Read(200, 300, [2]),
    ]


def test_one_large_range_is_a_read_of_its_own_and_serves_its_copies() -> None:
    """A hard link reads as the member it links to: the same bytes under two names."""
    assert merge_ranges([5, 5, 50], [100, 100, 10], max_gap=0, max_size=10) == [Read(5, 105, [0, 1, 2])]


def test_the_order_of_the_wanted_is_free() -> None:
    assert merge_ranges([300, 0, 150], [10, 10, 10], max_gap=0, max_size=100) == [
        Read(0, 10, [1]),
        Read(150, 160, [2]),
        Read(300, 310, [0]),
    ]


def test_nothing_wanted_is_nothing_read() -> None:
    assert merge_ranges([], [], max_gap=10, max_size=10) == []
