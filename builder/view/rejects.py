"""Rejected samples by reason. Their pictures can be shown if the source is on this machine."""

from __future__ import annotations

import os
import tarfile
import threading
from collections import Counter
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from builder.base import schema
from builder.base.arrays import number_array

_MOST_BYTES = 64 << 20  # a larger member is not read to be shown


class Rejects:
    """A folder's ``meta/rejects.parquet``, and the source's members that it names. Thread-safe."""

    def __init__(self, folder: str | None, sources: list[str]) -> None:
        """``folder``: None for a dataset behind a URL. ``sources``: folders to search for raw tars."""
        self._path = os.path.join(folder, *schema.REJECTS.split("/")) if folder else ""
        self._sources = [place for each in sources for place in (os.path.join(each, "raw"), each)]
        self._lock = threading.Lock()
        self._table: pa.Table | None = None
        self._images_of = lru_cache(maxsize=8)(_images_of)

    def table(self) -> pa.Table:
        """The rejects as a table of REJECT_ROW, in the order of the listing. Empty if the dataset has no such file.
        Raises DamagedFileError."""
        from builder.store.rejects import read_rejects

        with self._lock:
            if self._table is None:
                there = os.path.exists(self._path)
                nothing = pa.Table.from_batches([], schema=schema.REJECT_ROW)
                self._table = read_rejects(self._path) if there else nothing
            return self._table

    def counts(self) -> dict[str, int]:
        """Reason → rejects, most frequent first."""
        counted = Counter(self.table().column("reason").to_pylist())
        return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))

    def page(self, reason: str, offset: int, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """The number of rejects with a reason ("": all reasons), and ``limit`` of them from ``offset`` on. Each has its
        ``number`` in the table, and ``picture``: whether the source has its bytes here."""
        import pyarrow.compute as pc

        table = self.table()
        numbers = number_array(np.arange(len(table)))
        if reason:
            numbers = numbers.filter(pc.equal(table.column("reason"), reason))
        shown = [{**self.row(number), "number": number} for number in numbers.slice(offset, limit).to_pylist()]
        return len(numbers), [{**each, "picture": self._locate(each) is not None} for each in shown]

    def row(self, number: int) -> dict[str, Any]:
        """One reject by its number in the table. Raises IndexError."""
        if not 0 <= number < len(self.table()):
            raise IndexError(number)
        return dict(self.table().slice(number, 1).to_pylist()[0])

    def image(self, number: int) -> bytes | None:
        """The bytes that the source has under the reject's name. None if they are not here."""
        found = self._locate(self.row(number))
        if found is None:
            return None
        path, (offset, size) = found
        try:
            with open(path, "rb") as handle:
                handle.seek(offset)
                return handle.read(min(size, _MOST_BYTES))
        except OSError:
            return None

    def _locate(self, reject: dict[str, Any]) -> tuple[str, tuple[int, int]] | None:
        """The file that holds the image, and the place of its bytes."""
        archive, key = reject["source"] or "", reject["key"] or ""
        if reject["reason"] == "image_missing" or not archive or os.path.isabs(archive) or ".." in archive.split("/"):
            return None
        for folder in self._sources:
            path = os.path.join(folder, *archive.split("/"))
            if os.path.isfile(path):
                place = self._images_of(path).get(key)
                return None if place is None else (path, place)
        return None


def _images_of(path: str) -> dict[str, tuple[int, int]]:
    """Key (path without extension) → offset and size of each image in a tar, as far as the tar can be read."""
    found: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg() and not member.name.endswith((".json", ".txt")):
                    found[os.path.splitext(member.name.removeprefix("./"))[0]] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError):
        pass  # damaged or compressed: show what was found before
    return found
