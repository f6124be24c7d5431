"""What may stand between the brackets of ``ds[…]`` beside a slice: one row's number, or several."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

RowNumber = int | np.integer[Any]
RowNumbers = Sequence[int] | npt.NDArray[np.integer[Any]]


def chosen_rows(wanted: Any, rows: int) -> int | list[int]:
    """Of ``rows`` rows the one, or those, that ``wanted`` names: a whole number, or a sequence or an array (numpy's,
    torch's, Arrow's, pandas') of them; negative ones count from the end. Raises IndexError; TypeError for all else,
    masks among it."""
    for convert in ("tolist", "to_pylist"):
        if hasattr(wanted, convert):
            wanted = getattr(wanted, convert)()
            break
    if isinstance(wanted, Sequence) and not isinstance(wanted, str | bytes | bytearray):
        return [row_number(each, rows) for each in wanted]
    return row_number(wanted, rows)


def row_number(wanted: Any, rows: int) -> int:
    """The same of one number."""
    if isinstance(wanted, bool | np.bool_):  # an int to Python: a mask would be rows 0 and 1, many times
        raise TypeError(f"{wanted} is no row number; for the rows of a mask: ds[np.flatnonzero(mask)]")
    number = operator.index(wanted)
    if number < 0:
        number += rows
    if not 0 <= number < rows:
        raise IndexError(f"row {wanted} of {rows:,}")
    return number
