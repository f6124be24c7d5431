"""What a browser may be told that an image's bytes are."""

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
"""Formats that browsers draw and that hold no scripts. SVG and HTML do: they are not among them, whatever the file is
called."""

OTHER = "application/octet-stream"


def media_type(data: bytes) -> str:
    """By its first bytes; OTHER where these are of no format in the list."""
    for magic, offset, kind in _MAGIC:
        if data.startswith(magic, offset) and (kind != "image/webp" or data.startswith(b"RIFF")):
            return kind
    return OTHER
