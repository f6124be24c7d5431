"""What a file's name tells: tar, image, annotation, listing, unfinished download, desktop companion file."""

from __future__ import annotations

import re

TAR_ENDINGS = (
    *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst"),
    *(".tar.z", ".tar.lz4"),  # refused with the command that unpacks them
)

IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".avif", ".heic", ".heif", ".jxl"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".tga", ".ico", ".icns", ".pcx", ".dds", ".qoi"),
)
"""Members of raw/ that count as images if the listing does not name them: all that Pillow reads, alone or with a
plugin."""

ANNOTATION_ENDINGS = (".json", ".txt")
TABLE_ENDINGS = (".parquet", ".arrow", ".feather")
LISTING_ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
PACKED_ENDINGS = ("", ".gz", ".zst", ".bz2", ".xz")
"""Compressions of a listing."""

ARCHIVE, SPLIT_PART, UNFINISHED, LISTING = "archive", "split_part", "unfinished", "listing"
TABLE, IMAGE, EXTRACTED, FOLDER, FILE, HIDDEN = "table", "image", "extracted", "folder", "file", "hidden"
TROUBLE = frozenset((ARCHIVE, SPLIT_PART, UNFINISHED, LISTING))
"""Kinds that hold samples, or may. A command that skips such files says so and does not exit with code 0."""

WAYS_OUT = {
    ARCHIVE: "Unpack it, and make a tar of its files. Only tars and folders in raw/ are read.",
    SPLIT_PART: "Join the parts first: cat NAME.tar.part-* > NAME.tar.",
    UNFINISHED: "Finish the download, or remove the file.",
    LISTING: "Choose the one to read with --listing FILE, or read none with --no-listing.",
}
"""What to do about files of each kind."""

_UNFINISHED = re.compile(
    r"\.(incomplete|part|partial|filepart|aria2|aria2__temp|st|crdownload|opdownload|download|gstmp|tmp|temp|!qb|!ut"
    r"|bc!|xltd|td|dtapart|wkdownload)$|^\..+\.[a-z0-9_-]{6}$"  # last: rsync's .NAME.Ab12Cd
)
_PACKED = re.compile(
    r"\.(zip|zipx|7z|rar|tlz|lz|lzo|lzma|br|gpg|age|enc|cpio|iso|squashfs|sqfs|sqsh|wim|cab|tb2|tz2|tbz|taz|jar)$"
)
_TAR_INSIDE = re.compile(r"\.t(ar|gz|bz2|xz|zst)(?![a-z])")
_SPLIT = re.compile(
    r"(\.t(ar|gz|bz2|xz|zst)(\.\w{1,4})?|\.zip|\.7z|\.rar)[._-]?(part|chunk|vol)?[._-]?([a-z]{2}|[a-z]{3}|\d{1,5})$"
    r"|\.part\d+\.rar$|\.[zr]\d\d$|^x[a-z]{2}$"  # last: default part names of `split`
)
_ARCHIVE_MAGICS = (
    *(b"PK\x03\x04", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07"),
    *(b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"),  # gzip, bzip2, xz, zstd
)
_BESIDE = (".md5", ".sha256", ".sha", ".txt", ".idx", ".index", ".json", ".csv", ".log", ".md")
"""Files that stand beside a tar and describe it: 00000.tar.md5."""


def stem_of(path: str) -> str:
    """The path without its extension: the part after the last dot of the last component, unless that dot comes
    first."""
    stem, dot, ending = path.rpartition(".")
    return stem if dot and "/" not in ending and stem and not stem.endswith("/") else path


def without_ending(name: str) -> str:
    """A tar's name without its tar ending."""
    return name[: -max(len(ending) for ending in TAR_ENDINGS if name.lower().endswith(ending))]


_COMPANION_FOLDERS = frozenset(("__MACOSX", ".ipynb_checkpoints"))
COMPANION_MARKS = ("._", ".DS_Store", *_COMPANION_FOLDERS)
"""Every companion's path contains one of these."""


def is_companion(path: str) -> bool:
    """Whether a desktop system made this file: ``._NAME``, ``.DS_Store``, or anything in ``__MACOSX`` or
    ``.ipynb_checkpoints``. It is no image and no annotation, whatever its ending."""
    parts = path.split("/")
    return parts[-1].startswith("._") or parts[-1] == ".DS_Store" or not _COMPANION_FOLDERS.isdisjoint(parts)


def is_tar(name: str) -> bool:
    return name.lower().endswith(TAR_ENDINGS)


def kind_of(name: str) -> str:
    """The kind under which an unread file is counted."""
    lower = name.lower()
    if is_companion(name):
        return HIDDEN
    if _UNFINISHED.search(lower):
        return UNFINISHED if not lower.startswith(".") or ".t" in lower or ".json" in lower else HIDDEN
    if lower.startswith("."):
        return HIDDEN
    if lower.endswith(TAR_ENDINGS) or _PACKED.search(lower):
        return ARCHIVE
    if lower.endswith(_BESIDE):
        return FILE
    if _SPLIT.search(lower):
        return SPLIT_PART
    if lower.endswith(TABLE_ENDINGS):
        return TABLE
    if lower.endswith(IMAGE_ENDINGS):
        return IMAGE
    return ARCHIVE if _TAR_INSIDE.search(lower) else FILE


def kind_of_content(head: bytes) -> str:
    """The kind of a file with no known name, by its first 512 bytes: an archive, or just a file."""
    return ARCHIVE if head[257:262] == b"ustar" or head.startswith(_ARCHIVE_MAGICS) else FILE


_ANY_LISTING = tuple(ending + packed for ending in LISTING_ENDINGS for packed in PACKED_ENDINGS)
_LISTINGS = [f"data{ending}" for ending in _ANY_LISTING]


def is_listing_name(name: str) -> bool:
    """Whether a file of that name at the top of a source is its listing: ``data.json``, ``data.jsonl.gz``, …"""
    return name.lower() in _LISTINGS


def listing_rank(name: str) -> int:
    """Of several listings the one with the lowest rank is read."""
    return _LISTINGS.index(name.lower())


def may_be_listing(name: str) -> bool:
    """Whether a file with another name has the ending of a listing."""
    return name.lower().endswith(_ANY_LISTING)
