"""What a source consists of: archives, and their layout."""

from __future__ import annotations

from dataclasses import dataclass

from builder.base.urls import NO_OPTIONS, StorageOptions, is_url

EXPECTED = (
    "Expected raw/*.tar (or folders of images in raw/), with captions/*.tar or the JSON beside the images, "
    "and data.json (optional); or img2dataset's *.tar with --recaptions FILE.parquet."
)


@dataclass(frozen=True, slots=True)
class Archive:
    """A tar, or a folder of extracted files that replaces one. ``name`` is relative to its side (raw/ or captions/);
    empty for files that lie directly in the side. ``path`` may be a URL."""

    name: str
    path: str
    is_folder: bool
    size: int  # bytes of the file; 0 for a folder
    version: int
    """Changes when the file changes. Local: its modification time in ns (a folder's changes when a file is added or
    removed). Behind a URL: a hash of what the storage states about it."""
    storage: StorageOptions = NO_OPTIONS
    unfinished: bool = False
    """Whether a downloader's control file lies beside it."""


@dataclass(frozen=True, slots=True)
class Unread:
    """Files or folders of a source that are not read: their ``kind`` (source/endings.py), how many, and one path below
    SOURCE as an example."""

    kind: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a source keeps its parts. ``captions`` is empty if the JSON lies beside the images in ``raw``."""

    kind: str  # "card", "openuni", "extracted", "img2dataset"
    root: str
    raw_root: str
    captions_root: str
    raw: tuple[Archive, ...]
    captions: tuple[Archive, ...]
    listing: tuple[str, ...]
    recaptions: tuple[str, ...] = ()
    storage: StorageOptions = NO_OPTIONS
    unread: tuple[Unread, ...] = ()

    @property
    def is_remote(self) -> bool:
        """Whether it is read over a network. Then its raw tars are read once, from front to back."""
        return is_url(self.root)

    @property
    def annotations(self) -> tuple[Archive, ...]:
        """The archives that hold annotations."""
        return self.captions or self.raw
