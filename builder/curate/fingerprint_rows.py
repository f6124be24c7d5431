"""Read every image once and make the fingerprints of a dataset's rows. Finished parts survive an interruption.

OUT/.laion6m/duplicates/parts/00000.bin    for 1,024 rows: FINGERPRINT each, then 16 bytes of xxh3-128 each
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from builder.base.records import SampleProblem
from builder.curate.fingerprints import FINGERPRINT, SIDE, UNREAD, fingerprint
from builder.engines.contract import Report
from builder.read.index import Index
from builder.read.opening import open_dataset
from builder.read.view import Rows
from builder.source.images import thumbnail
from builder.store.output import write_file

PART_ROWS = 1024
_BATCH_ROWS, _BATCH_BYTES = 64, 32 << 20  # of images in memory at a time
DIGEST = np.dtype([("high", ">u8"), ("low", ">u8")])
"""xxh3-128 of an image's bytes, as the index has it."""

Table = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows ``first`` (inclusive) to ``end`` (exclusive) of the dataset in ``folder``. ``path``: the part's file.
    ``digests``: make digests too, as the index has none."""

    folder: str
    path: str
    first: int
    end: int
    digests: bool

    @property
    def name(self) -> str:
        """The name for messages."""
        return f"rows {self.first:,} to {self.end:,} of {self.folder}"

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return (self.end - self.first) * (FINGERPRINT.itemsize + (DIGEST.itemsize if self.digests else 0))

    def is_done(self) -> bool:
        """Whether the complete file exists."""
        return os.path.exists(self.path) and os.path.getsize(self.path) == self.size


def parts_of(folder: str, work: str, rows: int, digests: bool) -> list[Part]:
    """A dataset's rows in parts, whose files lie in ``work``. The parts do not depend on the number of processes."""
    return [
        Part(folder, os.path.join(work, f"{number:05d}.bin"), first, min(rows, first + PART_ROWS), digests)
        for number, first in enumerate(range(0, rows, PART_ROWS))
    ]


def write_part(part: Part, report: Report) -> Part:
    """Read, decode and fingerprint a part's images. Reading errors are raised. An image that does not decode is
    UNREAD."""
    rows = open_dataset(part.folder)
    prints: list[Table] = []
    digests = []
    for batch in _batches(rows, part):
        images = [sample.image for sample in rows[batch]]
        prints.append(_fingerprints(images))
        if part.digests:
            digests += [xxhash.xxh3_128_digest(image) for image in images]
        report(len(images), sum(map(len, images)))
    write_file(part.path, [np.concatenate(prints).tobytes(), *digests])
    return part


def _batches(rows: Rows, part: Part) -> Iterator[list[int]]:
    """A part's rows in batches of up to _BATCH_ROWS and _BATCH_BYTES, at least one row each."""
    sizes = rows.reader._index.column("size")[part.first : part.end].tolist()
    batch: list[int] = []
    total = 0
    for row, size in enumerate(sizes, start=part.first):
        if batch and (len(batch) == _BATCH_ROWS or total + size > _BATCH_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(row)
        total += max(0, size)
    yield batch


def read_parts(parts: list[Part]) -> tuple[Table, Table]:
    """FINGERPRINT of all rows, and DIGEST of the rows whose parts have it."""
    prints, digests = [np.zeros(0, FINGERPRINT)], [np.zeros(0, DIGEST)]
    for part in parts:
        with open(part.path, "rb") as file:
            prints.append(np.frombuffer(file.read((part.end - part.first) * FINGERPRINT.itemsize), dtype=FINGERPRINT))
            digests.append(np.frombuffer(file.read(), dtype=DIGEST))
    return np.concatenate(prints), np.concatenate(digests)


def digests_of(index: Index) -> Table | None:
    """DIGEST of every row from the index; None if the index was made without reading the images."""
    parts = [np.zeros(0, DIGEST)]
    for chunk in index.table(["digest"]).column(0).chunks:
        if chunk.null_count:
            return None
        parts.append(np.frombuffer(chunk.buffers()[1], DIGEST, len(chunk), chunk.offset * DIGEST.itemsize))
    return np.concatenate(parts)


def _fingerprints(images: list[bytes]) -> Table:
    """FINGERPRINT of each image."""
    made = np.zeros(len(images), dtype=FINGERPRINT)
    made["state"] = UNREAD
    thumbnails = []
    decoded = []
    for at, image in enumerate(images):
        try:
            thumbnails.append(thumbnail(image, SIDE))
            decoded.append(at)
        except SampleProblem:  # noqa: PERF203 - a bad image does not affect the next one
            continue
    if decoded:
        pixels = np.frombuffer(b"".join(thumbnails), dtype=np.uint8).reshape(-1, SIDE, SIDE, 3)
        made[decoded] = fingerprint(pixels)
    return made
