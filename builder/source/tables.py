"""Scanned archives as files: what a scan found, kept for a plan that is made later or elsewhere."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa

from builder.arrays import number_array, numbers_of, to_ipc
from builder.errors import DamagedFileError
from builder.records import Damage
from builder.source.listing import Ids
from builder.source.scan import ArchiveTable

_NUMBERS = {"offsets": np.int64, "sizes": np.int64, "states": np.uint8, "is_image": np.uint8, "is_json": np.uint8}
_IDS = ("ids", "stem_ids", "url_ids")


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
