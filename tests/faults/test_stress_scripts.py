"""A handful of trials of each stress script: their closing lines have to say that nothing crashed, hung or was lost."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.outputs import ROOT, environment

pytestmark = pytest.mark.slow


def closing_line(tmp_path: Path, script: str, *arguments: object) -> dict[str, int]:
    """Run it in a process of its own: it forks, limits and kills processes. Its figures by name."""
    done = subprocess.run(
        [sys.executable, ROOT / "stress" / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**environment(), "TMPDIR": str(tmp_path)},
        timeout=200,
        check=False,
    )
    line = done.stdout.splitlines()[-1] if done.stdout else ""
    figures = {
        name: int(count.replace(",", "")) for name, count in re.findall(r"([a-z][\w ,-]*?) ([\d,]+)(?:,|$)", line)
    }
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (figures["crashes"], figures["hangs"], figures["lost"]) == (0, 0, 0)
    return figures


@pytest.mark.parametrize("seed", [1, 6])
def test_killed_runs_are_finished_by_the_next(seed: int, tmp_path: Path) -> None:
    figures = closing_line(tmp_path, "kill.py", "--trials", 2, "--seed", seed)
    assert figures["trials"] == 2
    assert figures["rows"] == 32
    assert figures["rejects"] == 8


def test_disk_errors_leave_nothing_half_named(tmp_path: Path) -> None:
    figures = closing_line(tmp_path, "enospc.py", "--trials", 14)
    assert figures["trials"] == 14
    assert figures["refused"] >= 7
    kinds = ["file too large", "full tmpfs", "no inodes", "read-only"]  # the script's own, one by one
    assert all(figures.get(kind, 2) for kind in kinds)
    assert figures["not reached"] <= 2  # a disk may have had room


def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    figures = closing_line(tmp_path, "flip.py", "--trials", 60)
    assert figures["found"] == 54
    assert figures["in images"] > 5
    assert figures["bookkeeping refused"] > 0


def test_damaged_tars_lose_nothing_silently(tmp_path: Path) -> None:
    figures = closing_line(tmp_path, "fuzz_tar.py", "--trials", 100, "--every", 50, "--corpus", 0)  # as test_corpus.py
    assert figures["trials"] == 100
    assert figures["must be found"] > 50
    assert figures["rows"] + figures["rejects"] > 10


def test_hostile_annotations_and_listings_are_rows_rejects_or_errors(tmp_path: Path) -> None:
    figures = closing_line(tmp_path, "fuzz_json.py", "--trials", 10)
    assert min(figures["refused"], figures["rows"], figures["rejects"]) > 0


def test_hostile_datasets_are_rows_or_errors(tmp_path: Path) -> None:
    figures = closing_line(tmp_path, "fuzz_parquet.py", "--trials", 140)
    assert min(figures["read"], figures["refused"], figures["verified"], figures["forged"]) > 0


@pytest.mark.parametrize("words", ["300 MB", "31 MiB of", "400 megapixels", "Parquet, 10"])
def test_what_is_made_to_exhaust_memory_stays_within_the_bound(words: str, tmp_path: Path) -> None:
    assert closing_line(tmp_path, "memory.py", "--only", words)["trials"] > 0


def test_a_script_that_finds_something_says_so(tmp_path: Path) -> None:
    """So that the tests above can fail."""
    done = subprocess.run(
        [sys.executable, ROOT / "stress" / "memory.py", "--only", "nothing odd", "--bound", "10"],
        capture_output=True,
        text=True,
        env={**environment(), "TMPDIR": str(tmp_path)},
        timeout=200,
        check=False,
    )
    assert done.returncode == 1
    assert "lost 1" in done.stdout
