"""Datasets on the Hub: pinned to their commit, what is not there in its own words, what the cache holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.hub.push import push
from tests.hub.client import client_env, run_ok
from tests.hub.server import HubServer
from tests.pushes import REPO, copy_of, edit_shard, push_here

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # the client's way to send a file
]

URL = f"hf://datasets/{REPO}"


@pytest.fixture
def pushed(hub: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    with monkeypatch.context() as patched:
        push_here(hub, patched)
        push(str(out), REPO, quiet=True)
    return hub


@pytest.mark.slow
def test_an_open_dataset_stays_at_its_commit_while_the_branch_goes_on(
    pushed: HubServer, made: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both the shards that are open and those that are not, the index and the columns."""
    code = f"""
        import pickle, sys
        from builder import open_dataset
        rows, other, local = open_dataset({URL!r}), open_dataset({URL!r}), open_dataset({str(made)!r})
        assert rows[0].image == local[0].image
        print(rows.folder, flush=True)
        sys.stdin.readline()
    """
    other = copy_of(made, tmp_path / "other")
    edit_shard(other)
    opened = run_ok(pushed, code).split()[-1]
    assert opened == f"{URL}@{pushed.store.commits(REPO)[0].oid}"
    with monkeypatch.context() as patched:
        push_here(pushed, patched)
        push(str(other), REPO, quiet=True)
    again = f"""
        import pickle
        from builder import open_dataset
        before, now = open_dataset({opened!r}), open_dataset({URL!r})
        local, other = open_dataset({str(made)!r}), open_dataset({str(other)!r})
        assert [sample.image for sample in before] == [sample.image for sample in local]
        assert before[0].annotation == local[0].annotation
        assert pickle.loads(pickle.dumps(before))[-1].image == local[-1].image
        assert now.folder != before.folder
        print("done")
    """
    assert "done" in run_ok(pushed, again)


@pytest.mark.slow
def test_a_sample_costs_one_request_and_an_address_that_is_too_old_is_asked_for_anew(
    pushed: HubServer, out: Path
) -> None:
    code = f"""
        from builder import open_dataset
        rows, local = open_dataset({URL!r}), open_dataset({str(out)!r})
        for number in (0, 1, 2, 0, 1, 2):
            assert rows[number].image == local[number].image
        print("done")
    """
    before = len(pushed.requests())
    run_ok(pushed, code)
    asked = [record for record in pushed.requests()[before:] if ".parquet" in record.path or record.route == "cdn_get"]
    assert sum(record.route == "resolve" for record in asked if ".parquet" in record.path) == 1
    pushed.faults.add("cdn_get", "status", nth=4, times=1, status=403)
    before = len(pushed.requests())
    run_ok(pushed, code)
    asked = [record for record in pushed.requests()[before:] if record.route == "resolve" and ".parquet" in record.path]
    assert len(asked) == 2


WORDS = """
    import sys, time
    from builder import Laion6mError, open_dataset
    for url in sys.argv[1:]:
        started = time.monotonic()
        try:
            open_dataset(url)
            print("opened")
        except Laion6mError as error:
            print(f"{time.monotonic() - started < 5} {error}")
"""


@pytest.mark.slow
def test_what_is_not_there_is_said_in_its_own_words(
    pushed: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [
        "hf://datasets/user/misspelt",
        f"{URL}@no-such-branch",
        "hf://datasets/a b/c",
        "hf://user/laion6m",
        f"{URL}/no/such/folder",
    ]
    said = run_ok(pushed, ["-c", dedented(WORDS), *urls]).splitlines()
    assert [line.partition(" ")[0] for line in said] == ["True"] * len(urls)
    for line, words in zip(
        said,
        (
            "there is no repository user/misspelt in datasets, or this token may not read it",
            "has no branch, tag or commit no-such-branch. It has: main",
            "'a b/c' cannot be a repository",
            "there is no repository user/laion6m in models",
            "no/such/folder: it does not exist",
        ),
        strict=True,
    ):
        assert words in line
    env = client_env(pushed, tmp_path / "nobody", token=None)
    said = run_ok(pushed, ["-c", dedented(WORDS), URL, urls[0]], env=env).splitlines()
    assert all("or it is private" in line and "hf auth login" in line for line in said)
    assert not any("has no meta/index.arrow" in line for line in said)


@pytest.mark.slow
def test_a_token_with_a_newline_is_cleaned(pushed: HubServer, tmp_path: Path) -> None:
    code = f"""
        from builder import open_dataset
        from tests.hub.server import WRITE_TOKEN
        for options in ({{"token": WRITE_TOKEN + "\\n"}}, {{"hf": {{"token": f" {{WRITE_TOKEN}}\\r\\n"}}}}):
            assert open_dataset({URL!r}, storage_options=options)[0].image
        print("done")
    """
    env = client_env(pushed, tmp_path / "nobody", token=None)
    assert "done" in run_ok(pushed, code, env=env)


OFFLINE = f"""
    import time
    from builder import Laion6mError, open_dataset
    started = time.monotonic()
    try:
        rows = open_dataset({URL!r})
        print(len(rows), len(rows[0].image), bool(rows[0].annotation), flush=True)
        rows[-1].image
    except Laion6mError as error:
        print(time.monotonic() - started < 3, error)
"""


@pytest.mark.slow
def test_without_a_network_the_cache_is_used_and_the_rest_fails_at_once(
    pushed: HubServer, out: Path, tmp_path: Path
) -> None:
    env = client_env(pushed, tmp_path / "client")
    offline = {**env, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    before = len(pushed.requests())
    said = run_ok(pushed, OFFLINE, env=offline)
    assert said.startswith("True ")
    assert "HF_HUB_OFFLINE is set" in said
    fetch = f"""
        from huggingface_hub import snapshot_download
        snapshot_download({REPO!r}, repo_type="dataset", allow_patterns=["meta/*", "data/train-00000*"])
    """
    assert len(pushed.requests()) == before
    run_ok(pushed, fetch, env=env)
    before = len(pushed.requests())
    said = run_ok(pushed, OFFLINE, env=offline)
    first, second = said.splitlines()
    assert first.startswith("9 ")
    assert first.endswith(" True")
    assert second.startswith("True ")
    assert "No such file" in second
    assert len(pushed.requests()) == before


def dedented(code: str) -> str:
    from textwrap import dedent

    return dedent(code)


UPLOAD = """
    import sys
    from huggingface_hub import HfApi
    HfApi().create_repo("user/laion6m", repo_type="dataset", exist_ok=True)
    HfApi().upload_folder(repo_id="user/laion6m", repo_type="dataset", folder_path=sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [True, False])
def test_an_upload_of_the_folder_and_a_later_push_leave_no_bookkeeping(
    ignored: bool, hub: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``hf upload OUT`` does as the .gitignore says; what was uploaded from an OUT without one, a push removes."""
    assert (out / ".laion6m" / "receipts").is_dir()
    if not ignored:
        (out / ".gitignore").unlink()
    run_ok(hub, ["-c", dedented(UPLOAD), str(out)])
    files = hub.store.repo(REPO).commit("main").files
    assert "data/train-00000-of-00003.parquet" in files
    assert any(path.startswith(".laion6m/") for path in files) is not ignored
    with monkeypatch.context() as patched:
        push_here(hub, patched)
        push(str(out), REPO, quiet=True)
        assert push(str(out), REPO, verify_only=True, quiet=True).problems == ()
    files = hub.store.repo(REPO).commit("main").files
    assert not any(path.startswith(".laion6m/") for path in files)
