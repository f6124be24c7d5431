"""Which rows of a dataset the names in a user's file mean: by key, path, url, sha256 or phash. For ``add-column``,
``--keys`` and ``--without``."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from builder.base.arrays import numbers_of, string_array, utf8_array
from builder.base.errors import SourceError
from builder.curate.documents import field_values
from builder.curate.split import PHASH, found_by_duplicates
from builder.curate.tables import JOINS, KNOWN, read_table
from builder.engines.progress import Progress
from builder.read.reader import Reader

_HASH = re.compile(r"[0-9a-f]{16}\Z", re.IGNORECASE)
_LIKE = {
    "key": re.compile(""),
    "path": re.compile(""),
    "url": re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE),
    "sha256": re.compile(r"[0-9a-f]{64}", re.IGNORECASE),
    PHASH: _HASH,
}
"""What a line of a list may be → how such a line begins. Tried in this order."""


@dataclass(frozen=True, slots=True)
class Joined:
    """``places``: for each row of the dataset, where its name stands among the given names (the first of several); -1
    for none. ``names``: how many different names were given. ``found``: how many of them a row has. ``repeated``: names
    that were given before."""

    places: npt.NDArray[np.int64]
    names: int
    found: int
    repeated: int


def join(reader: Reader, on: str, names: pa.ChunkedArray, *, quiet: bool = True) -> Joined:
    """Look up ``names`` (strings) among the rows' keys, paths, urls, sha256 or phash. Raises SourceError,
    DamagedFileError."""
    wanted = names
    if on == PHASH:
        hashes = [None if name is None else _hash(name) for name in names.to_pylist()]
        wanted = pa.chunked_array([pa.array(hashes, pa.uint64())])
    found = pc.index_in(names_of(reader, on, quiet=quiet), value_set=wanted, skip_nulls=True)
    places = numbers_of(pc.fill_null(found, -1)).astype(np.int64)
    distinct = pc.count_distinct(names, mode="only_valid").as_py()
    hit = len(np.unique(places[places >= 0]))
    return Joined(places, distinct, hit, len(names) - names.null_count - distinct)


def names_of(reader: Reader, on: str, *, quiet: bool = True) -> pa.ChunkedArray:
    """The rows' names: ``key`` and ``path`` from the index, ``url`` and ``sha256`` from the annotations, ``phash`` from
    that column. If no annotation has a sha256, the image files' bytes are hashed, so all are read."""
    if on == PHASH:
        return found_by_duplicates(reader, PHASH)
    if on in ("key", "path"):
        return reader._index.table([on]).column(0)
    names = [value if isinstance(value, str) else "" for value in field_values(reader, on, quiet=quiet)]
    if on == "sha256":
        names = list(map(str.lower, names)) if any(names) else _digests(reader, quiet)
    elif not any(names):
        raise SourceError(f"no annotation of {shlex.quote(reader.folder)} has the field {on}")
    chunks = [
        utf8_array([name.encode(errors="replace") or None for name in names[first : first + (1 << 20)]])
        for first in range(0, len(names), 1 << 20)
    ]
    return pa.chunked_array(chunks, type=pa.string())


def _digests(reader: Reader, quiet: bool) -> list[str]:
    digests = []
    with Progress("reading images", len(reader), quiet=quiet) as progress:
        for sample in reader:
            digests.append(hashlib.sha256(sample.image).hexdigest())
            progress.update(1, len(sample.image))
    return digests


@dataclass(frozen=True, slots=True)
class Listed:
    """``rows``: for each row of the dataset, whether the list names it. ``names``: number of different names in the
    list. ``found``: how many of them are in the dataset."""

    rows: npt.NDArray[np.bool_]
    names: int
    found: int


def read_list(reader: Reader, file: str | os.PathLike[str], *, quiet: bool = True) -> Listed:
    """The rows that a file names. A table (Parquet, CSV, JSON lines) has a column ``key``, ``path``, ``url``,
    ``sha256`` or ``phash``. Any other file is text with one name per line, of any kind. Blank lines and lines that
    begin with # are skipped. Raises SourceError, also if the dataset has nothing to compare such names with."""
    path = os.path.abspath(os.path.expanduser(os.fspath(file)))
    if path.lower().endswith(KNOWN):
        table = read_table(path, None, None, (*JOINS, PHASH))
        joined = join(reader, table.on, table.names, quiet=quiet)
        return Listed(joined.places >= 0, joined.names, joined.found)
    return _by_lines(reader, _lines(path), quiet)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except OSError as error:
        raise SourceError(f"cannot read {shlex.quote(path)}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{shlex.quote(path)}: not UTF-8 text: {error}") from None
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


def _by_lines(reader: Reader, lines: list[str], quiet: bool) -> Listed:
    """Look up every line as a key and as a path. The rest is looked up as what it looks like."""
    rows = np.zeros(len(reader), dtype=np.bool_)
    left = lines
    for on, like in _LIKE.items():
        tried = [line for line in left if like.match(line)]
        if on == PHASH and PHASH not in reader.added_columns() and len(left) < len(lines):
            break  # the list has other names, so these are names that the dataset lacks
        if tried:
            wanted = string_array([line.lower() if on == "sha256" else line for line in tried])
            places = join(reader, on, pa.chunked_array([wanted]), quiet=quiet).places
            rows |= places >= 0
            hit = {tried[place] for place in np.unique(places[places >= 0])}
            left = [line for line in left if line not in hit]
    return Listed(rows, len(lines), len(lines) - len(left))


def _hash(text: str) -> int | None:
    """A fingerprint from 16 hex digits, else from a decimal number. None for anything else."""
    if _HASH.fullmatch(text):
        return int(text, 16)
    return int(text) if re.fullmatch(r"\d{1,20}", text) and int(text) < 1 << 64 else None
