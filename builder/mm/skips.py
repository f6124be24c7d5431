"""Samples that cannot be used: the errors that name them, and how many may be skipped."""

from __future__ import annotations

import pickle
import warnings

from builder.base.errors import Laion6mError, MissingExtraError, OptionError
from builder.base.options import check_number
from builder.mm.transforms import BAD_IMAGE, UnusableImageError


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


CONFIGURATION = (OptionError, MissingExtraError)
"""The dataset was made wrongly: no other sample would do."""

OWN_WORDS = (*CONFIGURATION, SampleError, TooManyBadSamplesError)

BAD_SAMPLE = (*BAD_IMAGE, KeyError, RuntimeError, AssertionError, pickle.UnpicklingError, Laion6mError)
"""What a damaged or missing file raises on its way to a tensor (RuntimeError: torch's and OpenCV's; AssertionError: the
checks of subclasses written for upstream). Anything else is a mistake in the program and passes through."""

SKIPS_ALLOWED = 20
"""Skips before their share is looked at: the share of a handful says nothing."""


def problem_of(error: Exception) -> str:
    """An error in words: a KeyError's own are only the key."""
    return f"no field {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__


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
