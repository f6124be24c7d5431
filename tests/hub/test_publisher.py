"""Publisher against a Hub that is a table in memory, where every request can be made to fail."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from builder.base.errors import HubError
from builder.hub import patience
from builder.hub import publisher as hub_module
from builder.hub.client import Commit, HubClient, Remote, RemoteFile
from builder.hub.items import Digests, Item
from builder.hub.patience import Patience
from builder.hub.publisher import Publisher, Wanted

CARD, INTERIM = b"card", b"interim"


class Killed(BaseException):
    """What no code of ours may catch."""


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Table(HubClient):
    """A repository as HubClient shows it. ``trouble`` is asked before and after every request."""

    refs: dict[str, dict[str, bytes]] = field(default_factory=dict)
    stored: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)
    history: list[dict[str, bytes]] = field(default_factory=list)
    trouble: Callable[[str, str], None] = lambda name, when: None
    serial: Any = field(default_factory=itertools.count)
    shas: dict[str, str] = field(default_factory=dict)
    repo: str = "user/x"
    url: str = "http://hub/user/x"  # type: ignore[misc]

    def _asked(self, name: str, work: Callable[[], Any]) -> Any:
        self.log.append(name)
        self.trouble(name, "before")
        result = work()
        self.trouble(name, "after")
        return result

    def set(self, ref: str, files: dict[str, bytes]) -> str:
        self.refs[ref] = files
        self.shas[ref] = f"sha{next(self.serial)}"
        self.history.append(files)
        return self.shas[ref]

    def create(self, private: bool) -> None:
        def work() -> None:
            if "main" not in self.refs:
                self.set("main", {})

        self._asked("create", work)

    def create_branch(self, name: str) -> None:
        self._asked("create_branch", lambda: self.set(name, dict(self.refs["main"])))

    def branches(self) -> list[str]:
        found: list[str] = self._asked("branches", lambda: [ref for ref in self.refs if not ref.startswith("refs/")])
        return found

    def look(self, revision: str) -> Remote:
        def work() -> Remote:
            if revision not in self.refs:
                raise answered(404, "RevisionNotFound" if self.refs else "RepoNotFound")
            files = {
                path: RemoteFile(len(data), digest(data), "" if path != "README.md" else digest(data))
                for path, data in self.refs[revision].items()
            }
            return Remote(self.shas[revision], files, True)

        result: Remote = self._asked("look", work)
        return result

    def pull_requests(self) -> list[str]:
        found: list[str] = self._asked("pulls", lambda: sorted(ref for ref in self.refs if ref.startswith("refs/pr")))
        return found[::-1]

    def read(self, path: str, revision: str) -> bytes:
        ref = next(ref for ref, sha in self.shas.items() if sha == revision)
        data: bytes = self._asked("read", lambda: self.refs[ref][path])
        return data

    def addition(self, path: str, content: str | bytes, told: Any = None) -> Any:
        data = content if isinstance(content, bytes) else Path(content).read_bytes()
        info = SimpleNamespace(sha256=hashlib.sha256(data).digest())
        return SimpleNamespace(path=path, data=data, upload_info=info, used=False)

    def store(self, addition: Any, revision: str, create_pr: bool) -> None:
        if digest(addition.data) not in self.stored:
            self._asked(f"store {addition.path}", lambda: self.stored.add(digest(addition.data)))

    def deletion(self, path: str) -> Any:
        return SimpleNamespace(path=path, data=None)

    def check_card(self, content: str) -> None:
        self._asked("check_card", lambda: None)

    def commit(self, operations: list[Any], title: str, revision: str, parent: str, create_pr: bool) -> Commit:
        def work() -> Commit:
            if parent != self.shas[revision]:
                raise answered(412)
            files = dict(self.refs[revision])
            for operation in operations:
                if operation.data is None:
                    del files[operation.path]
                else:
                    assert not operation.used
                    assert operation.path == "README.md" or digest(operation.data) in self.stored
                    files[operation.path] = operation.data
            if create_pr:
                ref = f"refs/pr/{1 + sum(each.startswith('refs/pr') for each in self.refs)}"
                return Commit(self.set(ref, files), (ref, f"{self.url}/discussions/{ref[-1]}"))
            return Commit(self.set(revision, files), None)

        done: Commit = self._asked("commit", work)
        for operation in operations:
            operation.used = True
        return done


def answered(status: int, code: str = "") -> Exception:
    error = OSError(f"HTTP {status}")
    headers = {"X-Error-Code": code}
    error.response = SimpleNamespace(status_code=status, headers=headers)  # type: ignore[attr-defined]
    return error


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSES", (0.0,) * 5)


def files_in(folder: Path, count: int = 3, mark: str = "") -> dict[str, Item]:
    items = {}
    for number in range(count):
        path = folder / f"{number}{mark}"
        path.write_bytes(f"shard {number}{mark}".encode())
        name = f"data/train-{number:05d}-of-{count:05d}.parquet"
        items[name] = Item(name, path.stat().st_size, file=str(path))
    return items


def wanted(items: dict[str, Item], card: bytes = CARD) -> Wanted:
    return Wanted(
        items,
        lambda there: card,
        lambda there: there and INTERIM,
        lambda path: not path.startswith(("data/", "meta/")),
    )


def content(items: dict[str, Item], card: bytes = CARD) -> dict[str, bytes]:
    return {"README.md": card} | {path: Path(item.file).read_bytes() for path, item in items.items()}


def publisher(table: Table, folder: Path, revision: str = "main", create_pr: bool = False) -> Publisher:
    digests = Digests(str(folder / "sha256.jsonl"))
    return Publisher(
        table, revision, create_pr, digests, Patience(lambda: "Go on.", lambda text: None), lambda path, size: None
    )


def push(table: Table, folder: Path, what: Wanted, **options: Any) -> Publisher:
    made = publisher(table, folder, **options)
    made.open(private=True)
    for item in what.items.values():
        made.send(item)
    made.settle(what, "title")
    return made


def test_it_ends_with_what_is_wanted_in_one_commit_and_the_next_push_has_nothing_to_do(tmp_path: Path) -> None:
    table, items = Table(), files_in(tmp_path)
    first = push(table, tmp_path, wanted(items))
    assert table.refs["main"] == content(items)
    assert table.log.count("commit") == 1
    assert len(first.changed) == 4
    table.log.clear()
    again = push(table, tmp_path, wanted(items))
    assert set(table.log) == {"look", "read"}
    assert again.changed == {}


def test_what_is_not_ours_stays_and_what_an_earlier_push_left_goes(tmp_path: Path) -> None:
    table = Table()
    old = {"data/train-00000-of-00009.parquet": b"old", "meta/index.arrow": b"old", "notes.md": b"mine"}
    table.set("main", dict(old))
    items = files_in(tmp_path)
    push(table, tmp_path, wanted(items))
    assert table.refs["main"] == content(items) | {"notes.md": b"mine"}
    assert len(table.history) == 2, "never both, never neither"


def test_many_files_go_in_several_commits_and_the_card_claims_nothing_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "COMMIT_FILES", 4)
    table = Table()
    old = {f"data/train-{number:05d}-of-00006.parquet": b"old" for number in range(6)}
    table.set("main", {**old, "README.md": b"old card"})
    items = files_in(tmp_path, 10)
    push(table, tmp_path, wanted(items))
    assert table.refs["main"] == content(items)
    for state in table.history[1:-1]:
        assert state["README.md"] == INTERIM
    for before, after in itertools.pairwise(table.history):
        assert sum(before.get(path) != after.get(path) for path in before.keys() | after.keys()) <= 5


def test_a_first_push_in_several_commits_has_no_card_before_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "COMMIT_FILES", 4)
    table, items = Table(), files_in(tmp_path, 10)
    push(table, tmp_path, wanted(items))
    assert [len(state) for state in table.history] == [0, 4, 8, 11]
    assert all("README.md" not in state for state in table.history[:-1])


OPTIONS: list[dict[str, Any]] = [{}, {"revision": "branch"}, {"create_pr": True}]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1000, 2])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", [ConnectionError("reset"), answered(503), answered(409), answered(412), Killed()])
def test_each_request_may_fail_once_and_the_end_is_the_same(
    kind: BaseException, when: str, options: dict[str, Any], limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is done, or after, so that the answer is lost. Killed: then run again."""
    monkeypatch.setattr(hub_module, "COMMIT_FILES", limit)
    items = files_in(tmp_path, 5)
    what = wanted(items)
    stale = {"data/train-00000-of-00009.parquet": b"old", "README.md": b"old card"}
    for number in itertools.count(1):
        table = Table()
        table.set("main", dict(stale))
        count = itertools.count(1)

        def trouble(name: str, moment: str, count: Any = count, number: int = number) -> None:
            if moment == when and next(count) == number:
                raise kind

        table.trouble = trouble
        try:
            made = push(table, tmp_path, what, **options)
        except Killed:
            table.trouble = lambda name, moment: None
            made = push(table, tmp_path, what, **options)
        if options.get("create_pr"):
            assert table.refs["main"] == stale
            pulls = [ref for ref in table.refs if ref.startswith("refs/pr")]
            assert pulls == ["refs/pr/1"], "one that is left half made is gone on with"
            assert table.refs[made.pull_request[0]] == content(items)  # type: ignore[index]
        else:
            assert table.refs[options.get("revision", "main")] == content(items)
        for state in table.history:
            if state.get("README.md") == CARD:
                assert state == content(items), "a card that is wrong, for however short"
        if number > len(table.log):
            assert number > 8
            return


def test_somebody_elses_commit_in_between_is_kept(tmp_path: Path) -> None:
    table, items = Table(), files_in(tmp_path)
    table.set("main", {})
    left = [1]

    def trouble(name: str, when: str) -> None:
        if name == "commit" and when == "before" and left:
            left.pop()
            table.set("main", {"theirs.txt": b"theirs", "README.md": b"their card"})

    table.trouble = trouble
    push(table, tmp_path, wanted(items))
    assert table.refs["main"] == content(items) | {"theirs.txt": b"theirs"}


def test_a_hub_that_takes_commits_and_shows_none_is_left_alone(tmp_path: Path) -> None:
    table, items = Table(), files_in(tmp_path)
    table.set("main", {})

    def trouble(name: str, when: str) -> None:
        if name == "commit" and when == "after":
            table.set("main", {})

    table.trouble = trouble
    with pytest.raises(HubError, match=r"the Hub took a commit, but data/train-00000-of-00003\.parquet still differs"):
        push(table, tmp_path, wanted(items))
    assert table.log.count("commit") == 2


def test_what_fails_for_good_is_said_with_what_to_do(tmp_path: Path) -> None:
    table, items = Table(), files_in(tmp_path)

    def trouble(name: str, when: str) -> None:
        if name == "commit":
            raise answered(503)

    table.trouble = trouble
    with pytest.raises(HubError, match=r"committing to user/x: HTTP 503, HTTP 503 \(6 tries in 0 s\). Go on."):
        push(table, tmp_path, wanted(items))
    assert table.refs["main"] == {}


def test_a_file_removed_after_its_push_must_still_be_there(tmp_path: Path) -> None:
    table, items = Table(), files_in(tmp_path)
    push(table, tmp_path, wanted(items))
    name, kept = next(iter(items.items()))
    gone = items | {name: Item(name, kept.size, sha256=digest(Path(kept.file).read_bytes()))}
    push(table, tmp_path, wanted(gone))
    del table.refs["main"][name]
    with pytest.raises(HubError, match="was deleted here after a push, and the Hub no longer has it"):
        push(table, tmp_path, wanted(gone))


def test_a_file_that_changes_between_reading_and_sending_is_not_committed(tmp_path: Path) -> None:
    table, items = Table(), files_in(tmp_path)
    made = publisher(table, tmp_path)
    made.open(private=True)
    item = next(iter(items.values()))
    made._digests.of(item)
    stamp = Path(item.file).stat().st_mtime_ns
    Path(item.file).write_bytes(b"SHARD 0")
    import os

    os.utime(item.file, ns=(stamp, stamp))
    with pytest.raises(HubError, match="the file changed after it was first read"):
        made.send(item)
    assert "commit" not in table.log


def test_problems_are_named_by_what_differs(tmp_path: Path) -> None:
    table, items = Table(), files_in(tmp_path, 4)
    made = push(table, tmp_path, wanted(items))
    names = list(items)
    table.refs["main"] |= {names[0]: b"shorter", names[1]: b"SHARD 1", "data/train-x.parquet": b""}
    del table.refs["main"][names[2]]
    what = wanted(items)
    assert made.problems(items, what.keeps, made.look()) == [
        f"{names[0]} has another checksum on the Hub",
        f"{names[1]} has another checksum on the Hub",
        f"{names[2]} is missing",
        "data/train-x.parquet is on the Hub but not part of the dataset",
    ]
    table.refs["main"][names[0]] = b"x"
    assert made.problems(items, what.keeps, made.look())[0] == f"{names[0]} has 1 byte on the Hub, 7 here"
