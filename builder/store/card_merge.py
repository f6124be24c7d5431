"""Split a dataset card into the part that the tool made and the owner's part, and join the two again.

The tool makes the text between two HTML comments, and the metadata that follow from the data (:data:`FACTS`). All else
is the owner's, and stays:

- text above and below
- further metadata
- values that differ from :data:`DEFAULTS`
- entries of ``configs`` and ``dataset_info`` for other configurations than ours.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from builder.base.errors import OutputError
from builder.base.schema import SPLIT

FACTS = ("size_categories", "dataset_info", "configs")
"""Metadata that follow from the data. They are written anew each time."""

CONFIG = "default"
"""The configuration that the tool makes. Entries of ``configs`` and ``dataset_info`` under another name are the
owner's."""
_SHARED = ("dataset_info", "configs")

DEFAULTS: dict[str, Any] = {
    "language": ["en"],
    "license": "other",
    "task_categories": ["text-to-image", "image-to-text"],
    "pretty_name": "laion6m",
}
"""Metadata of a new card. Its owner may change them."""

_ORDER = ("language", "license", "size_categories", "task_categories", "pretty_name")
"""The keys that come first, in this order. The owner's keys follow, then :data:`_SHARED`."""

PLACEHOLDER = "OWNER/NAME"
"""Stands in place of the repository's name in a card that has not been pushed."""

_BEGIN = "<!-- laion6m:begin {repo} (made by the tool, and replaced up to laion6m:end; write above or below) -->"
_END = "<!-- laion6m:end -->"
_INSIDE = re.compile(r"^<!-- laion6m:begin (\S+) [^>]*-->\n(.*?)^<!-- laion6m:end -->$\n?", re.DOTALL | re.MULTILINE)
_STATISTICS = "<!-- laion6m:statistics -->\n{text}\n<!-- laion6m:statistics-end -->"
_MARKED_STATISTICS = re.compile(_STATISTICS.format(text=".*?"), re.DOTALL)
_MARKER = re.compile(r"<!-- laion6m:(?:begin|end)\b")
_FRONT = re.compile(r"\A\ufeff?\s*---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Own:
    """The owner's part of a card. ``metadata``: key → its YAML, written anew: values stay, comments are lost. For
    ``configs`` and ``dataset_info`` it is a list of the owner's entries. ``before``, ``after``: text above and below
    the made text."""

    metadata: dict[str, str] = field(default_factory=dict)
    before: str = ""
    after: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """A card split into parts. ``values``: all metadata. ``repo``: the repository that the begin marker names.
    ``inside``: the made text; None if the markers are missing."""

    values: dict[str, Any]
    own: Own
    repo: str
    inside: str | None


def compose(facts: dict[str, Any], body: str, own: Own, repo: str) -> bytes:
    """Make a card from both parts. ``facts``: the metadata of :data:`FACTS`. ``body``: the made text."""
    theirs = _load("".join(own.metadata.values()), "")
    values = DEFAULTS | {key: value for key, value in facts.items() if key not in _SHARED}
    values |= {key: value for key, value in theirs.items() if key not in _SHARED}
    ordered = {key: values.pop(key) for key in _ORDER if key in values} | values
    for key in _SHARED:
        made, added = facts.get(key), theirs.get(key, [])
        if isinstance(made, dict) and added:
            made = [{"config_name": CONFIG, **made}]
        if entries := made if isinstance(made, dict) else [*(made or []), *added]:
            ordered[key] = entries
    before = f"{own.before}\n\n" if own.before else ""
    after = f"\n{own.after}\n" if own.after else ""
    made_text = f"{_BEGIN.format(repo=repo)}\n{body.strip()}\n{_END}\n"
    return f"---\n{_dump(ordered)}---\n\n{before}{made_text}{after}".encode("utf-8", "surrogateescape")


def take_apart(card: bytes, where: str) -> Card:
    """Split a card. Raises OutputError if its YAML cannot be read, so that no metadata are lost. ``where``: the card's
    name, for the message."""
    text = card.decode("utf-8", "surrogateescape").replace("\r\n", "\n")
    match = _FRONT.match(text)
    front, body = (match[1], text[match.end() :]) if match else ("", text.removeprefix("\ufeff"))
    values = _load(front, where)
    found = list(_INSIDE.finditer(body))
    if len(found) == 1 and len(_MARKER.findall(body)) == 2:
        inside = found[0]
        own = Own(_own_metadata(values), body[: inside.start()].strip("\n"), body[inside.end() :].strip("\n"))
        return Card(values, own, inside[1], inside[2])
    # Cut or doubled markers do not tell whose the text around them is. Then all of it counts as the owner's.
    kept = "".join(line for line in body.splitlines(keepends=True) if not _MARKER.match(line))
    return Card(values, Own(_own_metadata(values), kept.strip("\n"), ""), PLACEHOLDER, None)


def own_part(card: bytes | None, where: str) -> Own:
    """The owner's part of a card; empty for None. Raises OutputError."""
    return take_apart(card or b"", where).own


def generated_part(card: bytes) -> bytes:
    """The made part of a card in a normal form; empty if there is none. Two cards of the same data have the same form.

    It does not depend on the layout of the YAML, on the owner's text, or on the repository the card was pushed to.
    """
    try:
        parts = take_apart(card, "")
    except OutputError:
        return b""
    if parts.inside is None:
        return b""
    made = made_metadata(parts.values)
    facts = {key: made.get(key) for key in FACTS}
    document = json.dumps(facts, sort_keys=True, ensure_ascii=False, default=str)
    return f"{document}\n{unnamed(parts)}".encode("utf-8", "surrogateescape")


def with_statistics(body: str, text: str) -> str:
    """The made text of a pushed card: ``body`` and statistics (Markdown). ``unnamed`` removes the statistics again."""
    return f"{body.strip()}\n\n{_STATISTICS.format(text=text.strip())}" if text else body


def unnamed(card: Card) -> str:
    """The made text as it would be in a card that was never pushed. Empty if there is none."""
    body = card.inside or ""
    if _MARKED_STATISTICS.search(body):
        body = _MARKED_STATISTICS.sub("", body).strip() + "\n"
    # A bare name is not enough: the text names other repositories too.
    for form in ('load_dataset("{}"', "hf://datasets/{}/", 'hf://datasets/{}"'):
        body = body.replace(form.format(card.repo), form.format(PLACEHOLDER))
    return body


def made_metadata(values: dict[str, Any]) -> dict[str, Any]:
    """The made metadata of a card, as they would be if the owner had added nothing."""
    found = {key: values[key] for key in FACTS if key in values}
    infos, configs = ([each for each in _entries(values, key) if not _is_owners(each)] for key in _SHARED)
    if isinstance(found.get("configs"), list):
        found["configs"] = configs
    if _entries(values, "dataset_info"):
        del found["dataset_info"]
        if infos:  # if two entries claim to be ours, neither is as made
            info = infos[0] if len(infos) == 1 else {}
            found["dataset_info"] = {key: value for key, value in info.items() if key != "config_name"}
    return found


def _entries(values: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The entries of ``configs`` or ``dataset_info`` as a list; each may also be a single entry. Empty if any is no
    mapping."""
    value = values.get(key)
    entries = value if isinstance(value, list) else [value]
    found = [each for each in entries if isinstance(each, dict)]
    return found if len(found) == len(entries) else []


def column_config(name: str) -> str:
    """The name of an added column's configuration in a repository."""
    return name if name != CONFIG else f"column_{name}"


def column_files(name: str) -> str:
    """The pattern of an added column's files."""
    return f"columns/{name}/{SPLIT}-*.parquet"


def _is_owners(entry: dict[str, Any]) -> bool:
    name = str(entry.get("config_name", CONFIG))
    column = name.removeprefix("column_") if name == f"column_{CONFIG}" else name
    return name != CONFIG and entry.get("data_files") != [{"split": SPLIT, "path": column_files(column)}]


def _load(front: str, where: str) -> dict[str, Any]:
    if not front.strip():
        return {}
    import yaml  # type: ignore[import-untyped,unused-ignore]

    try:
        values = yaml.safe_load(front)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
    else:
        if isinstance(values, dict | None):
            return values or {}
        problem = "it has no keys with values"
    raise OutputError(f"the YAML at the top of {where} cannot be read: {problem}. Mend it, or remove the file")


def _own_metadata(values: dict[str, Any]) -> dict[str, str]:
    """Key → YAML, for the owner's keys, and for the owner's entries in keys that are shared."""
    own = {key: value for key, value in values.items() if key not in FACTS and DEFAULTS.get(key, ()) != value}
    for key in _SHARED:
        if entries := [each for each in _entries(values, key) if _is_owners(each)]:
            own[key] = entries
    return {str(key): _dump({key: value}) for key, value in own.items()}


def _dump(values: dict[Any, Any]) -> str:
    import yaml  # type: ignore[import-untyped,unused-ignore]

    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
