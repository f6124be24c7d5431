"""Fingerprints: 256 bits of a picture that survive resizing, recompression, brightening and small crops.

    image → 32 x 32 pixels → DCT → signs of the 256 lowest frequencies; the lowest 64 are the ``phash``

Three choices make these bits better than the usual perceptual hash. First, a window (the square root of a half sine)
fades the borders. So a crop of 5 % flips 4 of 64 bits instead of 5 to 6, and 30 of 256 instead of 40. Second, a bit is
a sign, not a comparison with a median. Mirroring changes only the signs of the odd horizontal frequencies. So the
mirrored picture's hash is ``hash ^ MIRROR``, without a second decode. Third, all sums are of whole numbers below 2**53,
which float64 holds exactly. So every machine and every BLAS gives the same bits for the same pixels.

Every image of a dataset is read once. Finished parts survive an interruption:
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

from builder.base.paths import size_of
from builder.base.records import SampleProblem
from builder.engines.contract import Report
from builder.read.index import Index
from builder.read.opening import open_dataset
from builder.read.view import Rows
from builder.source.images import thumbnail
from builder.store.output import write_file

Table = npt.NDArray[Any]
Words = npt.NDArray[np.uint64]
"""Shape (rows, 4): one 256-bit fingerprint per row, the ``phash`` first. Bit i of a word is 1 << i."""

SIDE = 32  # pixels; they hold frequencies up to 31, only those up to 17 are read
_SCALE = 1024  # cosines are stored as whole numbers

UNREAD, PLAIN, SPARSE, FULL = range(4)
"""How far a fingerprint can be trusted. UNREAD: the image does not decode. PLAIN: too little content to tell it from
others (a colour, a gradient). SPARSE: mostly background, so few bits are its own; trust only pixels. FULL: a
picture."""

FINGERPRINT = np.dtype([("words", "<u8", (4,)), ("colour", "i1", (2, 2, 2)), ("state", "u1")])
"""``colour``: for each quarter of the picture, red and blue minus grey, each halved."""

PART_ROWS = 1024
_BATCH_ROWS, _BATCH_BYTES = 64, 32 << 20  # of images in memory at a time
DIGEST = np.dtype([("high", ">u8"), ("low", ">u8")])
"""xxh3-128 of an image's bytes, as the index has it."""

_GREY = np.array([5.0, 9.0, 2.0])  # sixteenths of red, green and blue
_NOISE = 0.5  # levels of 255: a smaller amplitude comes from JPEG, not from the picture
_LEAST_DETAIL = 192  # of 256 frequencies above the noise; photographs have 229 and more, gradients 20 to 140
_LEAST_BUSY = SIDE * SIDE // 4  # pixels that differ from the background
_BACKGROUND = 10  # levels from the median


def _frequencies() -> npt.NDArray[np.intp]:
    """Shape (256, 2): (vertical, horizontal), sorted by distance from (0, 0). That one, the brightness, is left out."""
    steps = [(v, u) for v in range(20) for u in range(20) if v or u]
    return np.array(sorted(steps, key=lambda step: (step[0] ** 2 + step[1] ** 2, step[0]))[:256])


def _words(bits: npt.NDArray[np.bool_]) -> Words:
    """Booleans of shape (…, 256) → shape (…, 4)."""
    packed = np.packbits(bits, axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view("<u8").astype(np.uint64, copy=False)


_ROWS, _COLUMNS = _frequencies().T
_MIDDLES = (np.arange(SIDE) + 0.5) / SIDE
_BASIS = np.round(_SCALE * np.cos(np.pi * np.arange(20)[:, None] * _MIDDLES) * np.sqrt(np.sin(np.pi * _MIDDLES)))
_NORMS = np.sqrt((_BASIS**2).sum(1))
_LEAST = _NOISE * _NORMS[_ROWS] * _NORMS[_COLUMNS] * 16 * SIDE * SIDE  # in the units of _amplitudes

MIRROR: Words = _words(_COLUMNS % 2 == 1)
"""Shape (4,): the bits that flip when the picture is mirrored left to right."""


def fingerprint(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Pictures of shape (rows, 32, 32, 3), RGB → FINGERPRINT of shape (rows,)."""
    grey = thumbnails.astype(np.float64) @ _GREY
    amplitudes = _amplitudes(grey)
    made = np.zeros(len(thumbnails), dtype=FINGERPRINT)
    made["words"] = _words(amplitudes > 0)
    made["colour"] = _colours(thumbnails, grey)
    detail = (np.abs(amplitudes) > _LEAST).sum(1)
    flat = grey.reshape(len(grey), -1)
    busy = (np.abs(flat - np.median(flat, axis=1, keepdims=True)) > _BACKGROUND * 16).sum(1)
    made["state"] = np.where(detail < _LEAST_DETAIL, PLAIN, np.where(busy < _LEAST_BUSY, SPARSE, FULL))
    return made


def _amplitudes(grey: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Shape (rows, 256). Whole numbers below 2**53: at most 16 · 255 · 32² for a pixel minus the mean, times 32 · 1024
    for each of two sums: 4.5e15."""
    centred = grey * (SIDE * SIDE) - grey.sum((1, 2), keepdims=True)
    transformed = _BASIS @ centred @ _BASIS.T
    return np.asarray(transformed[:, _ROWS, _COLUMNS])


def _colours(thumbnails: npt.NDArray[np.uint8], grey: npt.NDArray[np.float64]) -> npt.NDArray[np.int8]:
    """Shape (rows, 2, 2, 2)."""
    half = SIDE // 2
    quarters = thumbnails.reshape(-1, 2, half, 2, half, 3).sum((2, 4), dtype=np.int64)
    lightness = grey.reshape(-1, 2, half, 2, half).sum((2, 4)).astype(np.int64) // 16
    difference = quarters[..., [0, 2]] - lightness[..., None]
    return np.asarray(np.clip(difference // (2 * half * half), -127, 127), dtype=np.int8)


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
        return f"rows {self.first:,} to {self.end:,} of {self.folder}"

    @property
    def size(self) -> int:
        return (self.end - self.first) * (FINGERPRINT.itemsize + (DIGEST.itemsize if self.digests else 0))

    def is_done(self) -> bool:
        """Whether the complete file exists."""
        return size_of(self.path) == self.size


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
