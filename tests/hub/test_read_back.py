"""What was pushed, read back with no code of ours (datasets, DuckDB, Polars) and by the Reader, from the test Hub."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from builder.hub.push import push
from tests.hub.client import client_env, run_ok
from tests.hub.server import OTHER_TOKEN, READ_TOKEN, HubServer
from tests.pushes import REPO, converted, push_here, there

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # the client's way to send a file
]


OTHER_CLIENT = "HUB_TEST_PYTHON"


@pytest.fixture(params=["this client", "other client"])
def client_python(request: pytest.FixtureRequest) -> str:
    """An interpreter that reads what this one pushed: this one, and one with other versions (datasets<4, hub<1)."""
    if request.param == "this client":
        return sys.executable
    if OTHER_CLIENT not in os.environ:
        pytest.skip(f"{OTHER_CLIENT} does not name an interpreter with other client versions (datasets<4, hub<1)")
    return os.environ[OTHER_CLIENT]


@pytest.fixture
def pushed(hub: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """With images in user/laion6m and on a branch of it, without in user/captions."""
    with monkeypatch.context() as patched:
        push_here(hub, patched)
        push(str(out), REPO, quiet=True)
        push(str(out), REPO, revision="rows/2026", quiet=True)
        push(str(out), "user/captions", captions_only=True, quiet=True)
    return hub


def local_rows(out: Path) -> list[dict[str, Any]]:
    return [row for shard in sorted((out / "data").iterdir()) for row in pq.ParquetFile(shard).read().to_pylist()]


def plain(rows: list[dict[str, Any]]) -> list[list[Any]]:
    return [
        [row["key"], row["image"]["bytes"].hex(), row["image"]["path"], row["caption"], row["width"], row["height"],
         row["annotation"]]
        for row in rows
    ]  # fmt: skip


LOAD = """
    import json, sys
    from datasets import Image, load_dataset
    from datasets.distributed import split_dataset_by_node

    def plain(row):
        image = row["image"]
        return [row["key"], image["bytes"].hex(), image["path"], row["caption"], row["width"], row["height"],
                row["annotation"]]

    mapped = load_dataset("user/laion6m", split="train")
    rows = [plain(row) for row in mapped.cast_column("image", Image(decode=False))]
    streamed = load_dataset("user/laion6m", split="train", streaming=True)
    raw = streamed.cast_column("image", Image(decode=False))
"""

READ_BACK = (
    LOAD
    + """
    assert streamed.features == mapped.features
    assert [plain(row) for row in raw] == rows
    shuffled = [plain(row) for row in raw.shuffle(seed=1, buffer_size=4)]
    assert shuffled != rows and sorted(shuffled) == sorted(rows)
    assert [plain(row) for row in raw.shuffle(seed=1, buffer_size=4)] == shuffled
    halves = [[plain(row) for row in split_dataset_by_node(raw, rank=rank, world_size=3)] for rank in range(3)]
    assert sorted(sum(halves, [])) == sorted(rows) and all(halves)
    skewed = [[plain(row) for row in split_dataset_by_node(raw, rank=rank, world_size=2)] for rank in range(2)]
    assert sorted(sum(skewed, [])) == sorted(rows) and all(skewed)
    assert mapped[0]["image"].size == (600, 600) and next(iter(streamed))["image"].size == (600, 600)
    branch = load_dataset("user/laion6m", split="train", revision="rows/2026")
    assert [plain(row) for row in branch.cast_column("image", Image(decode=False))] == rows
    from builder import open_dataset
    for url in ("hf://datasets/user/laion6m", "hf://datasets/user/laion6m@rows%2F2026"):
        remote = open_dataset(url)
        found = [[s.key, s.image.hex(), s.path, s.caption, s.width, s.height, s.annotation] for s in remote]
        assert found == rows
        assert remote[7].image.hex() == rows[7][1]
    print(json.dumps(rows))
"""
)


@pytest.mark.slow
def test_datasets_and_the_reader_read_back_what_is_here(pushed: HubServer, client_python: str, out: Path) -> None:
    assert json.loads(run_ok(pushed, READ_BACK, client_python)) == plain(local_rows(out))


CAPTIONS = """
    import json
    from datasets import load_dataset
    mapped = load_dataset("user/captions", split="train")
    streamed = load_dataset("user/captions", split="train", streaming=True)
    assert list(streamed) == list(mapped)
    assert streamed.features == mapped.features
    print(json.dumps(list(mapped)))
"""


@pytest.mark.slow
def test_captions_alone_read_back_as_what_is_here(pushed: HubServer, client_python: str, out: Path) -> None:
    rows = json.loads(run_ok(pushed, CAPTIONS, client_python))
    assert list(rows[0]) == ["key", "url", "caption", "width", "height", "annotation"]
    expected = local_rows(out)
    for row in expected:
        del row["image"]
        row["url"] = json.loads(row["annotation"]).get("url")
    assert rows == expected
    assert {row["url"] is None for row in rows} == {True, False}


FEATURES = """
    import sys
    from pathlib import Path
    from datasets import load_dataset, load_dataset_builder
    for repo, kind in (("user/laion6m", "parquet"), ("user/captions", "parquet"), ("user/arrow", "arrow")):
        stated = load_dataset_builder(repo).info
        data = [str(path) for path in sorted(Path(sys.argv[1], repo).iterdir())]
        inferred = load_dataset(kind, data_files=data, split="train")
        assert stated.features == inferred.features, (repo, stated.features, inferred.features)
        assert list(stated.features) == list(inferred.features)
        assert stated.splits["train"].num_examples == len(inferred)
        assert stated.download_size == sum(Path(path).stat().st_size for path in data)
        size, room = inferred.data.nbytes, 1000  # of Arrow's own, for as few rows as these
        for noted in (stated.splits["train"].num_bytes, stated.dataset_size):
            assert type(noted) is int and 0.95 * (size - room) < noted < 1.05 * (size + room), (repo, noted, size)
"""


@pytest.mark.slow
def test_the_card_states_the_features_and_sizes_that_datasets_infers(
    pushed: HubServer, client_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrow = converted(tmp_path / "arrow", shards=2, format="arrow")
    with monkeypatch.context() as patched:
        push_here(pushed, patched)
        push(str(arrow), "user/arrow", quiet=True)
    for repo in (REPO, "user/captions", "user/arrow"):  # where no card is that could say it
        serve(pushed, repo, tmp_path / "bare" / repo)
    run_ok(pushed, ["-c", dedented(FEATURES), str(tmp_path / "bare")], client_python)


def dedented(code: str) -> str:
    from textwrap import dedent

    return dedent(code)


def serve(hub: HubServer, repo: str, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, data in there(hub, repo).items():
        if name.startswith("data/"):
            (folder / name.removeprefix("data/")).write_bytes(data)
    return folder


WORKERS = (
    LOAD
    + """
    from torch.utils.data import DataLoader
    columns = raw.select_columns(["key", "caption"])
    for workers in (1, 2, 3):
        loader = DataLoader(columns, batch_size=2, num_workers=workers)
        found = [pair for batch in loader for pair in zip(batch["key"], batch["caption"])]
        assert sorted(found) == sorted((row[0], row[3]) for row in rows), workers
    part = split_dataset_by_node(columns, rank=0, world_size=3)
    assert [key for batch in DataLoader(part, num_workers=1) for key in batch["key"]] == [row[0] for row in rows[:3]]
    images = DataLoader(raw, batch_size=3, num_workers=2, collate_fn=list)
    assert sorted(plain(row) for batch in images for row in batch) == sorted(rows)
    shuffled = DataLoader(raw.shuffle(seed=3, buffer_size=4), batch_size=None, num_workers=2)
    assert sorted(plain(row) for row in shuffled) == sorted(rows)
    print("read")
"""
)


@pytest.mark.slow
def test_workers_of_a_loader_share_the_stream(pushed: HubServer) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    assert "read" in run_ok(pushed, ["-W", "ignore", "-c", dedented(WORKERS)])


TABLES = """
    import duckdb, json, polars
    from huggingface_hub import HfFileSystem
    files = HfFileSystem()
"""

DUCKDB = (
    TABLES
    + """
    duckdb.register_filesystem(files)
    where = "'hf://datasets/user/laion6m/data/*.parquet'"
    wide = duckdb.sql(f"SELECT key, caption, width FROM {where} WHERE width >= 600 ORDER BY key").fetchall()
    print(json.dumps(wide))
    whole = duckdb.sql(f"SELECT key, image.bytes, image.path, caption, width, height, annotation FROM {where} "
                       "ORDER BY key").fetchall()
    print(json.dumps([[key, image.hex(), *more] for key, image, *more in whole]))
"""
)

POLARS = (
    TABLES
    + """
    names = sorted(files.glob("datasets/user/laion6m/data/*.parquet"))
    found = [polars.read_parquet(files.open(name), columns=["key", "caption"]) for name in names]
    print(json.dumps(polars.concat(found).rows()))
"""
)


def answers_of(hub: HubServer, code: str) -> list[Any]:
    pytest.importorskip("duckdb", reason="duckdb is not installed")
    pytest.importorskip("polars", reason="polars is not installed")
    return [json.loads(line) for line in run_ok(hub, code).splitlines()]


@pytest.mark.slow
def test_duckdb_reads_back_what_is_here_over_the_files_served(pushed: HubServer, out: Path) -> None:
    """Through the client's file system, as DuckDB's own hf:// knows no other endpoint than huggingface.co."""
    before = len(pushed.requests("cdn_get"))
    columns, whole = answers_of(pushed, DUCKDB)
    rows = sorted(plain(local_rows(out)))
    assert columns == [[row[0], row[3], row[4]] for row in rows]
    assert whole == rows
    assert {record.status for record in pushed.requests("cdn_get")[before:]} == {206}, "ranges, not whole files"


@pytest.mark.slow
def test_polars_reads_back_what_is_here_over_the_files_served(pushed: HubServer, out: Path) -> None:
    (columns,) = answers_of(pushed, POLARS)
    assert columns == [[row[0], row[3]] for row in plain(local_rows(out))]


@pytest.mark.slow
def test_verify_and_info_take_a_repository(pushed: HubServer, out: Path) -> None:
    code = """
        from builder import info, verify
        result = verify("hf://datasets/user/laion6m", num_proc=2, quiet=True)
        print(result.ok, result.rows, *result.problems)
        print(info("hf://datasets/user/laion6m").kind)
    """
    assert run_ok(pushed, code) == f"True {len(local_rows(out))}\nparquet\n"


@pytest.mark.slow
def test_a_sample_is_one_request_for_just_its_bytes(pushed: HubServer, client_python: str, out: Path) -> None:
    code = """
        import sys
        from builder import open_dataset
        rows = open_dataset("hf://datasets/user/laion6m")
        print(rows[0].caption, len(rows), rows.find(rows[5].key).row)
        first = rows[7].image  # opens the shard
        print("-" * 20)
        for number in (6, 8):
            print(len(rows[number].image))
    """
    before = {record.index for record in pushed.requests()}
    said = run_ok(pushed, code, client_python)
    sizes = [len(row["image"]["bytes"]) for row in local_rows(out)]
    assert [int(line) for line in said.splitlines()[-2:]] == [sizes[6], sizes[8]]
    ranges = [record for record in pushed.requests("cdn_get") if record.index not in before and record.status == 206]
    sent = Counter(record.bytes_out for record in ranges)
    assert all(sent[sizes[number]] == 1 for number in (6, 7, 8)), (sizes, sent)
    others = sum(record.bytes_out for record in ranges) - sum(sizes[6:9])
    assert others < 20_000 + 65_536, "the index and the end of the shard, with its footer"


@pytest.mark.slow
def test_an_annotation_costs_its_column_of_a_row_group(pushed: HubServer, client_python: str, out: Path) -> None:
    code = """
        from builder import open_dataset
        rows = open_dataset("hf://datasets/user/laion6m")
        print(rows[4].annotation)
        print(rows[5].annotation)
    """
    before = len(pushed.requests("cdn_get"))
    said = run_ok(pushed, code, client_python)
    assert said.splitlines() == [row["annotation"] for row in local_rows(out)[4:6]]
    ranges = [record for record in pushed.requests("cdn_get")[before:] if record.status == 206]
    shard = out / "data" / "train-00001-of-00003.parquet"
    assert sum(record.bytes_out for record in ranges) < 3 * 65_536 + 10_000 < shard.stat().st_size / 3


PRIVATE = """
    import sys
    from datasets import load_dataset
    from builder import open_dataset
    token = sys.argv[1] or None
    for load in (
        lambda: len(load_dataset("user/laion6m", split="train", token=token)),
        lambda: len(list(load_dataset("user/laion6m", split="train", streaming=True, token=token))),
        lambda: len([sample.image for sample in
                     open_dataset("hf://datasets/user/laion6m", storage_options={"token": token})]),
    ):
        try:
            print(load())
        except Exception as error:
            print(type(error).__name__, str(error).replace("\\n", " "))
"""


@pytest.mark.slow
@pytest.mark.parametrize("gated", [False, True])
def test_a_private_or_gated_repository_is_read_with_a_token(
    gated: bool, pushed: HubServer, client_python: str, tmp_path: Path
) -> None:
    repo = pushed.store.repo(REPO)
    assert repo.private
    repo.private, repo.gated = (False, "manual") if gated else (True, repo.gated)
    repo.save()
    for token, allowed in ((READ_TOKEN, True), ("", False), (OTHER_TOKEN, False)):
        env = client_env(pushed, tmp_path / (token or "nobody"), token=None)
        said = run_ok(pushed, ["-c", dedented(PRIVATE), token], client_python, env=env).splitlines()
        assert len(said) == 3
        assert (said == ["9"] * 3) is allowed, said
        if not allowed:
            assert not any(line.isdecimal() for line in said)
        assert not token or token not in "".join(said)
    shutil.rmtree(tmp_path / "nobody", ignore_errors=True)


@pytest.mark.slow
def test_arrow_folders_are_pushed_and_loaded_too(
    hub: HubServer, client_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.pushes import here

    out = converted(tmp_path / "arrow", shards=1, format="arrow")
    with monkeypatch.context() as patched:
        push_here(hub, patched)
        push(str(out), REPO, quiet=True)
        assert there(hub) == here(out)
        push(str(out), "user/captions", captions_only=True, quiet=True)
    code = """
        from datasets import load_dataset
        rows = load_dataset("user/laion6m", split="train", streaming=True)
        assert len([row["key"] for row in rows]) == 3
        assert len(load_dataset("user/captions", split="train")) == 3
    """
    run_ok(hub, code, client_python)
