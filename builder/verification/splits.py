"""Count the rows that Spark would miss. Only the first version's folders have any: they list ``key`` before
``image``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import closing, suppress

from builder.base.errors import DamagedFileError, SourceError
from builder.base.words import counted
from builder.source.files import LocalFile
from builder.store.footers import missed_by_splits


def splits_note(out: str, shards: Iterable[str]) -> str | None:
    """A sentence on the rows that readers built on parquet-java would miss; None if they miss none.

    ``shards``: paths of Parquet shards, relative to OUT. Reads only footers. Skips files that it cannot read: other
    checks report those.
    """
    missed = total = 0
    for name in shards:
        with suppress(OSError, SourceError, DamagedFileError):
            with closing(LocalFile(os.path.join(out, *name.split("/")))) as file:
                counts = missed_by_splits(file)
            missed, total = missed + counts[0], total + counts[1]
    if not missed:
        return None
    return (
        f"Spark, Hive, Flink and other readers built on parquet-java would leave out {missed:,} of "
        f"{counted(total, 'row')} without an error: an early version of this tool listed the columns in "
        "another order. The rows are sound, and all other readers see them. To mend it, convert again into another OUT."
    )
