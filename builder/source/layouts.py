"""Recognise a source's layout, local or behind a URL, and count what is not read.

entries of SOURCE → raw/, captions/, the listing → archives, files of the listing, and the rest by kind
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable
from contextlib import suppress

from builder.base.errors import LayoutError, ListingError, OptionError, SourceError
from builder.base.names import DATA, MANIFEST, META, WORK
from builder.base.paths import not_there
from builder.base.urls import NO_OPTIONS, StorageOptions, is_url, join
from builder.source.endings import (
    ANNOTATION_ENDINGS,
    FILE,
    IMAGE_ENDINGS,
    LISTING,
    UNFINISHED,
    is_companion,
    is_listing_name,
    kind_of,
    listing_rank,
    may_be_listing,
)
from builder.source.layout import EXPECTED, Archive, Layout
from builder.source.places import Item, Place, files_below, place_of
from builder.source.sides import Looking

_SIDES = ("raw", "captions")
_AROUND = "A source is the folder that contains raw/ (and captions/ and data.json)"
_FAR = " Behind a URL only tars are read: millions of single files would be a request each."
_RECAPTIONS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_HINT = "A listing is a JSON list, JSON lines, CSV or TSV (.gz, .zst, .bz2, .xz too), or a folder of them."
_WAIT = "the download is not finished. Wait, download it again, or give --no-listing to take every annotation."


def recognise(
    path: str,
    recaptions: tuple[str, ...] = (),
    storage: StorageOptions | None = None,
    *,
    listing: str | bool | None = None,
) -> Layout:
    """Look at a folder, or at a URL (opened with ``storage``). ``listing``: a file to read instead of data.json; False:
    read none. ``recaptions``: files, or folders of them. Raises LayoutError if no layout fits, with what was found and
    what is expected; SourceError for anything that cannot be read."""
    storage = storage or NO_OPTIONS
    place = place_of(path, storage)
    path = place.root
    top = _top(place)
    names = {item.name: item for item in top}
    has_raw = "raw" in names and names["raw"].is_folder
    made = not has_raw and {DATA, META} <= names.keys() and names[META].is_folder
    if made and any(f"{META}/{item.name}" == MANIFEST for item in place.entries(join(path, META))):
        raise LayoutError(path, "a converted folder (it has meta/ and data/)", "Give the folder it was made from.")
    files = recaption_files(recaptions)
    looking = Looking(place, storage)
    raw_root = join(path, "raw") if has_raw else path
    raw = looking.archives(raw_root, IMAGE_ENDINGS + ANNOTATION_ENDINGS) if has_raw else _at_top(looking, top, files)
    if not raw:
        hint = meant_instead(path)
        if not (hint or place.remote):
            looking.refuse_unreadable(path)
        raise LayoutError(path, _describe(place, top), hint or EXPECTED + (_FAR if place.remote else ""))
    captions: tuple[Archive, ...] = ()
    if "captions" in names and names["captions"].is_folder and not recaptions:
        captions = looking.archives(join(path, "captions"), ANNOTATION_ENDINGS)
    lists = _choose_listing(place, top, raw_root, listing, looking.note, read=not recaptions)
    read = {*lists, *files, raw_root, *(item.path for item in top if is_listing_name(item.name))}
    if not recaptions:
        read.add(join(path, "captions"))
    if has_raw:
        looking.note_rest(top, read)
    looking.note_hub_cache()
    if not lists and not recaptions and listing is None:
        _refuse_unnamed(looking.candidates)
    if recaptions or not has_raw:
        kind = "img2dataset"
    elif any(archive.is_folder for archive in raw):
        kind = "extracted"
    else:
        kind = "card" if captions else "openuni"
    captions_root = join(path, "captions") if captions else raw_root
    return Layout(kind, path, raw_root, captions_root, raw, captions, lists, files, storage, looking.unread())


def _top(place: Place) -> list[Item]:
    """The entries of SOURCE itself. Raises SourceError if it is no folder."""
    path = place.root
    try:
        top = place.entries(path)
    except SourceError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise SourceError(not_there(path)) from None
        if isinstance(error.__cause__, NotADirectoryError):
            hint = meant_instead(os.path.dirname(path) or ".")
            raise SourceError(f"{shlex.quote(path)} is not a folder. {hint or EXPECTED}") from None
        raise
    if place.remote and not top:
        raise SourceError(f"{shlex.quote(path)} is not there, or is empty. {EXPECTED}")
    return top


def _at_top(looking: Looking, top: list[Item], recaptions: tuple[str, ...]) -> tuple[Archive, ...]:
    """The archives of a source without raw/: tars at its top or in its folders, and folders of image and caption
    pairs."""
    known = {os.path.realpath(file) for file in recaptions}
    items = [
        item
        for item in top
        if item.name not in (*_SIDES, META, DATA, WORK)
        and not is_listing_name(item.name)
        and not (known and os.path.realpath(item.path) in known)
    ]
    found = looking.archives(looking.place.root, IMAGE_ENDINGS, items)
    part_of_another = not any(not archive.is_folder for archive in found) and meant_instead(looking.place.root)
    return () if part_of_another else found


def meant_instead(path: str) -> str:
    """If a part of a source was given, or the folder that contains a source: a sentence that names the source. Else
    empty. Behind a URL only the name decides."""
    if is_url(path):
        above, _, side = path.rstrip("/").rpartition("/")
        return f"If this is the {side}/ of a source, give {shlex.quote(above)} instead." if side in _SIDES else ""
    above, side = os.path.normpath(os.path.join(path, os.pardir)), os.path.basename(os.path.abspath(path))
    there = {name for name in (*_SIDES, "data.json") if os.path.exists(os.path.join(above, name))}
    if side in _SIDES and "raw" in there and len(there) > 1:
        return f"{_AROUND}: give {shlex.quote(above)} instead."
    inside: list[str] = []
    with suppress(OSError), os.scandir(path) as entries:
        inside += sorted(entry.name for entry in entries if os.path.isdir(os.path.join(entry.path, "raw")))
    if not inside:
        return ""
    others = f", or one of {len(inside) - 1:,} others in it" if len(inside) > 1 else ""
    return f"{_AROUND}: give {shlex.quote(os.path.join(path, inside[0]))} instead{others}."


def recaption_files(given: tuple[str, ...]) -> tuple[str, ...]:
    """The recaption files that were given. A folder stands for all possible recaption files in it. Raises SourceError
    for a missing one."""
    found: list[str] = []
    for path in given:
        if os.path.isdir(path):
            items = files_below(place_of(path, NO_OPTIONS), path, 3, 1000)
            visible = (item for item in items if not item.name.startswith("."))
            inside = [item.path for item in visible if item.name.lower().endswith(_RECAPTIONS)]
            if not inside:
                raise SourceError(f"the recaptions folder {shlex.quote(path)} has no {', '.join(_RECAPTIONS)} file")
            found += sorted(inside)
        elif os.path.isfile(path):
            found.append(path)
        else:
            raise SourceError(f"the recaptions file {shlex.quote(path)} is not there")
    return tuple(found)


def _describe(place: Place, items: list[Item]) -> str:
    if not items:
        return "an empty folder"
    names = [item.name for item in items]
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    raw = next((item for item in items if item.name == "raw" and item.is_folder), None)
    return shown + (f" (raw/ is {_describe(place, place.entries(raw.path))})" if raw else "")


def _choose_listing(
    place: Place,
    top: Iterable[Item],
    raw_root: str,
    wanted: str | bool | None,
    note: Callable[[str, str], None],
    *,
    read: bool,
) -> tuple[str, ...]:
    """The files of the listing, none if there is none. ``wanted``: a named listing; False: read none. ``read``: False
    if recaptions decide what is listed. Listings that are not read are noted. Raises ListingError, SourceError."""
    if isinstance(wanted, str):
        if not read:
            raise OptionError("listing", wanted, "recaptions replace the listing. Give one of the two")
        return _named(place, wanted)
    items = list(top)
    candidates = [item for item in items if is_listing_name(item.name)]
    if not candidates and raw_root != place.root:
        inside = place.entries(raw_root)
        items += inside
        candidates = [item for item in inside if not item.is_folder and is_listing_name(item.name)]
    candidates.sort(key=lambda item: listing_rank(item.name))
    if not read or wanted is False:
        for item in candidates:
            note(FILE if wanted is False else LISTING, item.path)
        return ()
    for item in items:
        if kind_of(item.name) == UNFINISHED and item.name.lstrip(".").lower().startswith("data."):
            whole = item.name.rpartition(".")[0]
            control = item.name.endswith((".aria2", ".st")) and any(whole == each.name for each in candidates)
            if control or not candidates:
                raise ListingError(item.path, "the listing", _WAIT)
    for item in candidates[1:]:
        note(LISTING, item.path)
    return _files_of(place, candidates[0]) if candidates else ()


def _refuse_unnamed(candidates: list[Item]) -> None:
    """Raise SourceError if there is no data.json and a file that looks like the listing has another name."""
    if candidates:
        path = shlex.quote(candidates[0].path)
        raise SourceError(
            f"{path} looks like the listing of this source, but its name is not data.json. Give --listing {path} to "
            "read it, or --no-listing to take every annotation as a sample."
        )


def _named(place: Place, path: str) -> tuple[str, ...]:
    if is_url(path):
        return (path,)
    path = os.path.expanduser(path)
    if not os.path.exists(path):
        raise SourceError(f"the listing {shlex.quote(path)} is not there")
    return _files_of(place, Item(os.path.basename(path), path, os.path.isdir(path)))


def _files_of(place: Place, item: Item) -> tuple[str, ...]:
    if not item.is_folder:
        place.looked_at(item)  # a dangling link is not the same as no listing
        return (item.path,)
    inside = [each for each in place.entries(item.path) if not is_companion(each.name)]
    if unfinished := [each for each in inside if kind_of(each.name) == UNFINISHED]:
        raise ListingError(unfinished[0].path, "the listing", _WAIT)
    files = [each for each in inside if may_be_listing(each.name) and not each.is_folder]
    if not files:
        raise LayoutError(item.path, "a folder without *.json files", _HINT)
    for each in files:
        place.looked_at(each)
    return tuple(each.path for each in files)
