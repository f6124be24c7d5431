"""Write a shard for webdataset: a tar of pairs, KEY.jpg followed by KEY.json.

webdataset and ``datasets`` cut a member's name at the first dot of its last part. The text before the dot is the key.
So a dot in a key's last part is written as ``%2E``: ``00000/a.b`` stays one sample, and is not ``b.jpg`` of another.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace

import numpy as np

from builder.store.output import NewFile
from builder.store.shards import ShardWriter, TextRow, WrittenShard

_BLOCK = 512
_RECORD = 20 * _BLOCK  # a tar consists of whole records; GNU tar and tarfile fill the last one with zeros
_PENDING = 1 << 20  # bytes to collect before a write
_LONGEST = 100  # bytes of a name in a header
_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
_MAGIC = ((b"\xff\xd8", ".jpg"), (b"\x89PNG", ".png"), (b"GIF8", ".gif"), (b"BM", ".bmp"), (b"RIFF", ".webp"))
_AMBIGUOUS = re.compile(r"\.|\n|%(?=2E|25|0A)")


class WebDatasetShardWriter(ShardWriter):
    """Writes rows as a tar of pairs."""

    def __init__(self, file: NewFile) -> None:
        super().__init__(file)
        self._pieces: list[bytes | memoryview] = []
        self._position = 0  # includes the pending bytes
        self._image_offsets: list[int] = []
        self._annotation_offsets: list[int] = []

    def add(self, image: memoryview, row: TextRow) -> None:
        name = member_name(row.key)
        self._image_offsets.append(self._add_member(name + image_ending(row.path, image), image))
        self._annotation_offsets.append(self._add_member(f"{name}.json", row.annotation))
        if self._position - self._file.position >= _PENDING:
            self.release()

    def release(self) -> None:
        self._file.write(self._pieces)
        self._pieces = []

    def close(self) -> WrittenShard:
        end = self._position + 2 * _BLOCK
        self._pieces.append(bytes(2 * _BLOCK + -end % _RECORD))
        self.release()
        written = self._finish(self._image_offsets)
        return replace(written, annotation_offsets=np.array(self._annotation_offsets, dtype=np.int64))

    def _add_member(self, name: str, data: bytes | memoryview) -> int:
        """Add a member. Returns the offset of its data."""
        head = member_header(name, len(data))
        start = self._position + len(head)
        padding = bytes(-len(data) % _BLOCK)
        self._pieces += [head, data, padding]
        self._position = start + len(data) + len(padding)
        return start


def member_name(key: str) -> str:
    """The member's name for a key, without ending. It is the key itself, unless the last part holds a dot or one of the
    escapes, or the key has a line break. webdataset gives this name as the key."""
    folder, slash, base = key.rpartition("/")
    return folder.replace("\n", "%0A") + slash + _AMBIGUOUS.sub(lambda found: f"%{ord(found[0]):02X}", base)


def image_ending(path: str, image: bytes | memoryview) -> str:
    """The ending of an image's member, such as ``.jpg``, in lower case. It is the path's own ending if that is an
    image's, else it comes from the first bytes."""
    own = os.path.splitext(path)[1].lower()
    if own in _ENDINGS:
        return own
    start = bytes(image[:4])
    return next((ending for magic, ending in _MAGIC if start.startswith(magic)), ".img")


def member_header(name: str, size: int) -> bytes:
    """The header of a regular file in GNU format. It has no time and no owner, so that the same rows give the same
    bytes."""
    encoded = name.encode()
    if len(encoded) <= _LONGEST:
        return _header(encoded, size, b"0")
    long = encoded + b"\0"
    head = _header(b"././@LongLink", len(long), b"L") + long + bytes(-len(long) % _BLOCK)
    return head + _header(encoded[:_LONGEST], size, b"0")


def _header(name: bytes, size: int, kind: bytes) -> bytes:
    fields = b"%s0000644\x000000000\x000000000\x00%011o\x0000000000000\x00        %s" % (
        name.ljust(100, b"\0"),
        size,
        kind,
    )
    block = (fields.ljust(257, b"\0") + b"ustar  \0").ljust(_BLOCK, b"\0")
    return b"%s%06o\0 %s" % (block[:148], sum(block), block[156:])
