"""Recognise, by looking, which of the layouts a source folder has."""

from __future__ import annotations

import os
from contextlib import suppress

from builder.base.errors import LayoutError, SourceError
from builder.base.names import DATA, MANIFEST
from builder.base.paths import not_there
from builder.base.urls import StorageOptions, is_url
from builder.source.layout import EXPECTED, TAR_ENDINGS, Archive, Layout, without_ending

_SIDES = ("raw", "captions")
_AROUND = "A source is the folder around raw/ (and captions/ and data.json)"


def recognise(path: str, recaptions: tuple[str, ...] = (), storage: StorageOptions | None = None) -> Layout:
    """Look at a folder, or what lies behind a URL (opened with ``storage``). Raises LayoutError with what was found and
    what is expected when none fits."""
    if is_url(path):
        from builder.source.remote_layouts import recognise_url  # with what it takes to read URLs

        return recognise_url(path, recaptions, storage or StorageOptions())
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise SourceError(not_there(path))
        raise SourceError(f"{path} is not a folder. {meant_instead(os.path.dirname(path) or '.') or EXPECTED}")
    raw_root, captions_root = os.path.join(path, "raw"), os.path.join(path, "captions")
    if not os.path.isdir(raw_root):
        if os.path.exists(os.path.join(path, MANIFEST)) and os.path.isdir(os.path.join(path, DATA)):
            raise LayoutError(path, "a converted folder (it has meta/ and data/)", "Give the folder it was made from.")
        raw_root = path
    raw = _archives(raw_root) if raw_root != path else tuple(a for a in _archives(path) if not a.is_folder)
    if not raw:
        raise LayoutError(path, _describe(path), meant_instead(path) or EXPECTED)
    captions = _archives(captions_root) if os.path.isdir(captions_root) and not recaptions else ()
    check_recaptions(recaptions)
    if recaptions or raw_root == path:
        kind = "img2dataset"
    elif any(archive.is_folder for archive in raw):
        kind = "extracted"
    else:
        kind = "card" if captions else "openuni"
    return Layout(
        kind=kind,
        root=path,
        raw_root=raw_root,
        captions_root=captions_root if captions else raw_root,
        raw=raw,
        captions=captions,
        listing=() if recaptions else _listing(os.path.join(path, "data.json")),
        recaptions=recaptions,
    )


def meant_instead(path: str) -> str:
    """Where a part of a source was given, or the folder that one lies in: a sentence that names the source. Else empty.
    Behind a URL it goes by the name alone."""
    if is_url(path):
        above, _, side = path.rstrip("/").rpartition("/")
        return f"If this is the {side}/ of a source, give {above} instead." if side in _SIDES else ""
    above, side = os.path.normpath(os.path.join(path, os.pardir)), os.path.basename(os.path.abspath(path))
    there = {name for name in (*_SIDES, "data.json") if os.path.exists(os.path.join(above, name))}
    if side in _SIDES and "raw" in there and len(there) > 1:
        return f"{_AROUND}: give {above} instead."
    inside: list[str] = []
    with suppress(OSError), os.scandir(path) as entries:
        inside += sorted(entry.name for entry in entries if os.path.isdir(os.path.join(entry.path, "raw")))
    if not inside:
        return ""
    others = f", or one of {len(inside) - 1:,} others in it" if len(inside) > 1 else ""
    return f"{_AROUND}: give {os.path.join(path, inside[0])} instead{others}."


def check_recaptions(files: tuple[str, ...]) -> None:
    """Raises SourceError for one that is not there."""
    for file in files:
        if not os.path.isfile(file):
            raise SourceError(f"{file}, given as recaptions, is not there")


def _archives(root: str) -> tuple[Archive, ...]:
    """Tars and folders of ``root``, by name. A folder beside a tar of its name is what that tar left when it was
    extracted, and is passed over: the tar is the original. So are single files beside tars; else these are a folder
    too."""
    tars, folders, loose = [], [], False
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(Archive(entry.name, entry.path, True, 0, entry.stat().st_mtime_ns))
            elif entry.name.lower().endswith(TAR_ENDINGS):
                if not entry.is_file():  # a link to nowhere, or a pipe that would never answer
                    raise SourceError(f"{entry.path} is no file that can be read")
                status = entry.stat()
                name = os.fsencode(entry.name).decode("utf-8", "backslashreplace")  # goes into tables and JSON
                tars.append(Archive(name, entry.path, False, status.st_size, status.st_mtime_ns))
            else:
                loose = True
    stems = {without_ending(archive.name) for archive in tars}
    folders = [folder for folder in folders if folder.name not in stems]
    if loose and not tars:
        folders.append(Archive("", root, True, 0, 0))
    return tuple(sorted([*tars, *folders], key=lambda archive: os.fsencode(archive.name)))


def _listing(path: str) -> tuple[str, ...]:
    if os.path.isdir(path):
        names = sorted(name for name in os.listdir(path) if name.endswith(".json"))
        if not names:
            raise LayoutError(path, "a folder without *.json files", "A listing is a JSON list, or a folder of them.")
        files = tuple(os.path.join(path, name) for name in names)
    else:
        files = (path,) if os.path.lexists(path) else ()
    for file in files:
        if not os.path.isfile(file):  # a link to nowhere is not the same as no listing; a pipe would never answer
            raise SourceError(f"{file} is no file that can be read")
    return files


def _describe(path: str) -> str:
    names = sorted(os.listdir(path))
    if not names:
        return "an empty folder"
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    raw = os.path.join(path, "raw")
    return f"{shown}" + (f" (raw/ is {_describe(raw)})" if os.path.isdir(raw) else "")
