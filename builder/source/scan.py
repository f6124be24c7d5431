"""Where every member of an archive lies, in columns of plain bytes.

Nothing here needs numpy or pyarrow: scanners can be at work before those are imported (``plan/ahead.py``).
``tables.py`` makes arrays of the columns.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import xxhash

from builder.base.errors import SourceError
from builder.base.names import is_utf8
from builder.base.options import MAX_ANNOTATION_BYTES
from builder.base.records import WHOLE, Damage, Member, TarScan
from builder.base.urls import StorageOptions, is_url
from builder.source.captions import excess
from builder.source.compressed import compression_of, open_compressed
from builder.source.files import ByteFile, LocalFile
from builder.source.glance import Glances
from builder.source.layout import Archive
from builder.source.tar_headers import normal_name
from builder.source.tars import scan_tar

_TOGETHER = 1 << 16  # names hashed at a time: ``b"".join`` keeps all its pieces until its end

_UINT32, _INT64 = "I", "q"
assert array(_UINT32).itemsize == 4  # as wide as C's unsigned int, which is 4 bytes wherever Python runs today

IMAGE_ENDINGS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".jp2",
    ".jpe",
    ".jfif",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".tga",
    ".ico",
    ".icns",
    ".apng",
    ".mpo",
    ".j2k",
    ".j2c",
    ".jpc",
    ".jpf",
    ".jpx",
    ".dib",
    ".pcx",
    ".dds",
    ".qoi",
    ".heic",
    ".heif",
    ".jxl",
)
"""Members of raw/ that count as images when the listing does not name them: what Pillow reads, alone or with a
plugin."""


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """What to note of an archive besides where its members lie."""

    archive: Archive
    names: bool = False  # the members' names, where there is no listing to take paths from
    urls: bool = False  # the url field of JSON members, for recaptions joined by url
    shapes: bool = False  # width and height of images, as far as reading the headers shows them


@dataclass(frozen=True, slots=True)
class Scanned:
    """Members of one archive, a column each, in archive order. The last of several equal names is the one that counts.

    ``offsets`` and ``sizes`` are bytes in the archive. For a folder, offsets are those its files would have one behind
    the other, in the order of their paths.
    """

    ids: bytes  # name_digests of the names
    offsets: array[int]  # 32 bits where that is enough, else 64
    sizes: array[int]  # the same
    states: bytes
    is_image: bytes  # 0 or 1
    is_json: bytes
    size: int  # of the archive, bytes, uncompressed
    damage: tuple[Damage, ...]
    compression: str | None
    names: list[str] | None = None
    stem_ids: bytes | None = None
    url_ids: bytes | None = None  # of an empty string where a member has none
    shapes: array[int] | None = None  # 32 bits, see source/glance.py: 0 where it was not to be seen


def open_archive(archive: Archive, *, in_order: bool = True) -> ByteFile:
    """The archive's bytes, uncompressed. ``in_order``: they will be read from front to back, which matters behind a
    URL. Raises SourceError where it cannot be opened."""
    return open_with_compression(archive, in_order=in_order)[0]


def open_bytes(path: str, storage: StorageOptions, *, size: int | None = None, in_order: bool = True) -> ByteFile:
    """A file's own bytes, on this machine or behind a URL. ``size``: where it is known. Raises SourceError."""
    try:
        if is_url(path):
            from builder.source.remote import KEPT, KEPT_SMALL, RemoteFile

            return RemoteFile(path, storage, size=size, kept=KEPT if in_order else KEPT_SMALL)
        return LocalFile(path)
    except OSError as error:
        raise SourceError(f"cannot open {path}: {error.strerror or 'it is not there'}") from error


def open_with_compression(archive: Archive, *, in_order: bool = True) -> tuple[ByteFile, str | None]:
    """The archive's bytes, uncompressed, and how they are compressed where they lie. Raises SourceError."""
    file = open_bytes(archive.path, archive.storage, size=archive.size, in_order=in_order)
    compression = compression_of(file.read_at(0, 16))
    return (file, None) if compression is None else (open_compressed(file), compression)


def scan_members(request: ScanRequest) -> Scanned:
    """Find every member. Damage is noted, never raised; what cannot be opened at all is a SourceError."""
    archive = request.archive
    if archive.is_folder:
        return _columns(request, _scan_folder(archive), None, None)
    file, compression = open_with_compression(archive)
    try:
        return scan_open(request, file, compression)
    finally:
        file.close()


def scan_open(
    request: ScanRequest, file: ByteFile, compression: str | None, watch: Callable[[Member], None] | None = None
) -> Scanned:
    """The same for a tar that is open already. ``watch`` is told of each member as it is met, and may read of the
    file."""
    if not request.shapes or compression is not None:
        return _columns(request, scan_tar(file, watch), compression, file)
    glances = Glances(file)
    scan = scan_tar(glances, glances.watch)
    shapes = array(_UINT32, glances.shapes(scan.members))
    return replace(_columns(request, scan, compression, file), shapes=shapes)


def name_digests(names: Iterable[str]) -> bytes:
    """xxh3-128 of each name's UTF-8 bytes, 16 bytes each, one behind the other."""
    return digests_of(map(str.encode, names))


def digests_of(documents: Iterable[bytes]) -> bytes:
    """xxh3-128 of each, 16 bytes, one behind the other."""
    digests, documents = bytearray(), iter(documents)
    while some := b"".join(map(xxhash.xxh3_128_digest, islice(documents, _TOGETHER))):
        digests += some
    return bytes(digests)


def stem_of(path: str) -> str:
    """The path without its extension: the part behind the last dot of the last component, unless that dot leads it."""
    stem, dot, ending = path.rpartition(".")
    return stem if dot and "/" not in ending and stem and not stem.endswith("/") else path


def _columns(request: ScanRequest, scan: TarScan, compression: str | None, file: ByteFile | None) -> Scanned:
    members = scan.members
    places = _UINT32 if scan.size < 1 << 32 else _INT64
    names = [member.name for member in members]
    # From generators: a tar of a million tiny members costs enough without lists of what goes into the columns.
    return Scanned(
        ids=name_digests(names),
        offsets=array(places, (member.offset for member in members)),
        sizes=array(places, (member.size for member in members)),
        states=bytes(member.state for member in members),
        is_image=bytes(name.lower().endswith(IMAGE_ENDINGS) for name in names),
        is_json=bytes(name.lower().endswith(".json") for name in names),
        size=scan.size,
        damage=scan.damage,
        compression=compression,
        names=names if request.names else None,
        stem_ids=name_digests(map(stem_of, names)) if request.names else None,
        url_ids=name_digests(_urls(request.archive, members, file)) if request.urls else None,
    )


def _scan_folder(archive: Archive) -> TarScan:
    members, offset = [], 0
    damage = []
    for name, size, _ in sorted(_files_of(archive)):
        if normal_name(name) == name and is_utf8(name):
            members.append(Member(name, offset, size))
        else:
            damage.append(Damage(offset, offset + size, f"the file name {os.fsencode(name)!r} cannot be a key"))
        offset += size
    return TarScan(tuple(members), tuple(damage), offset)


def folder_state(archive: Archive) -> str:
    """Of a folder: another one (32 hex digits) once any file in it was added, removed, renamed, replaced or written to.
    The sum of xxh3-128 over each file's name, size and modification time: whatever the order they are met in. Raises
    SourceError."""
    total = 0
    for name, size, mtime in _files_of(archive):
        total += xxhash.xxh3_128_intdigest(os.fsencode(f"{name}\0{size}\0{mtime}"))
    return f"{total % (1 << 128):032x}"


def _files_of(archive: Archive) -> Iterator[tuple[str, int, int]]:
    """Name, size and modification time (ns) of each file of a folder. Of those that lie in the side itself (``name`` is
    empty) the folders are archives of their own. Raises SourceError."""
    try:
        if archive.name:
            yield from _walk_folder(archive.path, archive.name, frozenset())
            return
        with os.scandir(archive.path) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_file():
                    yield _state(entry, entry.name)
    except OSError as error:
        raise SourceError(f"cannot read {error.filename}: {error.strerror}") from error


def _walk_folder(path: str, prefix: str, around: frozenset[tuple[int, int]]) -> Iterator[tuple[str, int, int]]:
    """``around``: device and inode of the folders that this one lies in. A link back to one of them is not followed."""
    status = os.stat(path)
    inside = around | {(status.st_dev, status.st_ino)}
    if len(inside) == len(around):
        return
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk_folder(entry.path, f"{prefix}/{entry.name}", inside)
            elif entry.is_file():
                yield _state(entry, f"{prefix}/{entry.name}")


def _state(entry: os.DirEntry[str], name: str) -> tuple[str, int, int]:
    status = entry.stat()
    return name, status.st_size, status.st_mtime_ns


def _urls(archive: Archive, members: tuple[Member, ...], file: ByteFile | None) -> Iterator[str]:
    """The ``url`` field of each JSON member; an empty string for all others."""
    for member in members:
        url = None
        if member.name.endswith(".json") and member.state == WHOLE and member.size <= MAX_ANNOTATION_BYTES:
            document = _read(archive, member, file)
            try:
                fields = None if excess(document) else json.loads(document)
                url = fields.get("url") if isinstance(fields, dict) else None
            except (ValueError, RecursionError):
                url = None  # the sample will be a counted reject when its document is read
        yield url if isinstance(url, str) and is_utf8(url) else ""


def _read(archive: Archive, member: Member, file: ByteFile | None) -> bytes:
    if file is not None:
        return file.read_at(member.offset, member.size)
    name = member.name.removeprefix(f"{archive.name}/") if archive.name else member.name
    try:
        with open(os.path.join(archive.path, name), "rb") as handle:
            return handle.read()
    except OSError as error:
        raise SourceError(f"cannot read {error.filename}: {error.strerror}") from error
