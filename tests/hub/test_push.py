from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from builder.base import schema
from builder.base.errors import DamagedFileError, HubError, OptionError, OutputError, SourceError
from builder.base.options import ConvertOptions
from builder.conversion.convert import convert
from builder.hub import captions_only
from builder.hub import publisher as hub_module
from builder.hub.client import HubClient
from builder.hub.push import push
from tests.hub.client import PROJECT, client_env
from tests.hub.server import OTHER_TOKEN, READ_TOKEN, WRITE_TOKEN, HubServer
from tests.pushes import (
    MB,
    PER_TAR,
    QUICK,
    REPO,
    command,
    converted,
    copy_of,
    damage_shard,
    edit_shard,
    everything_written,
    here,
    push_here,
    there,
)

pytestmark = [
    pytest.mark.timeout(3000 if "HUB_TEST_ALL" in os.environ else 300),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # the client's way to send a file
]

ALL = "HUB_TEST_ALL" in os.environ
"""Every request and every fault at every route, instead of a sample: some minutes."""

UPLOADS = ("put", "put_part", "xet_token")


def test_a_push_an_edit_and_a_push_again(hub: HubServer, out: Path, tmp_path: Path) -> None:
    first = command(hub, tmp_path, "push", out, REPO, "--json")
    assert first.code == 0, first.stderr
    facts = first.document
    assert (facts["ok"], facts["rows"], facts["files"], facts["changed"]) == (True, 9, 7, 7)
    assert list(facts) == [
        "ok", "repo", "url", "revision", "sha", "pull_request", "private", "rows", "files", "changed", "bytes",
        "problems", "seconds",
    ]  # fmt: skip
    assert facts["bytes"] == sum(len(data) for data in here(out).values())
    assert first.stderr.count("belong to their owners") == 1, "once"
    assert there(hub) == here(out)
    assert hub.store.repo(REPO).private
    assert len(hub.store.commits(REPO)) == 2, "its first one, and ours"
    by_xet = bool(hub.requests("xet_token"))  # 0.30.0 does not know how to leave it off
    assert by_xet or len(hub.requests("put")) == 5

    before = len(hub.requests())
    again = command(hub, tmp_path, "push", out, REPO, "--json")
    assert (again.code, again.document["changed"]) == (0, 0), again.stderr
    assert again.stderr == ""
    assert {record.route for record in hub.requests()[before:]} == {"info", "tree", "resolve"}
    assert len(hub.store.commits(REPO)) == 2

    shard = edit_shard(out)
    before = len(hub.requests())
    edited = command(hub, tmp_path, "push", out, REPO, "--json")
    assert (edited.code, edited.document["changed"]) == (0, 2), edited.stderr  # the manifest, too
    sent = [record.bytes_in for record in hub.requests()[before:] if record.route in UPLOADS]
    assert sent == ([0] if by_xet else [shard.stat().st_size])
    assert there(hub) == here(out)
    assert hub.requests("unknown") == []


@pytest.mark.slow
def test_uploads_by_xet_arrive(hub: HubServer, out: Path, tmp_path: Path) -> None:
    pytest.importorskip("hf_xet")
    done = command(hub, tmp_path, "push", out, REPO, xet=True)
    assert done.code == 0, done.stderr
    assert there(hub) == here(out)
    assert hub.requests("xet_token")
    assert hub.requests("put") == []
    shard = edit_shard(out)
    assert command(hub, tmp_path, "push", out, REPO, xet=True).code == 0
    assert there(hub)[f"data/{shard.name}"] == shard.read_bytes()


def test_large_shards_go_in_parts_under_one_bar(inside: HubServer, out: Path) -> None:
    inside.part_size = 100_000
    push(str(out), REPO, quiet=True)
    assert there(inside) == here(out)
    assert len(inside.requests("put_part")) == 3 * 7


def test_several_files_are_on_their_way_at_a_time(inside: HubServer, out: Path) -> None:
    lock, under_way, most = threading.Lock(), 0, 0
    both = threading.Barrier(2, timeout=20)

    def begin(record: Any) -> None:
        nonlocal under_way, most
        if record.route == "put":
            with lock:
                under_way += 1
                most = max(most, under_way)
            if any(name in record.path for name in large):
                both.wait()  # breaks where the second does not come while the first is here

    def end(record: Any) -> None:
        nonlocal under_way
        if record.route == "put":
            with lock:
                under_way -= 1

    large = [hashlib.sha256(shard.read_bytes()).hexdigest() for shard in sorted((out / "data").iterdir())[:2]]
    inside.on_request, inside.on_response = begin, end
    push(str(out), REPO, num_proc=2, quiet=True)
    assert most == 2
    inside.on_request = inside.on_response = None
    assert there(inside) == here(out)


def forget_contents(hub: HubServer) -> None:
    """Large files are stored once for all repositories: without this, only the first push would send any."""
    for path in (hub.store.root / "lfs").iterdir():
        path.unlink()


def requests_of_a_push(hub: HubServer, out: Path, home: Path, *options: object) -> int:
    done = command(hub, home, "push", copy_of(out, home / "trial"), "user/trial", *options)
    assert done.code == 0, done.stderr
    return len(hub.requests())


@pytest.mark.slow
@pytest.mark.parametrize("when", ["request", "response"])
def test_killed_at_a_request_and_run_again_it_ends_the_same(
    when: str, hub: HubServer, out: Path, tmp_path: Path
) -> None:
    """Killed when the request comes, before anything is done; or when all is done and the answer not yet sent."""
    count = requests_of_a_push(hub, out, tmp_path)
    for number in range(1, count + 1) if ALL else (2 if when == "request" else count - 12, count - 4):
        forget_contents(hub)
        repo = f"user/killed-{number}"
        killed = command(hub, tmp_path, "push", out, repo, kill_at=number, kill_when=when)
        assert killed.code == -signal.SIGKILL, number
        if hub.store.find("dataset", repo) is not None:
            assert set(there(hub, repo)) in (set(), set(here(out))), "all of it, or nothing"
        done = command(hub, tmp_path, "push", out, repo, "--json")
        assert done.code == 0, (number, done.stderr)
        assert done.document["ok"]
        assert there(hub, repo) == here(out)
        assert len(hub.store.commits(repo)) == 2, number


ROUTES = [
    "info",
    "create_repo",
    "tree",
    "validate_yaml",
    "preupload",
    "lfs_batch",
    "put",
    "verify",
    "commit",
    "resolve",
]
FAULTS: list[dict[str, Any]] = [
    {"kind": "fail_before", "status": 503},
    {"kind": "fail_before", "status": 500},
    {"kind": "fail_after", "status": 504},
    {"kind": "fail_after", "status": None},
    {"kind": "drop"},
    {"kind": "truncate"},
    {"kind": "status", "status": 429, "headers": {"RateLimit": '"api";r=0;t=2'}},
    {"kind": "status", "status": 429, "headers": {"Retry-After": "2"}},
    {"kind": "status", "status": 409},
    {"kind": "status", "status": 412},
]
TABLE = [(route, fault) for route in ROUTES for fault in FAULTS]
# The put of a real store never says 409 or 412; what the client makes of it is its business.
TABLE = [(route, fault) for route, fault in TABLE if route != "put" or fault.get("status") not in (409, 412)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("route", "fault"), TABLE if ALL else TABLE[::4], ids=lambda value: value if isinstance(value, str) else None
)
def test_a_fault_at_a_route_is_ridden_out(route: str, fault: dict[str, Any], inside: HubServer, out: Path) -> None:
    before = 1
    if route == "resolve":  # asked for a card that is there already
        push(str(out), REPO, quiet=True)
        edit_shard(out)
        before = 2
    ordered = inside.faults.add(route, **fault)
    done = push(str(out), REPO, quiet=True)
    assert ordered.hits == 1
    assert done.ok
    assert there(inside) == here(out)
    assert len(inside.store.commits(REPO)) == before + 1, "one commit, even where the answer to it was lost"


ROUTES_OF_OTHER_PUSHES = ["create_branch", "refs", "discussions", "whoami", "put_part", "complete"]
OTHER_TABLE = [
    (route, fault)
    for route in ROUTES_OF_OTHER_PUSHES
    for fault in FAULTS
    # As above for a store's parts; and a 409 to a new branch says that somebody else has made it.
    if fault.get("status") not in ({409, 412} if route == "put_part" else {409} if route == "create_branch" else ())
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("route", "fault"),
    OTHER_TABLE if ALL else OTHER_TABLE[::5],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_so_it_is_on_the_way_to_a_branch_to_a_proposal_and_in_parts(
    route: str, fault: dict[str, Any], inside: HubServer, out: Path
) -> None:
    push(str(out), REPO, quiet=True)
    edit_shard(out)
    proposal = route in ("discussions", "whoami")
    branch = {"create_branch": {"revision": "v2"}, "refs": {"revision": "v1"}}
    options: dict[str, Any] = branch.get(route, {"create_pr": True} if proposal else {})
    if route == "refs":
        push(str(out), REPO, revision="v1", quiet=True)
    inside.part_size = None if options else 100_000
    ordered = inside.faults.add(route, **fault)
    done = push(str(out), REPO, **options, quiet=True)
    assert ordered.hits == 1
    assert done.ok
    assert there(inside, revision=done.revision) == here(out)
    assert [ref for ref in inside.store.repo(REPO).refs if ref.startswith("refs/pr/")] == ["refs/pr/1"] * proposal


XET_FAULTS = [fault for fault in FAULTS if fault.get("status") not in (409, 412)]


@pytest.mark.slow
@pytest.mark.parametrize("fault", XET_FAULTS if ALL else XET_FAULTS[2:4], ids=str)
def test_so_it_is_with_uploads_by_xet(fault: dict[str, Any], hub: HubServer, out: Path, tmp_path: Path) -> None:
    pytest.importorskip("hf_xet")
    ordered = hub.faults.add("xet_token", **fault)
    done = command(hub, tmp_path, "push", out, REPO, xet=True)
    assert ordered.hits == 1
    assert done.code == 0, done.stderr
    assert there(hub) == here(out)
    assert len(hub.store.commits(REPO)) == 2


@pytest.mark.slow
# Not verify: once the Hub says that it has a file, the client does not ask about it again. Not resolve: see above.
@pytest.mark.parametrize("route", [*ROUTES[:7], "commit"] if ALL else ["info", "put", "commit"])
def test_a_fault_that_stays_is_one_clear_error_and_no_wrong_card(route: str, inside: HubServer, out: Path) -> None:
    inside.faults.add(route, "fail_before", times=10_000)
    with pytest.raises(HubError, match=r"503.* \(6 tries in \d+ s.*\)\. .*Run the same command again") as caught:
        push(str(out), REPO, num_proc=1, quiet=True)
    assert WRITE_TOKEN not in str(caught.value)
    failed = [record.path.partition("?")[0] for record in inside.requests(route) if record.fault]
    assert 6 <= max(map(failed.count, failed)) <= 36, "of one request: our six tries, of up to six of the client each"
    if inside.store.find("dataset", REPO):
        assert there(inside) == {}
    inside.faults.clear()
    push(str(out), REPO, quiet=True)
    assert there(inside) == here(out)


def test_somebody_elses_commit_in_between_is_kept(inside: HubServer, out: Path) -> None:
    push(str(out), REPO, quiet=True)
    edit_shard(out)
    theirs = {"notes.txt": inside.store.put_blob(b"theirs")}

    def meddle(record: Any) -> None:
        if record.route == "commit":
            inside.on_request = None
            repo = inside.store.repo(REPO)
            head = repo.refs["refs/heads/main"]
            inside.store.add_commit(repo, "refs/heads/main", head, repo.commit("main").files | theirs, "theirs")

    inside.on_request = meddle
    push(str(out), REPO, quiet=True)
    assert there(inside) == here(out) | {"notes.txt": b"theirs"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "said"),
    [
        (WRITE_TOKEN, None),
        (READ_TOKEN, "you must use a write token"),
        (OTHER_TOKEN, "You don't have the rights"),
        ("hf_nobodysTokenAtAll", "Invalid credentials|Log in"),
    ],
)
def test_the_token_is_nowhere_to_be_seen(
    token: str, said: str | None, hub: HubServer, out: Path, tmp_path: Path
) -> None:
    done = command(hub, tmp_path, "push", out, REPO, "--token", token, "--json", token=None)
    assert done.code == (1 if said else 0), done.stderr
    if said:
        assert re.search(said, done.stderr)
        assert len(done.stderr.splitlines()) == 1, "one clear error"
        assert "Traceback" not in done.stderr
    assert token not in done.stdout + done.stderr
    assert not any(token.encode() in content for content in everything_written(tmp_path))


@pytest.mark.slow
def test_nobody_logged_in_is_told_how_to(hub: HubServer, out: Path, tmp_path: Path) -> None:
    done = command(hub, tmp_path, "push", out, REPO, token=None)
    assert done.code == 1
    assert "hf auth login" in done.stderr


def test_a_new_repository_is_public_only_where_that_is_said(inside: HubServer, out: Path, capsys: Any) -> None:
    assert push(str(out), "user/a").private
    assert "user/a is private." in capsys.readouterr().err
    assert not push(str(out), "user/b", public=True).private
    assert "user/b is public." in capsys.readouterr().err
    inside.store.create("user/c", private=False)
    assert not push(str(out), "user/c").private, "one that is there stays as it is"
    assert "user/c already exists and is public." in capsys.readouterr().err
    push(str(out), "org/d", quiet=True)
    assert there(inside, "org/d").keys() == here(out).keys()
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("revision", ["v2", "rows/of 2026"])
def test_a_branch_is_made_where_it_is_missing(revision: str, inside: HubServer, out: Path) -> None:
    done = push(str(out), REPO, revision=revision, quiet=True)
    assert done.revision == revision
    assert there(inside, revision=revision) == here(out)
    assert there(inside) == {}
    edit_shard(out)
    push(str(out), REPO, revision=revision, quiet=True)
    assert there(inside, revision=revision) == here(out)


def test_what_is_no_branch_is_one_clear_error(inside: HubServer, out: Path) -> None:
    repo = inside.store.create(REPO)
    repo.refs["refs/tags/t"] = repo.refs["refs/heads/main"]
    repo.save()
    for revision in ("t", repo.refs["refs/tags/t"]):
        with pytest.raises(HubError, match=f"{revision} is not a branch"):
            push(str(out), REPO, revision=revision, quiet=True)
    assert inside.requests("preupload", *UPLOADS) == [], "said before anything is sent"
    with pytest.raises(HubError, match="Check the revision"):
        push(str(out), REPO, revision="refs/pr/9", quiet=True)


def test_a_pull_request_proposes_and_is_found_again(inside: HubServer, out: Path) -> None:
    push(str(out), REPO, quiet=True)
    before = there(inside)
    edit_shard(out)
    done = push(str(out), REPO, create_pr=True, quiet=True)
    assert (done.revision, done.changed) == ("refs/pr/1", 2)
    assert done.pull_request == f"{inside.endpoint}/datasets/{REPO}/discussions/1"
    assert there(inside) == before
    assert there(inside, revision="refs/pr/1") == here(out)
    again = push(str(out), REPO, create_pr=True, quiet=True)
    assert (again.pull_request, again.changed) == (done.pull_request, 0)
    edit_shard(out, 2)
    push(str(out), REPO, revision="refs/pr/1", quiet=True)  # mend the proposal itself
    assert there(inside, revision="refs/pr/1") == here(out)
    assert not [ref for ref in inside.store.repo(REPO).refs if ref == "refs/pr/2"]


def test_a_pull_request_whose_answer_was_lost_is_not_made_twice(inside: HubServer, out: Path) -> None:
    push(str(out), REPO, quiet=True)
    edit_shard(out)
    inside.faults.add("commit", "fail_after", status=None)
    assert push(str(out), REPO, create_pr=True, quiet=True).revision == "refs/pr/1"
    assert "refs/pr/2" not in inside.store.repo(REPO).refs


def test_somebody_else_may_propose_but_not_push(inside: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(str(out), REPO, public=True, quiet=True)
    edit_shard(out)
    push_here(inside, monkeypatch, OTHER_TOKEN)
    assert push(str(out), REPO, create_pr=True, quiet=True).pull_request
    with pytest.raises(HubError, match="rights to change"):
        push(str(out), REPO, quiet=True)


def test_a_gated_repository_is_its_owners_to_push_to(
    inside: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(str(out), REPO, public=True, quiet=True)
    repo = inside.store.repo(REPO)
    repo.gated = "manual"
    repo.save()
    edit_shard(out)
    push(str(out), REPO, quiet=True)
    assert there(inside) == here(out)
    push_here(inside, monkeypatch, OTHER_TOKEN)
    with pytest.raises(HubError, match="Ask for access"):
        push(str(out), REPO, verify_only=True, quiet=True)


def test_verifying_compares_and_changes_nothing(inside: HubServer, out: Path) -> None:
    with pytest.raises(HubError, match="Check the name"):
        push(str(out), REPO, verify_only=True, quiet=True)
    push(str(out), REPO, quiet=True)
    before = len(inside.requests())
    assert push(str(out), REPO, verify_only=True, quiet=True).ok
    shard = edit_shard(out)
    (out / "meta" / "rejects.parquet").write_bytes(b"x")
    result = push(str(out), REPO, verify_only=True, quiet=True)
    assert list(result.problems) == [
        f"data/{shard.name} has another checksum on the Hub",
        f"meta/rejects.parquet has {len(there(inside)['meta/rejects.parquet'])} bytes on the Hub, 1 here",
        "meta/manifest.json has another checksum on the Hub",
    ]
    assert "differs from the files here" in str(result)
    assert {record.method for record in inside.requests()[before:]} == {"GET", "HEAD"}


@pytest.mark.slow
def test_verifying_says_so_by_its_exit_code(hub: HubServer, out: Path, tmp_path: Path) -> None:
    assert command(hub, tmp_path, "push", out, REPO).code == 0
    shutil.rmtree(out / ".laion6m")  # as on a machine that did not push
    assert command(hub, tmp_path, "push", out, REPO, "--verify-only").code == 0
    edit_shard(out)
    done = command(hub, tmp_path, "push", out, REPO, "--verify-only", "--json")
    assert (done.code, done.document["ok"]) == (1, False)
    assert len(done.document["problems"]) == 2


def rewrite_card(hub: HubServer, old: bytes, new: bytes) -> None:
    """As somebody does who edits it on the Hub's page."""
    repo = hub.store.repo(REPO)
    files = repo.commit("main").files
    text = hub.store.read(REPO, "README.md")
    assert old in text
    files["README.md"] = hub.store.put_blob(text.replace(old, new, 1))
    hub.store.add_commit(repo, "refs/heads/main", repo.refs["refs/heads/main"], files, "edited on the page")


def test_a_card_edited_on_the_hub_keeps_its_text(inside: HubServer, out: Path) -> None:
    push(str(out), REPO, quiet=True)
    rewrite_card(inside, b"<!-- laion6m:begin", b"Their words.\n\n<!-- laion6m:begin")
    rewrite_card(inside, b"license: other", b"license: cc-by-4.0\ntags:\n- theirs")
    rewrite_card(inside, b"num_examples: 9", b"num_examples: 8")
    assert push(str(out), REPO, verify_only=True, quiet=True).problems == (
        "README.md says 8 rows, but the dataset has 9",
        "README.md belongs to another dataset",
    )
    push(str(out), REPO, quiet=True)
    card = inside.store.read(REPO, "README.md")
    assert b"Their words." in card
    assert b"license: cc-by-4.0" in card
    assert b"- theirs" in card
    assert b"num_examples: 9" in card
    assert (out / "README.md").read_bytes() == card, "the one here follows"
    assert push(str(out), REPO, quiet=True).changed == 0


def test_a_card_edited_here_keeps_its_text(inside: HubServer, out: Path) -> None:
    push(str(out), REPO, quiet=True)
    card = out / "README.md"
    card.write_bytes(card.read_bytes() + b"\nOur words.\n")
    assert push(str(out), REPO, quiet=True).changed == 1
    assert inside.store.read(REPO, "README.md").endswith(b"\nOur words.\n")
    rewrite_card(inside, b"Our words.", b"Our words, mended.")
    push(str(out), REPO, quiet=True)
    assert card.read_bytes().endswith(b"\nOur words, mended.\n")


def test_a_card_edited_here_and_there_is_for_a_person_to_join(inside: HubServer, out: Path) -> None:
    push(str(out), REPO, quiet=True)
    card = out / "README.md"
    card.write_bytes(card.read_bytes() + b"\nOur words.\n")
    rewrite_card(inside, b"<!-- laion6m:begin", b"Their words.\n\n<!-- laion6m:begin")
    before = there(inside)
    with pytest.raises(HubError, match="its text was edited both on the Hub and in"):
        push(str(out), REPO, quiet=True)
    assert there(inside) == before
    card.write_bytes(inside.store.read(REPO, "README.md") + b"\nOur words.\n")  # as the message says
    with pytest.raises(HubError, match="edited both"):
        push(str(out), REPO, quiet=True)
    rewrite_card(inside, b"<!-- laion6m:end -->\n", b"<!-- laion6m:end -->\n\nOur words.\n")
    push(str(out), REPO, quiet=True)
    assert b"Their words." in inside.store.read(REPO, "README.md")


def test_a_card_that_the_hub_would_not_take_stops_it_before_anything_is_sent(inside: HubServer, out: Path) -> None:
    card = out / "README.md"
    card.write_bytes(card.read_bytes().replace(b"license: other", b"license: nonsense"))
    with pytest.raises(HubError, match=r"checking README\.md: .*license"):
        push(str(out), REPO, quiet=True)
    assert inside.requests(*UPLOADS, "commit") == []
    card.write_bytes(card.read_bytes().replace(b"license: nonsense", b"license: ["))
    with pytest.raises(OutputError, match="cannot be read"):
        push(str(out), REPO, quiet=True)


def test_a_folder_whose_rows_are_not_those_of_its_card_is_not_pushed(inside: HubServer, out: Path) -> None:
    shard = next(iter(sorted((out / "data").iterdir())))
    table = pq.ParquetFile(shard).read()
    pq.write_table(table.slice(1), shard)
    with pytest.raises(OutputError, match="has 8 rows in its shards, but its manifest says 9"):
        push(str(out), REPO, quiet=True)
    shard.write_bytes(b"no parquet")
    with pytest.raises(DamagedFileError):
        push(str(out), REPO, quiet=True)
    shard.unlink()
    with pytest.raises(OutputError, match=r"is missing\. Run the same laion6m convert command again"):
        push(str(out), REPO, quiet=True)
    assert inside.requests() == []


def test_what_is_no_converted_folder_is_refused(tmp_path: Path, made: Path) -> None:
    from builder.conversion.index import index

    with pytest.raises(SourceError, match="is not a converted folder"):
        push(str(tmp_path), REPO)
    index(str(made.parent / "source"), str(tmp_path / "index"), num_proc=1, quiet=True)
    with pytest.raises(OutputError, match="index over tars"):
        push(str(tmp_path / "index"), REPO)
    with pytest.raises(OptionError, match="num_proc"):
        push(str(made), REPO, num_proc=0)


def test_what_an_earlier_conversion_left_there_goes_in_the_same_commit(
    inside: HubServer, out: Path, tmp_path: Path
) -> None:
    push(str(out), REPO, quiet=True)
    other = converted(tmp_path / "other", shards=2)
    push(str(other), REPO, quiet=True)
    assert there(inside) == here(other)
    states = [set(commit.files) & {"data/train-00000-of-00003.parquet", "data/train-00000-of-00002.parquet"}
              for commit in inside.store.commits(REPO)]  # fmt: skip
    assert all(len(names) <= 1 for names in states)


def test_many_files_go_in_several_commits(inside: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "COMMIT_FILES", 2)
    push(str(out), REPO, quiet=True)
    assert there(inside) == here(out)
    states = [set(commit.files) for commit in inside.store.commits(REPO)]
    assert [("README.md" in state, len(state)) for state in states] == [(True, 8), (False, 5), (False, 3), (False, 1)]


def test_what_goes_in_a_later_commit_is_not_prepared_again(
    inside: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "COMMIT_FILES", 2)
    prepared: list[str] = []
    plain = HubClient.addition

    def counted(self: HubClient, path: str, content: Any, told: Any = None) -> Any:
        if isinstance(content, str):
            prepared.append(path)
        return plain(self, path, content, told)

    monkeypatch.setattr(HubClient, "addition", counted)
    push(str(out), REPO, quiet=True)
    assert len(inside.store.commits(REPO)) == 4
    assert sorted(prepared) == sorted(here(out).keys() - {"README.md"})
    assert len(inside.requests("lfs_batch")) == len(inside.requests("put")) == 5


def test_a_shard_that_was_damaged_here_is_not_pushed(inside: HubServer, made: Path, out: Path) -> None:
    shard = damage_shard(out)
    with pytest.raises(OutputError, match=f"{shard.name} differs from the file that laion6m convert wrote. Delete it"):
        push(str(out), REPO, quiet=True)
    assert there(inside) == {}
    shard.unlink()
    convert(str(made.parent / "source"), str(out), ConvertOptions(max_shard_size=MB), num_proc=1, quiet=True)
    push(str(out), REPO, quiet=True)
    assert there(inside) == here(out)
    damage_shard(out)
    assert push(str(out), REPO, verify_only=True, quiet=True).problems == (
        f"data/{shard.name} has another checksum on the Hub",
    )


def test_other_peoples_files_stay(inside: HubServer, out: Path, tmp_path: Path) -> None:
    repo = inside.store.create(REPO)
    theirs = {
        name: inside.store.put_blob(b"theirs: " + name.encode())
        for name in ("data/train-raw/x.parquet", "state.json", "dataset_info.json", "meta/notes.json")
    }
    inside.store.add_commit(repo, "refs/heads/main", repo.refs["refs/heads/main"], theirs, "theirs")
    push(str(out), REPO, quiet=True)
    assert there(inside) == here(out) | {name: b"theirs: " + name.encode() for name in theirs}
    assert push(str(out), REPO, verify_only=True, quiet=True).ok


def test_files_of_an_arrow_dataset_that_was_pushed_go_with_it(inside: HubServer, out: Path, tmp_path: Path) -> None:
    push(str(converted(tmp_path / "arrow", format="arrow")), REPO, quiet=True)
    assert {"state.json", "dataset_info.json"} < there(inside).keys()
    push(str(out), REPO, quiet=True)
    assert there(inside) == here(out)


@pytest.mark.slow
def test_a_token_that_is_none_is_a_usage_error_that_does_not_show_it(hub: HubServer, out: Path, tmp_path: Path) -> None:
    for token in ("", "hf_se\ncret"):
        done = command(hub, tmp_path, "push", out, REPO, "--token", token, token=None)
        assert (done.code, "cret" in done.stderr) == (2, False), done.stderr
    assert command(hub, tmp_path, "push", out, REPO, "--token", f"{WRITE_TOKEN}\n", token=None).code == 0


def test_text_taken_away_from_a_card_here_is_an_edit(inside: HubServer, out: Path) -> None:
    card = out / "README.md"
    bare = card.read_bytes()
    card.write_bytes(bare + b"\nOur words.\n")
    push(str(out), REPO, quiet=True)
    card.write_bytes(bare)
    push(str(out), REPO, quiet=True)
    assert b"Our words." not in inside.store.read(REPO, "README.md")
    assert b"Our words." not in card.read_bytes()


def test_each_branch_has_a_record_of_its_card(inside: HubServer, out: Path) -> None:
    card = out / "README.md"
    push(str(out), REPO, quiet=True)
    push(str(out), REPO, revision="v2", quiet=True)
    card.write_bytes(card.read_bytes() + b"\nOur words.\n")
    push(str(out), REPO, revision="v2", quiet=True)
    rewrite_card(inside, b"<!-- laion6m:begin", b"Their words.\n\n<!-- laion6m:begin")
    with pytest.raises(HubError, match="edited both"):
        push(str(out), REPO, quiet=True)


def test_captions_only_has_everything_but_the_images(inside: HubServer, out: Path) -> None:
    done = push(str(out), REPO, captions_only=True, quiet=True)
    files = there(inside)
    assert sorted(files) == ["README.md", "data/train-00000-of-00001.parquet", "meta/rejects.parquet"]
    assert (done.rows, done.private) == (9, True)
    (path,) = (out / schema.WORK / "captions-only").rglob("*.parquet")
    assert path.read_bytes() == files["data/train-00000-of-00001.parquet"]
    rows = pq.ParquetFile(path).read().to_pylist()
    whole = [row for shard in sorted((out / "data").iterdir()) for row in pq.ParquetFile(shard).read().to_pylist()]
    assert [{key: value for key, value in row.items() if key != "url"} for row in rows] == [
        {key: value for key, value in row.items() if key != "image"} for row in whole
    ]
    assert [row["url"] for row in rows] == [
        None if number % PER_TAR == 0 else f"https://example.org/{row['key']}.jpg" for number, row in enumerate(rows)
    ]
    assert push(str(out), REPO, captions_only=True, quiet=True).changed == 0
    assert push(str(out), REPO, captions_only=True, verify_only=True, quiet=True).ok
    stamp = path.stat().st_mtime_ns
    push(str(out), "user/second", captions_only=True, quiet=True)
    assert path.stat().st_mtime_ns == stamp, "made once"
    push(str(out), REPO, quiet=True)  # the images after all: nothing of the other layout is left
    assert there(inside) == here(out)


def test_captions_go_in_several_files_in_the_place_of_images(
    inside: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captions_only, "FILE_ROWS", 4)
    push(str(out), REPO, quiet=True)
    done = push(str(out), REPO, captions_only=True, num_proc=2, quiet=True)
    files = there(inside)
    names = [f"data/train-{number:05d}-of-00003.parquet" for number in range(3)]
    assert sorted(files) == ["README.md", *names, "meta/rejects.parquet"], (
        "neither images nor the index that says where"
    )
    assert done.files == 5
    tables = [pq.read_table(BytesIO(files[name])) for name in names]
    assert sum(table.num_rows for table in tables) == 9
    assert all(table.schema.names == ["key", "url", "caption", "width", "height", "annotation"] for table in tables)
    assert sum(len(data) for data in files.values()) < 40_000


def test_a_card_of_captions_does_not_decide_whose_text_the_other_one_keeps(inside: HubServer, out: Path) -> None:
    card = out / "README.md"
    card.write_bytes(card.read_bytes() + b"\nOur words.\n")
    push(str(out), REPO, quiet=True)
    rewrite_card(inside, b"Our words.", b"Our words, mended.")
    push(str(out), REPO, captions_only=True, quiet=True)
    assert b"Our words, mended." in inside.store.read(REPO, "README.md")
    push(str(out), REPO, quiet=True)
    assert card.read_bytes().endswith(b"\nOur words, mended.\n"), "not back to what it was here"
    assert there(inside) == here(out)


# Python leaves SIGINT ignored where it was when it began, as behind `nohup … &`.
INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)" + QUICK


@pytest.mark.slow
def test_ctrl_c_ends_it_at_once_and_the_next_run_goes_on(hub: HubServer, out: Path, tmp_path: Path) -> None:
    hub.faults.add("put", "delay", seconds=20, times=99)
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, "push", str(out), REPO],
        env=client_env(hub, tmp_path), cwd=PROJECT, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            while not hub.requests("put"):
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=10)
        finally:
            process.kill()
    hub.stopping.set()
    assert process.returncode == 130
    assert "interrupted with 0 of 6" in said
    assert "Run the same command again" in said
    hub.faults.clear()
    assert command(hub, tmp_path, "push", out, REPO).code == 0
    assert there(hub) == here(out)
