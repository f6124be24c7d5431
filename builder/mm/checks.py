"""Checks of options. In a config any value can be a string, so mistakes are common."""

from __future__ import annotations

from builder.base.errors import OptionError


def one_of(name: str, value: object, *allowed: str) -> None:
    """Raises OptionError if ``value`` is not one of ``allowed``."""
    if value not in allowed:
        raise OptionError(name, value, f"give one of {', '.join(allowed)}")


def no_text(name: str, value: object, allowed: str) -> None:
    """Raises OptionError if ``value`` is a string in place of a number."""
    if isinstance(value, str):
        raise OptionError(name, value, f"{allowed}, not text")
