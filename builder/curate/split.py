"""Samples, splits and unique rows, chosen by hashes of keys. These are the same in every conversion of a source."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from numbers import Integral

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from builder.base.arrays import bools_of
from builder.base.errors import OptionError, SourceError
from builder.base.options import check_number
from builder.base.records import Step
from builder.curate.pairs import leaders
from builder.read.columns import Values
from builder.read.reader import Reader
from builder.read.view import Rows, View

PHASH = "phash"
"""The column of 64-bit perceptual hashes that ``laion6m duplicates`` writes; null if the image does not decode."""

DUPLICATE_OF = "duplicate_of"
"""The column that ``laion6m duplicates`` writes: the key of the row to keep; null in rows to keep."""

MADE = {PHASH: pa.uint64(), DUPLICATE_OF: pa.string()}

Hashes = npt.NDArray[np.uint64]


def sample(rows: Rows, count: int, seed: int = 0) -> View:
    """``count`` rows at random, in their order: those with the lowest hashes of seed and key. So a larger sample of the
    same seed contains the smaller one. Raises OptionError."""
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(rows):
        raise OptionError("sample", count, f"give 1 to {len(rows):,}, the number of rows")
    numbers = np.asarray(rows.rows, dtype=np.int64)
    check_number("seed", seed, "give one such as 0 or 42", Integral)
    hashes = _mixed(_key_hashes(rows.reader)[numbers], f"sample {seed}")
    last = np.partition(hashes, count - 1)[count - 1]
    chosen = hashes < last
    chosen[np.flatnonzero(hashes == last)[: count - int(chosen.sum())]] = True  # of rows with the same key, the first
    step = Step(f"sample {count}, seed {seed}", count)
    return View(rows.reader, numbers[chosen], (*rows.steps, step))


def split(rows: Rows, shares: Mapping[str, float], seed: int = 0) -> dict[str, View]:
    """Divide the rows by name → share. A row's place is a number from 0 to 1: the hash of seed and its group of
    duplicates (its key if it is in none). The sorted names each take a stretch as long as their share. Raises
    OptionError."""
    for name, share in shares.items():
        check_split(name)
        if isinstance(share, bool) or not isinstance(share, float | int) or not 0 < share <= 1:
            raise OptionError("split", f"{name}={share}", "a share is more than 0 and at most 1")
    total = math.fsum(shares.values())
    if not shares or total > 1 + 1e-9:
        raise OptionError("split", dict(shares), f"give one share or more, at most 1 in all; these add up to {total:g}")
    numbers = np.asarray(rows.rows, dtype=np.int64)
    check_number("seed", seed, "give one such as 0 or 42", Integral)
    hashes = _mixed(group_hashes(rows.reader)[numbers], f"split {seed}")
    places = (hashes >> np.uint64(11)) / float(1 << 53)
    parts, start = {}, 0.0
    for name in sorted(shares):
        end = min(1.0, start + shares[name])
        end = 1.0 if end > 1 - 1e-9 else end
        mine = numbers[(places >= start) & (places < end)]
        step = Step(f"split {name}={shares[name]:g}, seed {seed}", len(mine))
        parts[name] = View(rows.reader, mine, (*rows.steps, step))
        start = end
    return {name: parts[name] for name in shares}


def unique(rows: Rows) -> View:
    """One row per group of duplicates: the one that ``duplicate_of`` names; if that is not among these rows, the first.
    Raises SourceError if ``duplicates`` was not run."""
    nulls = [bools_of(chunk.is_null()) for chunk in found_by_duplicates(rows.reader, DUPLICATE_OF).chunks]
    numbers = np.asarray(rows.rows, dtype=np.int64)
    kept = np.concatenate([np.zeros(0, np.bool_), *nulls])[numbers]
    leads = leaders([group_hashes(rows.reader)[numbers]], kept.astype(np.int8))
    chosen = numbers[leads == np.arange(len(numbers))]
    return View(rows.reader, chosen, (*rows.steps, Step("unique", len(chosen))))


def found_by_duplicates(reader: Reader, name: str) -> pa.ChunkedArray:
    """A column of MADE. Raises SourceError if ``laion6m duplicates`` did not make it."""
    at = shlex.quote(reader.folder)
    if name not in reader.added_columns():
        raise SourceError(f"{at} has no column {name}. Run laion6m duplicates first")
    values = reader._column(name)
    if not isinstance(values, Values) or values.column.type != MADE[name]:
        raise SourceError(
            f"{at} has a column {name} that laion6m duplicates did not make. Rename it, then run laion6m duplicates"
        )
    return values.column


def group_hashes(reader: Reader) -> Hashes:
    """For each row the xxh3-64 of the key that its group of duplicates is kept under; of its own key if it is in no
    group. Without the column of duplicates every row is its own group."""
    hashes = _key_hashes(reader)
    if DUPLICATE_OF not in reader.added_columns():
        return hashes
    first = 0
    for chunk in found_by_duplicates(reader, DUPLICATE_OF).chunks:
        if chunk.null_count < len(chunk):
            for at, key in enumerate(chunk.to_pylist()):
                if key is not None:
                    hashes[first + at] = xxhash.xxh3_64_intdigest(key.encode())
        first += len(chunk)
    return hashes


def _key_hashes(reader: Reader) -> Hashes:
    """xxh3-64 of every row's key. The index has them sorted, with the row of each."""
    hashes = np.empty(len(reader), dtype=np.uint64)
    hashes[reader._index.column("find_row")] = reader._index.column("find_hash")
    return hashes


def _mixed(hashes: Hashes, purpose: str) -> Hashes:
    """Other hashes, independent for each purpose and seed: the finalizer of splitmix64."""
    mixed: Hashes = hashes ^ np.uint64(xxhash.xxh3_64_intdigest(purpose.encode()))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def check_split(name: str) -> str:
    """Returns ``name``. Raises OptionError if it cannot be a split's name: it becomes a folder."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise OptionError("split", name, "a name has up to 100 letters, digits, _ . - (. and - not first)")
    return name
