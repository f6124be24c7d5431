"""Recognise which of the layouts a source behind a URL has: the same ones, but for folders of extracted files."""

from __future__ import annotations

from builder.base import schema
from builder.base.errors import LayoutError, SourceError
from builder.base.storage import Entry, Storage
from builder.base.urls import StorageOptions, join
from builder.source.layout import EXPECTED, TAR_ENDINGS, Archive, Layout
from builder.source.layouts import check_recaptions


def recognise_url(url: str, recaptions: tuple[str, ...], options: StorageOptions) -> Layout:
    """Raises LayoutError, SourceError."""
    storage, url = Storage(options), url.rstrip("/")
    top = {entry.name: entry for entry in storage.entries(url)}
    if not top:
        raise SourceError(f"{url} is not there, or is empty. {EXPECTED}")
    if schema.META in top and schema.DATA in top and "raw" not in top:
        raise LayoutError(url, "a converted folder (it has meta/ and data/)", "Give the folder it was made from.")
    raw_root = join(url, "raw") if "raw" in top else url
    raw = _tars(storage, raw_root, options)
    if not raw:
        names = ", ".join(sorted(top)[:6]) + (f" and {len(top) - 6} more" if len(top) > 6 else "")
        hint = f"{EXPECTED} Behind a URL only tars are read: millions of single files would be a request each."
        raise LayoutError(url, names, hint)
    captions_root = join(url, "captions")
    captions = _tars(storage, captions_root, options) if "captions" in top and not recaptions else ()
    check_recaptions(recaptions)
    listing = _listing(storage, url, top) if not recaptions else ()
    kind = "img2dataset" if recaptions or raw_root == url else "card" if captions else "openuni"
    root = captions_root if captions else raw_root
    return Layout(kind, url, raw_root, root, raw, captions, listing, recaptions, options)


def _tars(storage: Storage, root: str, options: StorageOptions) -> tuple[Archive, ...]:
    """Tars that lie in a folder, by name."""
    found = []
    for entry in storage.entries(root):
        if entry.name.startswith(".") or entry.is_folder or not entry.name.lower().endswith(TAR_ENDINGS):
            continue
        place = join(root, entry.name)
        if entry.size is None:  # a listing in HTML, which has names alone
            entry = storage.look(place)
        if entry.size is None:
            raise SourceError(f"{place}: the server does not say how long it is. Download it first.")
        found.append(Archive(entry.name, place, False, entry.size, entry.version, options))
    return tuple(sorted(found, key=lambda archive: archive.name.encode()))


def _listing(storage: Storage, url: str, top: dict[str, Entry]) -> tuple[str, ...]:
    entry = top.get("data.json")
    if entry is None:
        return ()
    place = join(url, "data.json")
    if not entry.is_folder:
        return (place,)
    names = sorted(each.name for each in storage.entries(place) if each.name.endswith(".json"))
    if not names:
        raise LayoutError(place, "a folder without *.json files", "A listing is a JSON list, or a folder of them.")
    return tuple(join(place, name) for name in names)
