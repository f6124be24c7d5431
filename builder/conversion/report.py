"""What a person is told at the end of a run."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

from builder.base.records import Totals
from builder.base.words import duration, printable, size
from builder.source.endings import TROUBLE, WAYS_OUT

if TYPE_CHECKING:
    from builder.conversion.summary import Summary
    from builder.plan.survey import Survey


def describe_summary(summary: Summary) -> str:
    """Rows, rejects by reason with an example of each, bytes, rate, and what to do next."""
    totals = summary.totals
    seconds = max(summary.seconds, 1e-9)
    rate = f"{summary.read_images / seconds:,.0f} images/s, {summary.read_bytes / seconds / 1e6:,.0f} MB/s"
    nothing = "all of it was there already" if totals.shards else "nothing to make"
    lines = [
        f"{totals.rows:,} rows of {totals.listed:,} listed samples in {totals.shards:,} shards, "
        f"{size(totals.image_bytes)} of images",
        f"{duration(summary.seconds)}: {rate if summary.did else nothing}",
    ]
    if totals.rejected:
        lines.append(f"{sum(totals.rejected.values()):,} rejected:")
        for reason, count in sorted(totals.rejected.items(), key=lambda item: -item[1]):
            lines.append(f"  {count:>9,}  {reason:<17} e.g. {printable(summary.examples.get(reason, ''))}")
    else:
        lines.append("none rejected")
    if totals.unlisted:
        lines.append(f"{totals.unlisted:,} images of the source are in no listing; they were left out")
    if summary.replaced:
        lines.append(f"{summary.replaced:,} members were replaced by a later one of the same name, as in an extraction")
    lines += notes_of(summary)
    for name, places in sorted(summary.damage.items())[:5]:
        more = f", and {len(places) - 1} more" if len(places) > 1 else ""
        lines.append(f"damaged: {printable(name)}, {printable(places[0])}{more}")
    if len(summary.damage) > 5:
        lines.append(f"damaged: {len(summary.damage) - 5} more archives, see meta/manifest.json")
    if summary.complete:
        reading = f"from builder import open_dataset; print(open_dataset({json.dumps(summary.out)})[0])"
        lines += [
            f"next: laion6m verify {shlex.quote(summary.out)}",
            f"      python -c {shlex.quote(reading)}",
        ]
    else:
        lines.append(
            f"{summary.missing:,} shards are still to do. When all slices are done, run laion6m convert without "
            "--start and --end to finish."
        )
    return "\n".join(lines)


def notes_of(summary: Summary) -> list[str]:
    """How the source was read, and what in it was not; archives and listings by themselves, with what to do."""
    lines = list(map(printable, summary.notes))
    kinds = sorted(TROUBLE & summary.unread.keys())
    lines += [_unread(kind, summary.unread[kind], summary.examples_unread.get(kind, "")) for kind in kinds]
    rest = [
        f"{count:,} × {kind} ({summary.examples_unread.get(kind, 'inside tars')})"
        for kind, count in sorted(summary.unread.items())
        if kind not in TROUBLE
    ]
    return lines + ([f"passed over: {printable(', '.join(rest))}"] if rest else [])


def _unread(kind: str, count: int, example: str) -> str:
    return f"not read: {count:,} × {kind}, such as {printable(example)}. {WAYS_OUT[kind]}"


def no_rows(source: str, totals: Totals, examples: dict[str, str], survey: Survey) -> str:
    """Why a source gives no rows, and what to look at."""
    parts = [f"{source} gives no rows: {totals.listed:,} samples are listed"]
    for reason, count in sorted(totals.rejected.items(), key=lambda item: -item[1])[:3]:
        parts.append(f"{count:,} {reason}, such as {printable(examples.get(reason, ''))}")
    for name, places in sorted(survey.damage.items())[:2]:
        parts.append(f"damaged: {printable(name)}, {printable(places[0])}")
    troubles = [each for each in survey.layout.unread if each.kind in TROUBLE]
    parts += [_unread(each.kind, each.count, each.example).rstrip(".") for each in troubles]
    return "; ".join(parts) + ". Nothing was written."
