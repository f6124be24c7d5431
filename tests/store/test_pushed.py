from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from builder.store.folders import LocalFolder
from builder.store.pushed import PushedCard, PushedMark, PushRecords

MARK = PushedMark(3, "data/train-00003-of-00016.parquet", 9, "ab", "cd", "user/x", "main")
CARD = PushedCard({"metadata": {"license": "license: mit\n"}, "before": "\udcff", "after": ""}, "ab", "cd", "ef")


def test_a_mark_is_of_one_repository_and_revision(tmp_path: Path) -> None:
    records = PushRecords(str(tmp_path))
    assert (records.mark(3, "user/x", "main"), records.marks()) == (None, {})
    records.write_mark(MARK)
    assert records.mark(3, "user/x", "main") == MARK
    assert records.mark(3, "user/y", "main") is None
    assert records.mark(3, "user/x", "v2") is None
    assert records.mark(4, "user/x", "main") is None
    assert PushRecords(LocalFolder(str(tmp_path))).marks() == {MARK.path: MARK}


def test_a_mark_says_where_to_look() -> None:
    assert (MARK.url, MARK.command) == ("hf://datasets/user/x", "user/x")
    other = replace(MARK, revision="rows/2026")
    assert (other.url, other.command) == ("hf://datasets/user/x@rows%2F2026", "user/x --revision rows/2026")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"cards": 7}', b"\xff", b'{"number": 3, "checksum": "0"}'])
def test_what_cannot_be_read_is_as_if_it_were_not_there(tmp_path: Path, text: bytes) -> None:
    records = PushRecords(str(tmp_path))
    records.write_mark(MARK)
    records.write_card("README.md", "user/x", CARD)
    for path in (tmp_path / ".laion6m").rglob("*.json"):
        path.write_bytes(text)
    assert (records.mark(3, "user/x", "main"), records.marks(), records.cards("README.md")) == (None, {}, {})
    records.write_card("README.md", "user/y", CARD)
    assert records.cards("README.md") == {"user/y": CARD}


def test_a_card_is_kept_by_its_place_and_repository(tmp_path: Path) -> None:
    records = PushRecords(str(tmp_path))
    records.write_card("README.md", "user/x", CARD)
    records.write_card("README.md", "user/y", replace(CARD, digest="00"))
    records.write_card("elsewhere/README.md", "user/x", replace(CARD, digest="11"))
    records.write_card("README.md", "user/x", replace(CARD, digest="22"))
    assert {repo: card.digest for repo, card in records.cards("README.md").items()} == {"user/x": "22", "user/y": "00"}
    assert records.cards("elsewhere/README.md")["user/x"].own == CARD.own
    assert records.cards("nowhere") == {}
