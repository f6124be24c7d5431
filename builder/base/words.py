"""Numbers and names as text for people."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def size(count: int) -> str:
    """``1699539753`` → ``1.70 GB``."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return counted(count, "byte") if unit == "bytes" else f"{value:.2f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def counted(number: int, noun: str, nouns: str = "", *, width: int = 0) -> str:
    """``1, "row"`` → ``1 row``, ``2000, "row"`` → ``2,000 rows``. ``nouns``: the plural, unless it is ``noun`` with an
    s. With the verb, if there is one: ``"row is", "rows are"``. ``width``: of the number, for tables."""
    return f"{number:>{width},} {noun if number == 1 else nouns or f'{noun}s'}"


def duration(seconds: float) -> str:
    """``0.21`` → ``0.2 s``, ``75`` → ``1 min 15 s``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` Did you mean convert?``, or an empty text."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def problem_of(error: Exception) -> str:
    """An error's message, for people. A KeyError's is only the name of the field that a document lacks."""
    if not isinstance(error, KeyError):
        return str(error)
    name = error.args[0]
    return f"the field {name.decode() if isinstance(name, bytes) else name} is missing"


def printable(text: str) -> str:
    """The text with control characters escaped: names in an unknown tar must not control the terminal."""
    return text if text.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
