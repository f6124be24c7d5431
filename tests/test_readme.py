"""README.md's tour is what the command prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.outputs import environment

README = (Path(__file__).parents[1] / "README.md").read_text()
TOUR = re.search(r"<!-- tour.*?-->\n```\n(.*?)```\n", README, flags=re.DOTALL)


def timeless(text: str) -> list[str]:
    """Without times and rates, and without the sizes of images, which Pillow's encoder decides."""
    text = re.sub(r"[\d.,]+ (images/s|MB/s|kB|MB|bytes|min|s)\b", r"N \1", text)
    return [line.rstrip() for line in text.strip().splitlines()]


def test_the_tour_is_what_the_demo_prints(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "builder", "demo", "work", "-q"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    assert TOUR
    printed, written = timeless(done.stdout), timeless(TOUR[1])
    assert written == printed
