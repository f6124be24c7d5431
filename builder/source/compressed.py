"""Read a compressed file forward as the bytes it holds: gzip, bzip2, xz, zstd, recognised by their first bytes.

Only the last ``LOOK_BACK`` bytes are kept. A file that grows to any size costs time, not memory.

If the stream is damaged or cut, the bytes before that place are given. Reading from there on raises DamagedFileError,
which ``scan_tar`` notes as damage. Lost are the bytes that could not be decoded (bzip2: a block of up to 900 kB; zstd:
up to 128 KiB), and up to 64 KiB before them: a decoder that fails keeps its last output for itself. A wrong checksum at
the end of a stream does not tell which bytes are wrong. A cut zstd stream has no mark: the library ends it like a whole
one. Then the tar in it is seen to end early.
"""

from __future__ import annotations

import bz2
import lzma
import re
import shlex
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

from builder.base.errors import DamagedFileError, MissingExtraError, SourceError
from builder.source.files import ByteFile

LOOK_BACK = 4 << 20
"""Bytes behind the current place that cost nothing to read again. A walk over headers is at most 1.3 MB ahead."""
MAX_XZ_MEMORY = 256 << 20
"""Bytes an xz decoder may use. xz -9 needs 65 MiB; a header can ask for a dictionary of up to 4 GiB."""
MAX_ZSTD_WINDOW = 128 << 20
"""Bytes of zstd's window: zstd's own limit unless --long=28 or above is given."""
_PIECE = 64 << 10  # bytes read and decoded at a time

_MAGIC = (
    ("gzip", re.compile(rb"\x1f\x8b\x08")),
    ("bzip2", re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")),  # block or end magic: a tar may begin with "BZh1"
    ("xz", re.compile(rb"\xfd7zXZ\0")),
    ("zstd", re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")),  # a frame, or a skippable one (pzstd)
    ("lz4", re.compile(rb"\x04\x22\x4d\x18")),
    ("compress", re.compile(rb"\x1f[\x9d\xa0]")),
)
_UNREAD = {"lz4": "lz4 -d", "compress": "gunzip"}


def compression_of(head: bytes) -> str | None:
    """The compression of a file that begins with ``head`` (10 bytes or more); None if it has none."""
    return next((name for name, magic in _MAGIC if magic.match(head)), None)


def open_compressed(file: ByteFile) -> ByteFile:
    """Open what ``file`` holds; it is closed with the result. ``size`` is None until the end was read.

    Reading goes forward. A place further back than LOOK_BACK starts again from the beginning. Raises SourceError if the
    file has another compression, MissingExtraError if zstandard is needed and not installed.
    """
    kind = compression_of(file.read_at(0, 16))
    if kind in _UNREAD:
        name = shlex.quote(file.name)
        raise SourceError(f"{name} is compressed with {kind}, which is not supported. Run {_UNREAD[kind]} on it first.")
    if kind is None:
        raise SourceError(f"{shlex.quote(file.name)} is not compressed with gzip, bzip2, xz or zstd.")
    return CompressedFile(file, _zstd() if kind == "zstd" else _DECODERS[kind])


class CompressedFile:
    """A ByteFile over the decoded bytes of ``raw``."""

    def __init__(self, raw: ByteFile, decoded: _Decoded) -> None:
        self.name = raw.name
        self.size: int | None = None
        self._raw = raw
        self._decoded = decoded
        self._pieces: Iterator[bytes]
        self._begin()

    def read_at(self, offset: int, length: int) -> bytes:
        end = offset + length
        if offset < self._reached - self._held:
            self._begin()
        parts = [
            piece[max(0, offset - at) : end - at] for at, piece in self._kept if at < end and at + len(piece) > offset
        ]
        while self._reached < end:
            at = self._reached
            piece = self._next_piece()
            if not piece:
                break
            if self._reached > offset:
                parts.append(piece[max(0, offset - at) : end - at])
        data = b"".join(parts)
        if self._problem and length and not data:
            raise DamagedFileError(self.name, f"after {self._reached} bytes of its content", self._problem)
        return data

    def close(self) -> None:
        self._pieces = iter(())  # they refer to this file: break the cycle, do not wait for the garbage collector
        self._raw.close()

    def _begin(self) -> None:
        self._pieces = self._decoded(self._chunks())
        self._kept: deque[tuple[int, bytes]] = deque()
        self._held = 0  # bytes in _kept
        self._reached = 0
        self._problem = ""

    def _next_piece(self) -> bytes:
        try:
            piece = next(self._pieces, b"")
        except _BadStreamError as error:
            self._problem = str(error)
            return b""
        if piece:
            self._kept.append((self._reached, piece))
            self._reached += len(piece)
            self._held += len(piece)
            while self._held - len(self._kept[0][1]) >= LOOK_BACK:
                self._held -= len(self._kept.popleft()[1])
        elif not self._problem:
            self.size = self._reached
        return piece

    def _chunks(self) -> Iterator[bytes]:
        at = 0
        while chunk := self._raw.read_at(at, _PIECE):
            yield chunk
            at += len(chunk)


class _BadStreamError(Exception):
    """The stream cannot be decoded further."""


_Decoded = Callable[[Iterator[bytes]], Iterator[bytes]]


def _decode(new: Callable[[], Any], chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Decode ``chunks`` in pieces: one stream, or several with zeros between them. ``new`` makes a decoder of zlib, bz2
    or lzma."""
    waiting = next(chunks, b"")
    while waiting:
        decoder = new()
        while not decoder.eof:
            needs_input = getattr(decoder, "needs_input", True)  # zlib has no such attribute
            ended = not waiting and needs_input and not (waiting := next(chunks, b""))
            try:
                piece = decoder.decompress(waiting, _PIECE)
            except (zlib.error, lzma.LZMAError, OSError) as error:  # bz2 raises OSError
                raise _BadStreamError(str(error)) from error
            waiting = getattr(decoder, "unconsumed_tail", b"")  # zlib returns unused input, the others keep it
            if piece:
                yield piece
            elif ended and not decoder.eof:
                raise _BadStreamError("the compressed stream is cut short")
        waiting = decoder.unused_data.lstrip(b"\0")
        while not waiting and (chunk := next(chunks, b"")):
            waiting = chunk.lstrip(b"\0")


_DECODERS: dict[str, _Decoded] = {
    "gzip": partial(_decode, lambda: zlib.decompressobj(31)),
    "bzip2": partial(_decode, bz2.BZ2Decompressor),
    "xz": partial(_decode, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_XZ_MEMORY)),
}


def _zstd() -> _Decoded:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError("reading .zst files", "zstandard", "zstd") from error

    def decoded(chunks: Iterator[bytes]) -> Iterator[bytes]:
        decoder = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
        pipe: Any = SimpleNamespace(read=lambda _: next(chunks, b""))  # zstandard only calls read
        reader = decoder.stream_reader(pipe, read_size=_PIECE, read_across_frames=True)
        try:
            while piece := reader.read1(_PIECE):
                yield piece
        except zstandard.ZstdError as error:
            raise _BadStreamError(str(error)) from error

    return decoded
