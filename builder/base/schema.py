"""What is on disk, described once: writers and readers meet only here.

The columns of a row, of the index and of the rejects table, and the metadata keys that go with them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from builder.base.names import CARD as CARD
from builder.base.names import DATA as DATA
from builder.base.names import INDEX as INDEX
from builder.base.names import MANIFEST as MANIFEST
from builder.base.names import META as META
from builder.base.names import REJECTS as REJECTS
from builder.base.names import WORK as WORK

_T = TypeVar("_T")

SPLIT = "train"
SUFFIXES = {"parquet": ".parquet", "arrow": ".arrow", "webdataset": ".tar"}
"""``--format`` → how its shards' names end."""

ROW = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("key", pa.string()),
        ("caption", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("annotation", pa.string()),
    ]
)
"""One sample. Everything is nullable because that is what ``datasets`` infers and casts to.

``image`` comes first because its chunk lies first in each row group. parquet-java (Spark, Hive, Trino, Flink) gives a
row group to the split that holds byte *first column's offset + half of the group's size*. With another column listed
first, behind the images, that byte lies in a later row group or beyond the file, and then nobody reads the rows.
"""

FEATURES: dict[str, Any] = {
    "image": {"_type": "Image"},
    "key": {"dtype": "string", "_type": "Value"},
    "caption": {"dtype": "string", "_type": "Value"},
    "width": {"dtype": "int32", "_type": "Value"},
    "height": {"dtype": "int32", "_type": "Value"},
    "annotation": {"dtype": "string", "_type": "Value"},
}
"""The same as ``datasets.Features.to_dict`` gives it; goes into each shard, so that any reader sees an image column."""

HUGGINGFACE_KEY = b"huggingface"
SHARD_SCHEMA = ROW.with_metadata({HUGGINGFACE_KEY: json.dumps({"info": {"features": FEATURES}}).encode()})


def is_row(found: pa.Schema) -> bool:
    """Whether these are the columns of a row, in any order: the first version of this tool listed ``key`` first."""
    return _by_name(found) == _by_name(ROW)


def _by_name(columns: pa.Schema) -> list[tuple[str, str, bool]]:
    return sorted((field.name, str(field.type), field.nullable) for field in columns)


INDEX_METADATA_KEY = b"laion6m"
"""Schema metadata of the index: JSON of :class:`IndexHeader`."""

INDEX_BATCH_ROWS = 1 << 16
"""Rows of each record batch of the index but the last, so that row i lies in batch i >> 16 with nothing to look up.
65,536 captions of 0.5 kB are 32 MB: far from the 2 GiB that 32-bit offsets hold, and little enough to build in
memory."""

INDEX_ROW = pa.schema(
    [
        ("file", pa.int32()),  # index into IndexHeader.files
        ("offset", pa.int64()),  # of the image's first byte in that file
        ("size", pa.int64()),  # bytes
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("position", pa.int64()),  # of the sample in the listing
        ("annotation_file", pa.int32()),  # IN_SHARD, IN_INDEX, or an index into IndexHeader.files
        ("annotation_offset", pa.int64()),
        ("annotation_size", pa.int64()),  # bytes, a BOM not counted
        ("bom", pa.bool_()),  # the document began with a byte order mark, which the row leaves out
        ("digest", pa.binary(16)),  # xxh3-128 of the image's bytes, big-endian; null where nobody read them
        ("key", pa.string()),
        ("path", pa.string()),  # the image's path as listed
        ("annotation_path", pa.string()),
        ("caption", pa.string()),
        ("annotation", pa.string()),  # null unless annotation_file is IN_INDEX
    ]
)

INDEX_PART = INDEX_ROW.append(pa.field("key_hash", pa.uint64()))
"""Index rows of a shard, before they are put together: with xxh3-64 of their keys."""

IN_SHARD, IN_INDEX = -1, -2
"""Where an annotation is when it is in no file of its own: in the shard's column, or (put together from a sidecar and a
recaption, so that no file holds it) in the index itself."""

FIND_COLUMNS = [("find_hash", pa.uint64()), ("find_row", pa.int64())]
"""Two more columns of the index, not aligned with its rows: xxh3-64 of every key in ascending order, and whose it is.
They have as many entries as there are rows, so they ride along; a key is found by bisection without reading any key."""

INDEX_TABLE = pa.schema([*INDEX_ROW, *(pa.field(*column) for column in FIND_COLUMNS)])

REJECT_ROW = pa.schema(
    [
        ("position", pa.int64()),
        ("key", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("source", pa.string()),  # archive and member, as far as known
    ]
)


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """A file that an index points into.

    ``check`` is how to tell that it is still the same one: ``{"size": …, "footer": xxh3-128 hex}`` for Parquet,
    ``{"size": …, "mtime_ns": …}`` for tars, ``{"offset": "mtime_ns"}`` for folders of files: there a row's offset is
    its file's modification time in ns.
    """

    path: str
    kind: str  # "parquet", "arrow", "tar", "folder"
    rows: int
    check: dict[str, Any]


@dataclass(frozen=True, slots=True)
class IndexHeader:
    """Index-wide facts. ``root`` is what file paths are relative to: relative to the folder that holds ``meta``, or
    absolute."""

    version: int
    root: str
    rows: int
    files: tuple[IndexedFile, ...]

    def to_json(self) -> bytes:
        files = [{"path": f.path, "kind": f.kind, "rows": f.rows, "check": f.check} for f in self.files]
        return json.dumps(
            {"version": self.version, "root": self.root, "rows": self.rows, "files": files}, sort_keys=True
        ).encode()

    @staticmethod
    def from_json(text: bytes) -> IndexHeader:
        """Raises KeyError, TypeError or ValueError for anything but what ``to_json`` writes."""
        document = json_object(text)
        files = tuple(
            IndexedFile(_as(str, f["path"]), _as(str, f["kind"]), _as(int, f["rows"]), _as(dict, f["check"]))
            for f in _as(list, document["files"])
        )
        return IndexHeader(_as(int, document["version"]), _as(str, document["root"]), _as(int, document["rows"]), files)


def json_object(text: bytes) -> dict[str, Any]:
    """What an index says of itself. Raises TypeError, ValueError."""
    try:
        return _as(dict, json.loads(text))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _as(kind: type[_T], value: Any) -> _T:
    """``value``, if it is just of that type (``True`` is no int)."""
    if type(value) is not kind:
        raise TypeError(f"{value!r:.40} is not of type {kind.__name__}")
    return value


INDEX_VERSION = 1

CACHE_OF_DATASETS = re.compile(r"cache-[0-9a-f]+(_\d+_of_\d+)?\.arrow")
"""What ``map`` and ``shuffle`` leave beside Arrow files that ``load_from_disk`` has mapped."""


@dataclass(frozen=True, slots=True)
class ShardName:
    """``train-00003-of-00016.parquet``: formatted and parsed here, nowhere else."""

    number: int
    total: int
    suffix: str = ".parquet"

    def __str__(self) -> str:
        return f"{SPLIT}-{self.number:05d}-of-{self.total:05d}{self.suffix}"

    @property
    def path(self) -> str:
        """Relative to OUT."""
        return f"{DATA}/{self}"

    @staticmethod
    def parse(name: str) -> ShardName | None:
        match = re.fullmatch(rf"{SPLIT}-(\d{{5,}})-of-(\d{{5,}})(\.parquet|\.arrow|\.tar)", name)
        return ShardName(int(match[1]), int(match[2]), match[3]) if match else None
