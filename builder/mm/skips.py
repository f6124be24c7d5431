"""Samples that cannot be used: their errors, and the limit on skipping them."""

from __future__ import annotations

import pickle
import shlex
import warnings

from PIL import UnidentifiedImageError

from builder.base.errors import Laion6mError, MissingExtraError, OptionError
from builder.base.options import check_number
from builder.mm.transforms import BAD_IMAGE, UnusableImageError


class SampleError(Laion6mError):
    """A sample cannot be used for training. Args: data path, index (None if only a subclass knows it), image path (""
    if the entry has none), problem."""

    def _words(self) -> str:
        data_path, index, image, problem = self.args
        path = shlex.quote(image) if image else "no image path"
        which = "a sample" if index is None else f"sample {index} ({path})"
        return f"{shlex.quote(data_path)}: {which}: {problem}"


class TooManyBadSamplesError(Laion6mError):
    """More samples were skipped than allowed. Args: data path, {problem: count}, samples tried, share allowed."""

    def _words(self) -> str:
        data_path, skipped, tried, share = self.args
        counts = ", ".join(f"{problem}: {count}" for problem, count in sorted(skipped.items()))
        return (
            f"{shlex.quote(data_path)}: {sum(skipped.values())} of {tried} samples could not be used ({counts}), more "
            f"than max_skip_ratio={share} allows. To see what is wrong with the first, give on_error='raise'."
        )


CONFIGURATION = (OptionError, MissingExtraError)
"""Errors of the dataset's options. Every sample would fail, so none is skipped."""

COMPLETE = (*CONFIGURATION, SampleError, TooManyBadSamplesError)
"""Errors whose message says everything. They are not wrapped in another SampleError."""

BAD_SAMPLE = (*BAD_IMAGE, KeyError, RuntimeError, AssertionError, pickle.UnpicklingError, Laion6mError)
"""Errors that a damaged or missing file can raise while it becomes a tensor. RuntimeError comes from torch and OpenCV,
AssertionError from checks in subclasses written for upstream. Any other error is a mistake in the program and is not
caught."""

SKIPS_ALLOWED = 20
"""So many skips are always allowed. The share of skips among a few samples means nothing."""


def problem_of(error: Exception) -> str:
    """An error in words. A KeyError's own text is only the key. Pillow's text for an unknown format shows an object."""
    if isinstance(error, KeyError) and error.args:
        return f"no field {error.args[0]}"
    if isinstance(error, UnidentifiedImageError):
        return "Pillow cannot identify the image's format"
    return str(error) or type(error).__name__


class Skips:
    """The samples that one process skipped. Warns at the first of each kind, counts the rest, raises if too many."""

    def __init__(self, data_path: str, max_ratio: float) -> None:
        check_number("max_skip_ratio", max_ratio, "give a number from 0 to 1")
        if not 0 <= max_ratio <= 1:
            raise OptionError("max_skip_ratio", max_ratio, "give a number from 0 to 1")
        self.data_path = data_path
        self.max_ratio = max_ratio
        self.counts: dict[str, int] = {}
        self.tried = 0

    def add(self, bad: SampleError, cause: Exception) -> None:
        """Count a skipped sample. Raises TooManyBadSamplesError if the share of skips is over ``max_ratio``."""
        self.tried += 1
        self.note(bad, cause)
        total = sum(self.counts.values())
        if total > SKIPS_ALLOWED and total > self.max_ratio * self.tried:
            raise self.too_many() from cause

    def note(self, bad: SampleError, cause: Exception) -> None:
        """Count a skipped sample. Warns at the first of its kind."""
        kind = str(cause.args[0]) if isinstance(cause, UnusableImageError) else type(cause).__name__
        if kind not in self.counts:
            warnings.warn(f"skipped {bad}. Others of this kind ({kind}) are only counted.", stacklevel=5)
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def too_many(self) -> TooManyBadSamplesError:
        return TooManyBadSamplesError(self.data_path, self.counts, self.tried, self.max_ratio)
