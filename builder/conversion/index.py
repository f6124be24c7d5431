"""index: the rows that convert would write, pointing into the source's tars. No image is copied."""

from __future__ import annotations

import os
import shlex
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from builder.base import schema
from builder.base.arrays import from_ipc
from builder.base.errors import SourceError
from builder.base.options import ConvertOptions, OptionFields, options_by_name
from builder.base.paths import StrPath, path_of
from builder.base.records import Reject
from builder.base.urls import is_url
from builder.conversion.before import refuse_overlap
from builder.conversion.build import build
from builder.conversion.finish import describe, tally, totals_json, write_tables
from builder.conversion.kind import Kind
from builder.conversion.shard import Unit, index_part, make_receipt, reject_batch
from builder.conversion.summary import Summary
from builder.engines.contract import EngineChoice, Report, RunOptions
from builder.plan.survey import Survey
from builder.source.files import whole_time
from builder.source.layout import Archive
from builder.source.samples import Sample, read_samples
from builder.store.folders import write
from builder.store.ledger import Ledger, Receipt
from builder.store.manifest import Manifest

if TYPE_CHECKING:
    from typing_extensions import Unpack


def index(
    source: StrPath,
    out: StrPath | None = None,
    options: ConvertOptions | None = None,
    *,
    digest: bool = False,
    num_proc: int | None = None,
    engine: str = "local",
    address: str | None = None,
    quiet: bool = False,
    **named: Unpack[OptionFields],
) -> Summary:
    """Index a source into OUT/meta/. Without OUT: into SOURCE/meta/, beside the tars.

    Rows, rejects and counts are those of :func:`convert` with the same options. ``digest``: read every image, and note
    its xxh3-128. Each call makes the index anew. Give options by name, or as ``options``. Raises SourceError (also for
    a compressed tar), OutputError.
    """
    source = path_of(source)
    target = source if out is None else path_of(out)
    for place in filter(is_url, (source, target)):
        raise SourceError(
            f"{shlex.quote(place)} is a URL. An index points into tars on this machine. Use laion6m convert: it reads "
            "and writes URLs."
        )
    refuse_overlap(source, target, beside=True)
    converted = os.path.join(target, schema.DATA)
    if out is not None and os.path.isdir(converted):
        raise SourceError(f"{shlex.quote(target)} is a converted folder, which has its own index. Choose another OUT.")
    kind = Kind(
        stage="indexing",
        work=partial(_point, digest=digest),
        finish=_finish,
        accept=_refuse_compressed,
        lasting=False,
        shapes=not digest,
    )
    how = RunOptions(engine=EngineChoice(engine, num_proc, address), quiet=quiet)
    return build(kind, source, target, options_by_name(options, named), how)


def _point(unit: Unit, report: Report, *, digest: bool) -> Receipt:
    """Make one shard's part of the index."""
    kept: list[Sample] = []
    digests: list[bytes] = []
    rejects: list[Reject] = []
    in_folders = any(a.is_folder for a in (*unit.stock.raw.values(), *unit.stock.annotations.values()))
    for batch in from_ipc(unit.rows).to_batches():
        for chunk in read_samples(batch, unit.stock, unit.options.policy, with_images=digest):
            if digest:
                view = memoryview(chunk.buffer)
                digests += [xxhash.xxh3_128_digest(view[sample.start : sample.end]) for sample in chunk.samples]
            kept += map(_with_times, chunk.samples) if in_folders else chunk.samples
            rejects += chunk.rejects
            size = sum(sample.end - sample.start for sample in chunk.samples)
            report(len(chunk.samples) + len(chunk.rejects), size)
    first = unit.first_annotations
    part = index_part(
        kept,
        [sample.archive for sample in kept],
        np.array([sample.offset for sample in kept], dtype=np.int64),
        digests if digest else None,
        [schema.IN_INDEX if sample.made else first + sample.annotation_archive for sample in kept],
        [sample.annotation if sample.made else None for sample in kept],
    )
    receipt = make_receipt(unit.number, kept, rejects, 0, "", {})
    return Ledger(unit.out).write_receipt(receipt, part, reject_batch(rejects))


def _with_times(sample: Sample) -> Sample:
    """An extracted file needs no offset. The index holds its modification time (ns) there."""
    image, annotation = sample.image_time, sample.annotation_time
    return sample._replace(
        offset=sample.offset if image is None else image,
        annotation_offset=sample.annotation_offset if annotation is None else annotation,
    )


def _refuse_compressed(survey: Survey) -> None:
    if survey.compressed:
        names = ", ".join(survey.compressed[:3]) + (" …" if len(survey.compressed) > 3 else "")
        raise SourceError(
            f"{names}: an index cannot point into compressed tars. Decompress them, or use laion6m convert."
        )


def _finish(ledger: Ledger, survey: Survey, receipts: dict[int, Receipt], options: ConvertOptions) -> None:
    totals = tally(survey, receipts.values(), planned_rejects=True)
    layout = survey.layout
    source, out = os.path.realpath(layout.root), os.path.realpath(ledger.out)
    inside = os.path.relpath(source, out)
    root = inside if out == source or out.startswith(source + os.sep) else source
    files = [_indexed(archive, layout.root) for archive in (*layout.raw, *layout.captions)]
    entries = write_tables(ledger, root, files, receipts, survey.plan.rejects)
    manifest = Manifest("index", schema.versions(), options.to_json(), describe(survey), totals_json(totals), entries)
    write(ledger.folder, schema.MANIFEST, [manifest.to_json()])


def _indexed(archive: Archive, root: str) -> schema.IndexedFile:
    path = os.path.relpath(archive.path, root).replace(os.sep, "/")
    if archive.is_folder:
        return schema.IndexedFile(path, "folder", 0, {"offset": "mtime_ns"})
    return schema.IndexedFile(path, "tar", 0, {"size": archive.size, "mtime_ns": whole_time(archive.version)})
