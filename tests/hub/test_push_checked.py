"""What a push compares, here and there, and how often it asks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder.base import schema
from builder.base.errors import HubError, OutputError
from builder.engines import progress
from builder.hub import captions_only
from builder.hub import publisher as hub_module
from builder.hub.client import Remote
from builder.hub.publisher import Publisher
from builder.hub.push import push
from tests.hub.server import HubServer
from tests.pushes import REPO, damage_shard, here, push_here

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


def test_what_differs_after_the_push_is_an_error_and_no_card_is_noted(
    inside: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = "data/train-00001-of-00003.parquet"
    plain = Publisher.settle

    def meddled(self: Publisher, *arguments: Any) -> Remote:
        done = plain(self, *arguments)
        files = {path: file for path, file in done.files.items() if path not in (lost, schema.INDEX)}
        return replace(done, files=files)

    monkeypatch.setattr(Publisher, "settle", meddled)
    before = (out / "README.md").read_bytes()
    with pytest.raises(HubError, match=rf"checking {REPO} after the push: {lost} is missing \(and 1 more\)\. "):
        push(str(out), REPO, quiet=True)
    assert (out / "README.md").read_bytes() == before
    monkeypatch.undo()
    push_here(inside, monkeypatch)
    assert push(str(out), REPO, quiet=True).changed == 0


def test_each_file_is_asked_about_once_in_a_push_of_several_commits(
    inside: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.hub.wire import Request

    monkeypatch.setattr(hub_module, "COMMIT_FILES", 2)
    asked: list[str] = []
    plain = Request.json

    def noted(self: Request) -> Any:
        values = plain(self)
        if self.record.route == "preupload":
            asked.extend(file["path"] for file in values["files"])
        return values

    monkeypatch.setattr(Request, "json", noted)
    push(str(out), REPO, quiet=True)
    assert sorted(asked) == sorted(here(out))


def flipped_text(out: Path, number: int = 1) -> Path:
    """A shard with other bytes in a text column, which says nothing about it by itself."""
    import pyarrow.parquet as pq

    shard = sorted((out / "data").iterdir())[number]
    table = pq.read_table(shard)
    at = table.schema.get_field_index("caption")
    pq.write_table(table.set_column(at, table.schema.field(at), [["other", "words", "here"]]), shard)
    return shard


def test_captions_are_not_taken_from_a_shard_that_is_not_what_it_was(inside: HubServer, out: Path) -> None:
    shard = flipped_text(out)
    with pytest.raises(OutputError, match=f"{shard.name} differs from the file that laion6m convert wrote"):
        push(str(out), REPO, captions_only=True, quiet=True)
    assert inside.requests() == []
    (made,) = (out / ".laion6m" / "captions-only").iterdir()
    assert not list(made.iterdir()), "nothing that could be taken for finished"


def test_reading_all_of_the_shards_is_shown(
    inside: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_style", "json")

    def read() -> int:
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
        return max((line["bytes"] for line in lines if line["stage"] == "taking captions"), default=0)

    push(str(out), REPO, captions_only=True, num_proc=1)
    assert read() > 0
    push(str(out), "user/second", captions_only=True, num_proc=1)
    assert read() == 0


def test_shards_that_a_push_has_compared_are_not_read_whole_again(
    inside: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(str(out), REPO, quiet=True)
    read: list[str] = []
    monkeypatch.setattr(captions_only, "_compare", lambda path, digest: read.append(path))
    push(str(out), "user/captions", captions_only=True, num_proc=1, quiet=True)
    assert read == []
    shard = damage_shard(out)
    push(str(out), "user/captions", captions_only=True, num_proc=1, quiet=True)
    assert read == [str(shard)], "of those that were written since"
