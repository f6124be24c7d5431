"""A survey on disk, beside the output. A rerun starts from it."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pyarrow as pa

from builder.base.errors import DamagedFileError, refuse_denied
from builder.base.names import PLAN
from builder.plan.identity import listing_digests
from builder.plan.plan import BATCH_ROWS, Plan
from builder.plan.survey import Survey
from builder.source.layout import Layout
from builder.store.ledger import Ledger
from builder.store.output import ArrowSink, whole, write_whole
from builder.store.seals import file_digest, seal, unseal


def save_survey(survey: Survey, ledger: Ledger) -> None:
    """Save the plan beside the output. A rerun starts from it."""
    plan = survey.plan
    digests = {"plan-rejects.arrow": _save_table(ledger, "plan-rejects.arrow", plan.rejects.schema, [plan.rejects])}
    facts = {
        "bounds": plan.bounds,
        "owners": plan.owners,
        "unlisted": plan.unlisted,
        "listed": plan.listed,
        "damage": survey.damage,
        "compressed": survey.compressed,
        "digests": survey.digests,
        "replaced": survey.replaced,
        "hidden": survey.hidden,
        "notes": survey.notes,
        "read_as": survey.read_as,
        "contents": survey.contents | listing_digests(survey.layout),
    }
    schema = plan.rows.slice(0, 0).schema.with_metadata({b"plan": json.dumps(facts).encode()})
    stretches = (plan.rows.slice(first, BATCH_ROWS) for first in range(0, len(plan.rows), BATCH_ROWS))
    marked = (rows.replace_schema_metadata(schema.metadata) for rows in stretches)
    digests["plan.arrow"] = _save_table(ledger, "plan.arrow", schema, marked)
    write_whole(ledger.create(PLAN), [seal(digests)])  # written last: the plan exists only with it


def _save_table(ledger: Ledger, name: str, schema: pa.Schema, stretches: Iterable[pa.Table]) -> str:
    """Write an Arrow IPC stream, one stretch of the table at a time. Returns the file's xxh3-128 (hex)."""
    file = ledger.create(name)
    with whole(file):
        with pa.ipc.new_stream(ArrowSink(file), schema) as writer:
            for table in stretches:
                writer.write_table(table)
        return file.close()


def load_survey(layout: Layout, ledger: Ledger) -> Survey | None:
    """What :func:`save_survey` saved; None if there is nothing. The rows stay on disk, memory-mapped. Raises
    DamagedFileError."""
    text = ledger.read(PLAN)
    if text is None:
        return None
    try:
        path, rejects_path = ledger.local("plan.arrow"), ledger.local("plan-rejects.arrow")
        digests = unseal(text)
        if wrong := [name for name, digest in digests.items() if file_digest(ledger.local(name)) != digest]:
            raise ValueError(f"the checksum of {' and '.join(wrong)} is not the one in {PLAN}")
        with pa.memory_map(path) as source:
            rows = pa.ipc.open_stream(source).read_all()
        with pa.memory_map(rejects_path) as source:
            rejects = pa.ipc.open_stream(source).read_all()
        facts = json.loads((rows.schema.metadata or {})[b"plan"])
    except FileNotFoundError:
        return None  # a file was deleted: plan again
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        refuse_denied(ledger.path(PLAN), error)
        raise DamagedFileError(ledger.path(PLAN), "plan", f"{error}. Remove it: the next run makes it again") from None
    plan = Plan(
        rows=rows.replace_schema_metadata(None),
        bounds=tuple(facts["bounds"]),
        owners=tuple(facts["owners"]),
        rejects=rejects,
        unlisted=facts["unlisted"],
        listed=facts["listed"],
    )
    return Survey(
        layout,
        plan,
        facts["damage"],
        tuple(facts["compressed"]),
        tuple(facts["digests"]),
        facts["replaced"],
        facts["hidden"],
        tuple(facts["notes"]),
        facts["read_as"],
        facts["contents"],
    )
