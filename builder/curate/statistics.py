"""A dataset in numbers: histograms, how captions begin, phrases they share. For report, view and the card."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from builder.curate.measures import Histogram, captions, histogram, measure, measures
from builder.read.view import Rows

SAMPLED = 10_000
"""Captions searched for phrases, evenly spaced. So many give a share to one per cent."""

_OPENING = 3  # words per opening
_PHRASES = (3, 4, 5)  # words
_SHOWN = 20
_LEAST_SHARE = 0.01
_COUNTED = 300_000  # phrases in memory, some 60 MB
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True, slots=True)
class Phrase:
    """``share``: of the searched captions, 0 to 1."""

    text: str
    share: float


@dataclass(frozen=True, slots=True)
class Phrases:
    """``sampled``: captions searched. ``openings``: their first three words. ``frequent``: three to five words anywhere
    in them. ``repeated``: whole captions that several rows have."""

    sampled: int
    openings: tuple[Phrase, ...]
    frequent: tuple[Phrase, ...]
    repeated: tuple[Phrase, ...]


@dataclass(frozen=True, slots=True)
class Statistics:
    """``image_bytes``: of all images. ``histograms``: of all ``measures``."""

    rows: int
    image_bytes: int
    histograms: tuple[Histogram, ...]
    phrases: Phrases

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def statistics(dataset: Rows) -> Statistics:
    """One pass over the index's captions; no image is read. A million rows take some seconds."""
    made = [histogram(name, measure(dataset, name), *words) for name, words in measures(dataset).items()]
    sizes = measure(dataset, "size")
    return Statistics(len(dataset), int(sizes[sizes > 0].sum()), tuple(made), phrases(dataset))


def describe_statistics(found: Statistics) -> str:
    """A section of a dataset card, in Markdown. It quotes only words of captions, no marks: nothing in it is code."""
    lines = ["## Statistics", "", "| | median | 5 % to 95 % | least | most |", "|---|---:|---:|---:|---:|"]
    for bars in found.histograms:
        if bars.counts:
            name = f"{bars.label}, {bars.unit}" if bars.unit else bars.label
            low, middle, high, least, most = map(_number, (bars.p5, bars.median, bars.p95, bars.minimum, bars.maximum))
            lines.append(f"| {name} | {middle} | {low} to {high} | {least} | {most} |")
    for title, some in (
        ("How captions begin", found.phrases.openings),
        ("Phrases in captions", found.phrases.frequent),
    ):
        if some:
            quoted = " · ".join(f"“{each.text}” {each.share:.1%}" for each in some[:8])
            lines += ["", f"{title} (of {found.phrases.sampled:,}, evenly spaced): {quoted}"]
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{round(value):,}" if value == round(value) or abs(value) >= 100 else f"{value:.3g}"


def phrases(dataset: Rows, sampled: int = SAMPLED) -> Phrases:
    """Phrases of up to ``sampled`` captions, evenly spaced over the dataset. The choice is always the same."""
    rows = len(dataset)
    positions = np.unique(np.linspace(0, rows - 1, min(rows, sampled)).astype(np.int64)) if rows else np.zeros(0, int)
    openings: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    texts: list[list[str]] = []
    for _, part in captions(dataset, positions):
        for caption in part.to_pylist():
            words = _WORD.findall(caption or "")
            if words:
                openings[" ".join(words[:_OPENING])] += 1
                whole[caption.strip()] += 1
                texts.append([sys.intern(word.lower()) for word in words])
    least = max(2, len(positions) * _LEAST_SHARE)
    return Phrases(
        len(positions),
        _shares(openings.most_common(_SHOWN), len(positions), least),
        _shares(_frequent(texts, least)[:_SHOWN], len(positions), least),
        _shares(whole.most_common(_SHOWN // 2), len(positions), 2),
    )


def _frequent(texts: list[list[str]], least: float) -> list[tuple[str, int]]:
    """Phrases in at least ``least`` texts, and in how many each is. Leaves out phrases that hardly occur outside a
    longer one. A phrase can be frequent only if its parts are, so most longer phrases need no counting."""
    frequent: dict[tuple[str, ...], int] = {}
    for length in _PHRASES:
        counted: Counter[tuple[str, ...]] = Counter()
        for number, words in enumerate(texts):
            mine = {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}
            counted.update(gram for gram in mine if length == _PHRASES[0] or {gram[1:], gram[:-1]} <= frequent.keys())
            if number % 1000 == 999 and len(counted) > _COUNTED:  # a frequent phrase comes again
                counted = Counter({gram: count for gram, count in counted.items() if count > 1})
        frequent |= {gram: count for gram, count in counted.items() if count >= least}
    within: Counter[tuple[str, ...]] = Counter()
    for gram, count in frequent.items():
        for part in (gram[1:], gram[:-1]):
            within[part] = max(within[part], count)
    kept = [(" ".join(gram), count) for gram, count in frequent.items() if within[gram] < 0.8 * count]
    return sorted(kept, key=lambda item: (-item[1], item[0]))


def _shares(counted: Sequence[tuple[str, int]], of: int, least: float) -> tuple[Phrase, ...]:
    return tuple(Phrase(text, count / of) for text, count in counted if count >= least)
