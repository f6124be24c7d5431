"""Columns beside the images are part of what verify looks at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from builder import open_dataset, verify
from builder.conversion.convert import convert
from builder.curate.add_column import add_column
from tests.sources import make_source


@pytest.fixture
def with_column(tmp_path: Path) -> Path:
    source = make_source(tmp_path / "source")
    out = tmp_path / "out"
    convert(str(source.path), str(out), num_proc=1, quiet=True)
    for sample in open_dataset(out):
        path = tmp_path / "latents" / f"{sample.path}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full((2, 3), sample.row, dtype=np.float32))
    add_column(str(out), "latents", str(tmp_path / "latents"), num_proc=1, quiet=True)
    return out


def test_a_dataset_with_a_column_is_sound(with_column: Path) -> None:
    assert verify(str(with_column), quiet=True).problems == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "keep"), [("latents/train-00000-of-00001.parquet", -1), ("../meta/columns/latents.json", 9)]
)
def test_a_cut_column_is_a_problem_that_names_it(name: str, keep: int, with_column: Path) -> None:
    path = (with_column / "columns" / name).resolve()
    path.write_bytes(path.read_bytes()[:keep])
    [problem] = verify(str(with_column), quiet=True).problems
    assert problem.startswith(str(path.relative_to(with_column.resolve())))
    assert "add-column" in problem


@pytest.mark.slow
@pytest.mark.parametrize("name", ["columns/latents/train-00000-of-00001.parquet", "meta/columns/latents.arrow"])
def test_a_lost_file_of_a_column_is_a_problem(name: str, with_column: Path) -> None:
    (with_column / name).unlink()
    problems = verify(str(with_column), quiet=True).problems
    assert [problem.split(":")[0] for problem in problems] == [name]


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["columns/latents", "meta/columns"])
def test_a_flipped_bit_anywhere_in_a_column_is_found(folder: str, with_column: Path) -> None:
    """Sizes and footers alone did not show one among the arrays."""
    for path in sorted((with_column / folder).iterdir()):
        sound = path.read_bytes()
        for at in range(0, len(sound), len(sound) // 40):
            changed = bytearray(sound)
            changed[at] ^= 1 << at % 8
            path.unlink()  # an earlier one may be mapped still
            path.write_bytes(changed)
            problems = verify(str(with_column), num_proc=1, quiet=True).problems
            assert problems, (path, at)
            assert str(path.relative_to(with_column)) in " ".join(problems) or "columns/latents" in problems[0]
            if path.suffix == ".parquet":
                assert "rows 0 to 23 lie in it" in problems[0]
        path.write_bytes(sound)
    assert verify(str(with_column), num_proc=1, quiet=True).ok
