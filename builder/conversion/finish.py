"""Once every shard has its receipt: write the index, the table of rejects, the manifest and the card."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import chain
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import xxhash

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
    counted = list(receipts)
    rejected = Counter(lost)
    for receipt in counted:
        rejected.update(receipt.rejected)
    return Totals(
        rows=sum(receipt.rows for receipt in counted),
        rejected={str(reason): rejected[reason] for reason in Reason if rejected[reason]},
        unlisted=unlisted,
        shards=len(counted),
        image_bytes=sum(receipt.image_bytes for receipt in counted),
    )


def finish_dataset(ledger: Ledger, survey: Survey, receipts: dict[int, Receipt], options: ConvertOptions) -> None:
    """Write meta/ and README.md for a complete set of shards. Each call writes the same bytes. If README.md is there,
    its owner's text stays. Raises OutputError if that text cannot be told from ours."""
    totals = tally(survey, receipts.values(), planned_rejects=True)
    finish_shards(ledger, receipts, options, totals, survey.plan.rejects, describe(survey))


def finish_shards(
    ledger: Ledger,
    receipts: dict[int, Receipt],
    options: ConvertOptions,
    totals: Totals,
    rejects: pa.Table,
    source: dict[str, Any],
) -> None:
    """The same for any complete set of shards. ``rejects``: rejects that no receipt has. ``source``: the source, as the
    manifest describes it."""
    from builder.store.card import Facts, features_of, write_card  # an index has none

    ordered = [receipts[number] for number in sorted(receipts)]
    shards = {schema.ShardName(r.number, len(ordered), schema.SUFFIXES[options.format]).path: r for r in ordered}
    files = {path: {"size": r.size, "xxh3_128": r.digest} for path, r in shards.items()}
    kind = "tar" if options.format == "webdataset" else options.format
    indexed = [schema.IndexedFile(path, kind, r.rows, r.check) for path, r in shards.items()]
    files |= write_tables(ledger, "", indexed, receipts, rejects)
    facts = totals_json(totals)
    text = sum(int(numbers_of(ledger.index_part(r).column("annotation_size")).sum()) for r in ordered)
    size = sum(receipt.size for receipt in ordered)
    given = options.to_json()
    on_card = Facts(facts, given, schema.versions(), totals.image_bytes + 2 * text, size, features_of(given))
    card = write_card(on_card)
    files[schema.CARD] = {"size": len(card), "xxh3_128": xxhash.xxh3_128_hexdigest(card)}  # without the owner's text
    if existing := _card_that_is_there(ledger):  # keep what its owner wrote, or a push brought here
        card = write_card(on_card, existing)
    write(ledger.folder, schema.CARD, [card])
    if options.format == "arrow":
        files |= _write_saved_dataset(ledger, [os.path.join(*path.split("/")) for path in shards])
    formats: Counter[str] = Counter()
    for receipt in ordered:
        formats.update(receipt.formats)
    facts |= {"formats": dict(sorted(formats.items())), "animated": sum(receipt.animated for receipt in ordered)}
    manifest = Manifest(options.format, schema.versions(), given, source, facts, files)
    write(ledger.folder, schema.MANIFEST, [manifest.to_json()])
    ledger.clear_temporary()


def write_tables(
    ledger: Ledger, root: str, indexed: list[schema.IndexedFile], receipts: dict[int, Receipt], rejects: pa.Table
) -> dict[str, dict[str, Any]]:
    """Write meta/index.arrow, over the ``indexed`` files below ``root``, and meta/rejects.parquet. They hold the parts
    of all receipts. ``rejects`` come before theirs. Returns both files' entries in the manifest."""
    ordered = [receipts[number] for number in sorted(receipts)]
    rows = sum(receipt.rows for receipt in ordered)
    index = ledger.folder.create(schema.INDEX)
    digest = write_index(index, root, indexed, lambda: map(ledger.index_part, ordered), rows)
    tables = chain([rejects], map(ledger.rejects_part, ordered))
    size, rejects_digest = write_rejects(ledger.folder.create(schema.REJECTS), tables)
    return {
        schema.INDEX: {"size": index.position, "xxh3_128": digest},
        schema.REJECTS: {"size": size, "xxh3_128": rejects_digest},
    }


def _card_that_is_there(ledger: Ledger) -> bytes | None:
    try:
        return ledger.folder.read(schema.CARD)
    except IsADirectoryError:
        return None  # writing the card will say what is wrong
    except OSError as error:
        card = shlex.quote(f"{ledger.folder.root}/{schema.CARD}")
        raise OutputError(f"cannot read {card}: {error.strerror}. Make it readable, or remove it.") from error


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
    return {"rows": totals.rows, "listed": totals.listed} | asdict(totals)


def examples_of(tables: Iterable[pa.Table]) -> dict[str, str]:
    """For each reason, one reject in words."""
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
