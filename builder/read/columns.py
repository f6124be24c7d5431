"""Added columns: one value or one array for each row, in separate Parquet files.

    OUT/columns/NAME/train-00000-of-00016.parquet     key, and NAME: a number, boolean, string, list of strings, or an
                                                      array as struct<data: binary, dtype: string, shape: list<int32>>
    OUT/meta/columns/NAME.arrow                       memory-mapped: every row's value, or where its array lies
    OUT/meta/columns/NAME.json                        file → xxh3-128, hex, of all of these

The files have the same rows and shards as the images (for an index over tars: one shard for each raw tar).
"""

from __future__ import annotations

import json
import math
import re
import shlex
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from builder.base import schema
from builder.base.arrays import text_fits
from builder.base.errors import DamagedFileError, IndexMismatchError, OptionError, SourceError, refuse_denied
from builder.base.schema import INDEX_BATCH_ROWS, IndexedFile
from builder.base.urls import join
from builder.base.words import problem_of
from builder.read.handles import LocalStorage, Storage
from builder.read.local_cache import handles_of
from builder.store.manifest import read_manifest
from builder.store.seals import seal, unseal

COLUMN_VERSION = 1
COLUMN_ROW = pa.schema(
    [
        ("offset", pa.int64()),  # of the array's first byte in its file
        ("size", pa.int64()),  # bytes
        ("dtype", pa.string()),  # dtype and shape are null if the row has no array
        ("shape", pa.list_(pa.int32())),
    ]
)
"""One row of a column's index. Row i lies in batch i // INDEX_BATCH_ROWS."""

DTYPES = {
    "bool": 1, "uint8": 1, "int8": 1, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "uint16": 2, "int16": 2, "float16": 2, "bfloat16": 2,
    "uint32": 4, "int32": 4, "float32": 4, "uint64": 8, "int64": 8, "float64": 8,
}  # fmt: skip
"""The dtypes of arrays, by torch's names, and their bytes per item."""


@dataclass(frozen=True, slots=True)
class Array:
    """An array as bytes: little-endian, C order. ``dtype`` is one of DTYPES. Raises ValueError if bytes, dtype and
    shape do not agree."""

    data: bytes = field(repr=False)
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"a column cannot hold arrays of {self.dtype}. It can hold: {', '.join(DTYPES)}")
        if min(self.shape, default=0) < 0 or len(self.data) != math.prod(self.shape) * DTYPES[self.dtype]:
            raise ValueError(f"{len(self.data)} bytes do not make a {self.dtype} array of shape {self.shape}")


@dataclass(frozen=True, slots=True)
class ColumnHeader:
    """``index``: xxh3-128 (hex) of the dataset's index when the column was made. ``files``: in row order."""

    name: str
    rows: int
    index: str
    files: tuple[IndexedFile, ...]

    def to_json(self) -> bytes:
        return json.dumps({"version": COLUMN_VERSION, **asdict(self)}).encode()

    @staticmethod
    def from_json(text: bytes) -> ColumnHeader:
        """Parse what ``to_json`` writes. Raises KeyError, TypeError or ValueError for anything else."""
        document = schema.json_object(text)
        if document["version"] != COLUMN_VERSION:
            raise ValueError(f"it has version {document['version']}, this tool reads version {COLUMN_VERSION}")
        files = tuple(IndexedFile(f["path"], f["kind"], int(f["rows"]), dict(f["check"])) for f in document["files"])
        if (rows := sum(file.rows for file in files)) != document["rows"]:
            raise ValueError(f"its files have {rows} rows, it has {document['rows']}")
        return ColumnHeader(str(document["name"]), int(document["rows"]), str(document["index"]), files)


class Column(Sequence["Array | None"]):
    """Random access to the arrays of a column. A row without an array gives None. :func:`open_any` makes it.
    Deterministic, picklable (as paths), safe after fork, thread-safe."""

    def __init__(self, path: str, reader: Any, header: ColumnHeader, root: str, storage: Storage | None) -> None:
        """``path``: the index on this machine; ``reader`` reads it. ``root``: the folder that holds ``meta``."""
        self.path, self._reader, self.header, self.root, self._storage = path, reader, header, root, storage
        self.name = header.name
        self._ends = list(accumulate(file.rows for file in header.files))
        self._files = handles_of(root, header.files, storage)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_any, (self.root, self.name, self._storage)

    def __len__(self) -> int:
        return self.header.rows

    def __getitem__(self, row: int) -> Array | None:  # type: ignore[override]
        """The array of ``row`` (0 ≤ row < len), or None. Raises IndexError, DamagedFileError, IndexMismatchError."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        batch = self._reader.get_batch(row // INDEX_BATCH_ROWS)
        at = row % INDEX_BATCH_ROWS
        offset, size, dtype, shape = (column[at].as_py() for column in batch.columns)
        if dtype is None and size == 0:
            return None
        data = self._files.read(bisect_right(self._ends, row), offset, size)
        try:
            return Array(data, dtype, tuple(shape))
        except (TypeError, ValueError) as error:
            raise DamagedFileError(self.path, f"row {row}", error) from None


class Values:
    """A column of numbers, booleans, strings or lists of strings, memory-mapped. :func:`open_any` makes it.
    Thread-safe, picklable (as paths)."""

    def __init__(self, path: str, reader: Any, header: ColumnHeader, root: str, storage: Storage | None) -> None:
        """Arguments as for :class:`Column`. Raises DamagedFileError."""
        self.path, self.header = path, header
        self._state = (root, header.name, storage)
        batches = []
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            expected = min(INDEX_BATCH_ROWS, header.rows - number * INDEX_BATCH_ROWS)
            if batch.num_rows != expected or not _sound(batch.column(0)):
                raise DamagedFileError(self.path, f"batch {number}", "its buffers do not fit its rows")
            batches.append(batch.column(0))
        self.column: pa.ChunkedArray = pa.chunked_array(batches, type=reader.schema.types[0])
        self._batches = batches

    def __reduce__(self) -> tuple[Any, ...]:
        return open_any, self._state

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, row: int) -> Any:
        """The value of ``row`` (0 ≤ row < len). None for null."""
        return self._batches[row // INDEX_BATCH_ROWS][row % INDEX_BATCH_ROWS].as_py()


class ArraysOf(Sequence["Array | None"]):
    """The arrays of some rows of a column, in their order."""

    def __init__(self, column: Column, rows: range | npt.NDArray[np.int64]) -> None:
        self._column, self._rows = column, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Array | None:  # type: ignore[override]
        return self._column[int(self._rows[row])]


def open_any(root: str, name: str, storage: Storage | None = None) -> Column | Values:
    """The column ``name``, of either kind. ``root``: the folder that holds ``meta``. Raises SourceError,
    DamagedFileError, and IndexMismatchError if the column was made for another index than the dataset's."""
    path = column_index(root, name)
    try:
        path = (storage or LocalStorage()).fetch(root, f"{_FOLDER}/{name}.arrow")
        reader = pa.ipc.open_file(pa.memory_map(path))
        header = ColumnHeader.from_json((reader.schema.metadata or {})[schema.INDEX_METADATA_KEY])
    except FileNotFoundError:
        there = ", ".join(columns_of(root, storage=storage)) or "none"
        problem = f"{shlex.quote(root)} has no column {name}. It has: {there}. To make one: laion6m add-column"
        raise SourceError(problem) from None
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        refuse_denied(path, error)
        raise DamagedFileError(path, "header", f"not the index of a column: {problem_of(error)}") from None
    table = reader.schema.remove_metadata()
    arrays = table.equals(COLUMN_ROW)
    known = arrays or (table.names == [name] and is_column_type(table.types[0]))
    if not known or reader.num_record_batches != -(-header.rows // INDEX_BATCH_ROWS):
        raise DamagedFileError(path, "schema", "not the index of a column, or cut short")
    if header.index != index_digest(root, storage):
        raise IndexMismatchError(path, "the dataset was converted or indexed again since this column was made")
    return (Column if arrays else Values)(path, reader, header, root, storage)


def is_column_type(kind: pa.DataType) -> bool:
    """Whether a column can hold values of this type: booleans, integers, float32, float64, strings, lists of strings
    (32-bit offsets)."""
    plain = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or kind in (pa.float32(), pa.float64(), pa.string())
    return bool(plain or kind == pa.list_(pa.string()))


def _sound(values: pa.Array) -> bool:
    """Whether a batch's buffers hold all its rows. Arrow trusts offsets, so a wrong one would crash the process."""
    try:
        values.validate()
    except pa.ArrowException:
        return False
    if pa.types.is_list(values.type):
        return text_fits(values, len(values.values)) and _sound(values.values)
    return not pa.types.is_string(values.type) or text_fits(values)


def check_name(name: str) -> str:
    """Raises OptionError if ``name`` cannot be a column. A column's name is also a folder and a Parquet field."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", name) or name.lower() in TAKEN:
        raise OptionError("column", name, f"up to 100 letters, digits and underscores, and none of {', '.join(TAKEN)}")
    return name


TAKEN = (*schema.ROW.names, "path", "size", "position", "digest", "annotation_path")
"""Names that every dataset uses already. SQL ignores case, so any case of them is taken."""


_FOLDER = f"{schema.META}/columns"


def column_index(root: str, name: str) -> str:
    return join(root, f"{_FOLDER}/{name}.arrow")


def column_checksums(root: str, name: str) -> str:
    """The path of the JSON file with the checksums of a column's files."""
    return join(root, f"{_FOLDER}/{name}.json")


def read_checksums(root: str, name: str) -> dict[str, str]:
    """File of the column → its xxh3-128, hex. Raises DamagedFileError if they are missing or not as written,
    AccessError."""
    path = column_checksums(root, name)
    try:
        with open(path, "rb") as file:
            text = file.read()
        digests = unseal(text)
        if text != seal(digests):
            raise ValueError("this tool did not write it in this form")
    except (OSError, ValueError) as error:
        refuse_denied(path, error)
        raise DamagedFileError(path, "checksums", str(error)) from error
    return digests


def columns_of(root: str, ending: str = ".arrow", storage: Storage | None = None) -> list[str]:
    """Names of the added columns. With ``ending=".json"``, of the columns that have checksums."""
    names = (storage or LocalStorage()).names(join(root, _FOLDER))
    return sorted(name.removesuffix(ending) for name in names if name.endswith(ending))


def index_digest(root: str, storage: Storage | None = None) -> str:
    """xxh3-128 (hex) of the dataset's index, from its manifest. Raises DamagedFileError, SourceError. Raises
    FileNotFoundError if a URL has no manifest."""
    manifest = read_manifest(root, (storage or LocalStorage()).fetch(root, schema.MANIFEST))
    entry: dict[str, Any] = manifest.files.get(schema.INDEX, {})
    return str(entry.get("xxh3_128"))
