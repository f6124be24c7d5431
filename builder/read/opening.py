"""open_dataset(PATH): whatever holds rows becomes a Reader, or a View of one."""

from __future__ import annotations

import os
import shlex
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, get_args

import numpy as np

from builder.base import schema
from builder.base.errors import DamagedFileError, OptionError, SourceError
from builder.base.names import SELECTION
from builder.base.options import parse_size
from builder.base.paths import StrPath, not_there, path_of, path_or_none, require_folder, size_of
from builder.base.records import Step
from builder.base.urls import is_url
from builder.base.words import counted
from builder.read.handles import Handles
from builder.read.local_cache import DEFAULT_BYTES, LocalCache
from builder.read.reader import Reader
from builder.read.view import Rows, View
from builder.store.pushed import PushRecords

Missing = Literal["warn", "drop", "ignore"]
"""What to do if files are missing: warn, leave their rows out, or nothing."""


def open_dataset(
    path: StrPath | Sequence[StrPath],
    source: StrPath | None = None,
    storage_options: Mapping[str, Any] | None = None,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    missing: Missing = "warn",
    cache_dir: StrPath | None = None,
    cache_bytes: int | str | None = None,
) -> Rows:
    """Open a dataset as a Reader; a selection, or a dataset opened with ``missing="drop"``, as a View.

    ``path`` is one of:

    * a converted folder, or a folder that ``laion6m index`` made;
    * a source that has an index in its meta/;
    * a selection;
    * a folder of Parquet or Arrow files with a column of images, one such file, or a list of them;
    * a URL that fsspec knows (``hf://datasets/user/repo``, ``s3://…``, ``https://…``) of a folder with an index. The
      index is fetched once. Then each sample is one range request.

    Options:

    * ``source``: where the indexed files are now. Give it if the source was moved after it was indexed.
    * ``storage_options``: passed to fsspec.
    * ``image_column``, ``caption_column``: the columns to use, for files without an index. ``caption_column`` may be
      ``column.field``, a field of a struct. A UserWarning says when you need to give them.
    * ``missing``: what to do if files of the folder are missing. "warn" says how many. "drop" leaves their rows out (a
      View). "ignore" does neither.
    * ``cache_dir``: a folder on this machine, for a URL. It keeps the images that were read. All processes that name
      the folder share it.
    * ``cache_bytes``: the most that ``cache_dir`` holds, such as "500GB". The default is 100 GB.

    Raises SourceError, DamagedFileError, IndexMismatchError, OptionError.
    """
    if missing not in get_args(Missing):
        raise OptionError("missing", missing, f"give one of {', '.join(get_args(Missing))}")
    if not isinstance(path, str | os.PathLike):
        folder, files = _named_files(path)
    elif is_url(folder := path_of(path)):
        from builder.read.remote import RemoteStorage, fetch_index, pinned  # with fsspec

        _refuse_columns(folder, image_column=image_column, caption_column=caption_column)
        storage = RemoteStorage(storage_options, _cache(cache_dir, cache_bytes))
        place = pinned(folder, storage)
        if not is_url(place):
            return open_dataset(place, source, missing=missing)
        try:
            return Reader(fetch_index(place, storage), place, path_or_none(source), storage)
        except SourceError:
            from builder.curate.selection import fetch_selection

            if selection := fetch_selection(place, storage):
                return open_dataset(selection, source, storage_options, missing=missing)
            raise
    elif os.path.isfile(folder):
        folder, files = _named_files([folder])
    else:
        folder = os.path.abspath(folder)  # a reader outlives a change of the working directory
        moved = None if source is None else os.path.abspath(path_of(source))
        if os.path.exists(os.path.join(folder, *SELECTION.split("/"))):
            from builder.curate.selection import open_selection

            _refuse_columns(folder, image_column=image_column, caption_column=caption_column)
            return open_selection(folder, moved, storage_options, missing, cache_dir, cache_bytes)
        if cache_dir is not None:
            raise OptionError("cache_dir", path_of(cache_dir), "only for URLs, not for a folder of this machine")
        index = os.path.join(folder, *schema.INDEX.split("/"))
        if os.path.exists(index):
            _refuse_columns(folder, image_column=image_column, caption_column=caption_column)
            reader = Reader(index, folder, moved)
            if missing == "warn":
                warn_of_missing(reader, stacklevel=3)
            return without_missing(reader) if missing == "drop" else reader
        require_folder(path_of(path))  # as it was given
        from builder.read.data_files import data_files

        folder = os.path.realpath(folder)
        found = data_files(folder)
        if found is None:
            at = shlex.quote(folder)
            raise SourceError(f"{at} has no {schema.INDEX}: convert it, or make one with laion6m index {at}")
        files = found
    from builder.read.foreign import index_files  # with pyarrow.parquet: 10 MB that a reader has no use for
    from builder.read.image_columns import warn_of_guesses

    if files:
        warn_of_guesses(files[0], image_column, caption_column)  # before the indexing, which may be slow
    return Reader(index_files(folder, files, image_column, caption_column), folder)


def _cache(folder: StrPath | None, most: int | str | None) -> LocalCache | None:
    """Raises OptionError."""
    if folder is None:
        if most is not None:
            raise OptionError("cache_bytes", most, "give a cache_dir too")
        return None
    return LocalCache(
        os.path.abspath(path_of(folder)), DEFAULT_BYTES if most is None else parse_size(most, "cache_bytes")
    )


def _named_files(paths: Sequence[StrPath]) -> tuple[str, list[str]]:
    """The folder that holds all the named files, and their paths. Raises SourceError, OptionError."""
    if not paths:
        raise OptionError("path", [], "give at least one file")
    endings = (".parquet", ".arrow")
    files = []
    for path in map(path_of, paths):
        if is_url(path):
            raise SourceError(
                f"{shlex.quote(path)}: a list may only name files of this machine. Open the URL of a folder instead."
            )
        place = os.path.realpath(path)
        if not os.path.exists(place):
            raise SourceError(not_there(path))
        if os.path.isdir(place):
            raise SourceError(f"{shlex.quote(path)} is a folder, and a list names files. Open each folder by itself.")
        if not place.endswith(endings):
            raise SourceError(f"{shlex.quote(path)} is neither a folder nor a {' or '.join(endings)} file")
        files.append(place)
    return os.path.commonpath([os.path.dirname(file) for file in files]), files


def _refuse_columns(folder: str, **named: str | None) -> None:
    """Refuse column options for a dataset with an index: the index has fixed the columns. Raises OptionError."""
    for option, column in named.items():
        if column is not None:
            raise OptionError(option, column, f"leave it out: the index of {shlex.quote(folder)} names the columns")


def warn_of_missing(reader: Reader, stacklevel: int) -> None:
    """Warn how many of a dataset's files are missing. Lists each folder once and opens no file."""
    missing = missing_files(reader._files)
    if not missing:
        return
    folder, files = reader.folder, reader.shards
    first = os.path.join(reader._files.root, files[missing[0]].path)
    text = f"{shlex.quote(folder)} lacks {len(missing):,} of its {counted(len(files), 'file')}, "
    text += f"such as {shlex.quote(first)}. "
    marks = PushRecords(folder).marks()
    if away := [marks[files[number].path].url for number in missing if files[number].path in marks]:
        text += f"{counted(len(away), 'file was', 'files were')} removed once {away[0]} had them: "
        text += f"open_dataset({away[0]!r}) reads all rows. "
    text += "Reading one of their rows is an error. "
    if len(away) < len(missing):
        text += f"laion6m info {shlex.quote(folder)} names the files to fetch. "
    warnings.warn(f'{text}To leave these rows out: open_dataset(…, missing="drop")', stacklevel=stacklevel)


def without_missing(rows: Rows) -> View:
    """The rows whose files are here and have the indexed size."""
    reader = rows.reader
    gone = missing_files(reader._files, cut=True)
    index = reader._index
    here = ~np.isin(index.column("file"), gone) & ~np.isin(index.column("annotation_file"), gone)
    numbers = np.asarray(rows.rows, dtype=np.int64)
    kept = numbers[here[numbers]]
    return View(reader, kept, (*rows.steps, Step("files are here", len(kept))))


def missing_files(files: Handles, *, cut: bool = False) -> Sequence[int]:
    """Numbers of the indexed files that are missing. With ``cut``, also of those with another size. Files behind a
    URL are not looked for."""
    if files.is_remote:
        return []
    listed: defaultdict[str, set[str]] = defaultdict(set)
    gone = []
    for number, file in enumerate(files.files):
        try:
            where, name = os.path.split(files.path(number))
        except DamagedFileError:
            continue  # reading a row of it raises the error
        if where not in listed:
            with suppress(OSError):  # reading a row of it raises the error
                listed[where].update(files.storage.names(where))
        size = file.check.get("size")
        if name not in listed[where] or (cut and size not in (None, size_of(os.path.join(where, name)))):
            gone.append(number)
    return gone
