"""Where every member of an archive lies, as arrays for pairing. Also as files, for a plan made later or elsewhere."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from builder.base.arrays import number_array, numbers_of, to_ipc
from builder.base.errors import DamagedFileError
from builder.base.ids import Ids
from builder.base.records import Damage

_NUMBERS = {"offsets": np.int64, "sizes": np.int64, "states": np.uint8}
_MARKS = ("is_image", "is_json", "is_text")  # stored as bytes
_IDS = ("ids", "stem_ids", "field_ids")
_FACTS = ("size", "compression", "hidden")


@dataclass(frozen=True, slots=True)
class ArchiveTable:
    """Members of one archive, in archive order, columns of length n. On duplicate names the last wins.

    ``offsets`` and ``sizes`` are bytes in the archive: uint32 if that is enough, else int64, as the tables of 6,000
    tars are in memory together. For a folder, offsets are as if its files were concatenated in path order. Desktop
    companion files (``._x.jpg``) are neither images nor JSON.
    """

    ids: Ids
    offsets: npt.NDArray[np.integer]
    sizes: npt.NDArray[np.integer]
    states: npt.NDArray[np.uint8]
    is_image: npt.NDArray[np.bool_]
    is_json: npt.NDArray[np.bool_]
    size: int  # uncompressed bytes of the archive
    damage: tuple[Damage, ...]
    compression: str | None
    names: pa.StringArray | None = None
    stem_ids: Ids | None = None
    field_ids: Ids | None = None  # ids of a field of JSON members, as text; of "" if a member has none
    shapes: npt.NDArray[np.uint32] | None = None  # see source/glance.py: 0 if not known
    is_text: npt.NDArray[np.bool_] | None = None  # .txt, which may be a caption; noted with the names
    hidden: int = 0  # companions among the members

    def without_names(self) -> ArchiveTable:
        """The same table without the members' names and ids, which take most of its memory."""
        return replace(self, ids=np.zeros((0, 2), dtype="<u8"), names=None, stem_ids=None, field_ids=None)


def content_digest(table: ArchiveTable) -> str:
    """xxh3-128 (hex) of where the members lie and of their names. A copy has the same digest, whatever its times."""
    digest = xxhash.xxh3_128(np.ascontiguousarray(table.ids).tobytes())
    for column in (table.offsets, table.sizes):
        digest.update(column.astype(np.int64).tobytes())
    return digest.hexdigest()


def table_to_ipc(table: ArchiveTable) -> bytes:
    """An Arrow IPC stream with one row per member. Facts about the whole archive are in its metadata."""
    columns = {name: number_array(getattr(table, name).astype(kind)) for name, kind in _NUMBERS.items()}
    for name in _MARKS:
        if (mark := getattr(table, name)) is not None:
            columns[name] = number_array(mark.astype(np.uint8))
    for name in _IDS:
        if (ids := getattr(table, name)) is not None:
            columns |= {f"{name}.{half}": number_array(ids[:, half].astype(np.uint64)) for half in (0, 1)}
    if table.names is not None:
        columns["names"] = table.names
    facts = {name: getattr(table, name) for name in _FACTS}
    facts["damage"] = [asdict(place) for place in table.damage]
    schema = pa.schema([(name, column.type) for name, column in columns.items()], {b"archive": json.dumps(facts)})
    return to_ipc(pa.RecordBatch.from_arrays(list(columns.values()), schema=schema))


def table_from_ipc(data: bytes, place: str) -> ArchiveTable:
    """Read :func:`table_to_ipc`'s stream. ``place``: where it was stored, for messages. Raises DamagedFileError."""
    try:
        table = pa.ipc.open_stream(data).read_all()
        facts = json.loads((table.schema.metadata or {})[b"archive"])
        there = set(table.column_names)
        columns: dict[str, Any] = {
            name: numbers_of(table.column(name)) for name in (*_NUMBERS, *_MARKS) if name in there
        }
        columns |= {name: columns[name].view(np.bool_) for name in _MARKS if name in there}
        columns |= {name: _ids(table, name) for name in _IDS if f"{name}.0" in there}
        if "names" in there:
            columns["names"] = table.column("names").combine_chunks()
        columns |= {name: facts[name] for name in _FACTS}
        return ArchiveTable(damage=tuple(Damage(**each) for each in facts["damage"]), **columns)
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(place, "scan", f"{error}; remove it to have it made again") from None


def _ids(table: pa.Table, name: str) -> Ids:
    halves = [numbers_of(table.column(f"{name}.{half}")) for half in (0, 1)]
    return np.ascontiguousarray(np.stack(halves, axis=1).astype("<u8"))
