"""Once every shard has its receipt: write the index, the table of rejects, the manifest and the card."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import xxhash

import builder
from builder.base import schema
from builder.base.arrays import numbers_of
from builder.base.errors import OutputError
from builder.base.options import ConvertOptions
from builder.base.records import Reason, Totals
from builder.plan.survey import Survey
from builder.store.folders import write
from builder.store.index import write_index
from builder.store.ledger import Ledger, Receipt
from builder.store.manifest import Manifest
from builder.store.rejects import write_rejects


def tally(survey: Survey, receipts: Iterable[Receipt], planned_rejects: bool) -> Totals:
    """Totals of these receipts. ``planned_rejects``: count the rejects that planning found (not for a slice)."""
    lost: Counter[str] = Counter()
    if planned_rejects and survey.plan.rejects.num_rows:  # counting imports pyarrow.compute, 30 ms
        counts = survey.plan.rejects.column("reason").value_counts()
        lost.update({item["values"]: item["counts"] for item in counts.to_pylist()})
    return add_up(receipts, lost, survey.plan.unlisted if planned_rejects else 0)


def add_up(receipts: Iterable[Receipt], lost: Mapping[str, int] = MappingProxyType({}), unlisted: int = 0) -> Totals:
    """Totals of receipts, plus rejects without a receipt, by reason."""
    rejected = Counter(lost)
    rows = size = shards = 0
    for receipt in receipts:
        rejected.update(receipt.rejected)
        rows += receipt.rows
        size += receipt.image_bytes
        shards += 1
    order = [reason.value for reason in Reason]
    return Totals(
        rows=rows,
        rejected={reason: rejected[reason] for reason in order if rejected[reason]},
        unlisted=unlisted,
        shards=shards,
        image_bytes=size,
    )


def finish_dataset(ledger: Ledger, survey: Survey, receipts: dict[int, Receipt], options: ConvertOptions) -> Totals:
    """Write meta/ and README.md for a complete set of shards. Each call writes the same bytes. The owner's text in an
    existing README.md stays. Raises OutputError if that text cannot be told apart."""
    totals = tally(survey, receipts.values(), planned_rejects=True)
    finish_shards(ledger, receipts, options, totals, [survey.plan.rejects], describe(survey))
    return totals


def finish_shards(
    ledger: Ledger,
    receipts: dict[int, Receipt],
    options: ConvertOptions,
    totals: Totals,
    rejects: Iterable[pa.Table],
    source: dict[str, Any],
) -> None:
    """The same of any complete set of shards. ``rejects``: those that no receipt has; ``source``: as the manifest has
    it."""
    suffix = schema.SUFFIXES[options.format]
    names = {number: schema.ShardName(number, len(receipts), suffix) for number in receipts}
    ordered = [receipts[number] for number in sorted(receipts)]
    files = {names[r.number].path: {"size": r.size, "xxh3_128": r.digest} for r in ordered}
    kind = "tar" if options.format == "webdataset" else options.format
    indexed = [schema.IndexedFile(names[r.number].path, kind, r.rows, r.check) for r in ordered]
    numbers = [receipt.number for receipt in ordered]
    index = ledger.folder.create(schema.INDEX)
    digest = write_index(index, "", indexed, lambda: map(ledger.index_part, numbers), totals.rows)
    files[schema.INDEX] = {"size": index.position, "xxh3_128": digest}
    files[schema.REJECTS] = note_rejects(ledger, chain(rejects, map(ledger.rejects_part, numbers)))
    versions = {"laion6m": builder.__version__, "pyarrow": pa.__version__}
    facts = totals_json(totals)
    text = sum(int(numbers_of(ledger.index_part(number).column("annotation_size")).sum()) for number in numbers)
    from builder.store.card import write_card  # an index has none

    size = sum(receipt.size for receipt in ordered)
    card = write_card(facts, options.to_json(), versions, totals.image_bytes + 2 * text, size)
    files[schema.CARD] = {
        "size": len(card),
        "xxh3_128": xxhash.xxh3_128_hexdigest(card),
    }  # the card as made, without the owner's text
    if existing := _card_that_is_there(ledger):  # keep what its owner wrote, or a push brought here
        card = write_card(facts, options.to_json(), versions, totals.image_bytes + 2 * text, size, existing)
    write(ledger.folder, schema.CARD, [card])
    if options.format == "arrow":
        files |= _write_saved_dataset(ledger, [os.path.join(*names[number].path.split("/")) for number in numbers])
    formats: Counter[str] = Counter()
    for receipt in ordered:
        formats.update(receipt.formats)
    manifest = Manifest(
        kind=options.format,
        versions=versions,
        options=options.to_json(),
        source=source,
        totals={**facts, "formats": dict(sorted(formats.items())), "animated": sum(r.animated for r in ordered)},
        files=files,
    )
    write(ledger.folder, schema.MANIFEST, [manifest.to_json()])
    ledger.clear_temporary()


def _card_that_is_there(ledger: Ledger) -> bytes | None:
    try:
        return ledger.folder.read(schema.CARD)
    except IsADirectoryError:
        return None  # writing the card will say what is wrong
    except OSError as error:
        raise OutputError(f"cannot read {ledger.folder.root}/{schema.CARD}: {error.strerror}") from error


def describe(survey: Survey) -> dict[str, Any]:
    """The source as the manifest describes it: without paths and times."""
    layout = survey.layout
    return {
        "layout": layout.kind,
        "raw_archives": len(layout.raw),
        "caption_archives": len(layout.captions),
        "listings": len(layout.listing),
        "damaged": survey.damage,
        **survey.read_as,
        **({"replaced": survey.replaced} if survey.replaced else {}),
    }


def totals_json(totals: Totals) -> dict[str, Any]:
    """The counts, under their names in ``--json``."""
    return {
        "rows": totals.rows,
        "listed": totals.listed,
        "rejected": totals.rejected,
        "unlisted": totals.unlisted,
        "shards": totals.shards,
        "image_bytes": totals.image_bytes,
    }


def note_rejects(ledger: Ledger, tables: Iterable[pa.Table]) -> dict[str, Any]:
    """Write meta/rejects.parquet. Returns its entry in the manifest."""
    size, digest = write_rejects(ledger.folder.create(schema.REJECTS), tables)
    return {"size": size, "xxh3_128": digest}


def examples_of(tables: Iterable[pa.Table]) -> dict[str, str]:
    """One example for each reason, in words."""
    examples: dict[str, str] = {}
    for table in tables:
        if not table.num_rows:
            continue
        for reason in table.column("reason").unique().to_pylist():
            if reason not in examples:
                row = table.slice(table.column("reason").to_pylist().index(reason), 1).to_pylist()[0]
                where = f" ({row['source']})" if row["source"] else ""
                examples[reason] = f"{row['key']}: {row['detail']}{where}"
    return examples


def _write_saved_dataset(ledger: Ledger, paths: list[str]) -> dict[str, dict[str, Any]]:
    """Write the two files that ``datasets.load_from_disk`` needs beside IPC streams (as Dataset.save_to_disk in its
    arrow_dataset.py does)."""
    state: dict[str, Any] = {
        "_data_files": [{"filename": path} for path in paths],
        "_fingerprint": "laion6m",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": schema.SPLIT,
    }
    info = {"features": schema.FEATURES, "citation": "", "description": "", "homepage": "", "license": ""}
    written = {}
    for name, document in (("state.json", state), ("dataset_info.json", info)):
        data = json.dumps(document, indent=1).encode()
        digest = write(ledger.folder, name, [data])
        written[name] = {"size": len(data), "xxh3_128": digest}
    return written
