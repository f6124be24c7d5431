"""Selections on the Hub: which rows they are and what these say, no image; lists of samples to leave out."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from builder.base.errors import SourceError
from builder.curate.selection import Selection
from builder.hub.push import push
from builder.read.opening import open_dataset
from tests.curate.shelf import keys_of
from tests.hub.client import run_ok
from tests.hub.server import HubServer
from tests.pushes import REPO, push_here, there

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]

SUB = f"{REPO}-sub"


@pytest.fixture
def here(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    push_here(hub, monkeypatch)
    return hub


def test_a_selection_is_pushed_as_keys_and_texts_without_images_or_paths(
    here: HubServer, out: Path, tmp_path: Path
) -> None:
    view = open_dataset(out)[3:20:2]
    view.save(tmp_path / "sub")
    pushed = push(str(tmp_path / "sub"), SUB, quiet=True)
    assert (pushed.ok, pushed.rows) == (True, len(view))
    files = there(here, SUB)
    table = pq.read_table(BytesIO(files["data/train-00000-of-00001.parquet"]))
    assert table.column("key").to_pylist() == keys_of(view)
    assert table.column("annotation").to_pylist() == [sample.annotation for sample in view]
    assert "image" not in table.column_names
    made = Selection.from_json(files["meta/selection.json"])
    assert (made.rows, made.dataset, made.beside) == (len(view), "", "")
    assert not any(str(tmp_path).encode() in content for content in files.values())
    assert f"{len(view)}" in files["README.md"].decode()
    assert push(str(tmp_path / "sub"), SUB, quiet=True).changed == 0
    assert push(str(tmp_path / "sub"), SUB, verify_only=True, quiet=True).ok


@pytest.mark.slow
def test_a_selection_of_a_pushed_dataset_opens_from_the_hub(
    hub: HubServer, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        push_here(hub, patched)
        push(str(out), REPO, quiet=True)
        open_dataset(out)[3:20:2].save(tmp_path / "sub")
        push(str(tmp_path / "sub"), SUB, quiet=True)
    assert json.loads(there(hub, SUB)["meta/selection.json"])["dataset"] == f"hf://datasets/{REPO}"
    code = f"""
        from builder import open_dataset
        rows, local = open_dataset("hf://datasets/{SUB}"), open_dataset({str(tmp_path / "sub")!r})
        assert [sample.key for sample in rows] == [sample.key for sample in local]
        assert rows[2].image == local[2].image
        print("done")
    """
    assert "done" in run_ok(hub, code)


def test_a_selection_that_came_without_its_dataset_says_so(here: HubServer, out: Path, tmp_path: Path) -> None:
    open_dataset(out)[3:9].save(tmp_path / "sub")
    push(str(tmp_path / "sub"), SUB, quiet=True)
    for name, content in there(here, SUB).items():
        path = tmp_path / "fetched" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(SourceError, match="does not name its dataset"):
        open_dataset(tmp_path / "fetched")


@pytest.mark.slow
def test_without_a_list_of_samples_their_images_are_not_sent(here: HubServer, out: Path, tmp_path: Path) -> None:
    rows = open_dataset(out)
    taken = [rows[2], rows[7]]
    (tmp_path / "take.txt").write_text("\n".join([taken[0].key, taken[1].path]))
    pushed = push(str(out), REPO, without=tmp_path / "take.txt", quiet=True)
    assert pushed.rows == len(rows) - 2
    files = there(here)
    assert not any(sample.image in content for sample in taken for content in files.values())
    shards = [content for name, content in files.items() if name.startswith("data/")]
    keys = [key for shard in shards for key in pq.read_table(BytesIO(shard)).column("key").to_pylist()]
    assert keys == [key for key in keys_of(rows) if key not in {sample.key for sample in taken}]
    assert push(str(out), REPO, without=tmp_path / "take.txt", quiet=True).changed == 0
    (tmp_path / "take.txt").write_text(rows[5].key)
    assert push(str(out), REPO, without=tmp_path / "take.txt", quiet=True).rows == len(rows) - 1
