"""The unmodified clients against the test Hub: what they ask is answered as they expect."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.hub.client import client_env, run_ok
from tests.hub.samples import (
    LARGE,
    fill,
)
from tests.hub.server import HubServer

CALLS = """
    from huggingface_hub import CommitOperationAdd as Add, CommitOperationCopy as Copy, CommitOperationDelete as Delete
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download, HfFileSystem
    from huggingface_hub.errors import (BadRequestError, EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError,
                                        RevisionNotFoundError)
    api, D = HfApi(), dict(repo_id="user/x", repo_type="dataset")

    def fails(error, call, *args, **options):
        try:
            call(*args, **options)
        except error as raised:
            return raised
        raise AssertionError(call)

    assert api.whoami()["name"] == "user"
    assert not api.repo_exists(**D)
    fails(RepositoryNotFoundError, api.dataset_info, "user/x")
    assert api.create_repo(**D).repo_id == "user/x"
    assert api.create_repo(**D, exist_ok=True).repo_id == "user/x"
    assert fails(HfHubHTTPError, api.create_repo, **D).response.status_code == 409
    assert fails(HfHubHTTPError, api.create_repo, "somebody/x").response.status_code == 403
    assert api.repo_exists(**D) and not api.repo_exists("user/x")  # a dataset is no model

    big = bytes(range(256)) * 100
    first = api.create_commit(**D, commit_message="one", commit_description="text", operations=[
        Add("README.md", b"---\\nlicense: other\\n---\\nhello"), Add("data/a.bin", big), Add("data/empty.bin", b""),
        Add("data/deep/b.txt", "größe".encode()), Add("#1 ü.txt", b"odd name")])
    assert first.commit_url.endswith(f"/datasets/user/x/commit/{first.oid}")
    again = api.upload_file(path_or_fileobj=big, path_in_repo="data/a.bin", **D)
    assert getattr(again, "oid", first.oid) == first.oid  # nothing has changed: no commit

    info = api.dataset_info("user/x", files_metadata=True)
    assert info.sha == first.oid and info.card_data.license == "other" and info.private is False
    sizes = {s.rfilename: (s.size, s.lfs and s.lfs.size) for s in info.siblings}
    assert sizes["data/a.bin"] == (25600, 25600) and sizes["data/empty.bin"] == (0, None), sizes
    assert set(api.list_repo_files(**D)) == {".gitattributes", *[s.rfilename for s in info.siblings]}
    inside = [e.path for e in api.list_repo_tree(**D, path_in_repo="data")]
    assert inside == ["data/a.bin", "data/deep", "data/empty.bin"]
    fails(EntryNotFoundError, lambda: list(api.list_repo_tree(**D, path_in_repo="nothing")))
    paths = api.get_paths_info(**D, paths=["data", "data/a.bin", "nothing"], expand=True)
    assert [p.path for p in paths] == ["data", "data/a.bin"] and paths[1].last_commit.title == "one"
    assert api.file_exists("user/x", "#1 ü.txt", repo_type="dataset")
    assert not api.file_exists("user/x", "nothing", repo_type="dataset")
    assert fails(BadRequestError, api.upload_file, path_or_fileobj=b"", path_in_repo="a//b", **D)
    assert "license" in str(fails(ValueError, api.upload_file, path_or_fileobj=b"---\\nlicense: [no]\\n---\\n",
                                  path_in_repo="README.md", **D))

    api.create_branch(**D, branch="v/2")
    api.create_branch(**D, branch="v/2", exist_ok=True)
    api.create_tag(**D, tag="t", tag_message="m")
    assert fails(HfHubHTTPError, api.create_tag, **D, tag="t").response.status_code == 409
    second = api.create_commit(**D, commit_message="two", revision="v/2", parent_commit=first.oid, operations=[
        Copy("data/a.bin", "c.bin"), Copy("data/deep/b.txt", "c.txt"), Delete("data/deep/", is_folder=True),
        Delete("#1 ü.txt")])
    assert sorted(api.list_repo_files(**D, revision="v/2")) == [
        ".gitattributes", "README.md", "c.bin", "c.txt", "data/a.bin", "data/empty.bin"]
    stale = fails(HfHubHTTPError, api.create_commit, **D, commit_message="late", revision="v/2",
                  parent_commit=first.oid, operations=[Add("x.txt", b"x")])
    assert stale.response.status_code == 412
    fails(EntryNotFoundError, api.delete_file, "nothing", **D)
    fails(RevisionNotFoundError, api.upload_file, path_or_fileobj=b"x", path_in_repo="x.txt", revision="no", **D)
    pull = api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", create_pr=True, **D)
    assert pull.pr_revision == "refs/pr/1" and pull.pr_num == 1
    api.upload_file(path_or_fileobj=big + b"pr", path_in_repo="y.bin", revision="refs/pr/1", **D)
    refs = api.list_repo_refs(**D, include_pull_requests=True)
    assert {r.name: r.target_commit for r in refs.branches} == {"main": first.oid, "v/2": second.oid}
    assert [r.ref for r in refs.pull_requests] == ["refs/pr/1"] and [r.name for r in refs.tags] == ["t"]
    assert [c.title for c in api.list_repo_commits(**D, revision="v/2")] == ["two", "one", "initial commit"]

    where = dict(repo_id="user/x", repo_type="dataset")
    assert open(hf_hub_download(filename="y.bin", revision="refs/pr/1", **where), "rb").read() == big + b"pr"
    assert open(hf_hub_download(filename="#1 ü.txt", **where), "rb").read() == b"odd name"
    fails(EntryNotFoundError, hf_hub_download, filename="nothing", **where)
    folder = snapshot_download(**where, revision="t")
    assert open(f"{folder}/data/deep/b.txt", encoding="utf-8").read() == "größe"
    api.upload_folder(**where, folder_path=folder, path_in_repo="copy", allow_patterns="data/*")
    assert api.file_exists("user/x", "copy/data/a.bin", repo_type="dataset")
    files = HfFileSystem()
    assert files.ls("datasets/user/x@t/data", detail=False)[0] == "datasets/user/x@t/data/a.bin"
    assert files.glob("datasets/user/x/**/*.txt")
    with files.open("datasets/user/x/data/a.bin", block_size=1024) as file:
        file.seek(25_600 - 4)
        assert file.read() == bytes([252, 253, 254, 255])
    api.delete_branch(**D, branch="v/2")
    api.delete_tag(**D, tag="t")
    api.delete_repo(**D)
    api.delete_repo(**D, missing_ok=True)
    assert not api.repo_exists(**D)
"""


def test_the_clients_own_calls_are_answered_as_it_expects(hub: HubServer) -> None:
    run_ok(hub, CALLS)
    assert hub.requests("unknown") == []


PUSH_AND_LOAD = """
    from datasets import Dataset, Features, Image, Value, load_dataset
    from io import BytesIO
    from PIL import Image as Pillow

    def picture(number):
        out = BytesIO()
        Pillow.new("RGB", (8, 8), (number, 0, 0)).save(out, "PNG")
        return {"bytes": out.getvalue(), "path": None}

    features = Features({"key": Value("string"), "image": Image()})
    rows = {"key": [str(n) for n in range(40)], "image": [picture(n) for n in range(40)]}
    data = Dataset.from_dict(rows, features=features)
    for _ in range(2):
        data.push_to_hub("user/x", num_shards=3, private=True)
    mapped = load_dataset("user/x", split="train")
    assert mapped.features == features and mapped["key"] == rows["key"]
    assert mapped[7]["image"].getpixel((0, 0)) == (7, 0, 0)
    streamed = load_dataset("user/x", split="train", streaming=True)
    assert [row["key"] for row in streamed] == rows["key"]
"""


@pytest.mark.slow
def test_datasets_pushes_and_loads_without_knowing_of_us(hub: HubServer) -> None:
    run_ok(hub, PUSH_AND_LOAD)
    shards = [f"data/train-0000{n}-of-00003.parquet" for n in range(3)]
    assert list(hub.store.files("user/x")) == [".gitattributes", "README.md", *shards]
    assert len(hub.requests("put")) == 3  # the second push uploads nothing
    assert len(hub.store.commits("user/x")) == 2
    assert b"num_examples: 40" in hub.store.read("user/x", "README.md")
    ranged = [r for r in hub.requests("cdn_get") if r.status == 206]
    assert ranged, "streaming reads ranges"
    assert hub.requests("unknown") == []


def test_large_uploads_go_in_parts_and_are_whole_afterwards(hub: HubServer) -> None:
    hub.part_size = 10_000
    code = """
        from huggingface_hub import HfApi
        HfApi().create_repo("user/x", repo_type="dataset")
        for name, content in {"a.bin": bytes(range(256)) * 100, "b.bin": bytes(range(256)) * 10}.items():
            HfApi().upload_file(path_or_fileobj=content, path_in_repo=name, repo_id="user/x", repo_type="dataset")
    """
    run_ok(hub, code)
    assert hub.store.read("user/x", "a.bin") == LARGE
    assert [r.bytes_in for r in hub.requests("put_part")] == [10_000, 10_000, 5_600]
    assert [r.bytes_in for r in hub.requests("put")] == [2560]
    assert [r.authenticated for r in hub.requests("put_part", "put", "complete")] == [False] * 5
    assert [r.authenticated for r in hub.requests("verify")] == [True] * 2


@pytest.mark.slow
def test_uploads_by_xet_arrive_and_are_read_by_http(hub: HubServer, tmp_path: Path) -> None:
    pytest.importorskip("hf_xet", reason="hf_xet is not installed")
    code = """
        import random
        from huggingface_hub import HfApi, CommitOperationAdd as Add, hf_hub_download
        api = HfApi()
        api.create_repo("user/x", repo_type="dataset")
        noise = random.Random(0).randbytes(300_000)
        for name, content in {"a.bin": noise, "b.bin": noise[::-1], "c.bin": noise[:200_000]}.items():
            open(name, "wb").write(content)  # clients around 0.30 send bytes that are not in a file by LFS
        files = [Add("a.bin", "a.bin"), Add("b.bin", "b.bin")]
        api.create_commit("user/x", files, commit_message="m", repo_type="dataset")
        # shares its chunks with a.bin, which lies in another token's folder
        api.upload_file(path_or_fileobj="c.bin", path_in_repo="c.bin", repo_id="user/x", repo_type="dataset")
        assert open(hf_hub_download("user/x", "a.bin", repo_type="dataset"), "rb").read() == noise
    """
    run_ok(hub, code, env=client_env(hub, tmp_path, xet=True))
    a, b, c = (hub.store.read("user/x", name) for name in ("a.bin", "b.bin", "c.bin"))
    assert len(a) == 300_000
    assert (b, c) == (a[::-1], a[:200_000])
    assert hub.requests("xet_token")
    assert hub.requests("put") == []


def test_listings_are_paged_and_clients_follow_the_pages(hub: HubServer) -> None:
    fill(hub)
    hub.page_size, hub.expanded_page_size = 2, 1
    code = """
        from huggingface_hub import HfApi
        api = HfApi()
        tree = api.list_repo_tree("user/x", recursive=True, repo_type="dataset")
        assert [e.path for e in tree] == ["README.md", "a.bin", "data", "data/b.txt"]
        tree = api.list_repo_tree("user/x", expand=True, repo_type="dataset")
        assert [e.last_commit.title for e in tree] == ["fill"] * 3
    """
    run_ok(hub, code)
    assert len(hub.requests("tree")) == 2 + 3


def test_many_requests_at_once_are_served_and_no_commit_is_lost(hub: HubServer) -> None:
    fill(hub)
    code = """
        import sys
        from concurrent.futures import ThreadPoolExecutor
        from huggingface_hub import HfApi
        def upload(n):
            where = dict(path_in_repo=f"{n}.txt", repo_id="user/x", repo_type="dataset")
            HfApi().upload_file(path_or_fileobj=b"%d" % n, **where)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(upload, range(24)))
    """
    run_ok(hub, code)
    assert {f"{n}.txt" for n in range(24)} <= set(hub.store.files("user/x"))
    assert len(hub.store.commits("user/x")) == 2 + 24


def test_the_environment_of_a_client_has_nothing_of_ours_and_no_token_unless_given(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_developer")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    env = client_env(hub, tmp_path, token=None)
    assert not {"HF_TOKEN", "HTTPS_PROXY"} & set(env)
    assert (env["HF_ENDPOINT"], env["HF_HUB_DISABLE_XET"]) == (hub.endpoint, "1")
    assert env["PATH"] == os.environ["PATH"]
