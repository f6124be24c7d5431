"""A dataset's rows in the form of upstream's lists, and the JSON lists that upstream's configs name."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from builder.base.errors import ListingError
from builder.base.schema import INDEX
from builder.read.sample import Sample
from builder.read.view import Rows
from builder.source.captions import json_kind


class RowPath(str):
    """A path with the number of its row. Upstream's methods pass only paths to each other. A listing may pair files of
    different names, so an annotation's path alone does not give its row."""

    __slots__ = ("row", "sample")
    row: int
    sample: Sample | None
    """The row itself, if its image has been read already. It is not pickled."""

    def __new__(cls, path: str, row: int, sample: Sample | None = None) -> RowPath:
        self = super().__new__(cls, path)
        self.row, self.sample = row, sample
        return self

    def __reduce__(self) -> tuple[type[RowPath], tuple[str, int]]:
        return RowPath, (str(self), self.row)


class Entries(Sequence[dict[str, str]]):
    """A dataset's rows as in data.json: ``{"image": …, "annotation": …}``. Each entry is made when you ask for it."""

    def __init__(self, source: Rows) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> dict[str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, str]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, str] | list[dict[str, str]]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(index)
        return _entry(self._source[row], row)

    def fetch(self, rows: Sequence[int]) -> list[dict[str, str]]:
        """Entries of these rows (numbers ≥ 0). Their images are read now, together."""
        samples = self._source[list(rows)]
        return [_entry(sample, row, sample) for sample, row in zip(samples, rows, strict=True)]

    def announce(self, rows: Sequence[int]) -> None:
        """Say that ``fetch`` will soon ask for these rows."""
        self._source.announce(rows)

    def __iter__(self) -> Iterator[dict[str, str]]:
        return (self[row] for row in range(len(self)))


def _entry(sample: Sample, row: int, read: Sample | None = None) -> dict[str, str]:
    return {"image": RowPath(sample.path, row, read), "annotation": RowPath(sample.annotation_path, row, read)}


def find_image(source: Rows, path: str) -> Sample:
    """The sample whose image has this path. Raises FileNotFoundError.

    A key is the path without its extension. If two paths differ only in the extension, the key keeps it.
    """
    if isinstance(path, RowPath):
        return path.sample or source[path.row]
    plain = path.removeprefix("./")
    folder, slash, name = plain.rpartition("/")
    stem, dot, _ = name.rpartition(".")
    for key in (folder + slash + stem if dot and stem else plain, plain):
        try:
            sample = source.find(key)
        except KeyError:
            continue
        if sample.path.removeprefix("./") == plain:
            return sample
    raise FileNotFoundError(f"no sample has the image {shlex.quote(path)}")


def find_annotation(source: Rows, path: str) -> Sample:
    """The sample whose annotation has this path. Raises FileNotFoundError.

    A path of :class:`Entries` has its row. For any other path, the image with the same key is looked up.
    """
    if isinstance(path, RowPath):
        return path.sample or source[path.row]
    try:
        sample = source.find(path.removeprefix("./").removesuffix(".json"))
    except KeyError:
        raise FileNotFoundError(f"no sample has the annotation {shlex.quote(path)}") from None
    if sample.annotation_path.removeprefix("./") != path.removeprefix("./"):
        own, image = shlex.quote(path), shlex.quote(sample.path)
        raise FileNotFoundError(f"{own} is not the annotation of {image}. Take the paths from data_list")
    return sample


def read_lists(path: Path) -> list[dict[str, Any]]:
    """The entries of a JSON list file, or of all ``*.json`` files of a folder in order of name. Raises ListingError."""
    entries: list[dict[str, Any]] = []
    for file in [path] if path.suffix == ".json" else sorted(path.glob("*.json")):
        try:
            listed = json.loads(file.read_bytes())
        except OSError as error:
            raise ListingError(str(file), "cannot be read", error.strerror) from error
        except ValueError as error:
            raise ListingError(str(file), "not JSON", error) from error
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            raise ListingError(str(file), "not a list of objects", 'expected [{"image": …, "annotation": …}, …]')
        entries += listed
    return entries


_OF_DATASETS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""Files that ``datasets`` writes beside its data. They are not lists."""


def is_list(path: Path) -> bool:
    """Whether ``path`` is a JSON list for upstream: a .json file, or a folder with .json files and no index of ours.
    Files in ``_OF_DATASETS`` do not count."""
    if path.suffix == ".json":
        return True
    if not path.is_dir() or (path / INDEX).exists():
        return False
    return any(file.name not in _OF_DATASETS for file in path.glob("*.json"))


def path_in(entry: Mapping[str, Any], name: str) -> str:
    """The path in field ``name`` of a list's entry. Raises KeyError, ValueError."""
    path = entry[name]
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"{name} is {json_kind(path)}, not a path")
    return path  # type: ignore[return-value]  # a subclass's pathlib.Path goes through as it did


def parse_document(text: str | bytes, annotation_file: str) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError for anything else."""
    file = shlex.quote(str(annotation_file))  # a subclass's pathlib.Path, too
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:  # raised again as the same type, with the file's name
        problem = f"{file} is not JSON: {error.msg}"
        raise json.JSONDecodeError(problem, error.doc, error.pos) from None
    if not isinstance(document, dict):
        raise ValueError(f"{file} is {json_kind(document)}, not a JSON object")
    return document
