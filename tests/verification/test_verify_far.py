"""verify and info of converted folders behind URLs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from builder.base.errors import OptionError, SourceError
from builder.cli.commands import main
from builder.conversion.convert import convert
from builder.jobs.info import describe_info, info
from builder.verification.verify import verify
from tests.servers import FileServer
from tests.sources import make_source


@pytest.fixture
def out(tmp_path: Path) -> Path:
    source = make_source(tmp_path / "src")
    convert(source.path, tmp_path / "out", num_proc=1, quiet=True)
    return tmp_path / "out"


@pytest.fixture
def url(out: Path) -> Iterator[str]:
    with FileServer(out.parent) as server:
        yield f"{server.url}/out"


def test_a_sound_folder_behind_a_url_is_sound(url: str) -> None:
    result = verify(url, num_proc=1, decode=True, quiet=True)
    assert (result.ok, result.problems, result.rows) == (True, (), 24)
    assert result.bytes > 0


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("data/train-00000-of-00001.parquet", flip),
        ("data/train-00000-of-00001.parquet", lambda path: path.unlink()),
        ("data/train-00000-of-00001.parquet", lambda path: path.write_bytes(path.read_bytes()[:-9])),
        ("meta/index.arrow", flip),
        ("meta/manifest.json", flip),
        ("meta/manifest.json", lambda path: path.write_bytes(b"{")),
        ("meta/rejects.parquet", lambda path: path.unlink()),
    ],
)
def test_damage_behind_a_url_is_found(name: str, spoil: Callable[[Path], None], out: Path, url: str) -> None:
    spoil(out / name)
    result = verify(url, num_proc=1, quiet=True)
    assert not result.ok
    assert any(name in problem for problem in result.problems)


def test_what_is_no_converted_folder_is_one_line(url: str) -> None:
    elsewhere = url.replace("/out", "/nowhere")
    with pytest.raises(SourceError, match="nowhere is not a converted folder"):
        verify(elsewhere, num_proc=1, quiet=True)
    with pytest.raises(SourceError, match="nowhere is not a converted folder"):
        info(elsewhere)
    with pytest.raises(OptionError, match="download the dataset"):
        verify(url, source="src", num_proc=1, quiet=True)


def test_info_says_of_a_url_what_it_says_of_a_folder(out: Path, url: str) -> None:
    far, near = info(url), info(out)
    assert far.path == url
    assert far.facts == near.facts
    assert far.kind == near.kind == "parquet"
    assert "/tmp" not in describe_info(far)
    assert f"laion6m verify {url}" in far.next


def test_info_knows_a_source_behind_a_url(url: str) -> None:
    far = info(url.replace("/out", "/src"))
    assert (far.kind, far.facts["layout"], far.facts["raw"]["tars"]) == ("source", "card", 3)


def test_the_command_takes_urls(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", url, "--num-proc", "1", "-q"]) == 0
    assert "24 rows are sound" in capsys.readouterr().out
    assert main(["info", url]) == 0
    assert "24 of 24 listed" in capsys.readouterr().out
