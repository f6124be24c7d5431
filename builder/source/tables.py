"""Where every member of an archive lies, as arrays: what pairing works on. And as files, for a plan that is made later
or elsewhere."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from builder.base.arrays import number_array, numbers_of, string_array, to_ipc
from builder.base.errors import DamagedFileError
from builder.base.records import Damage
from builder.source.listing import Ids, ids_of
from builder.source.scan import Scanned, ScanRequest, scan_members

_NUMBERS = {"offsets": np.int64, "sizes": np.int64, "states": np.uint8, "is_image": np.uint8, "is_json": np.uint8}
_IDS = ("ids", "stem_ids", "url_ids")


@dataclass(frozen=True, slots=True)
class ArchiveTable:
    """The columns of :class:`Scanned`, of length n. ``offsets`` and ``sizes`` are uint32 where that is enough and else
    int64: the tables of 6,000 tars are in memory at the same time."""

    ids: Ids
    offsets: npt.NDArray[np.integer]
    sizes: npt.NDArray[np.integer]
    states: npt.NDArray[np.uint8]
    is_image: npt.NDArray[np.bool_]
    is_json: npt.NDArray[np.bool_]
    size: int  # of the archive, bytes, uncompressed
    damage: tuple[Damage, ...]
    compression: str | None
    names: pa.StringArray | None = None
    stem_ids: Ids | None = None
    url_ids: Ids | None = None  # zero rows where a member has no url
    shapes: npt.NDArray[np.uint32] | None = None  # see source/glance.py: 0 where it was not to be seen

    def without_names(self) -> ArchiveTable:
        """The same with nothing of the members' names, which is most of its memory."""
        return replace(self, ids=np.zeros((0, 2), dtype="<u8"), names=None, stem_ids=None, url_ids=None)


def scan_archive(request: ScanRequest) -> ArchiveTable:
    """Find every member. Damage is noted, never raised; what cannot be opened at all is a SourceError."""
    return table_of(scan_members(request))


def table_of(scanned: Scanned) -> ArchiveTable:
    """The columns as arrays over the same memory."""
    return ArchiveTable(
        ids=ids_of(scanned.ids),
        offsets=np.asarray(scanned.offsets),
        sizes=np.asarray(scanned.sizes),
        states=np.frombuffer(scanned.states, np.uint8),
        is_image=np.frombuffer(scanned.is_image, np.bool_),
        is_json=np.frombuffer(scanned.is_json, np.bool_),
        size=scanned.size,
        damage=scanned.damage,
        compression=scanned.compression,
        names=None if scanned.names is None else string_array(scanned.names),
        stem_ids=None if scanned.stem_ids is None else ids_of(scanned.stem_ids),
        url_ids=None if scanned.url_ids is None else ids_of(scanned.url_ids),
        shapes=None if scanned.shapes is None else np.asarray(scanned.shapes),
    )


def table_to_ipc(table: ArchiveTable) -> bytes:
    """An Arrow IPC stream of one row a member; what is true of the whole archive stands in its metadata."""
    columns = {name: number_array(getattr(table, name).astype(kind)) for name, kind in _NUMBERS.items()}
    for name in _IDS:
        ids = getattr(table, name)
        if ids is not None:
            columns |= {f"{name}.{half}": number_array(ids[:, half].astype(np.uint64)) for half in (0, 1)}
    if table.names is not None:
        columns["names"] = table.names
    facts = {"size": table.size, "compression": table.compression, "damage": [asdict(place) for place in table.damage]}
    schema = pa.schema([(name, column.type) for name, column in columns.items()], {b"archive": json.dumps(facts)})
    return to_ipc(pa.RecordBatch.from_arrays(list(columns.values()), schema=schema))


def table_from_ipc(data: bytes, place: str) -> ArchiveTable:
    """``place``: where it was kept, for messages. Raises DamagedFileError."""
    try:
        table = pa.ipc.open_stream(data).read_all()
        facts = json.loads((table.schema.metadata or {})[b"archive"])
        numbers = {name: numbers_of(table.column(name)).astype(kind) for name, kind in _NUMBERS.items()}
        return ArchiveTable(
            ids=_ids(table, "ids"),
            offsets=numbers["offsets"],
            sizes=numbers["sizes"],
            states=numbers["states"],
            is_image=numbers["is_image"].view(np.bool_),
            is_json=numbers["is_json"].view(np.bool_),
            size=int(facts["size"]),
            damage=tuple(Damage(**each) for each in facts["damage"]),
            compression=facts["compression"],
            names=table.column("names").combine_chunks() if "names" in table.column_names else None,
            stem_ids=_ids(table, "stem_ids") if "stem_ids.0" in table.column_names else None,
            url_ids=_ids(table, "url_ids") if "url_ids.0" in table.column_names else None,
        )
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(place, "scan", f"{error}; remove it to have it made again") from None


def _ids(table: pa.Table, name: str) -> Ids:
    halves = [numbers_of(table.column(f"{name}.{half}")) for half in (0, 1)]
    return np.ascontiguousarray(np.stack(halves, axis=1).astype("<u8"))
