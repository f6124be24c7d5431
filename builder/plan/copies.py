"""A copied source with other file times is the same source: a job on it goes on."""

from __future__ import annotations

import json
from typing import Any

from builder.base.errors import JobMismatchError
from builder.base.options import ConvertOptions
from builder.engines.contract import Engine
from builder.plan.identity import differing_archives, listing_digests, times_alone_differ
from builder.plan.kept import load_survey
from builder.plan.survey import labelled, scan_all
from builder.source.layout import Layout
from builder.source.tables import content_digest
from builder.store.ledger import Ledger


def adopt_copies(ledger: Ledger, job: dict[str, Any], layout: Layout, options: ConvertOptions, engine: Engine) -> None:
    """Put ``job`` in the ledger if it differs from the one there in file times only, and every archive still has its
    planned members. Raises JobMismatchError if an archive has others."""
    noted = ledger.job
    if noted is None or not times_alone_differ(noted, json.loads(json.dumps(job))):
        return
    kept = load_survey(layout, ledger)
    if kept is None or not kept.contents:
        return
    tables = labelled(layout, scan_all(layout, options, engine))
    now = {name: content_digest(table) for name, table in tables} | listing_digests(layout)
    if others := differing_archives(kept.contents, now):
        raise JobMismatchError(ledger.out, others)
    ledger.adopt(job)
