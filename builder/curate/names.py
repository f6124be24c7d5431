"""Names that users give to what they choose."""

from __future__ import annotations

import re

from builder.base.errors import OptionError


def check_split(name: str) -> str:
    """Raises OptionError for what cannot be a split's name: it becomes a folder."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise OptionError("split", name, "up to 100 letters, digits, and _ . - (not first)")
    return name
