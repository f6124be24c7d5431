"""The unit of work: write one shard. Planned rows in; a file and its receipt out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from builder.base import schema
from builder.base.arrays import binary_array, bool_array, from_ipc, number_array, string_array, utf8_array
from builder.base.options import ConvertOptions
from builder.base.records import Reject
from builder.engines.contract import Report
from builder.source.samples import Chunk, Sample, Stock, read_samples
from builder.store.arrow import ArrowShardWriter
from builder.store.folders import Folder
from builder.store.ledger import Ledger, Receipt
from builder.store.output import NewFile, whole
from builder.store.parquet import ParquetShardWriter
from builder.store.shards import ShardWriter, TextRow, WrittenShard
from builder.store.webdataset import WebDatasetShardWriter

WRITERS: dict[str, Callable[[NewFile], ShardWriter]] = {
    "parquet": ParquetShardWriter,
    "arrow": ArrowShardWriter,
    "webdataset": WebDatasetShardWriter,
}


@dataclass(frozen=True, slots=True)
class ShardTask:
    """The work of one shard. ``shards``: number of shards in the job."""

    out: Folder
    number: int
    shards: int
    options: ConvertOptions

    @property
    def name(self) -> str:
        """For messages."""
        return f"shard {self.number} of {self.shards}"


@dataclass(frozen=True, slots=True)
class Unit(ShardTask):
    """A shard of planned rows. ``rows``: PLAN_ROW as an Arrow IPC stream. ``first_annotations``: how many archives an
    index lists before the first that holds annotations."""

    rows: bytes
    stock: Stock
    first_annotations: int

    @property
    def name(self) -> str:
        """For messages."""
        archives = ", ".join(archive.name for archive in self.stock.raw.values())
        return f"shard {self.number} of {self.shards} ({archives})"


def make_receipt(
    number: int, samples: list[Sample], rejects: list[Reject], size: int, digest: str, check: dict[str, Any]
) -> Receipt:
    """The receipt of a finished shard. ``size``, ``digest`` and ``check`` are of its file."""
    return Receipt(
        number=number,
        rows=len(samples),
        image_bytes=sum(sample.end - sample.start for sample in samples),
        size=size,
        digest=digest,
        check=check,
        rejected=dict(sorted(Counter(reject.reason.value for reject in rejects).items())),
        formats=dict(sorted(Counter(sample.info.format for sample in samples).items())),
        animated=sum(sample.info.frames > 1 for sample in samples),
    )


class NewShard:
    """A shard while it is written: its file, and what its receipt will say."""

    def __init__(self, out: Folder, number: int, shards: int, options: ConvertOptions) -> None:
        name = schema.ShardName(number, shards, schema.SUFFIXES[options.format])
        self._number = number
        self._writer = WRITERS[options.format](out.create(name.path))
        self._kept: list[Sample] = []
        self._digests: list[bytes] = []
        self._rejects: list[Reject] = []

    def take(self, chunk: Chunk, report: Report) -> None:
        """Write a chunk's samples, and note its rejects."""
        digest, writer = xxhash.xxh3_128_digest, self._writer
        view = memoryview(chunk.buffer)
        done = 0
        for sample in chunk.samples:
            image = view[sample.start : sample.end]
            self._digests.append(digest(image))
            writer.add(image, _text(sample))
            done += sample.end - sample.start
        writer.release()
        self._kept += chunk.samples
        self._rejects += chunk.rejects
        report(len(chunk.samples) + len(chunk.rejects), done)

    def finish(self) -> tuple[Receipt, pa.RecordBatch, pa.RecordBatch]:
        """Finish the file under its final name. Returns what the ledger keeps: receipt, index rows, rejects."""
        written = self._writer.close()
        kept = _as_written(self._kept, written)
        receipt = make_receipt(self._number, kept, self._rejects, written.size, written.digest, written.check)
        documents = schema.IN_SHARD if written.annotation_offsets is None else self._number
        files, annotation_files = ([number] * len(kept) for number in (self._number, documents))
        part = index_part(kept, files, written.offsets, self._digests, annotation_files)
        return receipt, part, reject_batch(self._rejects)

    def abort(self) -> None:
        """Give up, and leave no file."""
        self._writer.abort()


def write_shard(unit: Unit, report: Report) -> Receipt:
    """Make one shard from the tars. Raises SourceError, WriteError."""
    batches = from_ipc(unit.rows).to_batches()
    chunks = chain.from_iterable(read_samples(batch, unit.stock, unit.options.policy) for batch in batches)
    return make_shard(unit, chunks, report)


def make_shard(task: ShardTask, chunks: Iterable[Chunk], report: Report) -> Receipt:
    """Write all chunks into a shard, then its receipt. The file gets its final name when it is whole."""
    with whole(NewShard(task.out, task.number, task.shards, task.options)) as shard:
        for chunk in chunks:
            shard.take(chunk, report)
        made = shard.finish()
    return Ledger(task.out).write_receipt(*made)


def index_part(
    samples: list[Sample],
    files: list[int],
    offsets: npt.NDArray[np.int64],
    digests: list[bytes] | None,
    annotation_files: list[int],
    annotations: list[bytes | None] | None = None,
) -> pa.RecordBatch:
    """Index rows of samples. ``files``, ``annotation_files``: for each, the number in the index of the file that holds
    its image, and of the one that holds its annotation. ``offsets``: of the images, in bytes. ``digests``: xxh3-128 of
    each image; None if the images were not read. ``annotations``: documents that only the index holds."""

    def numbers(values: list[int], kind: type) -> pa.Array:
        return number_array(np.array(values, dtype=kind))

    count = len(samples)
    columns = [
        numbers(files, np.int32),
        number_array(offsets),
        numbers([sample.end - sample.start for sample in samples], np.int64),
        numbers([sample.info.width for sample in samples], np.int32),
        numbers([sample.info.height for sample in samples], np.int32),
        numbers([sample.position for sample in samples], np.int64),
        numbers(annotation_files, np.int32),
        numbers([sample.annotation_offset for sample in samples], np.int64),
        numbers([len(sample.annotation) for sample in samples], np.int64),
        bool_array(np.array([sample.bom for sample in samples], dtype=np.bool_)),
        pa.nulls(count, pa.binary(16)) if digests is None else binary_array(digests).cast(pa.binary(16)),
        string_array([sample.key for sample in samples]),
        string_array([sample.path for sample in samples]),
        string_array([sample.annotation_path for sample in samples]),
        string_array([sample.caption for sample in samples]),
        pa.nulls(count, pa.string()) if annotations is None else utf8_array(annotations),
        numbers([xxhash.xxh3_64_intdigest(sample.key.encode()) for sample in samples], np.uint64),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema.INDEX_PART)


def reject_batch(rejects: list[Reject]) -> pa.RecordBatch:
    """Rejects as REJECT_ROW."""
    columns = [
        number_array(np.array([reject.position for reject in rejects], dtype=np.int64)),
        string_array([reject.key for reject in rejects]),
        string_array([reject.reason.value for reject in rejects]),
        string_array([reject.detail for reject in rejects]),
        string_array([reject.source for reject in rejects]),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema.REJECT_ROW)


def _as_written(samples: list[Sample], written: WrittenShard) -> list[Sample]:
    """Samples with the places of their annotations in the shard, if each annotation lies there by itself. There it has
    no BOM."""
    if written.annotation_offsets is None:
        return samples
    places = zip(samples, written.annotation_offsets.tolist(), strict=True)
    return [sample._replace(annotation_offset=offset, bom=False) for sample, offset in places]


def _text(sample: Sample) -> TextRow:
    return TextRow(sample.key, sample.path, sample.caption, sample.info.width, sample.info.height, sample.annotation)
