"""Explain each listed sample that planning could not place: a reason, a detail, an archive."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from builder.base.arrays import Texts, number_array, string_array, take_text, whole_text
from builder.base.options import MAX_ANNOTATION_BYTES, MAX_IMAGE_BYTES
from builder.base.records import CUT, Reason
from builder.base.schema import REJECT_ROW
from builder.plan.pairs import Bools, Found, Int64s
from builder.source.endings import stem_of
from builder.source.layout import Archive, Layout
from builder.source.listing import Listing
from builder.source.tables import ArchiveTable

_TOGETHER = 1 << 16  # losses described at a time


@dataclass(frozen=True, slots=True)
class Losses:
    """Gives every listed sample that cannot be read a reason and a place."""

    layout: Layout
    listing: Listing
    raw: Sequence[ArchiveTable]
    captions: Sequence[ArchiveTable]
    image: Found
    annotation: Found
    keeps_ending: Bools

    def table(
        self, lost: Int64s, duplicate: Bools, image_ok: Bools, small_enough: Bools, annotation_ok: Bools
    ) -> pa.Table:
        images = Neighbours(self.layout.raw, self.raw, self.listing.images, self.image)
        annotations = Neighbours(self.layout.annotations, self.captions, self.listing.annotations, self.annotation)

        def verdict(position: int, image: str, annotation: str) -> tuple[Reason, str, str]:
            if duplicate[position]:
                return Reason.DUPLICATE, "an entry before it names the same image", ""
            if not image_ok[position]:
                return images.explain(image, position, Reason.IMAGE_MISSING)
            if not small_enough[position]:
                size = int(self.image.sizes[position])
                detail = f"{size:,} bytes are more than the {MAX_IMAGE_BYTES:,} read of one image"
                return Reason.IMAGE_TOO_LARGE, detail, images.name(position)
            if not annotation_ok[position]:
                return annotations.explain(annotation, position, Reason.CAPTION_MISSING)
            size = int(self.annotation.sizes[position])
            detail = f"{size:,} bytes are more than the {MAX_ANNOTATION_BYTES:,} read of one annotation"
            return Reason.CAPTION_INVALID, detail, annotations.name(position)

        batches = []
        for first in range(0, len(lost), _TOGETHER):
            some = lost[first : first + _TOGETHER]
            sides = self.listing.images, self.listing.annotations
            paths = (take_text(column, some).to_pylist() for column in sides)
            columns: tuple[list[str], list[str], list[str], list[str]] = ([], [], [], [])
            for position, image, annotation in zip(some.tolist(), *paths, strict=True):
                key = image if self.keeps_ending[position] else stem_of(image)
                for column, value in zip(columns, (key, *verdict(position, image, annotation)), strict=True):
                    column.append(str(value))
            texts = map(string_array, columns)
            batches.append(pa.RecordBatch.from_arrays([number_array(some.astype(np.int64)), *texts], schema=REJECT_ROW))
        return pa.Table.from_batches(batches, schema=REJECT_ROW)


class Neighbours:
    """Guesses which archive should hold a path that was not found. First guess: the archive that is named as the path's
    folder. Else the one that holds the nearest found path. If no path was found: the first damaged archive."""

    def __init__(self, archives: Sequence[Archive], tables: Sequence[ArchiveTable], paths: Texts, found: Found) -> None:
        self.archives, self.tables, self.count = archives, tables, len(archives)
        self._by_name = {
            archive.name.split(".")[0] if not archive.is_folder else archive.name: number
            for number, archive in enumerate(archives)
        }
        self._paths, self._found = paths, found
        self._any_damage = any(table.damage for table in tables)
        self._in_order: Int64s | None = None

    def name(self, position: int) -> str:
        """The name of the archive in which that entry's path was found."""
        return self.archives[int(self._found.archives[position])].name

    def explain(self, path: str, position: int, missing: Reason) -> tuple[Reason, str, str]:
        """Why that entry's path cannot be read. ``missing``: the reason if no archive has it."""
        if self._found.there[position]:
            cut = self._found.states[position] == CUT
            return Reason.TAR_DAMAGED, f"{path} is {'cut off' if cut else 'stored sparse'}", self.name(position)
        number = self.likely(path)
        if number is None:
            return missing, f"{path} is in none of {self.count} archives{self.absent(path)}", ""
        table, name = self.tables[number], self.archives[number].name
        if table.damage:
            what = table.damage[0]
            return Reason.TAR_DAMAGED, f"{path} not found; byte {what.offset}: {what.problem}", name
        return missing, f"{path} is not there", name

    def likely(self, path: str) -> int | None:
        number = self._by_name.get(path.split("/")[0]) if "/" in path else None
        if number is not None or not self._any_damage:
            return number
        return self._nearest(path)

    def absent(self, path: str) -> str:
        """The numbered archive that would hold the path, if no archive has that number."""
        folder = path.split("/")[0] if "/" in path else ""
        return f"; there is no {folder}.tar" if folder and folder not in self._by_name else ""

    def _nearest(self, path: str) -> int | None:
        if self._in_order is None:
            import pyarrow.compute as pc  # takes 30 ms, rarely needed

            self._in_memory = whole_text(self._paths)
            order = pc.sort_indices(self._in_memory).to_numpy().astype(np.int64)
            self._in_order = order[self._found.there[order]]
        order = self._in_order
        place = bisect.bisect(order, path, key=lambda position: self._in_memory[int(position)].as_py())
        around = self._found.archives[order[max(0, place - 1) : place + 1]].tolist() or range(self.count)
        return next((number for number in around if self.tables[number].damage), around[0])
