"""A row's JSON document, read from the captions tar, from the index, or from the shard's column."""

from __future__ import annotations

from itertools import accumulate

from builder.base import schema
from builder.base.errors import DamagedFileError
from builder.read.groups import GroupColumns
from builder.read.handles import Handles
from builder.read.index import Index, IndexBatch

_BOM = b"\xef\xbb\xbf"


class Annotations:
    """Reads documents by row number. Thread-safe."""

    def __init__(self, index: Index, files: Handles, groups: GroupColumns | None = None) -> None:
        self._files, self._groups = files, groups or GroupColumns(files)
        self._path = index.path
        self._first_rows = [0, *accumulate(file.rows for file in index.header.files)]

    def read(self, row: int, batch: IndexBatch, at: int) -> bytes:
        """The document in UTF-8, without a BOM. Raises IndexMismatchError if the files are not those that were indexed,
        and DamagedFileError if it is not UTF-8."""
        document = self._read(row, batch, at)
        try:
            document.isascii() or document.decode()
        except UnicodeDecodeError as error:
            raise DamagedFileError(self._path, f"annotation of row {row}", str(error)) from None
        return document

    def _read(self, row: int, batch: IndexBatch, at: int) -> bytes:
        file = batch.annotation_file[at]
        if file >= 0:
            size = batch.annotation_size[at] + (len(_BOM) if batch.bom[at].as_py() else 0)
            if self._files.files[file].kind == "folder":
                path, offset = batch.text("annotation_path", at), batch.annotation_offset[at]
                return self._files.read_member(file, path, size, offset).removeprefix(_BOM)
            return self._files.read(file, batch.annotation_offset[at], size).removeprefix(_BOM)
        if file == schema.IN_INDEX:
            return batch.text("annotation", at).encode()
        shard = batch.file[at]
        return self._groups.value(shard, row - self._first_rows[shard], "annotation") or b""
