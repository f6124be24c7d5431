"""Convert a selection: write rows of a dataset as shards of their own. Bytes are copied, no image is decoded."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from builder.base import schema
from builder.base.arrays import number_array, numbers_of
from builder.base.errors import DamagedFileError, InterruptedRunError, Laion6mError, OptionError, SourceError
from builder.base.options import ConvertOptions, SamplePolicy, Slice
from builder.base.paths import StrPath
from builder.base.records import ImageInfo, Reason, Reject, SampleProblem, Totals
from builder.base.urls import is_url
from builder.conversion.before import lies_in, refuse_overlap
from builder.conversion.build import is_dataset, job_of
from builder.conversion.finish import add_up, examples_of, finish_shards
from builder.conversion.index import index
from builder.conversion.kind import Outlet
from builder.conversion.shard import ShardTask, make_shard
from builder.conversion.summary import Summary
from builder.curate.columns import write_column
from builder.curate.select import choose
from builder.curate.selection import identity_of
from builder.engines.contract import Report, RunOptions
from builder.engines.local import make_engine
from builder.engines.progress import Progress, announce
from builder.plan.plan import FRAMING
from builder.read.columns import Values
from builder.read.groups import NoColumnError
from builder.read.opening import open_dataset
from builder.read.sample import Sample
from builder.read.view import Rows, View
from builder.source.images import probe
from builder.source.samples import Chunk
from builder.source.samples import Sample as SourceSample
from builder.store.folders import Folder, LocalFolder, open_folder
from builder.store.ledger import Ledger, Receipt
from builder.store.output import make_folder
from builder.store.rejects import read_rejects

_AT_ONCE = 64  # rows read together


@dataclass(frozen=True, slots=True)
class _Unit(ShardTask):
    """A shard of ``rows``. ``positions``: the place of each in the new dataset's listing."""

    rows: View
    positions: npt.NDArray[np.int64]


def convert_selected(
    source: str,
    out: str,
    options: ConvertOptions,
    how: RunOptions,
    *,
    keys: StrPath | None,
    without: StrPath | None,
) -> Summary:
    """Convert a selection or a converted folder into OUT, or go on where an earlier run stopped. Raises OptionError for
    options that choose samples of a source, and what ``convert`` raises."""
    if how.part != Slice():
        at = shlex.quote(source)
        raise OptionError("start", how.part.start, f"{at} is converted as a whole. To take a part, use laion6m select")
    if is_dataset(source):
        if options.policy != SamplePolicy() or options.recaptions or options.listing is not None:
            at = shlex.quote(source)
            raise OptionError("options", None, f"the rows of {at} are chosen already. Use laion6m select instead")
        whole, indexed = open_dataset(source), None
    else:
        whole, indexed = _indexed(source, out, options, how)
    try:
        rows, _ = choose(whole, keys=keys, without=without, quiet=how.quiet)
    except Laion6mError:
        if indexed is not None:
            _forget_index(out)
        raise
    if options.limit is not None:
        rows = rows[: options.limit]
    for place in (source, rows.folder):
        if lies_in(out, place):
            inside = f"{shlex.quote(out)} lies in {shlex.quote(place)}"
            raise SourceError(f"{inside}, which is read. Choose an OUT outside of it.")
    return convert_rows(rows, out, options, how, indexed)


def _index_place(out: str) -> str:
    """The place of a source's index while its rows are chosen and copied."""
    return os.path.join(out, schema.WORK, "index")


def _forget_index(out: str) -> None:
    """Remove that index, and the folders that were made only for it."""
    shutil.rmtree(_index_place(out), ignore_errors=True)
    for folder in (os.path.join(out, schema.WORK), out):
        with suppress(OSError):  # something else is in it
            os.rmdir(folder)


def _indexed(source: str, out: str, options: ConvertOptions, how: RunOptions) -> tuple[Rows, Summary]:
    """The rows of a source of tars, and what indexing it found. The index is in OUT's bookkeeping until all is done."""
    if is_url(out) or is_url(source):
        raise OptionError("keys", None, "to choose from a source of tars, SOURCE and OUT must be on this machine")
    refuse_overlap(source, out)
    place = _index_place(out)
    crew, plain = how.engine, replace(options, format="parquet", limit=None)
    made = index(source, place, plain, num_proc=crew.num_proc, engine=crew.name, address=crew.address, quiet=how.quiet)
    return open_dataset(place), made


def convert_rows(
    rows: Rows, out: str, options: ConvertOptions, how: RunOptions, indexed: Summary | None = None
) -> Summary:
    """Write rows as a dataset of their own, with the columns that were added to them. The bytes of OUT depend only on
    the rows and ``options``. ``indexed``: what indexing their source found; its rejects become rejects of OUT. Raises
    OutputError, DamagedFileError, IndexMismatchError, InterruptedRunError."""
    started = time.monotonic()
    if not len(rows):
        raise SourceError(f"no row of {shlex.quote(rows.folder)} is selected")
    folder = open_folder(out, how.storage)
    if isinstance(folder, LocalFolder):
        make_folder(out)
    ledger = Ledger(folder)
    source = {"layout": "selection", "dataset": identity_of(rows.reader), "rows": rows.identity, "of": len(rows.reader)}
    steps = [{"condition": step.condition, "rows": step.rows} for step in rows.steps]
    found = indexed or Summary(out, Totals(), complete=True, did=0, missing=0, seconds=0.0)
    left: tuple[str, ...] = ()
    with ledger.locked(0, 1):
        with ledger.guarded():
            ledger.begin(job_of(source, options))
            ledger.keep_apart()
        lost = pa.Table.from_batches([], schema=schema.REJECT_ROW)  # empty_table imports pandas
        if indexed is not None:
            lost = read_rejects(os.path.join(_index_place(out), schema.REJECTS))
        positions, rejects = _positions(rows, lost)
        units = _units(rows, positions, folder, options)
        receipts = Outlet().standing(ledger, ledger.receipts().values(), len(units), options)
        pending = [unit for unit in units if unit.number not in receipts]
        missing = sum(len(unit.rows) for unit in pending)
        try:
            with Progress("converting", missing, quiet=how.quiet) as progress, make_engine(how.engine) as crew:
                for receipt in crew.run(_write_shard, pending, progress.update):
                    receipts[receipt.number] = receipt
        except KeyboardInterrupt:
            raise InterruptedRunError(len(receipts), len(units)) from None
        counts = Counter(rejects.column("reason").to_pylist())
        totals = add_up(receipts.values(), counts, found.totals.unlisted)
        finish_shards(ledger, receipts, options, totals, rejects, {**source, "funnel": steps, "damaged": found.damage})
        examples = examples_of([rejects, *(ledger.rejects_part(receipts[number]) for number in sorted(receipts))])
        if indexed is not None:
            shutil.rmtree(_index_place(out), ignore_errors=True)
        if isinstance(folder, LocalFolder) and totals.rows == len(rows):
            left = _carry_columns(rows, out)
    announce(left, quiet=how.quiet)
    return replace(
        found,
        out=out,
        totals=totals,
        examples=examples,
        did=len(pending),
        seconds=time.monotonic() - started,
        notes=(*found.notes, *left),
        read_images=progress.images,
        read_bytes=progress.bytes,
    )


def _positions(rows: Rows, rejects: pa.Table) -> tuple[npt.NDArray[np.int64], pa.Table]:
    """Number rows and rejects together, in the order that they had: their places in the new dataset's listing."""
    mine = rows.reader._index.column("position")[np.asarray(rows.rows, dtype=np.int64)]
    both = np.concatenate([mine, numbers_of(rejects.column("position"))])
    places = np.empty(len(both), dtype=np.int64)
    places[np.argsort(both, kind="stable")] = np.arange(len(both))
    theirs = number_array(places[len(mine) :])
    return places[: len(mine)], rejects.set_column(0, rejects.schema.field(0), theirs)


def _units(rows: Rows, positions: npt.NDArray[np.int64], out: Folder, options: ConvertOptions) -> list[_Unit]:
    """Shards of at most the wanted size, in the order of the rows."""
    numbers = np.asarray(rows.rows, dtype=np.int64)
    places = rows.reader._index
    images = np.maximum(places.column("size")[numbers], 0)
    sizes = np.cumsum(images + places.column("annotation_size")[numbers])
    room = int(options.max_shard_size * FRAMING)
    cuts = [0]
    while cuts[-1] < len(numbers):
        before = int(sizes[cuts[-1] - 1]) if cuts[-1] else 0
        cuts.append(max(cuts[-1] + 1, int(np.searchsorted(sizes, before + room, side="right"))))
    return [
        _Unit(out, number, len(cuts) - 1, options, View(rows.reader, numbers[first:end]), positions[first:end])
        for number, (first, end) in enumerate(pairwise(cuts))
    ]


def _write_shard(unit: _Unit, report: Report) -> Receipt:
    return make_shard(unit, _chunks(unit), report)


def _chunks(unit: _Unit) -> Iterator[Chunk]:
    """The rows with their images, _AT_ONCE in each chunk. A row without an image is a reject."""
    for first in range(0, len(unit.rows), _AT_ONCE):
        samples: list[SourceSample] = []
        rejects: list[Reject] = []
        images: list[bytes] = []
        start = 0
        rows = range(first, min(first + _AT_ONCE, len(unit.rows)))
        for sample, position in zip(unit.rows[list(rows)], unit.positions[first:].tolist(), strict=False):
            if sample.size < 0:
                rejects.append(Reject(position, sample.key, Reason.IMAGE_MISSING, "the dataset has no image here"))
                continue
            image = sample.image
            samples.append(_source_sample(sample, position, image, start))
            images.append(image)
            start += len(image)
        yield Chunk(b"".join(images), samples, rejects)


def _source_sample(sample: Sample, position: int, image: bytes, start: int) -> SourceSample:
    if sample.digest is not None and xxhash.xxh3_128_digest(image) != sample.digest:
        raise DamagedFileError(sample._reader.folder, f"image {sample.key}", "not the bytes that were indexed")
    annotation = _annotation(sample)
    return SourceSample(
        position=position,
        key=sample.key,
        path=sample.path,
        annotation_path=sample.annotation_path,
        start=start,
        end=start + len(image),
        caption=sample.caption,
        annotation=annotation,
        bom=False,
        info=_info(sample, image),
    )


def _annotation(sample: Sample) -> bytes:
    """The annotation. In a dataset that has captions only, it is made of the caption."""
    try:
        return sample.annotation.encode()
    except NoColumnError:
        return json.dumps({"caption": sample.caption}, ensure_ascii=False).encode()


def _info(sample: Sample, image: bytes) -> ImageInfo:
    """Format and frames from the image's header, its size in pixels from the dataset."""
    try:
        info = probe(image)
    except SampleProblem:  # a format that this machine's Pillow does not know
        return ImageInfo("", sample.width, sample.height, 1, True)
    return ImageInfo(info.format, sample.width, sample.height, info.frames, info.complete)


def _carry_columns(rows: Rows, out: str) -> tuple[str, ...]:
    """Write the added columns of these rows beside their new shards. Returns a note if some stay behind."""
    left = []
    for name in rows.added_columns():
        if isinstance(rows.reader._column(name), Values):
            write_column(out, name, rows.column(name), replace=True)
        else:
            left.append(name)
    if not left:
        return ()
    again = f"laion6m add-column {shlex.quote(out)} {shlex.quote(left[0])} --from FOLDER"
    return (f"columns of arrays were not copied: {', '.join(left)}. To add one again: {again}",)
