"""Files with everything of a converted folder except the image bytes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from builder.base import schema
from builder.base.arrays import utf8_array
from builder.base.errors import DamagedFileError, OutputError
from builder.engines.contract import EngineChoice, Report
from builder.engines.local import make_engine
from builder.engines.progress import Progress
from builder.hub.items import Digests, Item, cannot_read, local_item, not_as_converted
from builder.hub.parcel import Parcel, check_rows, is_shard
from builder.store.card import Facts
from builder.store.manifest import Manifest
from builder.store.output import ArrowSink, OutputFile, make_folder, whole
from builder.store.parquet import AS_TEXT
from builder.store.parquet_file import open_parquet
from builder.store.seals import file_digest

FILE_ROWS = 250_000
"""Approximate rows in a file: some 250 MB of compressed text."""

_KEPT = ("key", "caption", "width", "height", "annotation")
_COLUMNS = ("key", "url", *_KEPT[1:])
FEATURES: dict[str, Any] = {name: schema.FEATURES.get(name, {"dtype": "string", "_type": "Value"}) for name in _COLUMNS}
TABLE = pa.schema(
    [pa.field(name, pa.string() if name == "url" else schema.ROW.field(name).type) for name in _COLUMNS],
    metadata={schema.HUGGINGFACE_KEY: json.dumps({"info": {"features": FEATURES}}).encode()},
)


@dataclass(frozen=True, slots=True)
class _Unit:
    """One file to make from consecutive shards. ``shards``: (path, xxh3-128 from the manifest, or "" if it need not be
    compared)."""

    shards: tuple[tuple[str, str], ...]
    final: str

    @property
    def name(self) -> str:
        return os.path.basename(self.final)


def captions_parcel(
    out: str, manifest: Manifest, digests: Digests, num_proc: int | None, *, quiet: bool = False
) -> Parcel:
    """Write columns key, url (from the annotation), caption, width, height and annotation to
    OUT/.laion6m/captions-only. Files made for the same manifest are used again. A shard that ``digests`` does not know
    to be sound is read whole.

    Raises OutputError if a shard is missing or has changed; WriteError, DamagedFileError.
    """
    if manifest.kind == "webdataset":
        raise OutputError(
            f"the shards of {shlex.quote(out)} are tars. Captions can be copied only from Parquet or Arrow shards. "
            "Convert the source into a new OUT with --format parquet, then push that."
        )
    shards = []
    for path in sorted(filter(is_shard, manifest.files)):
        file = os.path.join(out, path)
        if not os.path.isfile(file):
            raise OutputError(
                f"{shlex.quote(file)} is missing. Captions are copied from the shards. Run laion6m convert again, "
                "without --push-to, to make it."
            )
        shards.append(local_item(path, file, manifest.files[path]["xxh3_128"]))
    made = os.path.join(out, schema.WORK, "captions-only")
    version = _version(manifest, shards)
    folder = os.path.join(made, version)
    units = _units(folder, shards, digests, manifest.totals["rows"])
    pending = [unit for unit in units if not os.path.exists(unit.final)]
    if pending:
        _clear(made, version)
        make_folder(folder)
        size = sum(os.path.getsize(path) for unit in pending for path, digest in unit.shards if digest)
        with (
            make_engine(EngineChoice(num_proc=num_proc)) as crew,
            Progress("taking captions", None, size, quiet=quiet) as progress,
        ):
            for _ in crew.run(_write, pending, lambda _, read: progress.update(0, read)):
                pass
    paths = [f"{schema.DATA}/{unit.name}" for unit in units]
    items = {path: local_item(path, unit.final, version) for path, unit in zip(paths, units, strict=True)}
    check_rows(out, manifest, sum(pq.read_metadata(unit.final).num_rows for unit in units))
    rejects = os.path.join(out, schema.REJECTS)
    items[schema.REJECTS] = local_item(
        schema.REJECTS, rejects, manifest.files[schema.REJECTS]["xxh3_128"], checked=True
    )
    facts = captions_facts(items, manifest.totals, manifest.options, manifest.versions)
    return Parcel(items, facts, os.path.join(made, schema.CARD))


def _version(manifest: Manifest, shards: list[Item]) -> str:
    """Differs where what would be made does."""
    stats = [os.stat(shard.file) for shard in shards]
    facts = json.dumps([pa.__version__, [[found.st_size, found.st_mtime_ns] for found in stats]]).encode()
    return xxhash.xxh3_64_hexdigest(manifest.to_json() + facts)


def _clear(made: str, version: str) -> None:
    """Delete files made from older shards."""
    with suppress(FileNotFoundError):
        for name in os.listdir(made):
            if name not in (version, schema.CARD):
                shutil.rmtree(os.path.join(made, name))


def _units(folder: str, shards: list[Item], digests: Digests, rows: int) -> list[_Unit]:
    """Group shards by their numbers alone, so that file names do not depend on their content."""
    count = max(1, -(-rows // FILE_ROWS))
    each = max(1, -(-len(shards) // count))
    groups = [shards[first : first + each] for first in range(0, len(shards), each)]
    names = [schema.ShardName(number, len(groups)) for number in range(len(groups))]
    return [
        _Unit(
            tuple((shard.file, "" if digests.sound(shard) else shard.digest) for shard in group),
            os.path.join(folder, str(name)),
        )
        for name, group in zip(names, groups, strict=True)
    ]


def _write(unit: _Unit, report: Report) -> str:
    def batches() -> Iterator[pa.RecordBatch]:
        for path, digest in unit.shards:
            if digest:
                _compare(path, digest)
                report(0, os.path.getsize(path))
            yield from _batches(path)

    return write_captions(unit.final, batches(), lambda rows: report(rows, 0))


def write_captions(path: str, batches: Iterable[pa.RecordBatch], wrote: Callable[[int], None]) -> str:
    """Write rows, and the url of each, to the file ``path``, as Parquet of the schema TABLE. ``wrote``: hears the
    number of rows of each batch. Returns the file's xxh3-128, hex. Raises WriteError."""
    with whole(OutputFile(f"{path}.tmp", path)) as file:
        with pq.ParquetWriter(ArrowSink(file), TABLE, **AS_TEXT) as writer:
            for batch in batches:
                writer.write_batch(_with_url(batch))
                wrote(batch.num_rows)
        return file.close()


def captions_facts(
    items: Mapping[str, Item],
    totals: dict[str, Any],
    options: dict[str, Any],
    versions: dict[str, str],
    chosen: tuple[str, ...] = (),
) -> Facts:
    """The facts for the card of the files in ``items`` that :func:`write_captions` wrote."""
    written = [item for item in items.values() if is_shard(item.path)]
    size = sum(item.size for item in written)
    footers = [pq.read_metadata(item.file) for item in written]
    raw = sum(footer.row_group(group).total_byte_size for footer in footers for group in range(footer.num_row_groups))
    return Facts(totals, options, versions, raw, size, FEATURES, images=False, chosen=chosen)


def _compare(path: str, digest: str) -> None:
    """Raises OutputError if a shard differs from the manifest. Later reads find it in memory."""
    try:
        found = file_digest(path)
    except OSError as error:
        raise cannot_read(path, error) from error
    if found != digest:
        raise not_as_converted(path)


def _batches(path: str) -> Iterator[pa.RecordBatch]:
    """The text columns of a shard, batch by batch. Raises DamagedFileError."""
    try:
        if path.endswith(".parquet"):
            yield from open_parquet(path).iter_batches(batch_size=10_000, columns=list(_KEPT))
            return
        with pa.memory_map(path) as source:
            for batch in pa.ipc.open_stream(source):
                yield batch.select(list(_KEPT))
    except (pa.ArrowInvalid, OSError) as error:
        raise DamagedFileError(path, "columns", str(error)) from None


def _with_url(batch: pa.RecordBatch) -> pa.RecordBatch:
    urls = utf8_array([_url(document.as_py()) for document in batch.column("annotation")])
    columns = [urls if name == "url" else batch.column(name) for name in _COLUMNS]
    return pa.RecordBatch.from_arrays(columns, schema=TABLE)


def _url(document: str) -> bytes | None:
    """The document's url, if it is text."""
    try:
        url = json.loads(document).get("url")
    except (ValueError, RecursionError, AttributeError):
        return None
    return url.encode("utf-8", "replace") if isinstance(url, str) else None
