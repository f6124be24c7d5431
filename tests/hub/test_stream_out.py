from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import tarfile
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from builder.base.errors import HubError, IndexMismatchError, OutputError, RemovedShardError
from builder.base.options import ConvertOptions
from builder.cli.commands import main
from builder.conversion.convert import convert
from builder.hub import stream_out
from builder.hub.push import Session, push
from builder.hub.stream_out import convert_and_push
from builder.read.opening import open_dataset
from builder.store.card_merge import take_apart
from builder.store.pushed import PushRecords
from builder.verification.verify import describe_verification, verify
from tests.hub.client import run_ok
from tests.hub.server import WRITE_TOKEN, HubServer
from tests.hub.test_push import TABLE
from tests.pushes import (
    MB,
    REPO,
    command,
    damage_shard,
    edit_shard,
    everything_written,
    here,
    there,
    wide_source,
)

pytestmark = [
    pytest.mark.timeout(3000 if "HUB_TEST_ALL" in os.environ else 300),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]

ALL = "HUB_TEST_ALL" in os.environ
SHARDS = 8
OPTIONS = ConvertOptions(max_shard_size=MB)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_source(tmp_path_factory.mktemp("source"), SHARDS)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_source(tmp_path_factory.mktemp("few"), 3)


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a plain conversion makes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    convert(str(source), str(out), OPTIONS, num_proc=1, quiet=True)
    return here(out)


@pytest.fixture
def inside(inside: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The same, with little room on this machine's disk."""
    monkeypatch.setattr(stream_out, "BACKLOG_SHARDS", 2)
    return inside


def run(source: Path, out: Path, repo: str = REPO, **options: Any) -> Any:
    made = {"delete_pushed": True, "num_proc": 1, "quiet": True, **options}
    return convert_and_push(str(source), str(out), OPTIONS, push_to=repo, **made)


def same_data(found: dict[str, bytes], whole: dict[str, bytes]) -> bool:
    """All but the card, which names the repository."""
    return {name: data for name, data in found.items() if name != "README.md"} == {
        name: data for name, data in whole.items() if name != "README.md"
    }


def finished(out: Path) -> int:
    """Bytes of shards on disk, while some are removed."""
    size = 0
    for path in (out / "data").glob("*"):
        with suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


@pytest.mark.slow
def test_a_source_converts_on_a_disk_smaller_than_its_output(
    inside: HubServer, source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    most = 0

    def watch(record: Any) -> None:
        nonlocal most
        most = max(most, finished(out))

    inside.on_request = watch
    summary, pushed = run(source, out, num_proc=2)
    size = sum(len(data) for name, data in whole.items() if name.startswith("data/"))
    assert size > 5 * MB > 4 * MB > most > 0
    assert (summary.totals.rows, pushed.rows, pushed.ok) == (24, 24, True)
    assert same_data(there(inside), whole)
    assert sorted(here(out)) == ["README.md", "meta/index.arrow", "meta/manifest.json", "meta/rejects.parquet"]
    for commit in inside.store.commits(REPO)[1:]:
        assert "README.md" not in commit.files, "no card before all is there"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4.5 MB, less than the output."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=4500k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("a small file system can only be mounted by root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_so_it_does_on_a_real_one(inside: HubServer, source: Path, whole: dict[str, bytes], small_disk: Path) -> None:
    run(source, small_disk / "out")
    assert same_data(there(inside), whole)


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [False, True])
def test_a_shard_that_was_damaged_between_two_runs_is_neither_pushed_nor_removed(
    earlier: bool, inside: HubServer, source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """``earlier``: the Hub has it as it was."""
    out = tmp_path / "out"
    if earlier:
        run(source, out, delete_pushed=False)
    else:
        convert(str(source), str(out), OPTIONS, num_proc=1, quiet=True)
    shard = damage_shard(out, 7)
    damaged = shard.read_bytes()
    with pytest.raises(OutputError, match=f"{shard.name} differs from the file that laion6m convert wrote"):
        run(source, out)
    assert shard.read_bytes() == damaged
    assert damaged not in there(inside).values()
    shard.unlink()
    run(source, out)
    assert same_data(there(inside), whole)
    assert finished(out) == 0


def test_of_a_shard_that_is_made_again_only_the_later_is_pushed_and_removed(
    inside: HubServer, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    convert(str(source), str(out), OPTIONS, num_proc=1, quiet=True)
    session = Session(str(out), REPO, "main", create_pr=False, token=None, quiet=True)
    session.open(False)
    stream = stream_out._Stream(session, OPTIONS, True)
    first = session.ledger.receipts()
    for number in range(3):
        stream.put(first[number], SHARDS)
    stream.drain(last=False)
    edit_shard(out, 1)
    second = session.ledger.receipts()[1]
    stream._commit()  # before it is handed on anew
    assert finished(out) == sum(receipt.size for number, receipt in first.items() if number not in (0, 2))
    stream.put(first[1], SHARDS)  # as it was guessed, still on its way
    stream.put(second, SHARDS)
    stream.drain(last=False)
    assert [item.digest for item in stream._sent.values()] == [second.digest]
    assert stream_out._bytes(stream._here) == second.size
    stream.drain(last=True)
    assert (stream._here, stream.progress) == ({}, (3, SHARDS))
    assert PushRecords(str(out)).marks()["data/train-00001-of-00008.parquet"].digest == second.digest
    stream.stop()


def test_run_again_it_has_nothing_to_do(inside: HubServer, source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    before, known = there(inside), len(inside.requests())
    summary, pushed = run(source, tmp_path / "out")
    assert (summary.did, pushed.changed) == (0, 0)
    assert there(inside) == before
    assert {record.route for record in inside.requests()[known:]} == {"info", "tree", "resolve"}
    assert push(str(tmp_path / "out"), REPO, quiet=True).changed == 0, "a plain push knows what was removed, too"
    assert push(str(tmp_path / "out"), REPO, verify_only=True, quiet=True).ok


def test_verifying_leaves_the_removed_shards_to_the_hub(
    inside: HubServer, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(source, out, revision="v/2")
    result = verify(str(out), num_proc=1, quiet=True)
    (note,) = result.notes
    assert (result.ok, result.problems, result.rows, result.away) == (True, (), 24, 24)
    assert note.startswith("8 of 8 shards are not here, only in hf://datasets/user/laion6m@v%2F2")
    words = shlex.split(note.split("`")[1])  # which does check them
    assert main(words[1:]) == 0
    said = describe_verification(result)
    assert said.startswith("none of 24 rows is here, the rest is sound: every file that is here has its checksum (")
    assert said.endswith(note)
    capsys.readouterr()
    assert main(["info", str(out)]) == 0
    assert "removed               8 shards; hf://datasets/user/laion6m@v%2F2 has them" in capsys.readouterr().out
    forgotten = sorted((out / ".laion6m" / "pushed").iterdir())[3]
    forgotten.unlink()
    assert [problem.partition(":")[0] for problem in verify(str(out), num_proc=1, quiet=True).problems] == [
        "data/train-00003-of-00008.parquet"
    ] * 2, "it is missing, and its rows with it"


def test_shards_that_are_here_are_verified_beside_those_that_are_not(
    inside: HubServer, source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(source, out)
    back = out / "data" / "train-00002-of-00008.parquet"  # as `hf download` leaves it
    back.parent.mkdir(exist_ok=True)
    back.write_bytes(whole[f"data/{back.name}"])
    result = verify(str(out), source=str(source), decode=True, num_proc=1, quiet=True)
    assert (result.problems, result.away) == ((), 21)
    assert describe_verification(result).startswith("3 of 24 rows are here, and sound: ")
    assert "7 of 8 shards are not here" in result.notes[0]
    other = wide_source(tmp_path / "other", SHARDS)
    with tarfile.open(other / "raw" / "00005.tar") as tar:
        at = tar.getmembers()[1].offset_data + 1000
    with open(other / "raw" / "00005.tar", "r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    problems = verify(str(out), source=str(other), num_proc=1, quiet=True).problems
    assert len(problems) == 1, "what the index has of removed shards is compared with the source"
    assert "the image's bytes differ from the source: row 16 (00005/000000001)" in problems[0]
    back.write_bytes(back.read_bytes().replace(b"\xff\xd8\xff", b"\xff\xd8\xfe", 1))
    problems = verify(str(out), num_proc=1, quiet=True).problems
    assert {problem.partition(":")[0] for problem in problems} == {f"data/{back.name}"}
    assert any("row 6 (00002/000000000)" in problem for problem in problems)


def test_a_mark_of_another_shard_excuses_none(inside: HubServer, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(source, out)
    records = PushRecords(str(out))
    mark = records.marks()["data/train-00004-of-00008.parquet"]
    records.write_mark(dataclasses.replace(mark, digest="0" * 32))
    assert {problem.partition(":")[0] for problem in verify(str(out), num_proc=1, quiet=True).problems} == {mark.path}


def test_opening_a_folder_without_its_shards_says_where_they_are(
    inside: HubServer, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(source, out, revision="v/2")
    with pytest.warns(
        UserWarning, match=r"lacks 8 of its 8 files.*8 files were removed once hf://datasets/user/laion6m@v%2F2"
    ):
        rows = open_dataset(out)
    assert rows[5].caption.startswith("00001/000000002"), "the index has these"
    for read in (lambda: rows[5].image, lambda: rows[5].annotation, lambda: rows[[5, 6]], lambda: list(rows[4:6])):
        with pytest.raises(RemovedShardError) as caught:
            read()
        assert f"{out}/data/train-0000" in str(caught.value)
        assert "open_dataset('hf://datasets/user/laion6m@v%2F2')" in str(caught.value)
    (out / "data").mkdir(exist_ok=True)
    (out / "data" / "train-00001-of-00008.parquet").write_bytes(b"another file")
    with pytest.raises(IndexMismatchError, match="is not the file the index was made for"):
        _ = open_dataset(out, missing="ignore")[5].image


def test_converting_without_a_push_brings_the_shards_back(
    inside: HubServer, source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    run(source, tmp_path / "out")
    convert(str(source), str(tmp_path / "out"), OPTIONS, num_proc=1, quiet=True)
    assert same_data(here(tmp_path / "out"), whole)
    result = verify(str(tmp_path / "out"), num_proc=1, quiet=True)
    assert (result.problems, result.notes, result.away) == ((), (), 0)


def test_a_shard_that_the_hub_has_lost_is_made_anew(
    inside: HubServer, source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    run(source, tmp_path / "out")
    repo = inside.store.repo(REPO)
    files = {name: file for name, file in repo.commit("main").files.items() if "00003-of" not in name}
    inside.store.add_commit(repo, "refs/heads/main", repo.refs["refs/heads/main"], files, "lost")
    with pytest.raises(HubError, match="the Hub no longer has it"):
        push(str(tmp_path / "out"), REPO, quiet=True)
    summary, _ = run(source, tmp_path / "out")
    assert summary.did == 1
    assert same_data(there(inside), whole)


def test_what_one_repository_has_another_does_not(inside: HubServer, source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    summary, _ = run(source, tmp_path / "out", "user/other")
    assert summary.did == SHARDS
    assert there(inside, "user/other").keys() == there(inside).keys()


def test_without_removing_all_is_here_and_there_in_one_commit(
    inside: HubServer, source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    run(source, tmp_path / "out", delete_pushed=False, public=True)
    assert same_data(here(tmp_path / "out"), whole)
    assert there(inside) == here(tmp_path / "out")
    assert len(inside.store.commits(REPO)) == 2
    assert len([record for record in inside.requests("put") if record.bytes_in > 300_000]) == SHARDS, "each sent once"


def test_an_earlier_dataset_gives_way_without_a_card_that_lies(
    inside: HubServer, source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    earlier = wide_source(tmp_path / "earlier", 2)
    convert(str(earlier), str(tmp_path / "two"), OPTIONS, num_proc=1, quiet=True)
    push(str(tmp_path / "two"), REPO, quiet=True)
    run(source, tmp_path / "out")
    assert same_data(there(inside), whole)
    states = inside.store.commits(REPO)[1:-2]
    assert len(states) >= 2
    for commit in states:
        card = inside.store.path_of(commit.files["README.md"]).read_bytes()
        assert "dataset_info" not in take_apart(card, "").values
        assert not any("-of-00002" in name or name.startswith("meta/") for name in commit.files), "never both"


def test_slices_push_their_own_and_the_last_run_makes_it_whole(
    inside: HubServer, source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    summary, pushed = run(source, tmp_path / "out", start=0, end=5)
    assert (summary.missing, pushed) == (3, None)
    assert finished(tmp_path / "out") == 0
    assert len(there(inside)) == 5
    _, pushed = run(source, tmp_path / "out")
    assert pushed.ok
    assert same_data(there(inside), whole)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["request", "response"])
def test_killed_at_a_request_and_run_again_it_ends_the_same(
    when: str, hub: HubServer, source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    arguments = ["--max-shard-size", "1MB", "--num-proc", 1, "--delete-pushed", "--push-to"]
    if ALL:
        command(hub, tmp_path, "convert", source, tmp_path / "trial", *arguments, "user/trial")
    every: list[int | str] = list(range(1, len(hub.requests()) + 1)) if ALL else ["commit", 30]
    for number in every:
        for path in (hub.store.root / "lfs").iterdir():
            path.unlink()
        repo, out = f"user/killed-{number}", tmp_path / f"out-{number}"
        killed = command(hub, tmp_path, "convert", source, out, *arguments, repo, kill_at=number, kill_when=when)
        assert killed.code == -signal.SIGKILL or isinstance(number, int), number
        done = command(hub, tmp_path, "convert", source, out, *arguments, repo, "--json")
        assert done.code == 0, (number, done.stderr)
        assert done.document["pushed"]["ok"] is True
        assert same_data(there(hub, repo), whole), number
        assert finished(out) == 0


def test_a_hub_that_fails_for_good_ends_the_conversion_with_one_error(
    inside: HubServer, source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    inside.faults.add("put", "fail_before", nth=3, times=10_000)
    with pytest.raises(HubError, match="Run the same command again"):
        run(source, tmp_path / "out")
    inside.faults.clear()
    _, pushed = run(source, tmp_path / "out")
    assert pushed.ok
    assert same_data(there(inside), whole)


@pytest.mark.slow
@pytest.mark.parametrize("delete", [True, False])
@pytest.mark.parametrize(
    ("route", "fault"), TABLE if ALL else TABLE[::17], ids=lambda value: value if isinstance(value, str) else None
)
def test_a_fault_at_a_route_is_ridden_out(
    route: str,
    fault: dict[str, Any],
    delete: bool,
    inside: HubServer,
    few: Path,
    tmp_path: Path,
) -> None:
    """Of an earlier dataset whose card is to be read and to lose its claims meanwhile."""
    convert(str(few), str(tmp_path / "local"), OPTIONS, num_proc=1, quiet=True)
    if route == "resolve":
        push(str(tmp_path / "local"), REPO, quiet=True)
        rename_data(inside)
    ordered = inside.faults.add(route, **fault)
    _, pushed = run(few, tmp_path / "out", delete_pushed=delete)
    assert ordered.hits == 1
    assert pushed.ok
    assert same_data(there(inside), here(tmp_path / "local"))
    for commit in inside.store.commits(REPO):
        card = commit.files.get("README.md")
        if card and "dataset_info" in take_apart(inside.store.path_of(card).read_bytes(), "").values:
            assert "meta/manifest.json" in commit.files, "no claims while shards are on their way"


STATES = """
    import json, sys
    from datasets import load_dataset
    for sha in sys.argv[1:]:
        rows = load_dataset("user/laion6m", split="train", streaming=True, revision=sha)
        print(json.dumps([row["key"] for row in rows.select_columns(["key"])]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [False, True])
def test_at_every_moment_the_repository_loads_or_is_empty(
    earlier: bool, inside: HubServer, source: Path, few: Path, tmp_path: Path
) -> None:
    if earlier:
        convert(str(few), str(tmp_path / "few"), OPTIONS, num_proc=1, quiet=True)
        push(str(tmp_path / "few"), REPO, quiet=True)
    run(source, tmp_path / "out")
    states = [commit for commit in inside.store.commits(REPO) if any(name.startswith("data/") for name in commit.files)]
    code = ["-c", textwrap.dedent(STATES), *(commit.oid for commit in states)]
    found = [json.loads(line) for line in run_ok(inside, code).splitlines()]
    every = [f"{shard:05d}/{number:09d}" for shard in range(SHARDS) for number in range(3)]
    shards = [[name for name in commit.files if name.startswith("data/")] for commit in states]
    assert [len(keys) for keys in found] == [3 * len(names) for names in shards]
    assert len(states) >= 3 + earlier
    assert found[0] == every
    for keys in found:
        assert set(keys) <= set(every)


def rename_data(hub: HubServer) -> None:
    """Have the repository hold another dataset: the same, in more shards by their names."""
    repo = hub.store.repo(REPO)
    files = {name.replace("-of-00003", "-of-00009"): file for name, file in repo.commit("main").files.items()}
    hub.store.add_commit(repo, "refs/heads/main", repo.refs["refs/heads/main"], files, "as it was")


@pytest.mark.slow
@pytest.mark.parametrize("trouble", [None, "commit", "killed", *(["put"] if ALL else [])])  # put: two minutes of pauses
def test_the_token_is_nowhere_to_be_seen(trouble: str | None, hub: HubServer, few: Path, tmp_path: Path) -> None:
    """Not where all goes well, nor where it fails, nor in what a killed run leaves."""
    arguments = ["convert", few, tmp_path / "out", "--max-shard-size", "1MB", "--num-proc", 2, "--delete-pushed"]
    arguments += ["--push-to", REPO, "--token", WRITE_TOKEN, "--json"]
    if trouble in ("put", "commit"):
        hub.faults.add(trouble, "fail_before", times=10_000)
    done = command(hub, tmp_path, *arguments, token=None, kill_at="commit" if trouble == "killed" else None)
    assert done.code == {None: 0, "killed": -signal.SIGKILL}.get(trouble, 1), done.stderr
    assert WRITE_TOKEN not in done.stdout + done.stderr
    assert not any(WRITE_TOKEN.encode() in content for content in everything_written(tmp_path))
    assert any(record.authenticated for record in hub.requests("preupload"))


@pytest.mark.slow
@pytest.mark.parametrize("option", [["--delete-pushed"], ["--public"], ["--revision", "x"], ["--token", "hf_x"]])
def test_options_of_a_push_without_one_are_an_error(
    option: list[str], hub: HubServer, source: Path, tmp_path: Path
) -> None:
    done = command(hub, tmp_path, "convert", source, tmp_path / "out", *option)
    assert done.code == 2
    assert "goes with --push-to" in done.stderr
    assert "hf_x" not in done.stderr
