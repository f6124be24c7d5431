"""Planned rows → samples: read image and annotation, probe, judge. Only here a sample becomes a row or a reject."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from builder.base.errors import SourceChangedError, SourceError
from builder.base.options import SamplePolicy
from builder.base.records import ImageInfo, Reason, Reject, SampleProblem
from builder.base.storage import state_of
from builder.base.urls import is_url
from builder.source.captions import merge_recaption, read_annotation, text_document
from builder.source.endings import stem_of
from builder.source.files import ByteFile, LocalFile
from builder.source.glance import glance, shape_info
from builder.source.images import judge, probe
from builder.source.layout import Archive
from builder.source.ranges import merge_ranges
from builder.source.scan import open_archive

CHUNK_BYTES = 2 << 20
"""Image bytes in memory at a time. A chunk should cost few system calls, and stay in the caches until it is read,
hashed and written. Measured: 128 KiB to 2 MiB do not differ; maps are slower than reads."""

CHUNK_ROWS = 256
_CHUNK_TEXT = 16 << 20
_GAP = 64 << 10  # bytes between two members; a smaller gap is cheaper to read than to skip
_OPEN_ARCHIVES = 64
_OPEN_REMOTE = 4  # each holds blocks of 8 MiB: 7 of them, or 12


class Sample(NamedTuple):
    """A listed sample that is a row. Its image is ``buffer[start:end]`` of its chunk. ``image_time`` and
    ``annotation_time``: modification times of extracted files in ns, taken when they were read; None in a tar."""

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
    archive: int
    offset: int
    annotation_archive: int
    annotation_offset: int
    annotation_size: int
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


class SampleReader:
    """Reads planned rows, batch after batch, and keeps the archives open in between. Not thread-safe."""

    def __init__(self, stock: Stock, policy: SamplePolicy, *, with_images: bool = True) -> None:
        self._stock, self._policy, self._with_images = stock, policy, with_images
        self._images, self._annotations = _Handles(stock.raw), _Handles(stock.annotations, in_order=False)
        self._buffers = [bytearray(CHUNK_BYTES), bytearray(CHUNK_BYTES)]

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
        chunks = _ChunkReader(
            rows, self._stock, self._policy, self._images, self._annotations, self._with_images, self._buffers
        )
        for first, last in chunks.chunks():
            yield chunks.read(first, last)

    def check(self) -> None:
        """Raise SourceChangedError if an archive that was read is not the one that was planned."""
        self._images.check()
        self._annotations.check()


class _ChunkReader:
    def __init__(
        self,
        rows: pa.RecordBatch,
        stock: Stock,
        policy: SamplePolicy,
        images: _Handles,
        annotations: _Handles,
        with_images: bool,
        buffers: list[bytearray],
    ) -> None:
        columns = {name: rows.column(name).to_pylist() for name in rows.schema.names}
        self.archives, self.offsets, self.sizes = columns["archive"], columns["offset"], columns["size"]
        self.positions, self.paths = columns["position"], columns["path"]
        self.annotation_archives = columns["annotation_archive"]
        self.annotation_offsets, self.annotation_sizes = columns["annotation_offset"], columns["annotation_size"]
        self.annotation_paths, self.recaptions = columns["annotation_path"], columns["recaption"]
        self.keeps_ending = columns["keeps_ending"]
        # What the scan knows of images, used if they are not read; and the shapes that passed the judgement.
        self.shapes = [0] * len(self.sizes) if with_images else columns.get("shape", [0] * len(self.sizes))
        self.fine: dict[int, ImageInfo] = {}
        for number in {archive for archive, shape in zip(self.archives, self.shapes, strict=True) if shape}:
            images.note(number)
        self.stock, self.policy, self.images, self.annotations = stock, policy, images, annotations
        self.with_images = with_images
        self._buffers = buffers
        self._image_times: dict[int, int] = {}  # by row; of extracted files
        self._annotation_times: dict[int, int] = {}

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Row ranges, cut by bytes: first inclusive, last exclusive."""
        first, size, text = 0, 0, 0
        for row, (image, annotation) in enumerate(zip(self.sizes, self.annotation_sizes, strict=True)):
            full = size + image > CHUNK_BYTES or text + annotation > _CHUNK_TEXT or row - first >= CHUNK_ROWS
            if row > first and (full or self.archives[row] != self.archives[first]):
                yield first, row
                first, size, text = row, 0, 0
            size += image if self.with_images else 0
            text += annotation
        if first < len(self.sizes):
            yield first, len(self.sizes)

    def read(self, first: int, last: int) -> Chunk:
        documents = self._documents(first, last)
        buffer, starts = self._images(first, last) if self.with_images else (b"", [0] * (last - first))
        samples: list[Sample] = []
        rejects: list[Reject] = []
        policy = self.policy
        shapes, fine = self.shapes, self.fine
        image_time, annotation_time = self._image_times.get, self._annotation_times.get
        for row in range(first, last):
            start = starts[row - first]
            end = start + self.sizes[row]
            path = self.paths[row]
            key = path if self.keeps_ending[row] else stem_of(path)
            try:
                document = documents[row - first]
                made = bool(self.recaptions[row])
                if document is not None and self.annotation_paths[row].lower().endswith(".txt"):
                    document, made = text_document(document, policy.caption_key), True
                if made and self.recaptions[row]:
                    document = merge_recaption(document, self.recaptions[row])
                caption, annotation, bom = read_annotation(document or b"", policy.caption_key)
                info = fine.get(shapes[row])
                if info is None:
                    info = probe(buffer, start, end) if self.with_images else self._glance(row)
                    judge(info, policy)
                    if shapes[row]:
                        fine[shapes[row]] = info
            except SampleProblem as problem:
                rejects.append(
                    Reject(self.positions[row], key, problem.reason, problem.detail, self._place(row, problem))
                )
                continue
            samples.append(
                Sample(
                    self.positions[row],
                    key,
                    path,
                    self.annotation_paths[row],
                    start,
                    end,
                    caption,
                    annotation,
                    bom,
                    info,
                    self.archives[row],
                    self.offsets[row],
                    self.annotation_archives[row],
                    self.annotation_offsets[row],
                    self.annotation_sizes[row],
                    image_time(row),
                    annotation_time(row),
                    made,
                )
            )
        return Chunk(buffer, samples, rejects)

    def _place(self, row: int, problem: SampleProblem) -> str:
        """The archive with the problem: the image's, or the annotation's."""
        number = self.annotation_archives[row]
        if problem.reason is Reason.CAPTION_INVALID and number >= 0:
            return self.stock.annotations[number].name
        return self.stock.raw[self.archives[row]].name

    def _images(self, first: int, last: int) -> tuple[bytes | bytearray, list[int]]:
        """The images of rows first to last in one buffer, and where each begins in it."""
        number = self.archives[first]
        archive = self.stock.raw[number]
        sizes = self.sizes[first:last]
        if archive.is_folder:
            pieces = []
            for row in range(first, last):
                piece, self._image_times[row] = _read_file(self.stock.raw_root, self.paths[row], self.sizes[row])
                pieces.append(piece)
            return b"".join(pieces), [sum(sizes[:count]) for count in range(len(sizes))]
        reads = merge_ranges(self.offsets[first:last], sizes, max_gap=_GAP, max_size=max(CHUNK_BYTES, *sizes))
        needed = sum(read.end - read.start for read in reads)
        self._buffers.reverse()
        buffer = self._buffers[0]
        if len(buffer) < needed:
            buffer = bytearray(needed)  # one large image: freed with the chunk
        file = self.images.open(number)
        view = memoryview(buffer)
        starts, at = [0] * len(sizes), 0
        for read in reads:
            length = read.end - read.start
            _fill(file, view[at : at + length], read.start)
            for item in read.items:
                starts[item] = at + self.offsets[first + item] - read.start
            at += length
        return buffer, starts

    def _glance(self, row: int) -> ImageInfo:
        """The verdict of ``probe`` on an image that is not in memory."""
        if self.shapes[row]:
            return shape_info(self.shapes[row])
        archive, size = self.stock.raw[self.archives[row]], self.sizes[row]
        if archive.is_folder:
            file = open_file(os.path.join(self.stock.raw_root, self.paths[row]), size)
            self._image_times[row] = file.mtime_ns
            try:
                return glance(file, 0, size)
            finally:
                file.close()
        return glance(self.images.open(self.archives[row]), self.offsets[row], size)

    def _documents(self, first: int, last: int) -> list[bytes | None]:
        """The annotations' bytes; None if a row has no annotation of its own."""
        documents: list[bytes | None] = [None] * (last - first)
        by_archive: dict[int, list[int]] = {}
        for row in range(first, last):
            if self.annotation_archives[row] >= 0:
                by_archive.setdefault(self.annotation_archives[row], []).append(row)
        for number, rows in by_archive.items():
            if self.stock.annotations[number].is_folder:
                for row in rows:
                    documents[row - first], self._annotation_times[row] = _read_file(
                        self.stock.captions_root, self.annotation_paths[row], self.annotation_sizes[row]
                    )
                continue
            file = self.annotations.open(number)
            offsets = [self.annotation_offsets[row] for row in rows]
            sizes = [self.annotation_sizes[row] for row in rows]
            for read in merge_ranges(offsets, sizes, max_gap=_GAP, max_size=CHUNK_BYTES):
                data = file.read_at(read.start, read.end - read.start)
                if len(data) < read.end - read.start:
                    raise SourceChangedError(file.name, f"its byte {read.start + len(data):,} is gone")
                for item in read.items:
                    at = offsets[item] - read.start
                    documents[rows[item] - first] = data[at : at + sizes[item]]
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
        raise SourceChangedError(archive.path, f"{size:,} bytes, {archive.size:,} when it was scanned")
    if version != archive.version:
        what = "what the storage says of it" if is_url(archive.path) else "its modification time"
        raise SourceChangedError(archive.path, f"{what} is not what it was when it was scanned")


def _fill(file: ByteFile, view: memoryview, offset: int) -> None:
    if isinstance(file, LocalFile):
        got = file.read_into(view, offset)
    else:
        data = file.read_at(offset, len(view))
        got = len(data)
        view[:got] = data
    if got < len(view):
        raise SourceChangedError(file.name, f"its byte {offset + got:,} is gone")


def _read_file(root: str, path: str, size: int) -> tuple[bytes, int]:
    """The whole extracted file, and its modification time in ns."""
    file = open_file(os.path.join(root, path), size)
    try:
        data = file.read_at(0, size)
    finally:
        file.close()
    if len(data) < size:
        raise SourceChangedError(file.name, f"its byte {len(data):,} is gone")
    return data, file.mtime_ns


def open_file(path: str, size: int) -> LocalFile:
    """Open an extracted file that had ``size`` bytes when it was planned."""
    try:
        file = LocalFile(path)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    if file.size != size:
        raise SourceChangedError(path, f"{file.size:,} bytes, {size:,} when it was scanned")
    return file
