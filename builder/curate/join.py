"""Find the rows that keys, paths, urls or digests name, many at a time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from builder.base.arrays import numbers_of, utf8_array
from builder.base.errors import SourceError
from builder.curate.documents import fields
from builder.engines.progress import Progress
from builder.read.reader import Reader


@dataclass(frozen=True, slots=True)
class Joined:
    """``places``: for each row of the dataset, where its name stands among the given names (the first of several); -1
    for none. ``stray``: names that no row has. ``repeated``: names that were given before."""

    places: npt.NDArray[np.int64]
    stray: int
    repeated: int

    @property
    def matched(self) -> int:
        """Number of rows that have one."""
        return int((self.places >= 0).sum())


def join(reader: Reader, on: str, names: pa.ChunkedArray, *, quiet: bool = True) -> Joined:
    """Look up ``names`` (strings) among the rows' keys, paths, urls or sha256. Raises SourceError, DamagedFileError."""
    return look_up(names_of(reader, on, quiet=quiet), names)


def look_up(rows: pa.ChunkedArray, names: pa.ChunkedArray) -> Joined:
    """The same for any two columns of one type."""
    found = pc.index_in(rows, value_set=names, skip_nulls=True)
    places = numbers_of(pc.fill_null(found, -1)).astype(np.int64)
    distinct = pc.count_distinct(names, mode="only_valid").as_py()
    hit = len(np.unique(places[places >= 0]))
    return Joined(places, distinct - hit, len(names) - names.null_count - distinct)


def names_of(reader: Reader, on: str, *, quiet: bool = True) -> pa.ChunkedArray:
    """The rows' names: ``key`` and ``path`` from the index, ``url`` and ``sha256`` from the annotations. If no
    annotation has a sha256, the image files' bytes are hashed, so all are read."""
    if on in ("key", "path"):
        return reader._index.table([on]).column(0)
    progress = Progress("reading annotations", len(reader), 0, quiet=quiet)
    values: list[bytes | None] = []
    try:
        for (value,) in fields(reader, [on], range(len(reader))):
            text = value if isinstance(value, str) else None
            values.append(text.lower().encode() if text and on == "sha256" else text.encode() if text else None)
            progress.update(1, 0)
    finally:
        progress.finish()
    if not any(values):
        if on != "sha256":
            raise SourceError(f"no annotation of {reader.folder} has a field {on}")
        values = _digests(reader, quiet)
    chunks = [utf8_array(values[first : first + (1 << 20)]) for first in range(0, len(values), 1 << 20)]
    return pa.chunked_array(chunks, type=pa.string())


def _digests(reader: Reader, quiet: bool) -> list[bytes | None]:
    progress = Progress("reading images", len(reader), 0, quiet=quiet)
    digests: list[bytes | None] = []
    try:
        for sample in reader:
            digests.append(hashlib.sha256(sample.image).hexdigest().encode())
            progress.update(1, len(sample.image))
    finally:
        progress.finish()
    return digests
