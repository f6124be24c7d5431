"""docs/architecture.md shows the house as it is, and names files that exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_the_picture_is_what_the_script_draws() -> None:
    spec = importlib.util.spec_from_file_location("house", ROOT / "docs" / "house.py")
    assert spec is not None
    assert spec.loader is not None
    house = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(house)
    shown = re.search(r"<!-- house -->\n```\n(.*?)\n```", PAGE, flags=re.DOTALL)
    assert shown is not None
    assert shown[1] == house.draw(), "python docs/house.py prints the new picture"


def test_each_file_that_the_page_names_is_there() -> None:
    wings = re.findall(r"^- \*\*(\w+)\*\*:(.*?)(?=^- \*\*|^## )", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert len(wings) > 10
    missing = [
        f"{wing}/{name}"
        for wing, text in wings
        for name in re.findall(r"`([\w/]+\.py|page/)`", text)
        if not (ROOT / "builder" / wing / name).exists() and not (ROOT / "builder" / name).exists()
    ]
    assert missing == []
