"""Numbers as words for people."""

from __future__ import annotations

import pytest

from builder.base.words import counted, size


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("row",), "0 rows"),
        (1, ("row",), "1 row"),
        (2_000, ("row",), "2,000 rows"),
        (1, ("entry", "entries"), "1 entry"),
        (2, ("entry", "entries"), "2 entries"),
        (1, ("row is", "rows are"), "1 row is"),
    ],
)
def test_one_is_singular_and_every_other_number_plural(number: int, words: tuple[str, ...], text: str) -> None:
    assert counted(number, *words) == text
    assert counted(number, *words, width=6) == f"{text.partition(' ')[0]:>6} {text.partition(' ')[2]}"


@pytest.mark.parametrize(("count", "text"), [(1, "1 byte"), (999, "999 bytes"), (1_000, "1.00 kB")])
def test_a_size_below_a_kilobyte_is_in_whole_bytes(count: int, text: str) -> None:
    assert size(count) == text
