"""The report's plots: histograms as SVG inside HTML, without scripts."""

from __future__ import annotations

from html import escape

from builder.base.words import counted
from builder.base.words import size as in_words
from builder.curate.measures import Histogram

_WIDTH, _HEIGHT = 300, 96


def histogram_svg(bars: Histogram) -> str:
    """A figure: bars, the numbers at both ends of the axis, and a line of text with median and range."""
    unit = "" if bars.unit == "bytes" else bars.unit
    title = f"<figcaption>{escape(bars.label)} <span>{escape(unit)}</span></figcaption>"
    if not bars.counts:
        return f'<figure class="plot">{title}<p class="quiet">no values</p></figure>'
    most, wide = max(bars.counts), _WIDTH / len(bars.counts)
    drawn = []
    for at, count in enumerate(bars.counts):
        tall = max(1.5, count / most * (_HEIGHT - 2)) if count else 0
        words = f"{_interval(bars, at)}: {counted(count, 'row')}"
        drawn.append(
            f'<rect x="{at * wide + wide * 0.08:.1f}" y="{_HEIGHT - tall:.1f}" width="{wide * 0.84:.1f}" '
            f'height="{tall:.1f}"><title>{escape(words)}</title></rect>'
        )
    low, high = number(bars.edges[0], bars.unit), number(bars.edges[-1], bars.unit)
    missing = f" · {bars.missing:,} without" if bars.missing else ""
    median, least, largest = (number(each, bars.unit) for each in (bars.median, bars.minimum, bars.maximum))
    middle = f"median {median} · {least} to {largest}"
    return (
        f'<figure class="plot">{title}<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="Histogram of {escape(bars.label)}: {escape(middle)}">{"".join(drawn)}</svg>'
        f'<p class="ends"><span>{low}</span><span>{high}</span></p><p class="quiet">{middle}{missing}</p></figure>'
    )


def bar(share: float, words: str, kind: str = "") -> str:
    """A bar of ``share`` (0 to 1) of the width, with a text after it."""
    wide = max(0.3, min(1.0, share) * 100)
    return (
        f'<svg class="bar {kind}" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{wide:.2f}" height="10"/></svg><span>{escape(words)}</span>'
    )


def number(value: float, unit: str = "") -> str:
    """``1234567`` → ``1,234,567``, ``0.18754`` → ``0.188``, bytes in words."""
    if unit == "bytes":
        return in_words(round(value))
    if float(value).is_integer() or abs(value) >= 100:
        return f"{round(value):,}"
    return f"{value:.3g}"


def _interval(bars: Histogram, at: int) -> str:
    low, high = (number(bars.edges[at + side], bars.unit) for side in (0, 1))
    if at == 0:
        return f"under {high}" if len(bars.counts) > 1 else "all"
    return f"{low} and more" if at == len(bars.counts) - 1 else f"{low} to {high}"
