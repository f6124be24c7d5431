"""Checks of options that configs, where everything can be a text, get wrong."""

from __future__ import annotations

from builder.base.errors import OptionError


def one_of(name: str, value: object, *allowed: str) -> None:
    """Raises OptionError."""
    if value not in allowed:
        raise OptionError(name, value, f"one of {', '.join(allowed)}")


def no_text(name: str, value: object, allowed: str) -> None:
    """Raises OptionError for a string where a number is meant."""
    if isinstance(value, str):
        raise OptionError(name, value, f"{allowed}, not a text")
