"""What a person is told at the end of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from builder.base.words import duration, printable, size

if TYPE_CHECKING:  # at run time it would bring all of build in
    from builder.conversion.build import Summary


def describe_summary(summary: Summary) -> str:
    """Rows, rejects by reason with an example of each, bytes, rate, and what to do next."""
    totals = summary.totals
    seconds = max(summary.seconds, 1e-9)
    lines = [
        f"{totals.rows:,} rows of {totals.listed:,} listed samples in {totals.shards:,} shards, "
        f"{size(totals.image_bytes)} of images, {duration(summary.seconds)}"
        + (
            f" ({totals.rows / seconds:,.0f} images/s, {totals.image_bytes / seconds / 1e6:,.0f} MB/s)"
            if summary.did
            else ": all of it was there already"
        )
    ]
    if totals.rejected:
        lines.append(f"{sum(totals.rejected.values()):,} rejected:")
        for reason, count in sorted(totals.rejected.items(), key=lambda item: -item[1]):
            lines.append(f"  {count:>9,}  {reason:<17} e.g. {printable(summary.examples.get(reason, ''))}")
    else:
        lines.append("none rejected")
    if totals.unlisted:
        lines.append(f"{totals.unlisted:,} images of the source are in no listing; they were left out")
    for name, places in sorted(summary.damage.items())[:5]:
        more = f", and {len(places) - 1} more" if len(places) > 1 else ""
        lines.append(f"damaged: {printable(name)}, {printable(places[0])}{more}")
    if len(summary.damage) > 5:
        lines.append(f"damaged: {len(summary.damage) - 5} more archives, see meta/manifest.json")
    if summary.complete:
        lines += [
            f"next: laion6m verify {summary.out}",
            f"      python -c 'from builder import open_dataset; print(open_dataset(\"{summary.out}\")[0])'",
        ]
    else:
        lines.append(
            f"{summary.missing:,} shards are still to do. When all slices are done, run laion6m convert without "
            "--start and --end to finish."
        )
    return "\n".join(lines)
