"""A selection on disk: which rows of which dataset, and how they were chosen. It copies no image.

SUB/meta/selection.json   the dataset and its identity, the steps of choosing, a checksum over all of it
SUB/meta/rows.arrow       the rows: one bit per row of the dataset, or row numbers if their order differs
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from builder.base.arrays import number_array, numbers_of, to_ipc
from builder.base.errors import DamagedFileError, IndexMismatchError, OutputError, SourceError, WriteError
from builder.base.names import ROWS, SELECTION
from builder.base.paths import StrPath
from builder.base.records import Step
from builder.base.urls import is_url
from builder.base.words import problem_of
from builder.read.columns import index_digest
from builder.read.opening import Missing, open_dataset, without_missing
from builder.read.reader import Reader
from builder.read.view import Rows, View
from builder.store.output import write_file
from builder.store.seals import file_digest, seal, unseal

if TYPE_CHECKING:
    from builder.read.remote import RemoteStorage  # with fsspec, which local reading does not need

VERSION = 1


@dataclass(frozen=True, slots=True)
class Selection:
    """The content of selection.json. ``dataset``: its path relative to the selection's folder, or a URL. ``beside``:
    its absolute path when the selection was made, in case the selection was moved alone."""

    dataset: str
    beside: str
    identity: str
    of: int
    rows: int
    steps: tuple[Step, ...]
    digest: str  # xxh3-128 of rows.arrow

    def to_json(self) -> bytes:
        return seal({"version": VERSION, **asdict(self)})

    @staticmethod
    def from_json(text: bytes) -> Selection:
        """Parse selection.json. Raises KeyError, TypeError, ValueError."""
        document = unseal(text)
        if (version := document.pop("version")) != VERSION:
            raise ValueError(f"its version is {version}; this tool reads {VERSION}")
        steps = tuple(Step(str(step["condition"]), int(step["rows"])) for step in document.pop("steps"))
        return Selection(**document, steps=steps)


def is_selection(folder: str) -> bool:
    return os.path.exists(os.path.join(folder, SELECTION))


def save(rows: Rows, folder: str | os.PathLike[str]) -> None:
    """Write the rows as a selection. Raises OutputError, WriteError."""
    save_all({"": rows}, os.path.abspath(os.path.expanduser(os.fspath(folder))))


def save_all(parts: Mapping[str, Rows], out: str) -> None:
    """Write a selection OUT/NAME for each name, or OUT itself for "". All appear at once, or none does. Raises
    OutputError, WriteError."""
    check_free(out)
    work = f"{out.rstrip(os.sep)}.{os.getpid()}.tmp"
    try:
        for name, rows in parts.items():
            _write(rows, os.path.join(out, name), os.path.join(work, name))
        os.rename(work, out)
    except OSError as error:
        raise WriteError(out, error.strerror) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(rows: Rows, out: str, work: str) -> None:
    """Write one selection. ``out``: its final folder; ``work``: the folder where it is written."""
    reader = rows.reader
    steps = rows.steps
    if not steps or steps[-1].rows != len(rows):
        steps = (*steps, Step("rows by their numbers", len(rows)))
    digest = write_file(os.path.join(work, ROWS), [_packed(rows, len(reader))])
    at = reader.folder
    dataset = at if is_url(at) else os.path.relpath(os.path.realpath(at), os.path.realpath(out)).replace(os.sep, "/")
    made = Selection(dataset, at, identity_of(reader), len(reader), len(rows), steps, digest)
    write_file(os.path.join(work, SELECTION), [made.to_json()])


def check_free(out: str) -> None:
    """Raise OutputError if ``out`` exists, unless it is an empty folder."""
    if os.path.lexists(out) and (not os.path.isdir(out) or os.listdir(out)):
        raise OutputError(f"{shlex.quote(out)} is there already. Choose another OUT, or remove it.")


def identity_of(reader: Reader) -> str:
    """A text that changes when the dataset's rows change: the checksum of its index. For a folder without an index: of
    its files' names, sizes and footers."""
    _, root, _, storage = reader.__getstate__()
    try:
        return f"index {index_digest(root, storage)}"
    except (DamagedFileError, FileNotFoundError):
        return f"files {reader.identity}"


def read_selection(folder: str) -> Selection:
    """Read selection.json. Raises DamagedFileError, SourceError."""
    path = os.path.join(folder, SELECTION)
    try:
        with open(path, "rb") as file:
            return Selection.from_json(file.read())
    except OSError as error:
        raise SourceError(f"{shlex.quote(path)}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(path, "selection", problem_of(error)) from None


def open_selection(
    folder: str,
    source: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    missing: Missing = "warn",
    cache_dir: StrPath | None = None,
    cache_bytes: int | str | None = None,
) -> View:
    """The rows of a selection, as ``open_dataset`` returns them. The other arguments are for its dataset. Raises
    SourceError (the dataset is missing), IndexMismatchError (it is another dataset), DamagedFileError."""
    selection = read_selection(folder)
    place = dataset_of(folder, selection)
    if is_selection(place):
        raise DamagedFileError(os.path.join(folder, SELECTION), "dataset", "it names another selection")
    reader = open_dataset(
        place, source, storage_options, missing=missing, cache_dir=cache_dir, cache_bytes=cache_bytes
    ).reader
    found = identity_of(reader)
    if found != selection.identity or len(reader) != selection.of:
        raise IndexMismatchError(
            reader.folder, f"{shlex.quote(folder)} selects rows of an earlier version; select again"
        )
    view = View(reader, _unpacked(os.path.join(folder, ROWS), selection), selection.steps)
    return without_missing(view) if missing == "drop" else view


def fetch_selection(url: str, storage: RemoteStorage) -> str | None:
    """A local copy of the selection behind a URL; None if there is none. Raises SourceError."""
    try:
        document, rows = storage.fetch(url, SELECTION), storage.fetch(url, ROWS)
    except FileNotFoundError:
        return None
    folder = f"{os.path.splitext(document)[0]}-selection"
    for name, file in ((ROWS, rows), (SELECTION, document)):
        with open(file, "rb") as copy:
            write_file(os.path.join(folder, name), [copy.read()])
    return folder


def dataset_of(folder: str, selection: Selection) -> str:
    """Where the selection's dataset is: beside it, or at its old place. Raises SourceError."""
    if is_url(selection.dataset):
        return selection.dataset
    if not selection.dataset:
        at = shlex.quote(folder)
        raise SourceError(f"{at} does not name its dataset: it was pushed before the dataset was. Push it again.")
    near = os.path.normpath(os.path.join(os.path.realpath(folder), *selection.dataset.split("/")))
    for place in (near, selection.beside):
        if os.path.isdir(place):
            return place
    raise SourceError(
        f"{shlex.quote(folder)} is a selection of {shlex.quote(near)}, which is missing. Put the dataset back, or "
        "select again from its new place."
    )


def _packed(rows: Rows, of: int) -> memoryview:
    """The row numbers as an Arrow IPC stream. Ascending numbers become bits: millions take a few hundred kB."""
    numbers = np.asarray(rows.rows, dtype=np.int64)
    if len(numbers) < 2 or (numbers[1:] > numbers[:-1]).all():
        bits = np.zeros(of, dtype=np.bool_)
        bits[numbers] = True
        name, values = "bits", np.packbits(bits, bitorder="little")
    else:
        name, values = "numbers", numbers.astype(np.uint32 if of < 1 << 32 else np.uint64)
    return memoryview(to_ipc(pa.Table.from_arrays([number_array(values)], names=[name])))


def _unpacked(path: str, selection: Selection) -> npt.NDArray[np.int64]:
    try:
        if file_digest(path) != selection.digest:
            raise DamagedFileError(path, "checksum", f"not the one in {SELECTION}")
        with open(path, "rb") as file:
            table = pa.ipc.open_stream(file.read()).read_all()
        values = numbers_of(table.column(0))
        if table.column_names == ["bits"]:
            bits = np.unpackbits(values.astype(np.uint8, copy=False), bitorder="little", count=selection.of)
            values = np.flatnonzero(bits.view(np.bool_))
    except OSError as error:
        raise SourceError(f"{shlex.quote(path)}: {error.strerror}") from error
    except (pa.ArrowException, ValueError, IndexError) as error:
        raise DamagedFileError(path, "rows", str(error)) from None
    numbers = values.astype(np.int64, copy=False)
    if len(numbers) != selection.rows or (len(numbers) and not 0 <= numbers.min() <= numbers.max() < selection.of):
        raise DamagedFileError(path, "rows", f"not {selection.rows:,} row numbers below {selection.of:,}")
    return numbers
