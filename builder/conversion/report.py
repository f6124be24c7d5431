"""What a run tells a person at its end."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from builder.base.records import Totals
from builder.base.urls import is_url
from builder.base.words import counted, duration, printable, size
from builder.source.endings import TROUBLE, WAYS_OUT

if TYPE_CHECKING:
    from builder.conversion.summary import Summary
    from builder.plan.survey import Survey

_SECRET = re.compile("key|secret|token|pass|credential|sas|connection_string", re.IGNORECASE)
"""Names of storage options that may hold secrets: s3fs' key, secret and token, adlfs' account_key and sas_token …"""


def describe_summary(summary: Summary, storage_options: Mapping[str, Any] | None = None) -> str:
    """Rows, bytes, rate, rejects by reason with an example of each, and what to do next. ``storage_options``: of the
    run. If OUT is a URL, the next commands need them too."""
    totals = summary.totals
    seconds = max(summary.seconds, 1e-9)
    rate = f"{summary.read_images / seconds:,.0f} images/s, {summary.read_bytes / seconds / 1e6:,.0f} MB/s"
    nothing = "everything was done before" if totals.shards else "there was nothing to do"
    lines = [
        f"{counted(totals.rows, 'row')} of {counted(totals.listed, 'listed sample')} in "
        f"{counted(totals.shards, 'shard')}, {size(totals.image_bytes)} of images",
        f"{duration(summary.seconds)}: {rate if summary.did else nothing}",
    ]
    if totals.rejected:
        lines.append(f"{sum(totals.rejected.values()):,} rejected:")
        for reason, count in sorted(totals.rejected.items(), key=lambda item: -item[1]):
            lines.append(f"  {count:>9,}  {reason:<17} e.g. {printable(summary.examples.get(reason, ''))}")
    else:
        lines.append("none rejected")
    if totals.unlisted:
        lines.append(f"left out: {counted(totals.unlisted, 'image')} of the source that no listing names")
    if summary.replaced:
        replaced = counted(summary.replaced, "member was", "members were")
        lines.append(f"{replaced} replaced by a later one of the same name, as in an extraction")
    lines += notes_of(summary)
    lines += damaged(summary.damage, 5)
    if len(summary.damage) > 5:
        lines.append(f"damaged: {counted(len(summary.damage) - 5, 'more archive')}. meta/manifest.json names them")
    if summary.complete:
        lines += [
            f"next: laion6m verify {shlex.quote(summary.out)}{with_storage(summary.out, storage_options)}",
            f"      {reading(summary.out, storage_options)}",
        ]
    else:
        lines.append(
            f"{counted(summary.missing, 'shard is', 'shards are')} still to do. When all slices are "
            "done, run the same command without --start and --end to finish."
        )
    return "\n".join(lines)


def with_storage(place: str, storage_options: Mapping[str, Any] | None) -> str:
    """`` --storage-options JSON`` for a command that opens ``place``; "" if it needs none."""
    if not storage_options or not is_url(place):
        return ""
    return f" --storage-options {shlex.quote(json.dumps(_without_secrets(storage_options), ensure_ascii=False))}"


def reading(place: str, storage_options: Mapping[str, Any] | None = None) -> str:
    """A command that opens a dataset in Python and prints its first row."""
    needed = _without_secrets(storage_options) if storage_options and is_url(place) else None
    more = f", storage_options={needed!r}" if needed else ""
    code = f"from builder import open_dataset; print(open_dataset({json.dumps(place)}{more})[0])"
    return f"python -c {shlex.quote(code)}"


def _without_secrets(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with … for each secret, as a log may keep what is printed."""
    return {
        name: _without_secrets(value) if isinstance(value, Mapping) else "…" if _SECRET.search(name) else value
        for name, value in options.items()
    }


def notes_of(summary: Summary) -> list[str]:
    """How the source was read, and what was not read, one line each. An archive or a listing that was not read has a
    line of its own, with what to do."""
    lines = list(map(printable, summary.notes))
    kinds = sorted(TROUBLE & summary.unread.keys())
    lines += [_unread(kind, summary.unread[kind], summary.examples_unread.get(kind, "")) for kind in kinds]
    rest = [
        f"{count:,} × {kind} ({summary.examples_unread.get(kind, 'inside tars')})"
        for kind, count in sorted(summary.unread.items())
        if kind not in TROUBLE
    ]
    return lines + ([f"passed over: {printable(', '.join(rest))}"] if rest else [])


def damaged(damage: Mapping[str, Sequence[str]], most: int) -> Iterator[str]:
    """A line for each damaged archive, ``most`` of them."""
    for name, places in sorted(damage.items())[:most]:
        more = f", and {len(places) - 1:,} more" if len(places) > 1 else ""
        yield f"damaged: {printable(name)}, {printable(places[0])}{more}"


def _unread(kind: str, count: int, example: str) -> str:
    return f"not read: {count:,} × {kind}, such as {printable(example)}. {WAYS_OUT[kind]}"


def no_rows(source: str, totals: Totals, examples: dict[str, str], survey: Survey) -> str:
    """Why a source gives no rows, for an error."""
    parts = [f"{shlex.quote(source)} gives no rows: {counted(totals.listed, 'sample is', 'samples are')} listed"]
    for reason, count in sorted(totals.rejected.items(), key=lambda item: -item[1])[:3]:
        parts.append(f"{count:,} {reason}, such as {printable(examples.get(reason, ''))}")
    parts += damaged(survey.damage, 2)
    troubles = [each for each in survey.layout.unread if each.kind in TROUBLE]
    parts += [_unread(each.kind, each.count, each.example).rstrip(".") for each in troubles]
    return "; ".join(parts) + ". Nothing was written."
