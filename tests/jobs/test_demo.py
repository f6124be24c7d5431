"""The demo works wherever it is typed, and says no more than what is so."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from builder.base.errors import OutputError
from builder.base.names import DEMO
from builder.jobs.demo import Demo, demo
from builder.jobs.demo_images import draw
from builder.read.opening import open_dataset
from tests.outputs import output_bytes, run_command


class Made(NamedTuple):
    """A demo, to be left as it is."""

    path: Path
    result: Demo
    text: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    path = tmp_path_factory.mktemp("made") / "demo"
    said: list[str] = []
    return Made(path, demo(str(path), say=said.append), "\n".join(said))


def test_it_converts_verifies_and_shows_three_rows(made: Made) -> None:
    result, text = made.result, made.text
    assert result.ok
    assert result.verified.problems == ()
    totals = result.converted.totals
    assert totals.rejected == result.expected
    assert (totals.listed, totals.unlisted) == (301, 1)
    assert sum(result.expected.values()) == 301 - totals.rows
    assert len(result.expected) == 7
    reader = open_dataset(made.path / "out")
    for row in (0, len(reader) // 2, len(reader) - 1):
        assert reader[row].caption in text
    for reason in result.expected:
        assert reason in text
    assert "Next:" in text


def test_a_second_demo_uses_the_first_one_again(made: Made) -> None:
    before = output_bytes(made.path / "out")
    result = demo(str(made.path))
    assert result.ok
    assert result.converted.did == 0
    assert output_bytes(made.path / "out") == before


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("mine")
    with pytest.raises(OutputError, match="no demo made it"):
        demo(str(tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]
    (tmp_path / "mine/demo.json").write_text("[]")
    with pytest.raises(OutputError, match="was changed"):
        demo(str(tmp_path / "mine"))


def test_its_images_are_of_many_kinds() -> None:
    images = [draw(number) for number in range(40)]
    heads = {data[:4] for data, _, _ in images}
    assert heads >= {b"\x89PNG", b"RIFF", b"GIF8", b"\xff\xd8\xff\xe0"}
    assert any(b"\xff\xc2" in data for data, _, _ in images)  # progressive
    assert any(b"Exif" in data for data, _, _ in images)
    assert len({caption for _, _, caption in images}) > 12


@pytest.mark.slow
def test_the_command_makes_the_same_bytes_exits_with_0_and_tells_what_to_type_next(made: Made, tmp_path: Path) -> None:
    ran = run_command("demo", cwd=tmp_path)
    assert ran.code == 0, ran.stderr
    assert "laion6m info" in ran.stdout
    assert output_bytes(tmp_path / DEMO / "out") == output_bytes(made.path / "out")
    ran = run_command("demo", "--json", cwd=tmp_path)
    assert ran.document["ok"] is True


@pytest.mark.slow
def test_the_commands_of_this_floor_report_and_exit_as_promised(made: Made, tmp_path: Path) -> None:
    source, out = made.path / "source", Path(shutil.copytree(made.path / "out", tmp_path / "out"))
    ran = run_command("verify", out, "--source", source, "--decode", "--json", "--num-proc", 2)
    assert (ran.code, ran.document) == (0, {"ok": True, "rows": 291, "problems": []})
    ran = run_command("info", out, "--json")
    assert (ran.code, ran.document["kind"]) == (0, "parquet")
    ran = run_command("extract", out, tmp_path / "files", "--json", "--num-proc", 2)
    assert (ran.code, ran.document["images"], ran.document["captions"]) == (0, 291, 291)
    (out / "README.md").unlink()
    ran = run_command("verify", out)
    assert ran.code == 1
    assert "README.md: is missing" in ran.stdout
