"""The report as one HTML file. It holds only escaped text, numbers, and pictures made here."""

from __future__ import annotations

from html import escape
from importlib import resources

from builder.base.words import counted
from builder.base.words import size as in_words
from builder.curate.statistics import Phrase
from builder.view.plots import bar, histogram_svg
from builder.view.report import Report, Tile

_WORDS = 600  # most characters of a caption


def page(report: Report) -> str:
    """The whole document. It has no script and fetches nothing: its content security policy forbids both."""
    style = (resources.files("builder.view") / "page" / "report.css").read_text(encoding="utf-8")
    sections = [
        _section("How it was made", _made(report)),
        _section("Measures", f'<div class="plots">{"".join(map(histogram_svg, report.statistics.histograms))}</div>'),
        _section("Captions", _phrases(report)),
        _section("A hundred rows at random", _tiles(report.samples)),
        *(_section(title, _tiles(tiles)) for title, tiles in report.extremes.items() if tiles),
        _section("Duplicates", _groups(report)),
        _section("Rejects", _rejects(report)),
    ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(report.name)}: a report</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(report.name)}</h1>{_summary(report)}</header>\n<main>{''.join(sections)}</main>\n"
        "<footer>Made by laion6m report.</footer>\n</body>\n</html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>\n"


def _summary(report: Report) -> str:
    parts = [
        counted(report.statistics.rows, "row"),
        f"{in_words(report.statistics.image_bytes)} of images",
        report.facts["kind"],
    ]
    formats = sorted(report.facts["formats"].items(), key=lambda item: -item[1])
    parts.append(", ".join(f"{name} {count:,}" for name, count in formats))
    return f"<p>{escape(' · '.join(part for part in parts if part))}</p>"


def _made(report: Report) -> str:
    funnel = report.facts["funnel"]
    if not funnel:
        return '<p class="quiet">Unknown: laion6m did not make these files, or they are behind a URL.</p>'
    most = max(1, *(step["rows"] for step in funnel))
    bars = [bar(step["rows"] / most, f"{step['rows']:,}", step["kind"]) for step in funnel]
    named = [escape(step["name"]) for step in funnel]
    steps = "".join(f"<div><dt>{name}</dt><dd>{drawn}</dd></div>" for name, drawn in zip(named, bars, strict=True))
    made = report.facts["made"]
    facts = [*made["versions"].items(), *made["options"].get("policy", {}).items()] if made else []
    said = " · ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts if value is not None)
    return f'<dl class="funnel">{steps}</dl><p class="quiet">{escape(said)}</p>'


def _phrases(report: Report) -> str:
    found = report.statistics.phrases
    of = f"Of {counted(found.sampled, 'caption')}, evenly spaced"
    tables = (
        ("First words", f"{of}: the first three words.", found.openings),
        ("Repeated phrases", f"{of}: three to five words that occur more than once.", found.frequent),
        ("Repeated captions", f"{of}: whole captions that occur more than once.", found.repeated),
    )
    made = "".join(_shares(*table) for table in tables if table[2])
    return f'<div class="columns">{made}</div>' if made else '<p class="quiet">No words are repeated.</p>'


def _shares(title: str, note: str, phrases: tuple[Phrase, ...]) -> str:
    lines = "".join(
        f"<li><span>{escape(each.text[:200])}</span><span>{each.share:.{1 if each.share < 0.1 else 0}%}</span></li>"
        for each in phrases
    )
    return f'<div><h3>{escape(title)}</h3><p class="quiet">{escape(note)}</p><ol class="shares">{lines}</ol></div>'


def _tiles(tiles: list[Tile]) -> str:
    return f'<div class="tiles">{"".join(map(_tile, tiles))}</div>'


def _tile(tile: Tile) -> str:
    words = tile.words if len(tile.words) <= _WORDS else f"{tile.words[:_WORDS]}…"
    picture = f'<img src="{tile.source}" alt="{escape(words[:160])}">' if tile.source else "<i>no picture</i>"
    return (
        f"<figure><div>{picture}</div><figcaption>{escape(words)}"
        f'<span class="quiet">{escape(tile.note)}</span></figcaption></figure>'
    )


def _groups(report: Report) -> str:
    groups = f"{counted(report.group_count, 'group')} with {counted(report.group_rows, 'row')}"
    said = f"{groups} in them. The first of each is kept."
    lead = f"<p>{escape(said if report.group_count else 'There are no duplicates.')} {escape(report.group_note)}</p>"
    return lead + "".join(f'<div class="group">{_tiles(group)}</div>' for group in report.groups)


def _rejects(report: Report) -> str:
    if not report.rejects:
        return '<p class="quiet">There are none, or this dataset does not record them.</p>'
    return "".join(
        f"<h3>{escape(reason)} <span>{count:,}</span></h3>{_tiles(tiles)}"
        for reason, (count, tiles) in report.rejects.items()
    )
