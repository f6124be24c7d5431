"""What ``data_dir`` is: a source, a converted folder, or nothing, which means the Hub. Also, what identifies it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError

from builder.base import schema
from builder.base.errors import HubError, LayoutError, OptionError, SourceError
from builder.base.names import SELECTION
from builder.base.options import ConvertOptions, SamplePolicy
from builder.base.paths import path_of
from builder.base.storage import state_of
from builder.base.urls import NO_OPTIONS, StorageOptions, is_url
from builder.base.words import counted
from builder.plan.identity import describe_source
from builder.read.index import Index
from builder.read.opening import open_dataset
from builder.read.view import Rows
from builder.source.layout import Archive, Layout
from builder.source.layouts import recognise
from builder.store.manifest import read_manifest

DEFAULT_FOLDER = os.path.join("data", "laion6m")
REPOSITORY = "wusize/laion6m"


@dataclass(frozen=True, slots=True)
class LocalSource:
    """Tars or extracted files on this machine."""

    layout: Layout

    def fingerprint(self) -> dict[str, Any]:
        """Names, sizes and modification times of tars and listings. For an extracted folder, its modification time.

        That time changes when a file in the folder is added, removed or replaced. It does not change when a file is
        written in place. To look at twelve million files would take minutes at each load.
        """
        layout = self.layout
        folders = [archive for archive in (*layout.raw, *layout.captions) if archive.is_folder]
        return {
            "root": os.path.realpath(layout.root),
            "folders": [[archive.name, os.stat(archive.path).st_mtime_ns] for archive in folders],
            **describe_source(layout),
        }


@dataclass(frozen=True, slots=True)
class ConvertedFolder:
    """All shards of a folder that ``convert`` made."""

    root: str
    shards: tuple[str, ...]

    def fingerprint(self) -> dict[str, Any]:
        files = [[os.path.basename(path), *state_of(path, NO_OPTIONS)] for path in self.shards]
        return {"root": os.path.realpath(self.root), "shards": files}


@dataclass(frozen=True, slots=True)
class SelectedRows:
    """The rows of a selection, or of a folder converted to tars for webdataset."""

    rows: Rows

    def fingerprint(self) -> dict[str, Any]:
        return {"root": self.rows.folder, "rows": self.rows.identity}


@dataclass(frozen=True, slots=True)
class HubSource:
    """A dataset repository in the card layout, at one commit."""

    repository: str
    commit: str

    def fingerprint(self) -> dict[str, Any]:
        return {"repository": self.repository, "commit": self.commit}

    def layout(self, token: str | bool | None) -> Layout:
        """Its tars and its listing, as URLs. Raises LayoutError, SourceError."""
        storage = StorageOptions.of({} if token is None else {"token": token})
        return recognise(f"hf://datasets/{self.repository}@{self.commit}", storage=storage)


Source = LocalSource | ConvertedFolder | SelectedRows | HubSource
"""Where rows come from. Its ``fingerprint`` holds plain values that change whenever the rows may have changed."""


def find_source(data_dir: str | None, options: ConvertOptions, revision: str, token: str | bool | None) -> Source:
    """The source in ``data_dir``. Without one: data/laion6m if it exists, else the Hub, which is asked for the commit.
    Raises SourceError, OptionError, HubError."""
    if data_dir is None and not os.path.isdir(DEFAULT_FOLDER):
        for name, given in (("recaptions", options.recaptions), ("listing", options.listing)):
            if given not in ((), None):  # HubSource's fingerprint does not hold them
                raise OptionError(name, given, f"{REPOSITORY} is on the Hub. Download it, and give data_dir")
        return HubSource(REPOSITORY, _commit(REPOSITORY, revision, token))
    folder = path_of(data_dir) if data_dir is not None else DEFAULT_FOLDER
    if not is_url(folder):
        folder = os.path.abspath(folder)  # the working directory may change while a stream is open
    place = shlex.quote(folder)
    if not is_url(folder) and os.path.exists(os.path.join(folder, SELECTION)):
        way_out = "Leave the option out. To choose other rows, use laion6m select"
        _refuse_choices(options, f"{place} is a selection", way_out)
        return SelectedRows(open_dataset(folder))
    shards = _shards(folder)
    if shards and not os.path.isdir(os.path.join(folder, "raw")):
        default = options.policy == SamplePolicy()
        made_with = options.policy if default else SamplePolicy(**read_manifest(folder).options["policy"])
        _refuse_choices(options, f"{place} was converted", "Leave the option out, or convert again", made_with)
        if shards[0].endswith(".tar"):  # tars have no columns: their rows come through the index
            return SelectedRows(open_dataset(folder))
        return ConvertedFolder(folder, shards)
    try:
        return LocalSource(recognise(folder, options.recaptions, listing=options.listing))
    except LayoutError as error:
        raise _of_index(folder, error) from None


def downloaded(layout: Layout, download: Callable[[dict[str, list[str]]], dict[str, list[str]]]) -> Layout:
    """A layout of URLs as one of files in a cache. ``download``: lists of URLs → their paths."""
    urls = {"listing": [*layout.listing]}
    for side in ("raw", "captions"):
        urls[side] = [archive.path for archive in getattr(layout, side)]
    places = download(urls)

    def moved(side: str) -> tuple[Archive, ...]:
        made = []
        for archive, path in zip(getattr(layout, side), map(os.path.realpath, places[side]), strict=True):
            size, version = state_of(path, NO_OPTIONS)
            made.append(replace(archive, path=path, size=size, version=version, storage=NO_OPTIONS))
        return tuple(made)

    listing = tuple(places["listing"])
    return replace(layout, raw=moved("raw"), captions=moved("captions"), listing=listing, storage=NO_OPTIONS)


def _shards(folder: str) -> tuple[str, ...]:
    """The converted shards in ``folder``; empty if there are none. Raises SourceError if some are missing."""
    data = os.path.join(folder, schema.DATA)
    if not os.path.isdir(data):
        return ()
    names = sorted(filter(None, map(schema.ShardName.parse, os.listdir(data))), key=lambda name: name.number)
    if not names:
        return ()
    total = names[0].total
    if [(name.number, name.total) for name in names] != [(number, total) for number in range(total)]:
        raise SourceError(
            f"{shlex.quote(data)} holds {counted(len(names), 'shard')}, but {names[0]} is one of {total}. Run the "
            "same laion6m convert command again to make the missing shards, or restore them."
        )
    return tuple(os.path.join(folder, name.path) for name in names)


def _of_index(folder: str, error: LayoutError) -> SourceError:
    """The error for a folder that is no source. If ``laion6m index`` made the folder, it says how to open it."""
    path = os.path.join(folder, *schema.INDEX.split("/"))
    if is_url(folder) or not os.path.exists(path):
        return error
    index = Index(path, folder)
    if any(file.kind not in ("tar", "folder") for file in index.header.files):
        return error
    source = shlex.quote(index.root)
    return SourceError(
        f"{shlex.quote(folder)} is an index over {source}. Open it with builder.open_dataset, and call to_datasets() "
        f"on the result. Or load the source itself: give {source} as data_dir."
    )


def _refuse_choices(options: ConvertOptions, chosen: str, way_out: str, made_with: SamplePolicy | None = None) -> None:
    """Raises OptionError for options that choose samples: they cannot take effect, and ignoring them would mislead.
    ``chosen``: how the samples have been chosen already. ``made_with``: the options that may be given again."""
    for name in ("recaptions", "listing"):
        if given := getattr(options, name):
            raise OptionError(name, given, f"{chosen}. {way_out}")
    for name in SamplePolicy.__dataclass_fields__:
        wanted, there = getattr(options.policy, name), getattr(made_with or SamplePolicy(), name)
        if wanted != there:
            how = "without this option" if there is None else f"with {there}"
            raise OptionError(name, wanted, f"{chosen} {how}. {way_out}" if made_with else f"{chosen}. {way_out}")


def _commit(repository: str, revision: str, token: str | bool | None) -> str:
    """The commit that ``revision`` means now. Raises HubError.

    Downloads a small file to learn it: without a network, the cached copy gives the answer. Cached files lie in
    ``snapshots/COMMIT/``.
    """
    try:
        path = HfApi(token=token).hf_hub_download(repository, "README.md", repo_type="dataset", revision=revision)
    except LocalEntryNotFoundError as error:
        raise HubError(
            f"looking for {repository} on the Hub",
            str(error).split("\n")[0],
            f"The folder {DEFAULT_FOLDER} does not exist here either. Give data_dir.",
        ) from error
    return os.path.basename(os.path.dirname(path))
