"""All pages: their commands parse, their files and headings exist, and the lists of pages and functions are whole."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import builder
from builder.cli.commands import read
from tests.outputs import ROOT

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("howto/*.md")])
SHELL = {"$((SLURM_ARRAY_TASK_ID * 50 + 50))": "50", "$((SLURM_ARRAY_TASK_ID * 50))": "0", "$((first + 50))": "50"}
OWN_LINE = re.compile(r"^(?:\$ )?laion6m [a-z].*$", flags=re.MULTILINE)
"""A command that begins its line; what a page shows as output or within a sentence does not."""


def commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in re.findall(r"^```(?:|sh|bash)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE):
            for line in OWN_LINE.findall(block.replace("\\\n", " ")):
                yield str(page.relative_to(DOCS)), line


@pytest.mark.parametrize(("page", "line"), list(commands()))
def test_a_command_on_a_page_parses(page: str, line: str) -> None:
    for text, value in SHELL.items():
        line = line.replace(text, value)
    line = line.replace("$first", "0").replace('"$SLURM_CPUS_PER_TASK"', "8").replace('"$ip:$port"', "auto")
    words = shlex.split(line, comments=True)
    read(words[1:])  # a usage error is SystemExit


def test_the_commands_are_found() -> None:
    found = {line.split()[1] for _, line in commands()}
    assert found >= {"convert", "index", "verify", "extract", "select", "push", "report", "view", "duplicates"}


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_and_links_to_is_there(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"\b(?:tests|stress|benchmarks|docs|examples)/[\w/]+\.(?:py|md)\b", text))
    missing = [name for name in sorted(named) if not (ROOT / name).exists()]
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        place = page.parent / target if target else page
        if not re.match(r"\w+:", link) and (not place.exists() or (anchor and anchor not in anchors(place))):
            missing.append(link)
    assert missing == []


def test_the_list_of_pages_is_whole() -> None:
    listed = set(re.findall(r"\]\(([\w/]+\.md)\)", (DOCS / "README.md").read_text()))
    assert listed == {str(page.relative_to(DOCS)) for page in PAGES} - {"README.md", "index.md"}


def test_the_reference_has_every_public_function() -> None:
    text = (DOCS / "api.md").read_text()
    functions = {name: home for name, home in builder._HOMES.items() if name.islower()}
    assert [f"{home}.{name}" for name, home in functions.items() if f"autofunction:: {home}.{name}\n" not in text] == []
