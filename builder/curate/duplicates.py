"""duplicates: find images that occur twice, as the same bytes or the same picture, and note which one to keep.

    images → fingerprints → near pairs → in doubt: pixels → groups → columns phash, duplicate_of

No row is deleted: ``select --unique`` leaves the duplicates out. Fingerprints stay in .laion6m/duplicates, so another
distance needs no second reading.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from builder.base import schema
from builder.base.arrays import number_array
from builder.base.errors import InterruptedRunError, OptionError, OutputError, SourceError
from builder.base.paths import StrPath
from builder.base.words import counted
from builder.curate.add_column import dataset_folder
from builder.curate.columns import begin_job, write_column
from builder.curate.fingerprints import UNREAD, Part, Table, digests_of, parts_of, read_parts, write_part
from builder.curate.near import MOST_DISTANCE, same_pictures
from builder.curate.pairs import equal_rows, groups_of, joined, leaders, mirrored_from
from builder.curate.split import DUPLICATE_OF, MADE, PHASH, found_by_duplicates
from builder.engines.contract import Engine, EngineChoice, Work
from builder.engines.local import make_engine
from builder.engines.progress import Progress
from builder.read.columns import index_digest
from builder.read.index import Index
from builder.read.opening import open_dataset
from builder.store.ledger import Ledger
from builder.store.output import make_folder

_VERSION = 1  # of the fingerprints: other versions are not continued


@dataclass(frozen=True, slots=True)
class DuplicatesSummary:
    """What was found. ``fingerprinted``: rows whose image decodes. ``exact``: rows with the same bytes as an earlier
    row. ``groups``: of two rows or more. ``duplicates``: rows in groups besides those to keep. ``mirrored``: of these,
    how many show the kept picture mirrored left to right."""

    out: str
    rows: int
    fingerprinted: int
    exact: int
    groups: int
    duplicates: int
    mirrored: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        facts = {**asdict(self), "seconds": round(self.seconds, 3)}
        del facts["out"]
        return facts


def duplicates(
    path: StrPath,
    *,
    distance: int = 10,
    num_proc: int | None = None,
    engine: str = "local",
    address: str | None = None,
    quiet: bool = False,
) -> DuplicatesSummary:
    """Write the columns ``phash`` and ``duplicate_of`` of a converted folder or an index. Continues an earlier run that
    stopped.

    Two rows are duplicates if their images have the same bytes or show the same picture: resized, recompressed,
    brightened, cropped by about 5 % or mirrored. ``distance``: how many of 64 bits may differ between them, 0 to 16. A
    smaller distance makes all tests stricter. A duplicate of a duplicate is in the same group. Of a group, the image
    with the most pixels is kept; of equal ones, the first row. ``duplicate_of`` is the key of the kept row. It is null
    in the kept row and in rows without duplicates. Pictures with too little content (one colour, a gradient) are
    duplicates only by their bytes.

    Raises OptionError, SourceError, OutputError (a column of that name and another kind exists), LockedError,
    DamagedFileError, InterruptedRunError.
    """
    started = time.monotonic()
    if isinstance(distance, bool) or not isinstance(distance, int) or not 0 <= distance <= MOST_DISTANCE:
        raise OptionError("distance", distance, f"give a whole number of bits, 0 to {MOST_DISTANCE}")
    choice = EngineChoice(engine, num_proc, address)
    folder = dataset_folder(path, "duplicates")
    _refuse_other_columns(folder)
    work = os.path.join(folder, schema.WORK, "duplicates")
    with Ledger(work).locked(0, 1):
        index = Index(os.path.join(folder, schema.INDEX), folder)
        with make_engine(choice) as crew:
            prints, digests = _fingerprints(folder, work, index, crew, quiet)
            exact = equal_rows(digests["high"], digests["low"])

            def run(stage: str, unit: str, task: Work[Any, Any], tasks: Sequence[Any], count: int) -> list[Any]:
                with Progress(stage, count, unit=unit, quiet=quiet) as progress:
                    return list(crew.run(task, tasks, progress.update))

            near = same_pictures(folder, prints, exact, distance, os.path.join(work, "compared.npy"), run)
        pairs = joined([exact, *near])
        pixels = index.column("width").astype(np.int64) * index.column("height")
        kept = leaders([groups_of(len(index), pairs)], pixels)
        dropped = kept != np.arange(len(index))
        unread = prints["state"] == UNREAD
        write_column(folder, PHASH, number_array(prints["words"][:, 0], unread), replace=True)
        keys = index.table(["key"]).column(0).take(number_array(kept, ~dropped))
        write_column(folder, DUPLICATE_OF, keys, replace=True)
    return DuplicatesSummary(
        out=folder,
        rows=len(index),
        fingerprinted=int((~unread).sum()),
        exact=len(exact),
        groups=len(np.unique(kept[dropped])),
        duplicates=int(dropped.sum()),
        mirrored=int(mirrored_from(kept, pairs).sum()),
        seconds=time.monotonic() - started,
    )


def describe_duplicates(summary: DuplicatesSummary, given: StrPath) -> str:
    """The summary in words. ``given``: the dataset's path as the user gave it."""
    lines = [
        f"{counted(summary.duplicates, 'duplicate')} among {counted(summary.rows, 'row')}, in "
        f"{counted(summary.groups, 'group')}: {summary.exact:,} by their bytes, {summary.mirrored:,} mirrored"
    ]
    if unread := summary.rows - summary.fingerprinted:
        images = counted(unread, "image does", "images do")
        lines.append(f"{images} not decode and have no {PHASH} (laion6m verify --decode names them)")
    lines.append(f"columns {PHASH} and {DUPLICATE_OF} are written; no row was deleted")
    lines.append(f"next: laion6m select {shlex.quote(os.fspath(given))} UNIQUE --unique")
    return "\n".join(lines)


def _fingerprints(folder: str, work: str, index: Index, crew: Engine, quiet: bool) -> tuple[Table, Table]:
    """FINGERPRINT and DIGEST of every row. Raises InterruptedRunError; finished parts stay in ``work``."""
    known = digests_of(index)
    kept = os.path.join(work, "parts")
    job = {"version": _VERSION, "index": index_digest(folder)}
    begin_job(os.path.join(work, "job.json"), job, lambda _: shutil.rmtree(kept, ignore_errors=True))
    parts = parts_of(folder, kept, len(index), known is None)
    make_folder(kept)
    pending = [part for part in parts if not part.is_done()]
    sizes = index.column("size")
    size = sum(int(sizes[part.first : part.end].sum()) for part in pending)
    done = len(index) - sum(part.end - part.first for part in pending)
    try:
        with Progress("fingerprinting", len(index), size, done=done, quiet=quiet) as progress:
            for _ in crew.run(write_part, pending, progress.update):
                pass
    except KeyboardInterrupt:
        raise InterruptedRunError(sum(map(Part.is_done, parts)), len(parts)) from None
    prints, made = read_parts(parts)
    return prints, made if known is None else known


def _refuse_other_columns(folder: str) -> None:
    """Raise OutputError if a column of the user has one of the names: it would be overwritten."""
    reader = open_dataset(folder).reader
    try:
        for name in MADE:
            if name in reader.added_columns():
                found_by_duplicates(reader, name)
    except SourceError as error:
        raise OutputError(str(error)) from None
