"""Which files of a source are its listing: data.json, another form of it, a folder of lists, or one that was named."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable

from builder.base.errors import LayoutError, ListingError, OptionError, SourceError
from builder.base.urls import is_url
from builder.source.endings import (
    FILE,
    LISTING,
    UNFINISHED,
    is_companion,
    is_listing_name,
    kind_of,
    listing_rank,
    may_be_listing,
)
from builder.source.places import Item, Place

_HINT = "A listing is a JSON list, JSON lines, CSV or TSV (.gz, .zst, .bz2, .xz too), or a folder of them."
_WAIT = "its download has not finished. Wait for it, fetch it again, or give --no-listing to take every annotation."


def choose_listing(
    place: Place,
    top: Iterable[Item],
    raw_root: str,
    wanted: str | bool | None,
    note: Callable[[str, str], None],
    *,
    read: bool,
) -> tuple[str, ...]:
    """The files of the listing, none where there is none. ``wanted``: one that was named; False: read none. ``read``:
    False where recaptions say what is listed. What is there and not read is noted. Raises ListingError, SourceError."""
    if isinstance(wanted, str):
        if not read:
            raise OptionError("listing", wanted, "the recaptions say what is listed: give one of the two")
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


def refuse_unnamed(candidates: list[Item]) -> None:
    """Raises SourceError where there is no data.json, and a file that looks like the listing has another name."""
    if candidates:
        path = shlex.quote(candidates[0].path)
        raise SourceError(
            f"{path} looks like the listing of this source, which is looked for as data.json. Give --listing {path}, "
            "or --no-listing to take every annotation as a sample."
        )


def _named(place: Place, path: str) -> tuple[str, ...]:
    path = path if is_url(path) else os.path.expanduser(path)
    if is_url(path):
        return (path,)
    if not os.path.exists(path):
        raise SourceError(f"{shlex.quote(path)}, given as listing, is not there")
    return _files_of(place, Item(os.path.basename(path), path, os.path.isdir(path)))


def _files_of(place: Place, item: Item) -> tuple[str, ...]:
    if not item.is_folder:
        place.looked_at(item)  # a link to nowhere is not the same as no listing
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
