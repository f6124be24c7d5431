"""Paths as 128-bit hashes. Members and listed samples are joined by them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from builder.base.arrays import Texts, stretches_of

Ids = npt.NDArray[np.uint64]
"""Shape (n, 2): xxh3-128 of n paths. Each takes 16 bytes instead of a string. 128 bits: collisions are negligible."""

_TOGETHER = 1 << 16  # names hashed at a time: ``b"".join`` keeps all its pieces in memory


def path_ids(paths: Iterable[str] | pa.StringArray) -> Ids:
    """xxh3-128 of each path's UTF-8 bytes, shape (n, 2)."""
    if isinstance(paths, pa.StringArray):
        parts = [_digests(part.view(pa.binary()).to_pylist()) for part in stretches_of(paths, _TOGETHER)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros((0, 2), dtype="<u8"), *parts])
    return _digests(map(str.encode, paths))


def column_ids(paths: Texts, together: int) -> Iterator[Ids]:
    """Yield the ids of a column of paths, ``together`` at a time: the ids of 6 million paths would take 96 MB."""
    return map(path_ids, stretches_of(paths, together))


def _digests(documents: Iterable[bytes]) -> Ids:
    digests, documents = bytearray(), iter(documents)
    while some := b"".join(map(xxhash.xxh3_128_digest, islice(documents, _TOGETHER))):
        digests += some
    return np.frombuffer(bytes(digests), dtype="<u8").reshape(-1, 2)
