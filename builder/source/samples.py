"""Planned rows → samples: read image and annotation, probe, judge. Only here a sample becomes a row or a reject."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import pyarrow as pa

from builder.base.errors import SourceChangedError
from builder.base.options import SamplePolicy
from builder.base.records import ImageInfo, Reason, Reject, SampleProblem
from builder.base.storage import state_of
from builder.base.urls import is_url
from builder.source.captions import merge_recaption, read_annotation, text_document
from builder.source.endings import stem_of
from builder.source.files import ByteFile, LocalFile, merge_ranges, read_whole
from builder.source.glance import glance, shape_info
from builder.source.images import judge, probe
from builder.source.layout import Archive
from builder.source.places import cannot_read
from builder.source.scan import open_archive

CHUNK_BYTES = 2 << 20
"""Image bytes in memory at a time. A chunk should cost few system calls, and stay in the caches until it is read,
hashed and written. Measured: 128 KiB to 2 MiB do not differ; maps are slower than reads."""

CHUNK_ROWS = 256
_CHUNK_TEXT = 16 << 20
_GAP = 64 << 10  # bytes between two members; a smaller gap is cheaper to read than to skip
_OPEN_ARCHIVES = 64
_OPEN_REMOTE = 4  # each holds blocks of 8 MiB: 7 of them, or 12


_NOT_READ: tuple[int, int | None] = (0, None)


class Sample(NamedTuple):
    """A listed sample that is a row. Its image is ``buffer[start:end]`` of its chunk. ``image_time`` and
    ``annotation_time``: modification times of extracted files in ns, taken when they were read; None in a tar. A sample
    that lies in no archive has places of 0."""

    position: int
    key: str
    path: str
    annotation_path: str
    start: int
    end: int
    caption: str
    annotation: bytes
    bom: bool
    info: ImageInfo
    archive: int = 0
    offset: int = 0
    annotation_archive: int = 0
    annotation_offset: int = 0
    annotation_size: int = 0
    image_time: int | None = None
    annotation_time: int | None = None
    made: bool = False  # the annotation is in no file: it was merged, or made from a .txt


@dataclass(frozen=True, slots=True)
class Chunk:
    """Samples in row order, and the rejects among them. ``buffer`` stays valid for one more chunk: two buffers
    alternate."""

    buffer: bytes | bytearray
    samples: list[Sample]
    rejects: list[Reject]


@dataclass(frozen=True, slots=True)
class Stock:
    """The archives that planned rows point into. A row holds the archive's number in the plan."""

    raw_root: str
    captions_root: str
    raw: Mapping[int, Archive]
    annotations: Mapping[int, Archive]


def read_samples(
    rows: pa.RecordBatch, stock: Stock, policy: SamplePolicy, *, with_images: bool = True
) -> Iterator[Chunk]:
    """Read planned rows (PLAN_ROW) in order. Every row comes out once, as a sample or as a reject.

    ``with_images=False``: of each image, read only what its verdict needs. The chunks' buffers are empty then. Raises
    SourceChangedError if an archive is not what was planned.
    """
    with SampleReader(stock, policy, with_images=with_images) as reader:
        yield from reader.read(rows)
        reader.check()


class PlannedRow(NamedTuple):
    """A row of PLAN_ROW (plan/plan.py): a sample to read. ``shape``: what the scan knows of the image, 0 if nothing."""

    archive: int
    offset: int
    size: int
    position: int
    annotation_archive: int
    annotation_offset: int
    annotation_size: int
    keeps_ending: bool
    path: str
    annotation_path: str
    recaption: str | None
    shape: int = 0


class SampleReader:
    """Reads planned rows, batch after batch, and keeps the archives open in between. Not thread-safe."""

    def __init__(self, stock: Stock, policy: SamplePolicy, *, with_images: bool = True) -> None:
        self._stock, self._policy, self._with_images = stock, policy, with_images
        self._images, self._annotations = _Handles(stock.raw), _Handles(stock.annotations, in_order=False)
        self._buffers = [bytearray(CHUNK_BYTES), bytearray(CHUNK_BYTES)]
        self._fine: dict[int, ImageInfo] = {}  # shapes that passed the judgement

    def __enter__(self) -> SampleReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._images.close()
        self._annotations.close()

    def lend(self, number: int, file: ByteFile, *, annotations: bool = False) -> None:
        """Use an archive that is open already. It is closed with this reader."""
        (self._annotations if annotations else self._images).put(number, file)

    def read(self, rows: pa.RecordBatch) -> Iterator[Chunk]:
        """Rows (PLAN_ROW) in order, each once, as a sample or as a reject."""
        shapes = "shape" in rows.schema.names and not self._with_images  # images that are read are probed
        names = PlannedRow._fields if shapes else PlannedRow._fields[:-1]
        columns = (rows.column(name).to_pylist() for name in names)
        for chunk in self._cut(map(PlannedRow, *columns)):
            yield self._read(chunk)

    def check(self) -> None:
        """Raise SourceChangedError if an archive that was read is not the one that was planned."""
        self._images.check()
        self._annotations.check()

    def _cut(self, rows: Iterable[PlannedRow]) -> Iterator[list[PlannedRow]]:
        """The rows in chunks, cut by bytes. The images of a chunk lie in one archive."""
        chunk: list[PlannedRow] = []
        size = text = 0
        for row in rows:
            if chunk and (
                size + row.size > CHUNK_BYTES
                or text + row.annotation_size > _CHUNK_TEXT
                or len(chunk) >= CHUNK_ROWS
                or row.archive != chunk[0].archive
            ):
                yield chunk
                chunk, size, text = [], 0, 0
            chunk.append(row)
            size += row.size if self._with_images else 0
            text += row.annotation_size
        if chunk:
            yield chunk

    def _read(self, rows: list[PlannedRow]) -> Chunk:
        if any(row.shape for row in rows):
            self._images.note(rows[0].archive)
        documents = self._documents(rows)
        buffer, images = self._pictures(rows) if self._with_images else (b"", [_NOT_READ] * len(rows))
        samples: list[Sample] = []
        rejects: list[Reject] = []
        policy, fine = self._policy, self._fine
        for row, (document, annotation_time), (start, image_time) in zip(rows, documents, images, strict=True):
            end = start + row.size
            key = row.path if row.keeps_ending else stem_of(row.path)
            try:
                made = bool(row.recaption)
                if document is not None and row.annotation_path.lower().endswith(".txt"):
                    document, made = text_document(document, policy.caption_key), True
                if row.recaption:
                    document = merge_recaption(document, row.recaption)
                caption, annotation, bom = read_annotation(document or b"", policy.caption_key)
                info = fine.get(row.shape)
                if info is None:
                    if self._with_images:
                        info = probe(buffer, start, end)
                    else:
                        info, image_time = self._glance(row)
                    judge(info, policy)
                    if row.shape:
                        fine[row.shape] = info
            except SampleProblem as problem:
                rejects.append(Reject(row.position, key, problem.reason, problem.detail, self._place(row, problem)))
                continue
            samples.append(
                Sample(
                    row.position,
                    key,
                    row.path,
                    row.annotation_path,
                    start,
                    end,
                    caption,
                    annotation,
                    bom,
                    info,
                    row.archive,
                    row.offset,
                    row.annotation_archive,
                    row.annotation_offset,
                    row.annotation_size,
                    image_time,
                    annotation_time,
                    made,
                )
            )
        return Chunk(buffer, samples, rejects)

    def _place(self, row: PlannedRow, problem: SampleProblem) -> str:
        """The archive with the problem: the image's, or the annotation's."""
        if problem.reason is Reason.CAPTION_INVALID and row.annotation_archive >= 0:
            return self._stock.annotations[row.annotation_archive].name
        return self._stock.raw[row.archive].name

    def _pictures(self, rows: list[PlannedRow]) -> tuple[bytes | bytearray, list[tuple[int, int | None]]]:
        """The rows' images in one buffer. For each, where it begins in it, and an extracted file's modification
        time."""
        number, sizes = rows[0].archive, [row.size for row in rows]
        if self._stock.raw[number].is_folder:
            files = [_read_file(self._stock.raw_root, row.path, row.size) for row in rows]
            starts = accumulate(sizes[:-1], initial=0)
            return b"".join(data for data, _ in files), [(at, file[1]) for at, file in zip(starts, files, strict=True)]
        offsets = [row.offset for row in rows]
        reads = merge_ranges(offsets, sizes, max_gap=_GAP, max_size=max(CHUNK_BYTES, *sizes))
        needed = sum(read.end - read.start for read in reads)
        self._buffers.reverse()
        buffer = self._buffers[0]
        if len(buffer) < needed:
            buffer = bytearray(needed)  # one large image: freed with the chunk
        file = self._images.open(number)
        view = memoryview(buffer)
        places, at = [_NOT_READ] * len(rows), 0
        for read in reads:
            length = read.end - read.start
            _fill(file, view[at : at + length], read.start)
            for item in read.items:
                places[item] = (at + offsets[item] - read.start, None)
            at += length
        return buffer, places

    def _glance(self, row: PlannedRow) -> tuple[ImageInfo, int | None]:
        """The verdict of ``probe`` on an image that is not in memory, and an extracted file's modification time."""
        if row.shape:
            return shape_info(row.shape), None
        if self._stock.raw[row.archive].is_folder:
            with closing(_open_file(self._stock.raw_root, row.path, row.size)) as file:
                return glance(file, 0, row.size), file.mtime_ns
        return glance(self._images.open(row.archive), row.offset, row.size), None

    def _documents(self, rows: list[PlannedRow]) -> list[tuple[bytes | None, int | None]]:
        """The annotations' bytes, None if a row has none of its own; and extracted files' modification times."""
        documents: list[tuple[bytes | None, int | None]] = [(None, None)] * len(rows)
        by_archive: dict[int, list[int]] = {}
        for at, row in enumerate(rows):
            if row.annotation_archive >= 0:
                by_archive.setdefault(row.annotation_archive, []).append(at)
        for number, places in by_archive.items():
            if self._stock.annotations[number].is_folder:
                for at in places:
                    row = rows[at]
                    documents[at] = _read_file(self._stock.captions_root, row.annotation_path, row.annotation_size)
                continue
            file = self._annotations.open(number)
            offsets = [rows[at].annotation_offset for at in places]
            sizes = [rows[at].annotation_size for at in places]
            for read in merge_ranges(offsets, sizes, max_gap=_GAP, max_size=CHUNK_BYTES):
                data = read_whole(file, read.start, read.end - read.start)
                for item in read.items:
                    start = offsets[item] - read.start
                    documents[places[item]] = data[start : start + sizes[item]], None
        return documents


class _Handles:
    """Open archives, few at a time. Each is checked against the plan when it is opened and when all is read."""

    def __init__(self, archives: Mapping[int, Archive], *, in_order: bool = True) -> None:
        self._archives, self._in_order = archives, in_order
        self._open: OrderedDict[int, ByteFile] = OrderedDict()
        self._used: set[int] = set()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def put(self, number: int, file: ByteFile) -> None:
        """Use this file, and close it at the end."""
        most = _OPEN_REMOTE if is_url(self._archives[number].path) else _OPEN_ARCHIVES
        while len(self._open) >= most:
            self._open.popitem(last=False)[1].close()
        self._open[number] = file
        self._used.add(number)

    def note(self, number: int) -> None:
        """Check this archive at the end too: what is known of it was read earlier."""
        self._used.add(number)

    def open(self, number: int) -> ByteFile:
        file = self._open.get(number)
        if file is None:
            if not is_url(self._archives[number].path):  # there it would cost a round trip, and reads are checked
                _check(self._archives[number])
            file = open_archive(self._archives[number], in_order=self._in_order)
            self.put(number, file)
        else:
            self._open.move_to_end(number)
        return file

    def check(self) -> None:
        """Raise SourceChangedError if a tar that was read is not the one that was planned."""
        used = [self._archives[number] for number in self._used]
        if not any(is_url(archive.path) for archive in used):
            for archive in used:
                _check(archive)
        else:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(16) as pool:  # a round trip each
                list(pool.map(_check, used))


def _check(archive: Archive) -> None:
    try:
        size, version = state_of(archive.path, archive.storage)
    except OSError as error:
        raise SourceChangedError(archive.path, error.strerror or "it is no longer there") from error
    if size != archive.size:
        raise SourceChangedError(archive.path, f"it has {size:,} bytes, it had {archive.size:,} when it was scanned")
    if version != archive.version:
        what = "what the storage states about it" if is_url(archive.path) else "its modification time"
        raise SourceChangedError(archive.path, f"{what} changed after it was scanned")


def _fill(file: ByteFile, view: memoryview, offset: int) -> None:
    if isinstance(file, LocalFile):
        got = file.read_into(view, offset)
    else:
        data = file.read_at(offset, len(view))
        got = len(data)
        view[:got] = data
    if got < len(view):
        raise SourceChangedError(file.name, f"it ends at byte {offset + got:,}")


def _read_file(root: str, path: str, size: int) -> tuple[bytes, int]:
    """The whole extracted file, and its modification time in ns."""
    with closing(_open_file(root, path, size)) as file:
        return read_whole(file, 0, size), file.mtime_ns


def _open_file(root: str, path: str, size: int) -> LocalFile:
    """Open an extracted file that had ``size`` bytes when it was planned."""
    place = os.path.join(root, path)
    try:
        file = LocalFile(place)
    except OSError as error:
        raise cannot_read(place, error) from error
    if file.size != size:
        raise SourceChangedError(place, f"it has {file.size:,} bytes, it had {size:,} when it was scanned")
    return file
