"""Counts of lost samples, collected from the processes that ``datasets`` starts."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from builder.base.words import counted

_log = logging.getLogger(__name__)


class Tally:
    """Adds up the counts of the units. Picklable: a copy keeps the folder's path.

    While :meth:`collected` is open, each unit writes its counts into its own file in a folder, as it may run in another
    process. Outside of it (in streaming) nobody knows which unit is the last. There, the running total is logged each
    time it has doubled.
    """

    def __init__(self) -> None:
        self._folder: str | None = None
        self._total: Counter[str] = Counter()
        self._said = 0

    def add(self, rejected: Counter[str]) -> None:
        if not rejected:
            return
        if self._folder is not None:
            handle, _ = tempfile.mkstemp(dir=self._folder)
            with os.fdopen(handle, "w") as file:
                json.dump(rejected, file)
            return
        self._total.update(rejected)
        if self._total.total() >= 2 * self._said:
            self._said = self._total.total()
            _log.warning("%s", in_words(self._total, None))

    @contextmanager
    def collected(self) -> Iterator[Counter[str]]:
        """Yield a counter. It is complete when the block has ended without an error."""
        rejected: Counter[str] = Counter()
        with tempfile.TemporaryDirectory(prefix="laion6m-") as folder:
            self._folder = folder
            try:
                yield rejected
            finally:
                self._folder = None
            for name in os.listdir(folder):
                with open(os.path.join(folder, name)) as file:
                    rejected.update(json.load(file))


def in_words(rejected: Counter[str], listed: int | None) -> str:
    """One line of text: how many samples are left out, and why."""
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(rejected.items()))
    lost = rejected.total()
    what = counted(lost, "sample is", "samples are") if listed is None else f"{lost:,} of {listed:,} listed samples are"
    return f"{what} left out: {reasons}. laion6m convert lists each with its reason."
