"""Find the archives of raw/ and captions/, and count everything else in a source by kind."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

from builder.base.errors import LayoutError
from builder.base.names import DATA, META, WORK
from builder.base.urls import StorageOptions, join
from builder.source.endings import (
    ARCHIVE,
    EXTRACTED,
    FILE,
    FOLDER,
    HIDDEN,
    IMAGE_ENDINGS,
    LISTING,
    SPLIT_PART,
    TROUBLE,
    UNFINISHED,
    WAYS_OUT,
    is_companion,
    is_tar,
    kind_of,
    kind_of_content,
    may_be_listing,
    without_ending,
)
from builder.source.layout import EXPECTED, Archive, Unread
from builder.source.places import Item, Place, files_below

_PEEK = 64
"""Entries of a folder that are looked at to see what it holds. An extracted source has thousands of folders, each
with a thousand files."""
_DEEPEST = 6  # levels of folders searched for tars
_FAR_FOLDERS = 64  # folders searched behind a URL: each is a request
_PROSE = ("readme", "license", "licence", "notice", "changelog", "authors", "citation", "about")
_CONTROL = (".aria2", ".st")  # files that a downloader keeps beside its unfinished file
_HUB_CACHE = ".cache/huggingface/download"
_HEADS = 64  # files of unknown kind whose first bytes are read
_KNOWN = (
    *(".md", ".txt", ".json", ".jsonl", ".csv", ".tsv", ".log"),
    *(".py", ".sh", ".yaml", ".yml", ".html", ".pdf", ".ipynb"),
)


class Looking:
    """Looks through a source and counts what is not read."""

    def __init__(self, place: Place, storage: StorageOptions) -> None:
        self.place, self._storage = place, storage
        self.candidates: list[Item] = []  # files that look like listings but have another name than data.json
        self._unread: dict[str, Unread] = {}  # by kind
        self._folders_left = _FAR_FOLDERS
        self._heads_left = _HEADS

    def unread(self) -> tuple[Unread, ...]:
        """The counts, by kind."""
        return tuple(self._unread[kind] for kind in sorted(self._unread))

    def note(self, kind: str, path: str) -> None:
        """Count a file or folder that is not read."""
        shown = path[len(self.place.root) :].lstrip("/") if path.startswith(self.place.root) else path
        self._add(Unread(kind, 1, os.fsencode(shown).decode("utf-8", "backslashreplace")))

    def _add(self, more: Unread) -> None:
        known = self._unread.get(more.kind)
        self._unread[more.kind] = replace(known, count=known.count + more.count) if known else more

    def archives(self, root: str, endings: tuple[str, ...], items: Sequence[Item] | None = None) -> tuple[Archive, ...]:
        """The archives of a side, by name: tars, also in subfolders, and folders of files with one of these
        ``endings``. A folder or single files beside a tar of their name came out of it: the tar is used. Without tars,
        single files are an archive, except in ``items``: the top entries of a source without raw/."""
        top = items is not None
        found = self._archives(self.place.entries(root) if items is None else items, endings, "", root, top=top)
        return tuple(sorted(found, key=lambda archive: os.fsencode(archive.name)))

    def _archives(
        self, items: Sequence[Item], endings: tuple[str, ...], prefix: str, root: str, *, top: bool = False
    ) -> list[Archive]:
        tars = [i for i in items if not i.is_folder and is_tar(i.name) and not i.name.startswith(".")]
        there = {item.name for item in items}
        stems = {without_ending(item.name) for item in tars}
        found = [self._tar(item, prefix, there) for item in tars]
        for item in items:
            if item.is_folder:
                if item.name.startswith(".") or is_companion(item.name):
                    self.note(HIDDEN, item.path)
                elif item.name in stems:
                    self.note(EXTRACTED, item.path)
                else:
                    found += self._folder(item, endings, prefix, top=top)
        tar_names = {item.name for item in tars}
        loose = [item for item in items if not item.is_folder and item.name not in tar_names]
        if not (tars or prefix or top) and any(_wanted(item, endings) for item in loose):
            found.append(Archive("", root, True, 0, 0))
            loose = [item for item in loose if kind_of(item.name) in TROUBLE]
        for item in loose:
            self.note_file(item)
        return found

    def _tar(self, item: Item, prefix: str, there: set[str]) -> Archive:
        unfinished = any(item.name + ending in there for ending in _CONTROL)
        item = self.place.looked_at(item)
        size, version = item.size or 0, item.version or 0
        return Archive(prefix + item.name, item.path, False, size, version, self._storage, unfinished)

    def _folder(self, item: Item, endings: tuple[str, ...], prefix: str, *, top: bool = False) -> list[Archive]:
        """The archives that a folder is or contains; counted as unread if none."""
        far = self.place.remote
        unread = ARCHIVE if far else FOLDER
        if far:
            self._folders_left -= 1
        if prefix.count("/") >= _DEEPEST or (far and self._folders_left < 0):
            self.note(unread, item.path)
            return []
        inside = self.place.entries(item.path, _PEEK)
        if _is_ours(inside):
            self.note(FOLDER, item.path)
            return []
        version = 0 if far else self.place.looked_at(item).version or 0
        whole = Archive(prefix + item.name, item.path, True, 0, version, self._storage)
        if any(_wanted(each, endings) for each in inside):
            pairs = any(_wanted(each, IMAGE_ENDINGS) for each in inside) and any(
                each.name.lower().endswith((".json", ".txt")) for each in inside
            )
            if far or (top and not pairs):
                self.note(unread, item.path)
                return []
            return [whole]
        if top and any(each.is_folder and each.name == "raw" for each in inside):
            self.note_folder(item)  # another source
            return []
        if len(inside) == _PEEK:
            inside = self.place.entries(item.path)
        below = Looking(self.place, self._storage)
        below._folders_left = self._folders_left
        found = below._archives(inside, endings, f"{prefix}{item.name}/", item.path, top=top)
        self._folders_left = below._folders_left
        if found and all(archive.is_folder for archive in found):
            return [whole]  # nested folders of files: one walk reads all
        for each in below.unread():
            if found or each.kind in TROUBLE:
                self._add(each)
        if not found and not any(each.kind in TROUBLE for each in below.unread()):
            self.note(FOLDER, item.path)
        return found

    def note_file(self, item: Item) -> None:
        """Count a file by its name; if the name tells nothing, by its first bytes."""
        kind = kind_of(item.name)
        lower = item.name.lower()
        if kind == FILE and may_be_listing(item.name) and looks_like_listing(self._head(item, 4096)):
            kind = LISTING
            self.candidates.append(item)
        elif kind == FILE and not lower.endswith(_KNOWN) and not lower.startswith(_PROSE):
            kind = kind_of_content(self._head(item, 512))
        self.note(kind, item.path)

    def _head(self, item: Item, length: int) -> bytes:
        self._heads_left -= 1
        return self.place.head(item, length) if self._heads_left >= 0 and not self.place.remote else b""

    def note_folder(self, item: Item) -> None:
        """Count a folder that is no part of a source. Archives in it are counted one by one."""
        ours = not self.place.remote and _is_ours(self.place.entries(item.path, _PEEK))
        files = [] if ours else files_below(self.place, item.path, 3, 200)
        troubles = [each for each in files if kind_of(each.name) in TROUBLE]
        for each in troubles:
            self.note(kind_of(each.name), each.path)
        if not troubles:
            self.note(FOLDER, item.path)

    def note_rest(self, top: Iterable[Item], read: set[str]) -> None:
        """Count what lies in SOURCE besides raw/, captions/ and what this tool made. ``read``: paths that are read."""
        for item in top:
            if item.path in read or item.name in (META, DATA, WORK):
                continue
            if item.is_folder and (item.name.startswith(".") or is_companion(item.name)):
                self.note(HIDDEN, item.path)
            elif item.is_folder:
                self.note_folder(item)
            else:
                self.note_file(item)

    def note_hub_cache(self) -> None:
        """Count unfinished downloads of huggingface_hub in this folder."""
        cache = join(self.place.root, _HUB_CACHE)
        if not self.place.remote and os.path.isdir(cache):
            for item in files_below(self.place, cache, 3, 200):
                if kind_of(item.name) == UNFINISHED:
                    self.note(UNFINISHED, item.path)

    def refuse_unreadable(self, path: str) -> None:
        """Raise LayoutError if a source has archives, but only of kinds that are not read."""
        for kind in (ARCHIVE, SPLIT_PART, UNFINISHED):
            unread = self._unread.get(kind)
            if unread and not is_tar(unread.example):
                found = f"{unread.count:,} × {kind}, such as {unread.example}"
                raise LayoutError(path, found, f"{WAYS_OUT[kind]} {EXPECTED}")


def looks_like_listing(head: bytes) -> bool:
    """Whether a file with this beginning lists images and captions."""
    first = head.split(b"\n", 1)[0].lower()
    if first.lstrip().startswith((b"[", b"{")):
        text = head.lower()
        image = any(f'"{name}"'.encode() in text for name in ("image", "file_name", "image_path"))
        caption = any(
            f'"{name}"'.encode() in text for name in ("annotation", "caption", "re_caption", "conversations", "text")
        )
        return image and caption
    fields = first.replace(b"\t", b",").replace(b'"', b"").split(b",")
    return bool({b"image", b"file_name", b"image_path", b"path"} & set(fields)) and any(b"caption" in f for f in fields)


def _is_ours(inside: Iterable[Item]) -> bool:
    """Whether this tool made the folder. Its tars are then rows of a source, not a part of one."""
    names = {item.name for item in inside}
    return WORK in names or {META, DATA} <= names


def _wanted(item: Item, endings: tuple[str, ...]) -> bool:
    lower = item.name.lower()
    return not (item.is_folder or is_companion(item.name)) and lower.endswith(endings) and not lower.startswith(_PROSE)
