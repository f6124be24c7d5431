"""Draw the house: one line for each wing of builder/, top to bottom, and the wings that it imports from.

python docs/house.py prints what stands in architecture.md; tests/test_house.py compares the two.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.test_layering import WINGS, imports_of  # noqa: E402


def draw() -> str:
    """The wings, their first sentence, and what they import."""
    lines = []
    for wing in reversed(WINGS):
        folder = ROOT / "builder" / wing
        sentence = (ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or "").split("\n")[0]
        used = {
            name.split(".")[1]
            for path in folder.glob("*.py")
            for name in (found.name for found in imports_of(path) if not found.lazy)
            if name.startswith("builder.") and name.count(".") > 1
        }
        below = " ".join(other for other in reversed(WINGS) if other in used - {wing})
        lines += [f"{wing + '/':14}{sentence}", f"{'':14}  └ {below}" if below else ""]
    return "\n".join(line for line in lines if line)


if __name__ == "__main__":
    sys.stdout.write(draw() + "\n")
