"""Find the shards of a folder that has no index of ours."""

from __future__ import annotations

import json
import os
import re
import shlex
import warnings
from collections import Counter

from builder.base import schema
from builder.base.errors import DamagedFileError, SourceError, refuse_denied
from builder.base.words import counted, problem_of

_SPLIT_FILE = re.compile(r"(\w+(?:\.\w+)*)-\d{5,}-of-(\d{5,})")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Words that ``datasets`` reads as a split in names of files and folders."""


def data_files(folder: str) -> list[str] | None:
    """Shards below a folder, or None if there are none.

    * ``save_to_disk`` wrote the folder: the files that it names, in its order.
    * The folder has data/: the files below it.
    * Otherwise: all files below the folder, except meta/ and hidden folders.

    Found files are sorted by path. If they belong to several splits, and train is one of them, only train is taken.
    Warns of splits that are left out. Warns of missing shards if the names of the others say that there are more.
    Raises SourceError, DamagedFileError.
    """
    if os.path.exists(os.path.join(folder, "dataset_dict.json")):  # DatasetDict.save_to_disk
        splits = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
        raise SourceError(f"{shlex.quote(folder)} holds several splits. Open one of them: {', '.join(splits)}")
    saved = _saved_files(folder)  # map and shuffle cache other files beside these
    if saved is not None:
        return saved
    files = _of_one_split(folder, _found_files(folder))
    _warn_of_missing(folder, files)
    return files or None


def _saved_files(folder: str) -> list[str] | None:
    """The files that ``Dataset.save_to_disk`` listed, in its order. None if it did not write this folder. Raises
    DamagedFileError."""
    state = os.path.join(folder, "state.json")
    if not os.path.exists(state):
        return None
    try:
        with open(state, "rb") as file:
            document = json.load(file)
        if "_data_files" not in document:
            return None  # another tool's file
        names = [str(each["filename"]) for each in document["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        refuse_denied(state, error)
        raise DamagedFileError(state, "JSON", problem_of(error)) from None
    if any(os.path.isabs(name) or ".." in name.split("/") for name in names):
        raise DamagedFileError(state, "_data_files", "it names a file outside of its folder")
    return [os.path.join(folder, *name.split("/")) for name in names]


def _found_files(folder: str) -> list[str]:
    """All .parquet and .arrow files, except those that ``datasets`` cached."""
    top = os.path.join(folder, schema.DATA)
    found: list[str] = []
    seen: set[str] = set()
    for where, folders, names in os.walk(top if os.path.isdir(top) else folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:  # a link to a folder above, or a second link to the same folder
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != schema.META)
        shards = (name for name in names if name.endswith((".parquet", ".arrow")))
        found += [os.path.join(where, name) for name in shards if not schema.CACHE_OF_DATASETS.fullmatch(name)]
    return sorted(found)


def _of_one_split(folder: str, files: list[str]) -> list[str]:
    """The files of train, if there are several splits and train is one of them: rows of test must not be mixed in.
    Otherwise all files."""
    splits: dict[str, list[str]] = {}
    for path in files:
        splits.setdefault(_split_of(os.path.relpath(path, folder)), []).append(path)
    if len(splits) < 2 or schema.SPLIT not in splits:
        return files
    others = ", ".join(sorted(name or "files of no split" for name in splits if name != schema.SPLIT))
    place = shlex.quote(folder)
    warnings.warn(f"{place}: only its split {schema.SPLIT} is read, not {others}. Open these by name", stacklevel=4)
    return splits[schema.SPLIT]


def _split_of(path: str) -> str:
    """The split of a file, or "" if nothing tells. It comes from the first word of the file's name, from a folder on
    its path, or from a name as ``push_to_hub`` gives (train-00000-of-00002.parquet)."""
    *folders, name = path.split(os.sep)
    for word in (re.split(r"[-_. ]", name)[0], *reversed(folders)):
        if split := _SPLITS.get(word.lower()):
            return split
    match = _SPLIT_FILE.match(name)
    return match[1] if match else ""


def _warn_of_missing(folder: str, files: list[str]) -> None:
    places = ((os.path.dirname(path), _SPLIT_FILE.match(os.path.basename(path))) for path in files)
    there = Counter((os.path.join(where, match[1]), match[2]) for where, match in places if match)
    missing = {names: int(names[1]) - count for names, count in there.items() if count < int(names[1])}
    if missing:
        (first, total), _ = next(iter(missing.items()))
        gone = counted(sum(missing.values()), "shard is", "shards are")
        warnings.warn(
            f"{shlex.quote(folder)}: {gone} missing, and so are their rows: one of {first}-…-of-{total}, for example",
            stacklevel=4,
        )
