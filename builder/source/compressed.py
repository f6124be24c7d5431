"""Read a compressed file forward as the bytes it holds: gzip, bzip2, xz, zstd, recognised by their first bytes.

Only the last ``LOOK_BACK`` bytes are kept. A file that grows to any size costs time, not memory.

If the stream is damaged or cut, the bytes before that place are given. Reading from there on raises DamagedFileError,
which ``scan_tar`` notes as damage. A decoder that fails keeps its last output for itself. So the stream is decoded once
more up to there, and the rest is taken in small steps. Lost are the bytes that could not be decoded (bzip2: a block of
up to 900 kB; zstd: up to 128 KiB) and less than 512 bytes before them. A wrong checksum at the end of a stream loses no
bytes, and does not tell which are wrong. A cut zstd stream has no such mark: the library ends it like a whole one. Then
the tar in it is seen to end early.
"""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol

from builder.base.errors import DamagedFileError, MissingExtraError, SourceError
from builder.source.files import ByteFile, LocalFile

LOOK_BACK = 4 << 20
"""Bytes behind the current place that cost nothing to read again. A walk over headers is at most 1.3 MB ahead."""
MAX_XZ_MEMORY = 256 << 20
"""Bytes an xz decoder may use. xz -9 needs 65 MiB; a header can ask for a dictionary of up to 4 GiB."""
MAX_ZSTD_WINDOW = 128 << 20
"""Bytes of zstd's window: zstd's own limit unless --long=28 or above is given."""
_PIECE = 64 << 10
_STEP = 512
"""Bytes per step near damage: one tar block, the least that can hold something of a tar."""

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


def open_compressed(source: str | ByteFile) -> ByteFile:
    """Open what ``source`` holds: a path, or a file that is closed with the result. ``size`` is None until its end.

    Reading goes forward. A place further back than LOOK_BACK starts again from the beginning. Raises SourceError if the
    file cannot be opened or has another compression, MissingExtraError if zstandard is needed and not installed.
    """
    if isinstance(source, str):
        try:
            source = LocalFile(source)
        except OSError as error:
            raise SourceError(f"cannot open {source}: {error.strerror}") from error
    kind = compression_of(source.read_at(0, 16))
    if kind in _UNREAD:
        remedy = f"run {_UNREAD[kind]} on it first"
        raise SourceError(f"{source.name} is compressed by {kind}, which is not read here: {remedy}")
    if kind is None:
        raise SourceError(f"{source.name} is not compressed in any way that is read here (gzip, bzip2, xz, zstd)")
    return CompressedFile(source, _zstd() if kind == "zstd" else _DECODERS[kind])


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
        self._pieces = self._decoded(self._chunks(), lambda: self._step)
        self._careful = False
        self._fed, self._step = 0, _PIECE
        self._kept: deque[tuple[int, bytes]] = deque()
        self._held = 0  # bytes in _kept
        self._reached = 0
        self._problem = ""

    def _next_piece(self) -> bytes:
        try:
            piece = next(self._pieces, b"")
        except _BadStreamError as error:
            if error.lossy and not self._careful:
                self._pieces, self._careful = self._last_bytes(error, self._fed, self._reached), True
                return self._next_piece()
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

    def _chunks(self, sparing: int | None = None) -> Iterator[bytes]:
        """The decoder's input. From ``sparing`` on it goes byte by byte, so that the decoder gives out less at once."""
        at = 0
        while chunk := self._raw.read_at(at, _PIECE):
            self._fed = at
            at += len(chunk)
            if sparing is None or at <= sparing:
                yield chunk
            else:
                self._step = _STEP
                yield from (chunk[place : place + 1] for place in range(len(chunk)))

    def _last_bytes(self, error: _BadStreamError, fed: int, reached: int) -> Iterator[bytes]:
        """Decode again, yield the content from byte ``reached`` on in pieces of about 64 KiB, then raise."""
        some, held, at = [], 0, 0
        with suppress(_BadStreamError):
            for piece in self._decoded(self._chunks(fed), lambda: self._step):
                at += len(piece)
                if at > reached:
                    some.append(piece[max(0, reached - at + len(piece)) :])
                    held += len(some[-1])
                if held >= _PIECE:
                    yield b"".join(some)
                    some, held = [], 0
        if held:
            yield b"".join(some)
        raise error


class _BadStreamError(Exception):
    """The stream cannot be decoded further. ``lossy``: the decoder may have held back output."""

    def __init__(self, why: str, *, lossy: bool) -> None:
        super().__init__(why)
        self.lossy = lossy


class _Decoder(Protocol):
    """What zlib, bz2 and lzma have in common. ``_decode`` handles the differences."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


_Decoded = Callable[[Iterator[bytes], Callable[[], int]], Iterator[bytes]]


def _decode(new: Callable[[], _Decoder], chunks: Iterator[bytes], step: Callable[[], int]) -> Iterator[bytes]:
    """Decode ``chunks`` in pieces of at most ``step()`` bytes: one stream, or several with zeros between them."""
    waiting = next(chunks, b"")
    while waiting:
        decoder = new()
        while not decoder.eof:
            needs_input = getattr(decoder, "needs_input", True)  # zlib has no such attribute
            ended = not waiting and needs_input and not (waiting := next(chunks, b""))
            try:
                piece = decoder.decompress(waiting, step())
            except (zlib.error, lzma.LZMAError, OSError) as error:  # bz2 raises OSError
                raise _BadStreamError(str(error), lossy=True) from error
            waiting = getattr(decoder, "unconsumed_tail", b"")  # zlib returns unused input, the others keep it
            if piece:
                yield piece
            elif ended and not decoder.eof:
                raise _BadStreamError("the compressed stream is cut short", lossy=False)
        waiting = decoder.unused_data.lstrip(b"\0")
        while not waiting and (chunk := next(chunks, b"")):
            waiting = chunk.lstrip(b"\0")


_DECODERS: dict[str, _Decoded] = {
    "gzip": lambda chunks, step: _decode(lambda: zlib.decompressobj(31), chunks, step),
    "bzip2": lambda chunks, step: _decode(bz2.BZ2Decompressor, chunks, step),
    "xz": lambda chunks, step: _decode(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_XZ_MEMORY), chunks, step),
}


def _zstd() -> _Decoded:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError("reading .zst files", "zstandard", "zstd") from error

    def decoded(chunks: Iterator[bytes], step: Callable[[], int]) -> Iterator[bytes]:
        decoder = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
        pipe: Any = _Pipe(chunks)  # zstandard only calls read
        reader = decoder.stream_reader(pipe, read_size=_PIECE, read_across_frames=True)
        try:
            while piece := reader.read1(step()):
                yield piece
        except zstandard.ZstdError as error:
            raise _BadStreamError(str(error), lossy=True) from error

    return decoded


class _Pipe:
    """Chunks as a file object for zstandard to read. Takes one chunk at a time."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    def read(self, size: int) -> bytes:
        return next(self._chunks, b"")
