"""Values that pass between stages. Nothing here does work; everything here is immutable and picklable."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Reason(str, Enum):
    """Why a listed sample did not become a row. The list is closed: reports and scripts rely on these words."""

    IMAGE_MISSING = "image_missing"
    CAPTION_MISSING = "caption_missing"
    CAPTION_INVALID = "caption_invalid"  # not JSON, not an object, no caption key, not a string, blank
    IMAGE_UNREADABLE = "image_unreadable"  # no known format
    IMAGE_TRUNCATED = "image_truncated"  # no end marker
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_TOO_SMALL = "image_too_small"
    ASPECT_RATIO = "aspect_ratio"
    DUPLICATE = "duplicate"  # a later entry for the same image; the first wins
    TAR_DAMAGED = "tar_damaged"  # sparse or cut members, and samples lost in a damaged tar

    def __str__(self) -> str:
        return self.value


class SampleProblem(Exception):  # noqa: N818 - a verdict on a sample, not an error of ours
    """One sample cannot become a row. Args: reason, detail. Caught where samples are read, and counted as a reject."""

    @property
    def reason(self) -> Reason:
        return Reason(self.args[0])

    @property
    def detail(self) -> str:
        return str(self.args[1])


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Facts about an image, read from its bytes without decoding a pixel.

    ``format`` is Pillow's name ("JPEG", "PNG", …). ``width`` and ``height`` are pixels as stored: no EXIF rotation is
    applied. ``frames`` is 1 or more. ``complete`` is False if the format's end marker is missing.
    """

    format: str
    width: int
    height: int
    frames: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One step of choosing rows: the condition in words or SQL, and the number of rows left after it."""

    condition: str
    rows: int


WHOLE, CUT, SPARSE = 0, 1, 2
"""States of a tar member. WHOLE: the tar has all its bytes. CUT: the tar ends inside it. SPARSE: it is stored with
holes."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive: ``size`` bytes that begin at byte ``offset`` of the archive. ``name`` is
    normalised."""

    name: str
    offset: int
    size: int
    state: int = WHOLE


@dataclass(frozen=True, slots=True)
class Damage:
    """A stretch of an archive that could not be read: bytes ``offset`` (inclusive) to ``end`` (exclusive)."""

    offset: int
    end: int
    problem: str


@dataclass(frozen=True, slots=True)
class TarScan:
    """All members of one archive, in file order. On duplicate names the last wins.

    ``size`` is the archive's length in bytes, uncompressed. ``damage`` is empty for a sound archive.
    """

    members: tuple[Member, ...]
    damage: tuple[Damage, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Reject:
    """A listed sample that did not become a row. ``position`` is its place in the listing (0-based)."""

    position: int
    key: str
    reason: Reason
    detail: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Totals:
    """The counts behind every report. Always ``listed == rows + sum(rejected.values())``."""

    rows: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    unlisted: int = 0
    shards: int = 0
    image_bytes: int = 0

    @property
    def listed(self) -> int:
        return self.rows + sum(self.rejected.values())
