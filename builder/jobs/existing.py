"""extract overwrites no existing file unless told to."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from builder.base.errors import OutputError
from builder.source.endings import is_tar

_NAMED = 3  # names listed in the error

Listing = tuple[str, Iterable[bytes]]
"""A file of the listing: its name in OUT, and its bytes."""


def refuse_existing(out: str, files: Iterable[str], listing: Iterable[Listing]) -> None:
    """Raise OutputError, before anything is written, if OUT has one of ``files`` (paths below it), a different listing,
    or archives of a source of its own."""
    sides = [side for side in ("raw", "captions") if os.path.isdir(os.path.join(out, side))]
    archives = chain.from_iterable(_archives(out, side) for side in sides)
    if found := list(islice(archives, _NAMED)):
        raise OutputError(
            f"{shlex.quote(out)} holds a source ({', '.join(found)}). Extract would mix its files with those. Choose "
            "another OUT, or give --overwrite."
        )
    there = chain(_differing(out, listing), _existing(out, files) if os.path.isdir(out) and os.listdir(out) else ())
    if found := list(islice(there, _NAMED)):
        raise OutputError(
            f"{shlex.quote(out)} holds files that extract would overwrite: {', '.join(map(shlex.quote, found))}"
            f"{' …' if len(found) == _NAMED else ''}. Nothing was written. Choose another OUT, or give --overwrite."
        )


def _archives(out: str, side: str) -> Iterator[str]:
    for name in sorted(os.listdir(os.path.join(out, side))):
        if is_tar(name):
            yield f"{side}/{name}"


def _differing(out: str, listing: Iterable[Listing]) -> Iterator[str]:
    """Listing files that exist with other bytes. Another slice of the same job writes the same bytes."""
    for name, blocks in listing:
        path = os.path.join(out, name)
        if os.path.lexists(path) and not os.path.isdir(path) and not _holds(path, blocks):
            yield name


def _holds(path: str, blocks: Iterable[bytes]) -> bool:
    try:
        with open(path, "rb") as file:
            return all(file.read(len(block)) == block for block in blocks) and not file.read(1)
    except OSError:
        return False


def _existing(out: str, files: Iterable[str]) -> Iterator[str]:
    """The files that exist. Consecutive files of a folder cost one listing of the folder."""
    folder, names = "", frozenset[str]()
    for file in files:
        parent, _, name = file.rpartition("/")
        if parent != folder:
            folder, names = parent, _files_in(os.path.join(out, parent))
        if name in names:
            yield file


def _files_in(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if not entry.is_dir(follow_symlinks=False))
    except (OSError, ValueError):  # missing, or a NUL in the name
        return frozenset()
