"""The media types that are sent to a browser for images."""

from __future__ import annotations

_MAGIC = (
    (b"\xff\xd8\xff", 0, "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", 0, "image/png"),
    (b"GIF87a", 0, "image/gif"),
    (b"GIF89a", 0, "image/gif"),
    (b"WEBP", 8, "image/webp"),
    (b"ftypavif", 4, "image/avif"),
    (b"ftypavis", 4, "image/avif"),
    (b"BM", 0, "image/bmp"),
)
"""Formats that browsers draw and that cannot hold scripts. SVG and HTML can, so they are left out. The file's name does
not matter."""

OTHER = "application/octet-stream"


def media_type(data: bytes) -> str:
    """The media type, from the first bytes. OTHER if they match no format in the list."""
    for magic, offset, kind in _MAGIC:
        if data.startswith(magic, offset) and (kind != "image/webp" or data.startswith(b"RIFF")):
            return kind
    return OTHER
