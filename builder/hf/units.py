"""Pieces of work for the ``datasets`` builder. Each turns a stretch of a source into tables of rows.

``datasets`` divides a list of them among processes, and shuffles it for streaming. So they are small and picklable.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from builder.base import schema
from builder.base.arrays import binary_array, from_ipc, to_ipc
from builder.base.errors import DamagedFileError, refuse_denied
from builder.base.options import ConvertOptions, SamplePolicy
from builder.engines.local import SerialEngine
from builder.plan.survey import shard_rows, survey
from builder.read.view import Rows
from builder.source.endings import TROUBLE
from builder.source.layout import Layout
from builder.source.samples import Stock, read_samples
from builder.store.parquet_file import open_parquet
from builder.store.shards import TextRow, row_columns

TABLE_BYTES = 16 << 20
"""Image bytes of one table. ``datasets`` writes each table as its own record batch or row group."""

UNIT_BYTES = 64 << 20
"""The most source bytes of one unit."""
MANY_UNITS = 256
"""The fewest units of a source, so that many processes have work. A small source has fewer, so that no unit is tiny."""
_TINY = 128 << 10


class Unit(Protocol):
    """A picklable piece of work."""

    def tables(self, policy: SamplePolicy, rejected: Counter[str]) -> Iterator[pa.Table]:
        """Yield tables of schema.ROW in row order. Count samples that become no row in ``rejected``, by reason."""


@dataclass(frozen=True, slots=True)
class Planned:
    """Units in row order, and what is known before any is read.

    ``listed``: number of listed samples; None if unknown. ``rows``: the most rows there can be; None if unknown.
    ``rejected``: samples that are already lost, by reason. ``remarks``: sentences about the source.
    """

    units: list[Unit]
    listed: int | None
    rows: int | None
    rejected: Counter[str]
    remarks: tuple[str, ...] = ()


def tables_of(rows: Iterable[tuple[TextRow, bytes]]) -> Iterator[pa.Table]:
    """Rows and their images as tables of schema.ROW, each of about TABLE_BYTES."""
    texts: list[TextRow] = []
    images: list[bytes] = []
    size = 0
    for text, image in rows:
        texts.append(text)
        images.append(image)
        size += len(image) + len(text.annotation)
        if size >= TABLE_BYTES:
            table = pa.Table.from_arrays(row_columns(texts, binary_array(images)), schema=schema.ROW)
            texts, images, size = [], [], 0  # their memory is free before the table is used
            yield table
    if texts:
        yield pa.Table.from_arrays(row_columns(texts, binary_array(images)), schema=schema.ROW)


@dataclass(frozen=True, slots=True)
class PlannedUnit:
    """Planned rows (PLAN_ROW) of a local source. In this process they are a slice of the plan. Pickling copies only
    that slice."""

    rows: pa.Table
    stock: Stock

    def __reduce__(self) -> tuple[Any, ...]:
        return _planned_unit, (to_ipc(self.rows), self.stock)

    def tables(self, policy: SamplePolicy, rejected: Counter[str]) -> Iterator[pa.Table]:
        return tables_of(self._rows(policy, rejected))

    def _rows(self, policy: SamplePolicy, rejected: Counter[str]) -> Iterator[tuple[TextRow, bytes]]:
        for batch in self.rows.to_batches():
            for chunk in read_samples(batch, self.stock, policy):
                view = memoryview(chunk.buffer)
                for sample in chunk.samples:
                    width, height = sample.info.width, sample.info.height
                    row = TextRow(sample.key, sample.path, sample.caption, width, height, sample.annotation)
                    yield row, bytes(view[sample.start : sample.end])
                rejected.update(reject.reason.value for reject in chunk.rejects)


def _planned_unit(rows: bytes, stock: Stock) -> PlannedUnit:
    return PlannedUnit(from_ipc(rows), stock)


def plan_layout(layout: Layout, options: ConvertOptions) -> Planned:
    """Scan a local source and cut its rows into units. Raises SourceError, ListingError."""
    found = survey(layout, options, SerialEngine())
    plan = found.plan
    sizes = _plain(plan.rows, "size") + _plain(plan.rows, "annotation_size")
    room = min(UNIT_BYTES, max(_TINY, int(sizes.sum()) // MANY_UNITS))
    units: list[Unit] = []
    for number in range(plan.shards):
        rows, stock = shard_rows(found, number)
        start = plan.bounds[number]
        reached = np.cumsum(sizes[start : start + len(rows)]) // room
        edges = [0, *(np.flatnonzero(np.diff(reached)) + 1).tolist(), len(rows)]
        units += [
            PlannedUnit(rows.slice(first, last - first), stock)
            for first, last in itertools.pairwise(edges)
            if last > first
        ]
    remarks = [f"{name} is damaged: {places[0]}" for name, places in found.damage.items()]
    remarks += [f"not read: {n.count:,} × {n.kind}, such as {n.example}" for n in layout.unread if n.kind in TROUBLE]
    remarks += [*found.notes] if found.read_as or layout.recaptions else []
    return Planned(units, plan.listed, len(plan.rows), _counts(plan.rejects), tuple(remarks))


@dataclass(frozen=True, slots=True)
class ShardUnit:
    """A row group of a converted Parquet shard, or a whole Arrow shard (``group`` None)."""

    path: str
    group: int | None

    def tables(self, policy: SamplePolicy, rejected: Counter[str]) -> Iterator[pa.Table]:
        try:
            for table in self._stretches():
                yield _as_rows(table, self.path)
        except pa.ArrowException as error:
            raise DamagedFileError(self.path, "data", str(error)) from error

    def _stretches(self) -> Iterator[pa.Table]:
        if self.group is None:
            with pa.memory_map(self.path) as source:
                for batch in pa.ipc.open_stream(source):
                    batch.validate(full=True)  # wrong offsets would read memory outside the file
                    step = _step(batch.num_rows, batch.nbytes)
                    for first in range(0, batch.num_rows, step):
                        yield pa.Table.from_batches([batch.slice(first, step)])
            return
        with open_parquet(self.path) as file:
            group = file.metadata.row_group(self.group)
            step = _step(group.num_rows, group.total_byte_size)
            for batch in file.iter_batches(step, row_groups=[self.group]):
                yield pa.Table.from_batches([batch])


@dataclass(frozen=True, slots=True)
class RowsUnit:
    """Rows of a selection."""

    rows: Rows

    def tables(self, policy: SamplePolicy, rejected: Counter[str]) -> Iterator[pa.Table]:
        return tables_of(
            (TextRow(row.key, row.path, row.caption, row.width, row.height, row.annotation.encode()), row.image)
            for row in self.rows
        )


def plan_rows(rows: Rows) -> Planned:
    """Units for the rows of a selection."""
    step = max(1, min(len(rows) // MANY_UNITS, UNIT_BYTES // (64 << 10)))
    units: list[Unit] = [RowsUnit(rows[first : first + step]) for first in range(0, len(rows), step)]
    return Planned(units, None, len(rows), Counter())


def plan_shards(paths: tuple[str, ...]) -> Planned:
    """Units for the shards of a converted folder. Raises DamagedFileError."""
    units: list[Unit] = []
    rows = 0
    for path in paths:
        if path.endswith(".arrow"):
            units.append(ShardUnit(path, None))
            continue
        try:
            with open_parquet(path) as file:
                units += [ShardUnit(path, group) for group in range(file.num_row_groups)]
                rows += file.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            refuse_denied(path, error)
            raise DamagedFileError(path, "footer", str(error)) from error
    return Planned(units, None, rows or None, Counter())


def _counts(rejects: pa.Table) -> Counter[str]:
    counted = rejects.column("reason").value_counts().to_pylist()
    return Counter({item["values"]: item["counts"] for item in counted})


def _as_rows(table: pa.Table, path: str) -> pa.Table:
    missing = [name for name in schema.ROW.names if name not in table.column_names]
    if missing:
        raise DamagedFileError(path, "schema", f"no column {', '.join(missing)}")
    return table.select(schema.ROW.names).cast(schema.ROW)


def _step(rows: int, size: int) -> int:
    """How many rows make about TABLE_BYTES, in ``rows`` rows of ``size`` bytes together."""
    return max(1, rows * TABLE_BYTES // max(1, size))


def _plain(table: pa.Table, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.asarray(table.column(name).to_numpy(), dtype=np.int64)
