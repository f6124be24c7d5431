"""Columns beside the images: one array for each row, in Parquet files of their own.

    OUT/columns/NAME/train-00000-of-00016.parquet     key, and NAME: struct<data: binary, dtype: string, shape:
                                                      list<int32>>
    OUT/meta/columns/NAME.arrow                       where every row's array lies in them, memory-mapped
    OUT/meta/columns/NAME.json                        file → xxh3-128, hex, of all of these

The files have the rows and the shards of the images' own (over an index of tars: a shard for each raw tar).
"""

from __future__ import annotations

import json
import math
import os
import re
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import pyarrow as pa

from builder.base import schema
from builder.base.errors import DamagedFileError, IndexMismatchError, OptionError, SourceError
from builder.base.schema import INDEX_BATCH_ROWS, IndexedFile
from builder.base.urls import is_url
from builder.read.handles import Handles
from builder.store.manifest import read_manifest

COLUMN_VERSION = 1
COLUMN_ROW = pa.schema(
    [
        ("offset", pa.int64()),  # of the array's first byte in its file
        ("size", pa.int64()),  # bytes
        ("dtype", pa.string()),
        ("shape", pa.list_(pa.int32())),
    ]
)
"""One row of a column's index. Row i lies in batch i // INDEX_BATCH_ROWS."""

DTYPES = {
    "bool": 1, "uint8": 1, "int8": 1, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "uint16": 2, "int16": 2, "float16": 2, "bfloat16": 2,
    "uint32": 4, "int32": 4, "float32": 4, "uint64": 8, "int64": 8, "float64": 8,
}  # fmt: skip
"""What an array can be made of, by torch's names, and the bytes of each."""


@dataclass(frozen=True, slots=True)
class Array:
    """An array as bytes: little-endian, C order. ``dtype`` is one of DTYPES. Raises ValueError where they do not
    agree."""

    data: bytes = field(repr=False)
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"arrays of {self.dtype} cannot be kept; possible are {', '.join(DTYPES)}")
        if min(self.shape, default=0) < 0 or len(self.data) != math.prod(self.shape) * DTYPES[self.dtype]:
            raise ValueError(f"{len(self.data)} bytes are no {self.dtype} array of shape {self.shape}")


@dataclass(frozen=True, slots=True)
class ColumnHeader:
    """``index``: xxh3-128 (hex) of the dataset's index that the rows were counted by; ``files`` in row order."""

    name: str
    rows: int
    index: str
    files: tuple[IndexedFile, ...]

    def to_json(self) -> bytes:
        files = [{"path": f.path, "kind": f.kind, "rows": f.rows, "check": f.check} for f in self.files]
        document = {
            "version": COLUMN_VERSION,
            "name": self.name,
            "rows": self.rows,
            "index": self.index,
            "files": files,
        }
        return json.dumps(document).encode()

    @staticmethod
    def from_json(text: bytes) -> ColumnHeader:
        """Raises KeyError, TypeError or ValueError for anything but what ``to_json`` writes."""
        document = schema.json_object(text)
        if document["version"] != COLUMN_VERSION:
            raise ValueError(f"version {document['version']}; this tool reads {COLUMN_VERSION}")
        files = tuple(IndexedFile(f["path"], f["kind"], int(f["rows"]), dict(f["check"])) for f in document["files"])
        if sum(file.rows for file in files) != document["rows"]:
            raise ValueError("its files have another number of rows than it")
        return ColumnHeader(str(document["name"]), int(document["rows"]), str(document["index"]), files)


class Column:
    """Random access to the arrays of a column. Deterministic, picklable (as paths), fork- and thread-safe."""

    def __init__(self, root: str, name: str) -> None:
        """``root``: the folder that holds ``meta``. Raises SourceError, DamagedFileError, and IndexMismatchError
        where the column was made for another index than the one that is there."""
        self.root, self.name = root, name
        self.path = column_index(root, name)
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(self.path))
            header = ColumnHeader.from_json((self._reader.schema.metadata or {})[schema.INDEX_METADATA_KEY])
        except FileNotFoundError:
            there = ", ".join(columns_of(root)) or "none"
            raise SourceError(f"{root} has no column {name} (it has: {there}); laion6m add-column makes one") from None
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise DamagedFileError(self.path, "header", f"not the index of a column: {error}") from None
        fits = self._reader.num_record_batches == -(-header.rows // INDEX_BATCH_ROWS)
        if not fits or not self._reader.schema.remove_metadata().equals(COLUMN_ROW):
            raise DamagedFileError(self.path, "schema", "not the index of a column, or cut short")
        if header.index != index_digest(root):
            raise IndexMismatchError(self.path, "the dataset was converted or indexed again since")
        self.header = header
        self._ends = list(accumulate(file.rows for file in header.files))
        self._files = Handles(root, header.files, None)

    def __getstate__(self) -> tuple[str, str]:
        return self.root, self.name

    def __setstate__(self, state: tuple[str, str]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __len__(self) -> int:
        return self.header.rows

    def __getitem__(self, row: int) -> Array:
        """Raises IndexError, DamagedFileError, IndexMismatchError."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        batch = self._reader.get_batch(row // INDEX_BATCH_ROWS)
        at = row % INDEX_BATCH_ROWS
        offset, size, dtype, shape = (column[at].as_py() for column in batch.columns)
        data = self._files.read(bisect_right(self._ends, row), offset, size)
        try:
            return Array(data, dtype, tuple(shape))
        except (TypeError, ValueError) as error:
            raise DamagedFileError(self.path, f"row {row}", error) from None


def open_column(data_path: str | os.PathLike[str], name: str) -> Column:
    """The column ``name`` beside a dataset, given as to ``open_dataset``. Errors as of :class:`Column`, and SourceError
    for a URL."""
    if is_url(os.fspath(data_path)):
        raise SourceError(f"{data_path}: the column {name} can only be read from a folder; download the dataset")
    path = os.path.abspath(data_path)
    if os.path.isfile(path):
        path = os.path.dirname(os.path.dirname(path))
    return Column(path, check_name(name))


def check_name(name: str) -> str:
    """Raises OptionError for what cannot be a column's name: it becomes a folder and a Parquet field."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", name) or name in schema.ROW.names:
        taken = ", ".join(schema.ROW.names)
        raise OptionError("column", name, f"up to 100 letters, digits and underscores, and none of {taken}")
    return name


def column_index(root: str, name: str) -> str:
    return os.path.join(root, schema.META, "columns", f"{name}.arrow")


def column_checksums(root: str, name: str) -> str:
    """Where the checksums of a column's files are."""
    return os.path.join(root, schema.META, "columns", f"{name}.json")


def columns_of(root: str, ending: str = ".arrow") -> list[str]:
    """Names of the columns there are; with ".json", of those that have checksums."""
    folder = os.path.join(root, schema.META, "columns")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(name.removesuffix(ending) for name in names if name.endswith(ending))


def index_digest(root: str) -> str:
    """The checksum of the dataset's index, from its manifest. Raises DamagedFileError."""
    entry: dict[str, Any] = read_manifest(root).files.get(schema.INDEX, {})
    return str(entry.get("xxh3_128"))
