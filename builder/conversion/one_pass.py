"""Read raw tars behind a URL once: scan a stretch of the source, and write its shards while the bytes arrive.

A plan needs the place of every member of every archive. Over a network, that is known only at the end. So the shards
are made on a guess: images that data.json lists below ``00012/`` lie in ``00012.tar``; their annotations lie in the
captions tar of the same name, or beside the images; no name occurs twice. The scans are kept. At the end the plan is
made from them, as for any source (plan/plan.py). A shard stands if its rows are exactly those of the plan
(``rows_digests``). The others are made again in the usual way.

A wrong guess costs a second reading of that stretch. It cannot cost a row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash

from builder.base.arrays import from_ipc, number_array, string_array
from builder.base.ids import Ids, path_ids
from builder.base.options import MAX_ANNOTATION_BYTES, MAX_IMAGE_BYTES
from builder.base.records import WHOLE, Member
from builder.conversion.shard import NewShard, ShardTask
from builder.engines.contract import Report
from builder.plan.plan import PLAN_ROW, Cut, rows_digests
from builder.source.endings import without_ending
from builder.source.files import ByteFile
from builder.source.layout import Archive
from builder.source.samples import CHUNK_BYTES, CHUNK_ROWS, SampleReader, Stock
from builder.source.scan import ScanRequest, open_with_compression, scan_open
from builder.source.tables import ArchiveTable, table_to_ipc
from builder.store.ledger import Ledger, Passed, Receipt
from builder.store.output import whole

EXPECTED = pa.schema(
    [("position", pa.int64()), ("keeps_ending", pa.bool_()), ("path", pa.string()), ("annotation_path", pa.string())]
)
"""A listed sample that is expected in a stretch of the source."""


@dataclass(frozen=True, slots=True)
class Pass(ShardTask):
    """The work on one stretch: shards ``number`` to ``number + len(cuts)`` (exclusive) of ``shards``. It is cut out of
    whole archives. ``raw``, ``annotations``: the archives by their numbers in the source, in its order. If not
    ``captions``, the annotations lie in the raw ones. ``expected``: EXPECTED as an Arrow IPC stream, empty if nothing
    is known. ``names``, ``field``: what else the plan needs of the scans (scan.ScanRequest)."""

    cuts: tuple[Cut, ...]
    raw: Mapping[int, Archive]
    annotations: Mapping[int, Archive]
    captions: bool
    expected: bytes
    names: bool
    field: str

    @property
    def name(self) -> str:
        """For messages."""
        archives = ", ".join(archive.name for archive in self.raw.values())
        return f"shard {self.number} of {self.shards} ({archives})"


def run_pass(work: Pass, report: Report) -> Passed:
    """Read a stretch once. Writes its shards and the scans of its archives. Last, it notes that all of this is there.
    Raises SourceError, WriteError."""
    ledger = Ledger(work.out)
    stock = Stock("", "", work.raw, work.annotations if work.captions else work.raw)
    with SampleReader(stock, work.options.policy) as reader, whole(_Making(work, reader, report)) as making:
        for side, number, archive, file, compression in _opened(work):
            request = ScanRequest(archive, names=work.names, field=work.field)
            if side == "captions":
                reader.lend(number, file, annotations=True)
                table = scan_open(request, file, compression)
                making.meet_annotations(number, table)
            else:
                reader.lend(number, file)
                if not work.captions:
                    reader.lend(number, file, annotations=True)
                if compression is not None:  # its size, and so its cuts, are known only at its end
                    making.give_up()
                table = scan_open(request, file, compression, making.watch(number))
                making.flush()
            ledger.write_scan(side, number, table_to_ipc(table))
        making.finish()
        reader.check()
    passed = Passed(work.number, tuple(making.receipts), tuple(making.digests))
    ledger.write_passed(passed)
    return passed


def _opened(work: Pass) -> Iterator[tuple[str, int, Archive, ByteFile, str | None]]:
    """The archives in reading order: before each raw one, the captions archives of its name. While one is read, the
    next one is opened: this saves a round trip."""
    order: list[tuple[str, int, Archive]] = []
    captions = dict(work.annotations) if work.captions else {}
    for number, archive in work.raw.items():
        stem = without_ending(archive.name)
        order += [("captions", n, each) for n, each in captions.items() if without_ending(each.name) == stem]
        order.append(("raw", number, archive))

    def opened(at: int) -> tuple[ByteFile, str | None]:
        side, _, archive = order[at]
        return open_with_compression(archive, in_order=side == "raw")

    with ThreadPoolExecutor(1, thread_name_prefix="laion6m-open") as thread:
        coming = thread.submit(opened, 0) if order else None
        for at, (side, number, archive) in enumerate(order):
            assert coming is not None
            file, compression = coming.result()
            coming = thread.submit(opened, at + 1) if at + 1 < len(order) else None
            yield side, number, archive, file, compression


@dataclass(slots=True)
class _Row:
    """An image found in a raw tar. It waits for the place of its annotation, and for its turn."""

    archive: int
    member: Member
    row: int  # of EXPECTED


class _Making:
    """Makes the shards of a stretch one after the other, while the scan finds members."""

    def __init__(self, work: Pass, reader: SampleReader, report: Report) -> None:
        expected = from_ipc(work.expected)
        columns = {name: expected.column(name).to_pylist() for name in EXPECTED.names}
        self._positions, self._keeps = columns["position"], columns["keeps_ending"]
        self._paths, self._annotation_paths = columns["path"], columns["annotation_path"]
        self._row_of = {key: row for row, key in enumerate(_digests(path_ids(self._paths)))}
        self._annotation_of = _digests(path_ids(self._annotation_paths))
        self._wanted = set(self._annotation_of)
        self._places: dict[bytes, tuple[int, int, int]] = {}  # annotation → archive, offset, size
        self._work, self._reader, self._report = work, reader, report
        self._waiting: deque[_Row] = deque()
        self._ready: list[_Row] = []
        self._ready_bytes = 0
        self._shard: NewShard | None = None
        self._rows: list[pa.RecordBatch] = []  # of the shard being made
        self._given_up = False
        self.receipts: list[Receipt] = []
        self.digests: list[str] = []

    def meet_annotations(self, number: int, table: ArchiveTable) -> None:
        """Note where a captions tar holds wanted annotations. On duplicate names the last wins."""
        wanted = self._wanted
        for row, key in enumerate(_digests(table.ids)):
            if key in wanted and table.states[row] == WHOLE:
                self._places[key] = (number, int(table.offsets[row]), int(table.sizes[row]))

    def watch(self, number: int) -> Callable[[Member], None]:
        """Returns a callback for the members of raw archive ``number``. It writes rows as soon as they are complete."""
        beside = not self._work.captions

        def met(member: Member) -> None:
            key = xxhash.xxh3_128_digest(member.name.encode())
            row = self._row_of.get(key)
            if row is not None and member.state == WHOLE and member.size <= MAX_IMAGE_BYTES:
                self._waiting.append(_Row(number, member, row))
            elif beside and key in self._wanted and member.state == WHOLE:
                self._places[key] = (number, member.offset, member.size)
            self._advance()

        return met

    def _advance(self, *, last: bool = False) -> None:
        """Take rows whose annotations have been found. ``last``: skip the others."""
        while self._waiting:
            place = self._places.get(self._annotation_of[self._waiting[0].row])
            if place is None and not last:
                return
            row = self._waiting.popleft()
            if place is None or place[2] > MAX_ANNOTATION_BYTES:
                continue
            if self._ready and self._shard_of(row) != self._shard_of(self._ready[0]):
                self._write()
            self._ready.append(row)
            self._ready_bytes += row.member.size
            if self._ready_bytes >= CHUNK_BYTES or len(self._ready) >= CHUNK_ROWS:
                self._write()

    def flush(self) -> None:
        """At the end of an archive: write what is ready. Skip rows whose annotation was not found."""
        self._advance(last=True)
        self._write()

    def _shard_of(self, row: _Row) -> int:
        """Number of the cut that holds the image's first byte."""
        place = (row.archive, row.member.offset)
        return max(0, sum((cut.first, cut.start) <= place for cut in self._work.cuts) - 1)

    def _write(self) -> None:
        ready, self._ready, self._ready_bytes = self._ready, [], 0
        if not ready or self._given_up:
            return
        self._turn_to(self._shard_of(ready[0]))
        rows = self._planned(ready)
        self._rows.append(rows)
        assert self._shard is not None
        for chunk in self._reader.read(rows):
            self._shard.take(chunk, self._report)

    def _turn_to(self, shard: int) -> None:
        """End the shards before this one, also empty ones."""
        while len(self.receipts) < shard or self._shard is None:
            if self._shard is not None:
                self._end_shard()
            number = self._work.number + len(self.receipts)
            self._shard = NewShard(self._work.out, number, self._work.shards, self._work.options)

    def _end_shard(self) -> None:
        assert self._shard is not None
        receipt, index, rejects = self._shard.finish()
        self._shard = None
        self.receipts.append(Ledger(self._work.out).write_parts(receipt, index, rejects))
        rows = pa.Table.from_batches(self._rows, PLAN_ROW)
        self.digests += rows_digests(rows, (0, len(rows)))
        self._rows = []

    def _planned(self, rows: list[_Row]) -> pa.RecordBatch:
        places = [self._places[self._annotation_of[row.row]] for row in rows]

        def numbers(values: list[int], kind: type) -> pa.Array:
            return number_array(np.array(values, dtype=kind))

        columns = [
            numbers([row.archive for row in rows], np.int32),
            numbers([row.member.offset for row in rows], np.int64),
            numbers([row.member.size for row in rows], np.int64),
            numbers([self._positions[row.row] for row in rows], np.int64),
            numbers([place[0] for place in places], np.int32),
            numbers([place[1] for place in places], np.int64),
            numbers([place[2] for place in places], np.int64),
            numbers([self._keeps[row.row] for row in rows], np.uint8).cast(pa.bool_()),
            string_array([self._paths[row.row] for row in rows]),
            string_array([self._annotation_paths[row.row] for row in rows]),
            pa.nulls(len(rows), pa.string()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=PLAN_ROW)

    def finish(self) -> None:
        """End the last shards."""
        if self._given_up or not len(self._paths):
            self.give_up()
            return
        self._turn_to(len(self._work.cuts) - 1)
        self._end_shard()

    def give_up(self) -> None:
        """Make no shard of this stretch on a guess. It is left to the plan."""
        self.abort()
        self._given_up = True
        self.receipts, self.digests = [], []

    def abort(self) -> None:
        """Give up the unfinished shard, and leave no file."""
        if self._shard is not None:
            self._shard.abort()
            self._shard = None


def _digests(ids: Ids) -> list[bytes]:
    """Each path's hash as bytes."""
    data = np.ascontiguousarray(ids).tobytes()
    return [data[at : at + 16] for at in range(0, len(data), 16)]
