"""Added columns on the Hub: pushed, named in the card, read from there, compared, left out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from builder import add_column, open_dataset
from builder.base.errors import OutputError
from builder.hub.push import push
from builder.jobs.info import info
from builder.store.manifest import read_manifest
from builder.verification.verify import verify
from tests.hub.client import run_ok
from tests.hub.server import HubServer
from tests.pushes import REPO, here, push_here, there

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # the client's way to send a file
]

URL = f"hf://datasets/{REPO}"


@pytest.fixture
def with_columns(out: Path, tmp_path: Path) -> Path:
    """``latents``, which one row lacks, and ``score``."""
    rows = open_dataset(out)
    for number, sample in enumerate(rows):
        file = tmp_path / "latents" / f"{sample.path}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        if number != 4:
            np.save(file, np.full((2, 3), number, np.float32))
    add_column(out, "latents", tmp_path / "latents", missing_ok=True, num_proc=1, quiet=True)
    scores = [{"path": sample.path, "score": number / 2} for number, sample in enumerate(rows)]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scores))
    add_column(out, "score", tmp_path / "scores.jsonl", quiet=True)
    return out


def configs_of(card: bytes) -> dict[str, str]:
    front = yaml.safe_load(card.decode().split("---\n")[1])
    return {each["config_name"]: each["data_files"][0]["path"] for each in front["configs"]}


def test_columns_are_pushed_and_each_is_a_configuration(inside: HubServer, with_columns: Path) -> None:
    out = with_columns
    done = push(out, REPO, quiet=True)
    files = there(inside)
    assert {path for path in files if "columns/" in path} == {
        f"meta/columns/{name}.{ending}" for name in ("latents", "score") for ending in ("arrow", "json")
    } | {
        f"columns/{name}/{shard.name}" for name in ("latents", "score") for shard in (out / "columns" / name).iterdir()
    }
    assert configs_of(files["README.md"]) == {
        "default": "data/train-*.parquet",
        "latents": "columns/latents/train-*.parquet",
        "score": "columns/score/train-*.parquet",
    }
    assert "| `latents` | array |" in files["README.md"].decode()
    assert "| `score` | double |" in files["README.md"].decode()
    assert done.ok
    assert push(out, REPO, quiet=True).changed == 0
    assert push(out, REPO, verify_only=True, quiet=True).ok
    assert verify(out).ok
    assert "columns   latents (array), score (double)" in info(out).lines


def test_a_column_that_differs_there_is_a_problem_and_sent_again(inside: HubServer, with_columns: Path) -> None:
    push(with_columns, REPO, without_columns=True, quiet=True)
    compared = push(with_columns, REPO, verify_only=True, quiet=True)
    assert any("meta/columns/score.arrow" in problem for problem in compared.problems)
    assert any("README.md" in problem for problem in compared.problems)
    assert push(with_columns, REPO, quiet=True).changed > 0
    assert push(with_columns, REPO, verify_only=True, quiet=True).ok


def test_without_columns_leaves_them_out_and_says_so(
    inside: HubServer, with_columns: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(with_columns, REPO, quiet=True)
    push(with_columns, REPO, without_columns=True)
    assert "This push leaves out the columns latents, score." in capsys.readouterr().err
    assert there(inside) == {path: data for path, data in here(with_columns).items() if "columns/" not in path}
    assert configs_of(there(inside)["README.md"]) == {"default": "data/train-*.parquet"}


def test_an_owners_configurations_stay_beside_the_columns(inside: HubServer, with_columns: Path) -> None:
    push(with_columns, REPO, quiet=True)
    card = with_columns / "README.md"
    own = "- config_name: mine\n  data_files:\n  - split: train\n    path: extra/*.parquet\n"
    card.write_text(card.read_text().replace("- config_name: latents", own + "- config_name: latents"))
    push(with_columns, REPO, quiet=True)
    assert set(configs_of(there(inside)["README.md"])) == {"default", "latents", "score", "mine"}
    push(with_columns, REPO, without_columns=True, quiet=True)
    assert set(configs_of(there(inside)["README.md"])) == {"default", "mine"}


def test_a_column_of_an_earlier_conversion_is_not_pushed(inside: HubServer, with_columns: Path) -> None:
    manifest = read_manifest(str(with_columns))
    manifest.files["meta/index.arrow"]["xxh3_128"] = "0" * 32
    (with_columns / "meta" / "manifest.json").write_bytes(manifest.to_json())
    assert "made for another conversion" in "\n".join(info(with_columns).lines)
    with pytest.raises(OutputError, match="--without-columns"):
        push(with_columns, REPO, quiet=True)


def test_columns_are_read_from_the_hub(hub: HubServer, with_columns: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        push_here(hub, patched)
        push(with_columns, REPO, quiet=True)
    code = f"""
        import pickle
        from builder import open_dataset
        rows = open_dataset({URL!r})
        assert rows.added_columns() == ["latents", "score"], rows.added_columns()
        assert rows.column("score").to_pylist() == [number / 2 for number in range(len(rows))]
        local = open_dataset({os.fspath(with_columns)!r})
        for number in range(len(rows)):
            assert rows[number]["latents"] == local[number]["latents"]
            assert rows[number]["score"] == number / 2
        assert rows[4]["latents"] is None
        assert pickle.loads(pickle.dumps(rows))[1]["latents"] == local[1]["latents"]
        print("done")
    """
    assert "done" in run_ok(hub, code)
