"""What the training side asks of whoever holds the samples, and the lists of them that upstream's configs name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from builder.base.errors import Laion6mError, ListingError, OptionError
from builder.base.options import check_number
from builder.mm.transforms import UnusableImageError


class SampleError(Laion6mError):
    """A sample cannot be used for training. Args: data path, index (None where only a subclass knows it), image path,
    problem."""

    def _words(self) -> str:
        data_path, index, image, problem = self.args
        which = "a sample" if index is None else f"sample {index} ({image})"
        return f"{data_path}: {which}: {problem}"


class TooManyBadSamplesError(Laion6mError):
    """More samples were skipped than allowed. Args: data path, {problem: count}, samples tried, share allowed."""

    def _words(self) -> str:
        data_path, skipped, tried, share = self.args
        counts = ", ".join(f"{problem}: {count}" for problem, count in sorted(skipped.items()))
        return (
            f"{data_path}: {sum(skipped.values())} of {tried} samples could not be used ({counts}), "
            f"more than max_skip_ratio={share}. on_error='raise' names the first."
        )


def problem_of(error: Exception) -> str:
    """An error in words: a KeyError's own are only the key."""
    return f"no field {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__


SKIPS_ALLOWED = 20
"""Skips before their share is looked at: the share of a handful says nothing."""


class Skips:
    """What one process skipped: warns at the first of each kind, counts the others, and refuses too many."""

    def __init__(self, data_path: str, max_ratio: float) -> None:
        check_number("max_skip_ratio", max_ratio, "0 to 1")
        if not 0 <= max_ratio <= 1:
            raise OptionError("max_skip_ratio", max_ratio, "0 to 1")
        self.data_path = data_path
        self.max_ratio = max_ratio
        self.counts: dict[str, int] = {}
        self.tried = 0

    def add(self, bad: SampleError, cause: Exception) -> None:
        """Raises TooManyBadSamplesError where the share passes ``max_ratio``."""
        self.tried += 1
        self.note(bad, cause)
        total = sum(self.counts.values())
        if total > SKIPS_ALLOWED and total > self.max_ratio * self.tried:
            raise self.too_many() from cause

    def note(self, bad: SampleError, cause: Exception) -> None:
        """Warns at the first of a kind, and counts."""
        kind = str(cause.args[0]) if isinstance(cause, UnusableImageError) else type(cause).__name__
        if kind not in self.counts:
            warnings.warn(f"skipped {bad}; others of this kind ({kind}) are only counted", stacklevel=5)
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def too_many(self) -> TooManyBadSamplesError:
        return TooManyBadSamplesError(self.data_path, self.counts, self.tried, self.max_ratio)


class Sample(Protocol):
    """One row. ``image`` (the file's bytes) and ``annotation`` (the JSON document's text) are read when asked for."""

    @property
    def row(self) -> int: ...
    @property
    def key(self) -> str: ...
    @property
    def path(self) -> str:
        """The image's path as data.json has it, extension included."""

    @property
    def annotation_path(self) -> str: ...
    @property
    def image(self) -> bytes: ...
    @property
    def caption(self) -> str: ...
    @property
    def width(self) -> int:
        """Pixels, as stored: no EXIF turn."""

    @property
    def height(self) -> int: ...
    @property
    def annotation(self) -> str: ...


class SampleSource(Protocol):
    """Random access to samples: deterministic, picklable, fork- and thread-safe."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Sample:
        """Raises IndexError outside of ``range(-len, len)``."""

    def find(self, key: str, /) -> Sample:
        """The sample of this key. Raises KeyError."""

    def widths(self) -> NDArray[np.int32]:
        """Of all rows, pixels; no image is opened."""

    def heights(self) -> NDArray[np.int32]: ...


class RowPath(str):
    """A path that knows which row it belongs to: upstream's methods pass nothing but paths from hand to hand, and an
    annotation's path says nothing about its row where a listing pairs files of different names."""

    __slots__ = ("row",)
    row: int

    def __new__(cls, path: str, row: int) -> RowPath:
        self = super().__new__(cls, path)
        self.row = row
        return self

    def __reduce__(self) -> tuple[type[RowPath], tuple[str, int]]:
        return RowPath, (str(self), self.row)


class Entries(Sequence[dict[str, str]]):
    """A dataset's rows as data.json has them, ``{"image": …, "annotation": …}``, made one by one when asked for."""

    def __init__(self, source: SampleSource) -> None:
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
        sample = self._source[row]
        return {"image": RowPath(sample.path, row), "annotation": RowPath(sample.annotation_path, row)}

    def __iter__(self) -> Iterator[dict[str, str]]:
        return (self[row] for row in range(len(self)))


def find_image(source: SampleSource, path: str) -> Sample:
    """The sample whose image has this path. Raises FileNotFoundError.

    A key is the path without its extension, or with it where two images differ in nothing else.
    """
    if isinstance(path, RowPath):
        return source[path.row]
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
    raise FileNotFoundError(f"no sample has the image {path}")


def find_annotation(source: SampleSource, path: str) -> Sample:
    """The sample whose annotation has this path: known for the paths of :class:`Entries`, else looked for under the
    image key of the same name. Raises FileNotFoundError."""
    if isinstance(path, RowPath):
        return source[path.row]
    try:
        sample = source.find(path.removeprefix("./").removesuffix(".json"))
    except KeyError:
        raise FileNotFoundError(f"no sample has the annotation {path}") from None
    if sample.annotation_path.removeprefix("./") != path.removeprefix("./"):
        raise FileNotFoundError(f"{path} is not the annotation of {sample.path}; take the paths from data_list")
    return sample


def read_lists(path: Path) -> list[dict[str, Any]]:
    """The entries of a JSON list file, or of all ``*.json`` in a folder, by name. Raises ListingError."""
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
