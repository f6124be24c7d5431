"""The formats on disk, described once for writers and readers.

The columns of a row, of the index and of the rejects table, and the metadata keys of each.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import pyarrow as pa

import builder
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
"""``--format`` → the suffix of its shards' names."""


def versions() -> dict[str, str]:
    """The versions that decide the bytes of the output, for the manifest."""
    return {"laion6m": builder.__version__, "pyarrow": pa.__version__}


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
"""One sample. Every field is nullable because ``datasets`` infers and casts to nullable fields.

``image`` is the first column because its chunk lies first in each row group. parquet-java (Spark, Hive, Trino, Flink)
gives a row group to the split that holds byte *first column's offset + half of the group's size*. If the first column
lay behind the images, that byte would be in a later row group or beyond the file. Then nobody would read the rows.
"""

FEATURES: dict[str, Any] = {field.name: {"dtype": str(field.type), "_type": "Value"} for field in ROW}
FEATURES["image"] = {"_type": "Image"}
"""The features of a row, in the form of ``datasets.Features.to_dict``. Each shard holds them, so that every reader sees
an image column."""

HUGGINGFACE_KEY = b"huggingface"
SHARD_SCHEMA = ROW.with_metadata({HUGGINGFACE_KEY: json.dumps({"info": {"features": FEATURES}}).encode()})


def is_row(found: pa.Schema) -> bool:
    """Whether these are the columns of a row, in any order. The first version of this tool wrote ``key`` first."""
    return _by_name(found) == _by_name(ROW)


def _by_name(columns: pa.Schema) -> list[tuple[str, str, bool]]:
    return sorted((field.name, str(field.type), field.nullable) for field in columns)


INDEX_METADATA_KEY = b"laion6m"
"""The key of the index's schema metadata. Its value is the JSON of :class:`IndexHeader`."""

INDEX_BATCH_ROWS = 1 << 16
"""Rows of each record batch of the index; only the last is shorter. So row i lies in batch i >> 16, without a search.
65,536 captions of 0.5 kB are 32 MB. That is far below 2 GiB, the limit of 32-bit offsets, and fits easily in memory."""

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
        ("annotation_size", pa.int64()),  # bytes, without the BOM
        ("bom", pa.bool_()),  # the document began with a byte order mark; the row leaves it out
        ("digest", pa.binary(16)),  # xxh3-128 of the image's bytes, big-endian; null if they were never read
        ("key", pa.string()),
        ("path", pa.string()),  # the image's path as listed
        ("annotation_path", pa.string()),
        ("caption", pa.string()),
        ("annotation", pa.string()),  # null unless annotation_file is IN_INDEX
    ]
)

INDEX_PART = INDEX_ROW.append(pa.field("key_hash", pa.uint64()))
"""Index rows of one shard, before the parts become one index. ``key_hash``: xxh3-64 of the key."""

IN_SHARD, IN_INDEX = -1, -2
"""Values of annotation_file for an annotation that has no place of its own in a file. IN_SHARD: it is in the shard's
column. IN_INDEX: it is in the index itself, as it was made from a sidecar and a recaption and no file holds it."""

FIND_COLUMNS = [("find_hash", pa.uint64()), ("find_row", pa.int64())]
"""Two more columns of the index: xxh3-64 of every key in ascending order, and the row of that key. They are not aligned
with the index's rows, but have as many entries, so they fit in the same table. They find a key by bisection, without
reading any key."""

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

    ``check`` tells whether the file is still the same. Parquet: ``{"size": …, "footer": xxh3-128 hex}``. Tars:
    ``{"size": …, "mtime_ns": …}``. Folders of files: ``{"offset": "mtime_ns"}``, which means that a row's offset is its
    file's modification time in ns.
    """

    path: str
    kind: str  # "parquet", "arrow", "tar", "folder"
    rows: int
    check: dict[str, Any]


@dataclass(frozen=True, slots=True)
class IndexHeader:
    """Facts about the whole index. ``root`` is the folder that file paths are relative to. It is absolute, or relative
    to the folder that holds ``meta``."""

    version: int
    root: str
    rows: int
    files: tuple[IndexedFile, ...]

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

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
    """The JSON object in ``text``. Raises TypeError or ValueError for anything else."""
    try:
        return _as(dict, json.loads(text))
    except RecursionError:
        raise ValueError("nested too deeply") from None


_KINDS = {str: "a string", int: "a whole number", list: "a list", dict: "an object"}


def _as(kind: type[_T], value: Any) -> _T:
    """``value``, if it is exactly of this type (``True`` is no int). Raises TypeError."""
    if type(value) is not kind:
        raise TypeError(f"{json.dumps(value):.40} is not {_KINDS[kind]}")
    return value


INDEX_VERSION = 1

CACHE_OF_DATASETS = re.compile(r"cache-[0-9a-f]+(_\d+_of_\d+)?\.arrow")
"""Names of the files that ``map`` and ``shuffle`` leave beside Arrow files that ``load_from_disk`` has opened."""


@dataclass(frozen=True, slots=True)
class ShardName:
    """A shard's name, such as ``train-00003-of-00016.parquet``. Only this class formats and parses it."""

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
