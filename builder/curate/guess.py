"""Guess the type of a column by looking at all its values."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from builder.base.errors import SourceError

_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d*)?([eE][+-]?\d+)?|[+-]?\.\d+|[+-]?inf(inity)?|nan", re.IGNORECASE)
"""007 is no number: it is a name."""


def typed(values: Sequence[Any], name: str) -> tuple[pa.ChunkedArray, int]:
    """Turn JSON values into the type that most of them have: booleans, numbers (int64, uint64 or float64), strings or
    lists of strings. Strings of digits count as numbers among numbers, or if all strings are such. Numbers among
    strings become text. Any other value becomes null. Returns the column and the number of those nulls. Raises
    SourceError if nothing fits any type."""
    kinds = Counter(map(_kind, values))
    texts = kinds["text"]
    numeric = sum(_kind(value) == "text" and bool(_NUMBER.fullmatch(value.strip())) for value in values) if texts else 0
    numbers = kinds["number"]
    present = len(values) - kinds["none"]
    sizes = {"list": kinds["list"], "boolean": kinds["boolean"], "number": numbers, "text": texts}
    if numeric and (numeric == texts or numbers):
        sizes["number"] += numeric
        sizes["text"] -= numeric
    best = max(sizes, key=lambda kind: sizes[kind])
    if not sizes[best]:
        what = "nothing but nulls" if not present else "neither numbers, booleans, strings nor lists of strings"
        raise SourceError(f"{name} holds {what}")
    if best == "number":
        column = _numbers([_number(value) for value in values])
    elif best == "text":
        column = pa.array([_text(value) for value in values], pa.string())
    else:
        kind = pa.bool_() if best == "boolean" else pa.list_(pa.string())
        column = pa.array([value if _kind(value) == best else None for value in values], kind)
    return pa.chunked_array([column]), column.null_count - kinds["none"]


def typed_texts(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Strings as whole numbers, numbers or booleans if all of them are; then "" is null."""
    if texts.null_count == len(texts):
        return texts
    if not pc.any(pc.match_substring_regex(texts, r"^\s*[+-]?0\d")).as_py():
        for kind in (pa.int64(), pa.uint64(), pa.float64()):
            with suppress(pa.ArrowException):
                return texts.cast(kind)
    if pc.all(pc.is_in(pc.utf8_lower(texts), pa.array(["true", "false", None]))).as_py():
        return pc.equal(pc.utf8_lower(texts), "true")
    return texts


def _kind(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    return "list" if isinstance(value, list) and all(isinstance(each, str) for each in value) else "other"


def _number(value: Any) -> int | float | None:
    kind = _kind(value)
    if kind == "number":
        return value  # type: ignore[no-any-return]
    if kind != "text" or not _NUMBER.fullmatch(value.strip()):
        return None
    number = float(value)
    return int(value) if math.isfinite(number) and re.fullmatch(r"\s*[+-]?\d+\s*", value) else number


def _text(value: Any) -> str | None:
    kind = _kind(value)
    return value if kind == "text" else str(value) if kind == "number" else None


def _numbers(values: list[int | float | None]) -> pa.Array:
    if any(isinstance(value, float) for value in values):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    for kind in (pa.int64(), pa.uint64()):
        with suppress(pa.ArrowException, OverflowError):
            return pa.array(values, kind)
    return pa.array([None if value is None else float(value) for value in values], pa.float64())
