"""Scan an archive: find every member and return an :class:`ArchiveTable`."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import xxhash

from builder.base.arrays import string_array
from builder.base.ids import path_ids
from builder.base.names import is_utf8
from builder.base.options import MAX_ANNOTATION_BYTES
from builder.base.records import WHOLE, Damage, Member, TarScan
from builder.base.urls import NO_OPTIONS, StorageOptions, is_url
from builder.source.captions import excess, joined_value
from builder.source.compressed import compression_of, open_compressed
from builder.source.endings import (
    ANNOTATION_ENDINGS,
    ARCHIVE,
    COMPANION_MARKS,
    IMAGE_ENDINGS,
    SPLIT_PART,
    is_companion,
    kind_of,
    stem_of,
)
from builder.source.files import ByteFile, LocalFile, refuse_pointer
from builder.source.glance import Glances
from builder.source.layout import Archive
from builder.source.places import cannot_read
from builder.source.tables import ArchiveTable
from builder.source.tar_headers import normal_name
from builder.source.tars import scan_tar

_UINT32, _INT64 = "I", "q"
assert array(_UINT32).itemsize == 4  # C's unsigned int, 4 bytes wherever Python runs today

_UNFINISHED = "the file of a downloader (.aria2, .st) lies beside it: its download did not finish. Download it again"
_PLAIN = IMAGE_ENDINGS + ANNOTATION_ENDINGS


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """What to note about an archive, besides where its members lie."""

    archive: Archive
    names: bool = False  # the members' names, if no listing gives paths
    field: str = ""  # a field of JSON members, such as url, that recaptions are joined by
    shapes: bool = False  # width and height of images, as far as reading the headers shows them


def open_archive(archive: Archive, *, in_order: bool = True) -> ByteFile:
    """The archive's uncompressed bytes. ``in_order``: they will be read from front to back, which matters behind a URL.
    Raises SourceError if it cannot be opened."""
    return open_with_compression(archive, in_order=in_order)[0]


def open_bytes(path: str, storage: StorageOptions, *, size: int | None = None, in_order: bool = True) -> ByteFile:
    """A file's own bytes, local or behind a URL. ``size``: if known. Raises SourceError."""
    try:
        if is_url(path):
            from builder.source.remote import KEPT, KEPT_SMALL, RemoteFile

            return RemoteFile(path, storage, size=size, kept=KEPT if in_order else KEPT_SMALL)
        return LocalFile(path)
    except OSError as error:
        raise cannot_read(path, error) from error


def open_with_compression(archive: Archive, *, in_order: bool = True) -> tuple[ByteFile, str | None]:
    """The archive's uncompressed bytes, and its compression. Raises SourceError."""
    file = open_bytes(archive.path, archive.storage, size=archive.size, in_order=in_order)
    head = file.read_at(0, 64)
    refuse_pointer(archive.path, head)
    compression = compression_of(head)
    return (file, None) if compression is None else (open_compressed(file), compression)


def scan_archive(request: ScanRequest) -> ArchiveTable:
    """Find every member. Damage is noted, never raised. Raises SourceError if the archive cannot be opened at all."""
    archive = request.archive
    if archive.is_folder:
        return _columns(request, _scan_folder(archive), None, None)
    file, compression = open_with_compression(archive)
    with closing(file):
        return scan_open(request, file, compression)


def scan_open(
    request: ScanRequest, file: ByteFile, compression: str | None, watch: Callable[[Member], None] | None = None
) -> ArchiveTable:
    """The same for an open tar. ``watch`` gets each member when it is met, and may read from the file."""
    if not request.shapes or compression is not None:
        return _columns(request, scan_tar(file, watch), compression, file)
    glances = Glances(file)
    scan = scan_tar(glances, glances.watch)
    shapes = np.asarray(array(_UINT32, glances.shapes(scan.members)))
    return replace(_columns(request, scan, compression, file), shapes=shapes)


def _columns(request: ScanRequest, scan: TarScan, compression: str | None, file: ByteFile | None) -> ArchiveTable:
    members = scan.members
    places = _UINT32 if scan.size < 1 << 32 else _INT64
    names = [member.name for member in members]
    lower = [name.lower() for name in names]
    damage = scan.damage
    if request.archive.unfinished:
        damage += (Damage(scan.size, scan.size, _UNFINISHED),)
    is_image = np.frombuffer(bytes(name.endswith(IMAGE_ENDINGS) for name in lower), np.bool_)
    is_json = np.frombuffer(bytes(name.endswith(".json") for name in lower), np.bool_)
    is_text = np.frombuffer(bytes(name.endswith(".txt") for name in lower), np.bool_) if request.names else None
    hidden = np.zeros(0, np.bool_)
    joined = "\n".join(names)
    if any(mark in joined for mark in COMPANION_MARKS):  # one search of all names, as most tars have none
        hidden = np.array([is_companion(name) for name in names], np.bool_)
        is_image, is_json = is_image & ~hidden, is_json & ~hidden
        is_text = None if is_text is None else is_text & ~hidden
    # Columns are built from generators: for a tar of a million tiny members, lists would cost too much more.
    return ArchiveTable(
        ids=path_ids(names),
        offsets=np.asarray(array(places, (member.offset for member in members))),
        sizes=np.asarray(array(places, (member.size for member in members))),
        states=np.frombuffer(bytes(member.state for member in members), np.uint8),
        is_image=is_image,
        is_json=is_json,
        size=scan.size,
        damage=damage,
        compression=compression,
        names=string_array(names) if request.names else None,
        stem_ids=path_ids(map(stem_of, names)) if request.names else None,
        field_ids=path_ids(_fields(request, members, file)) if request.field else None,
        is_text=is_text,
        hidden=int(hidden.sum()),
    )


def _scan_folder(archive: Archive) -> TarScan:
    members, offset = [], 0
    damage = []
    for name, size, _ in sorted(_files_of(archive)):
        if normal_name(name) != name or not is_utf8(name):
            shown = os.fsencode(name).decode("utf-8", "backslashreplace")
            damage.append(Damage(offset, offset + size, f"the file name {shown} cannot be a key, which is UTF-8"))
        elif not name.lower().endswith(_PLAIN) and kind_of(name.rpartition("/")[2]) in (ARCHIVE, SPLIT_PART):
            damage.append(Damage(offset, offset + size, f"{name} is an archive among extracted files. It is not read"))
        else:
            members.append(Member(name, offset, size))
        offset += size
    return TarScan(tuple(members), tuple(damage), offset)


def folder_state(archive: Archive) -> str:
    """A digest (32 hex digits) that changes once any file of a folder was added, removed, renamed, replaced or written
    to. It is the sum of xxh3-128 over each file's name, size and modification time, so the order does not matter.
    Raises SourceError."""
    total = 0
    for name, size, mtime in _files_of(archive):
        total += xxhash.xxh3_128_intdigest(os.fsencode(f"{name}\0{size}\0{mtime}"))
    return f"{total % (1 << 128):032x}"


def _files_of(archive: Archive) -> Iterator[tuple[str, int, int]]:
    """Name, size and modification time (ns) of each file of a folder. If ``name`` is empty the files lie directly in
    the side, and its folders are archives of their own. Raises SourceError."""
    try:
        if archive.name:
            yield from _walk_folder(archive.path, archive.name, frozenset())
            return
        with os.scandir(archive.path) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_file():
                    yield _state(entry, entry.name)
    except OSError as error:
        raise cannot_read(str(error.filename), error) from error


def _walk_folder(path: str, prefix: str, around: frozenset[tuple[int, int]]) -> Iterator[tuple[str, int, int]]:
    """``around``: device and inode of the folders that contain this one. A link back to one of them is not followed."""
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


def _fields(request: ScanRequest, members: tuple[Member, ...], file: ByteFile | None) -> Iterator[str]:
    """The wanted field of each JSON member, as text; "" for all others."""
    for member in members:
        value = None
        if member.name.endswith(".json") and member.state == WHOLE and member.size <= MAX_ANNOTATION_BYTES:
            if file is not None:
                document = file.read_at(member.offset, member.size)
            else:
                folder = request.archive
                document = read_member(folder.path, member.name.removeprefix(f"{folder.name}/" if folder.name else ""))
            try:
                fields = None if excess(document) else json.loads(document)
                value = fields.get(request.field) if isinstance(fields, dict) else None
            except (ValueError, RecursionError):
                value = None  # the sample becomes a counted reject when its document is read
        yield joined_value(request.field, value)


def read_member(root: str, name: str) -> bytes:
    """Read an extracted file. Raises SourceError."""
    with closing(open_bytes(os.path.join(root, name), NO_OPTIONS)) as file:
        return file.read_at(0, file.size or 0)
