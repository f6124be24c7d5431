"""Verify one shard: the file's checksum, each image's checksum, and its text columns against the index.

The file is read once, in pieces that end where images end. Both checksums take a piece while it is in the processor's
caches. pyarrow reads the few pages of text a second time.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from builder.base import schema
from builder.base.errors import DamagedFileError, refuse_denied
from builder.base.records import SampleProblem
from builder.base.words import counted
from builder.engines.contract import Report
from builder.source.captions import read_annotation
from builder.source.files import LocalFile
from builder.source.images import decode
from builder.store.arrow import image_offsets
from builder.store.footers import check_claims, footer_check
from builder.store.pages import value_ranges
from builder.store.parquet_file import open_parquet
from builder.verification.findings import Finding, Findings, Remedy, told
from builder.verification.index_rows import index_rows
from builder.verification.members import documents_of, misplaced_members

WINDOW = 1 << 20
"""Bytes read and hashed at a time: small enough to stay in the caches for both checksums."""

_TEXT_COLUMNS = ["key", "image.path", "caption", "width", "height", "annotation"]
_SAME = ("key", "path", "caption", "width", "height")
"""Columns that index and shard both have."""

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ShardCheck:
    """A shard to verify. ``file``: from the index. ``digest``: xxh3-128 of the file, hex, from the manifest. ``first``:
    its first row in the index."""

    out: str
    file: schema.IndexedFile
    digest: str
    first: int
    decode: bool
    caption_key: str

    @property
    def name(self) -> str:
        """For messages."""
        return self.file.path


def check_shard(task: ShardCheck, report: Report) -> list[Finding]:
    """Everything wrong with one shard. Damage of any kind is a finding, not an error."""
    path = os.path.join(task.out, *task.file.path.split("/"))
    plain = Findings(task.file.path, Remedy.SHARD)
    try:
        file = LocalFile(path)
    except OSError as error:
        refuse_denied(path, error)
        plain.add(f"cannot be opened: {error.strerror}. Lost: {counted(task.file.rows, 'row')}")
        return plain.found
    with closing(file):
        try:
            rows = index_rows(task.out, task.first, task.file.rows)
        except DamagedFileError as error:  # it was changed a moment ago
            plain.add(f"the index cannot be read for its rows ({error})")
            return plain.found
        return _Check(task, path, file, rows).run(report)


def stretches(starts: Sequence[int], ends: Sequence[int], size: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a file of ``size`` bytes into (begin, end, first, last): bytes ``begin`` to ``end`` (exclusive) hold images
    ``first`` to ``last`` (exclusive) whole. ``starts`` and ``ends`` ascend and do not overlap. A stretch is WINDOW
    bytes or less, unless one image is more."""
    at = first = 0
    while at < size:
        last = bisect_right(ends, at + WINDOW, first)
        if last > first:
            end = ends[last - 1]
        elif first < len(starts) and starts[first] < at + WINDOW:
            last, end = first + 1, ends[first]
        else:
            end = min(size, at + WINDOW)
        yield at, end, first, last
        at, first = end, last


class _Check:
    def __init__(self, task: ShardCheck, path: str, file: LocalFile, rows: pa.RecordBatch) -> None:
        self._task, self._path, self._file, self._rows = task, path, file, rows
        keys = rows.column("key")
        self._findings = Findings(task.file.path, Remedy.SHARD, task.first, lambda row: str(keys[row].as_py()))
        self._starts = rows.column("offset").to_numpy()
        self._sizes = rows.column("size").to_numpy()
        self._all = range(rows.num_rows)
        self._readable = True  # pyarrow may read it: some damaged footers crash the process

    def run(self, report: Report) -> list[Finding]:
        parquet = self._task.file.kind == "parquet"
        kinds = {"parquet": self._parquet_ranges, "arrow": self._arrow_ranges, "tar": self._tar_ranges}
        ranges = kinds[self._task.file.kind]()
        sound = self._compare_ranges(ranges)
        whole = self._compare_images(ranges, sound, report)
        if self._readable and parquet:
            for at, batch in self._row_groups(_TEXT_COLUMNS, "text"):
                self._compare_text(at, batch)
            if ranges is None:
                self._find_unreadable_images()
        if not whole and not any(finding.count for finding in self._findings.found):
            self._narrow_down()
        return self._findings.found

    def _parquet_ranges(self) -> tuple[Int64s, Int64s] | None:
        """(offsets, lengths) of the image values, by the file itself; None if they cannot be read."""
        try:
            found = self._open_parquet()
        except (DamagedFileError, pa.ArrowException, UnicodeDecodeError, OSError) as error:
            self._findings.rows(f"its footer is not as recorded, so its rows cannot be read ({told(error)})", self._all)
            self._readable = False
            return None
        try:
            ranges = value_ranges(self._file, found, "image.bytes")
        except DamagedFileError as error:
            self._findings.add(told(error))
            return None
        if ranges is None:
            self._findings.add("its images are compressed or encoded, so they cannot be read by position")
            return None
        return ranges.offsets, ranges.lengths

    def _open_parquet(self) -> pq.FileMetaData:
        """Raises DamagedFileError if the footer is not the recorded one, and what pyarrow raises."""
        found, noted = footer_check(self._file), self._task.file.check
        if found != {name: noted.get(name) for name in found}:
            raise DamagedFileError(self._path, "footer", "its checksum or the file's size is not that in the index")
        with open_parquet(self._path) as parquet:
            metadata = parquet.metadata
            check_claims(self._path, metadata, found["size"])
            self._compare_schema(parquet.schema_arrow)
        if metadata.num_rows != len(self._all):
            there = f"it has {counted(metadata.num_rows, 'row')}; the index says {len(self._all):,}"
            raise DamagedFileError(self._path, "footer", there)
        return metadata

    def _arrow_ranges(self) -> tuple[Int64s, Int64s] | None:
        """The same for an Arrow shard. Compares its text too, while a batch is in memory."""
        at = 0
        lengths = [np.zeros(0, dtype=np.int64)]
        try:
            with pa.memory_map(self._path) as source, pa.ipc.open_stream(source) as reader:
                if not self._compare_schema(reader.schema):
                    return None
                for batch in reader:
                    batch.validate(full=True)
                    images = batch.column("image").field("bytes")
                    lengths.append(pc.binary_length(images).to_numpy(zero_copy_only=False))
                    if at + batch.num_rows <= len(self._all):
                        self._compare_text(at, batch)
                    at += batch.num_rows
            if at != len(self._all):
                self._findings.add(f"it has {counted(at, 'row')}; the index says {len(self._all):,}")
                return None
            return image_offsets(self._path), np.concatenate(lengths).astype(np.int64)
        except (pa.ArrowException, OSError) as error:
            problem = f"it cannot be read to its end ({told(error)})"
            self._readable = False
            if at < len(self._all):
                self._findings.rows(problem, self._all[at:])
            else:
                self._findings.add(problem)
            return None

    def _tar_ranges(self) -> tuple[Int64s, Int64s]:
        """The same for a tar for webdataset. The length is -1 if the image or its annotation is not behind its member's
        header."""
        lengths = self._sizes.copy()
        lengths[misplaced_members(self._file, self._rows)] = -1
        self._compare_captions()
        return self._starts, lengths

    def _compare_schema(self, found: pa.Schema) -> bool:
        if not schema.is_row(found):
            self._findings.rows("its columns are not those of a shard, so its rows cannot be read", self._all)
            self._readable = False
            return False
        if _features(found) != schema.FEATURES:
            self._findings.add("its huggingface metadata does not describe its columns")
        return True

    def _compare_ranges(self, ranges: tuple[Int64s, Int64s] | None) -> npt.NDArray[np.bool_]:
        """Which rows can be read. Notes rows whose place in the file differs from the index."""
        if ranges is not None:
            other = np.flatnonzero((ranges[0] != self._starts) | (ranges[1] != self._sizes))
            self._findings.rows("the index and the shard differ in the image's place or size", other)
            return np.asarray(ranges[1] >= 0)
        sound = np.zeros(len(self._all), dtype=np.bool_)
        at, end = 0, self._file.size or 0
        for row, (start, size) in enumerate(zip(self._starts.tolist(), self._sizes.tolist(), strict=True)):
            if at <= start and size >= 0 and start + size <= end:
                sound[row], at = True, start + size
        problem = "the index has a place for the image that is outside of the file, or overlaps another image"
        self._findings.rows(problem, np.flatnonzero(~sound))
        return sound

    def _compare_images(
        self, ranges: tuple[Int64s, Int64s] | None, sound: npt.NDArray[np.bool_], report: Report
    ) -> bool:
        """Read the whole file. Returns whether its checksum is the recorded one."""
        chosen = np.flatnonzero(sound)
        starts, sizes = ((ranges or (self._starts, self._sizes))[side][chosen] for side in (0, 1))
        digests, *sides = (self._rows.column(name).to_pylist() for name in ("digest", "width", "height"))
        pixels = list(zip(*sides, strict=True)) if self._task.decode else None
        images = _Images(chosen.tolist(), starts.tolist(), (starts + sizes).tolist(), digests, pixels)
        return _compare_digest(self._file, self._task.digest, images, self._findings, report)

    def _row_groups(self, columns: list[str], what: str) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(first row, rows) of each row group, validated. A row group that cannot be read is a finding about its own
        rows only."""
        with open_parquet(self._path) as parquet:
            at = 0
            for group in range(parquet.metadata.num_row_groups):
                count = parquet.metadata.row_group(group).num_rows
                try:
                    table = parquet.read_row_group(group, columns=columns)
                    table.validate(full=True)
                except (pa.ArrowException, OSError) as error:
                    problem = f"pyarrow cannot read the {what} of row group {group} ({told(error)})"
                    self._findings.rows(problem, range(at, at + count))
                else:
                    yield from ((at, batch) for batch in table.combine_chunks().to_batches())
                at += count

    def _compare_text(self, at: int, batch: pa.RecordBatch) -> None:
        """Compare rows of the shard, from row ``at`` on, with the index."""
        indexed = self._rows.slice(at, batch.num_rows)
        for name in _SAME:
            mine = batch.column("image").field("path") if name == "path" else batch.column(name)
            theirs = indexed.column(name)
            if not mine.equals(theirs):
                same = pc.fill_null(pc.equal(mine, theirs), False).to_numpy(zero_copy_only=False)
                self._findings.rows(f"{name} differs from the index", at + np.flatnonzero(~same))
        sizes = pc.fill_null(pc.binary_length(batch.column("annotation")), -1).to_numpy(zero_copy_only=False)
        same = sizes == indexed.column("annotation_size").to_numpy()
        self._findings.rows("the annotation's length differs from the index", at + np.flatnonzero(~same))

    def _narrow_down(self) -> None:
        """Find the rows that differ, if the file's checksum is wrong but every row agrees with the index.

        Two places are left: the annotations, of which the index has only length and caption, and the bytes between the
        rows."""
        if self._readable and not self._compare_captions():
            problem = "an annotation differs (not in its caption), or bytes between rows; it may be any of these rows"
            self._findings.rows(problem, self._all)

    def _compare_captions(self) -> bool:
        """Whether any annotation has another caption than the index. Adds a finding for those rows."""
        captions, wrong = self._rows.column("caption").to_pylist(), []
        for row, document in self._documents():
            try:
                sound = read_annotation(document or b"", self._task.caption_key).caption == captions[row]
            except SampleProblem:
                sound = False
            if not sound:
                wrong.append(row)
        self._findings.rows("the annotation is damaged, or its caption differs from the index", wrong)
        return bool(wrong)

    def _documents(self) -> Iterator[tuple[int, bytes | None]]:
        """(row, annotation), of all rows."""
        if self._task.file.kind == "tar":
            yield from enumerate(documents_of(self._file, self._rows))
            return
        parquet = self._task.file.kind == "parquet"
        for at, batch in self._row_groups(["annotation"], "annotations") if parquet else self._arrow_batches():
            yield from enumerate(batch.column("annotation").cast(pa.binary()).to_pylist(), at)

    def _arrow_batches(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        at = 0
        with pa.memory_map(self._path) as source, pa.ipc.open_stream(source) as reader:
            for batch in reader:
                yield at, batch
                at += batch.num_rows

    def _find_unreadable_images(self) -> None:
        """Find the rows that readers of Parquet lose to damage between the images."""
        digests = self._rows.column("digest").to_pylist()
        for at, batch in self._row_groups(["image.bytes"], "images"):
            values = [value.as_buffer() for value in batch.column("image").field("bytes")]
            read = [value and _digest(value) for value in values]
            wrong = [at + row for row, digest in enumerate(read) if digest != digests[at + row]]
            self._findings.rows("pyarrow reads other bytes for the image", wrong)


class _Images(NamedTuple):
    """Images to check while a file is read. ``rows``: their numbers in the shard. ``starts``, ``ends``: in bytes.
    ``digests`` and ``pixels`` (width, height; None: do not decode) are of all rows of the shard."""

    rows: list[int]
    starts: list[int]
    ends: list[int]
    digests: list[bytes | None]
    pixels: list[tuple[int, int]] | None


def _compare_digest(file: LocalFile, digest: str, images: _Images, findings: Findings, report: Report) -> bool:
    """Read a file once, for its own checksum and those of its images. Returns whether its own is ``digest``."""
    whole = xxhash.xxh3_128()
    buffer = bytearray(WINDOW)
    for begin, end, first, last in stretches(images.starts, images.ends, file.size or 0):
        if end - begin > len(buffer):
            buffer = bytearray(end - begin)
        view = memoryview(buffer)[: end - begin]
        got = file.read_into(view, begin)
        whole.update(view[:got])
        for place in range(first, last):
            row = images.rows[place]
            image = view[images.starts[place] - begin : images.ends[place] - begin]
            if _digest(image) != images.digests[row]:
                findings.rows("the image's checksum is not the recorded one", [row])
            if images.pixels is not None:
                if problem := undecodable(bytes(image), images.pixels[row]):
                    findings.rows(problem, [row], Remedy.IMAGE)
                report(1, len(image))
        if images.pixels is None:
            report(last - first, end - begin)
    if whole.hexdigest() != digest:
        findings.add("its checksum is not the one in the manifest")
        return False
    return True


def undecodable(image: bytes, size: tuple[int, int]) -> str:
    """The problem if an image does not decode to ``size`` (width, height in pixels); "" if it does."""
    try:
        decoded = decode(image)
    except SampleProblem as problem:
        return f"the image does not decode ({problem.reason}: {problem.detail})"
    shown, recorded = (f"{width} x {height}" for width, height in (decoded, size))
    return "" if decoded == size else f"the image does not decode to the recorded {recorded} pixels, but to {shown}"


_digest = xxhash.xxh3_128_digest


def _features(found: pa.Schema) -> object:
    """The features that the schema's metadata gives to ``datasets``; None if they cannot be read."""
    try:
        return json.loads((found.metadata or {})[schema.HUGGINGFACE_KEY])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
