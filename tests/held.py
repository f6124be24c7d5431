"""Bytes in memory as a file of a source."""

from __future__ import annotations


class Held:
    """A ByteFile that counts what is read of it."""

    def __init__(self, data: bytes, name: str = "data.json") -> None:
        self.data = data
        self.name = name
        self.size: int | None = len(data)
        self.read = 0

    def read_at(self, offset: int, length: int) -> bytes:
        part = self.data[offset : offset + length]
        self.read += len(part)
        return part

    def close(self) -> None:
        """Nothing is open."""
