"""A Reader: any row of a converted folder, or of an index over tars, with one read of its bytes.

``builder/read/view.py`` has what Readers and Views share.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import xxhash

from builder.base import schema
from builder.base.errors import DamagedFileError
from builder.base.words import counted
from builder.read.batches import ReadAhead, Wanted, keep_freed_memory, read_together
from builder.read.columns import Column, Values, columns_of, open_any
from builder.read.groups import GroupColumns
from builder.read.handles import Handle, LocalHandle, Storage
from builder.read.index import Index, IndexBatch
from builder.read.local_cache import handles_of
from builder.read.sample import Sample
from builder.read.view import Rows
from builder.store.manifest import read_manifest

_State = tuple[str, str, str | None, Storage | None]

_BOM = b"\xef\xbb\xbf"
_BLOCK = 1 << 20


def _unpickled(state: _State, row: int, image: bytes | None) -> Sample:
    reader = _at_hand(state)
    return Sample(reader, row, *reader._index.place(row), image)


_READERS: WeakValueDictionary[tuple[object, ...], Reader] = WeakValueDictionary()


def _at_hand(state: _State) -> Reader:
    """The reader for samples from another process. All of them share one, because each reader holds files open."""
    try:
        status = os.stat(state[0])
    except OSError:
        return Reader(*state)  # it raises the error that says what is wrong
    options = getattr(state[3], "options", None)
    key = (*state[:3], options, status.st_ino, status.st_size, status.st_mtime_ns)
    reader = _READERS.get(key)
    if reader is None:
        reader = _READERS[key] = Reader(*state)
    return reader


class Reader(Rows):
    """All rows of a dataset. Deterministic, thread-safe, safe after fork, picklable (as paths)."""

    def __init__(self, index_path: str, root: str, source: str | None = None, storage: Storage | None = None) -> None:
        """``index_path``: the index file on this machine. ``root``: the dataset's folder. ``source``: where the indexed
        files are, if the index's own place is wrong. ``storage``: how to read them, if not from this machine's
        disks."""
        self._state = (index_path, root, source, storage)
        self._index = Index(index_path, root, source)
        root, files = self._index.root, self._index.header.files
        self._files = handles_of(root, files, storage, None if storage else _Proof(self._index.file))
        self._ahead = ReadAhead(self._files)
        self._groups = GroupColumns(self._files)
        self._first_rows = [0, *accumulate(file.rows for file in files)]  # of each file
        # In these files (offset, size) is not the place of the bytes: folders of files, compressed columns.
        self._odd = [file.kind in ("folder", "rowgroups") for file in files]
        self._any_odd = any(self._odd)
        self._added: dict[str, Column | Values] = {}
        self._added_names: list[str] | None = None
        self._count = self._index.header.rows

    def __getstate__(self) -> _State:
        return self._state

    def __setstate__(self, state: _State) -> None:
        self.__init__(*state)  # type: ignore[misc]

    @property
    def reader(self) -> Reader:
        return self

    @property
    def folder(self) -> str:
        return self._state[1]

    @property
    def rows(self) -> range:
        return range(self._count)

    def __len__(self) -> int:
        return self._count

    if not TYPE_CHECKING:  # its types are those of Rows.__getitem__

        def __getitem__(self, row):
            if type(row) is int and 0 <= row < self._count:  # the usual case
                return Sample(self, row, *self._index.place(row))
            return super().__getitem__(row)

    @property
    def identity(self) -> str:
        return self._index.identity

    def added_columns(self) -> list[str]:
        if self._added_names is None:
            self._added_names = columns_of(self._state[1], storage=self._state[3])
        return self._added_names

    def _column(self, name: str) -> Column | Values:
        """An added column. Raises SourceError, DamagedFileError, IndexMismatchError."""
        column = self._added.get(name)
        if column is None:
            column = self._added[name] = open_any(self._state[1], name, self._state[3])
        return column

    def __repr__(self) -> str:
        return f"Reader({self._state[1]!r}, {counted(len(self), 'row')} in {counted(len(self.shards), 'file')})"

    def _row_of(self, key: str) -> int | None:
        return self._index.find(key)

    def _sample(self, row: int) -> Sample:
        return Sample(self, row, *self._index.place(row))

    def _pickled(self, row: int, image: bytes | None) -> tuple[Any, ...]:
        """Everything that another process needs to rebuild a sample of this reader."""
        return _unpickled, (self._state, row, image)

    def _read(self, batch: IndexBatch, at: int) -> bytes:
        file, size = batch.file[at], batch.size[at]
        if size < 0 or (self._any_odd and self._odd[file]):
            return self._read_odd(batch, at)
        return self._files.read(file, batch.offset[at], size)

    def _read_odd(self, batch: IndexBatch, at: int) -> bytes:
        number = batch.file[at]
        file = self._index.header.files[number]
        if file.kind == "folder":
            return self._files.read_member(number, batch.text("path", at), batch.size[at], batch.offset[at])
        image = self._groups.value(number, batch.offset[at], file.check["column"]) if file.kind == "rowgroups" else None
        if image is None:
            path = batch.text("path", at)
            # datasets caches an imagefolder in this form.
            named = f", only the path of a file: {path}" if path.startswith("/") or "://" in path else ""
            raise DamagedFileError(file.path, f"row {batch.position[at]}", f"it has no image{named}")
        return image

    def _annotation(self, row: int, batch: IndexBatch, at: int) -> bytes:
        """The JSON document of ``row`` in UTF-8, without a BOM. Raises IndexMismatchError if the files are not those
        that were indexed, and DamagedFileError if it is not UTF-8."""
        file = batch.annotation_file[at]
        if file >= 0:
            offset, size = batch.annotation_offset[at], batch.annotation_size[at]
            size += len(_BOM) if batch.bom[at].as_py() else 0
            if self._index.header.files[file].kind == "folder":
                document = self._files.read_member(file, batch.text("annotation_path", at), size, offset)
            else:
                document = self._files.read(file, offset, size)
            document = document.removeprefix(_BOM)
        elif file == schema.IN_INDEX:
            document = batch.text("annotation", at).encode()
        else:
            shard = batch.file[at]
            document = self._groups.value(shard, row - self._first_rows[shard], "annotation") or b""
        try:
            document.isascii() or document.decode()
        except UnicodeDecodeError as error:
            raise DamagedFileError(self._index.path, f"annotation of row {row}", str(error)) from None
        return document

    def _announce(self, rows: Sequence[int]) -> None:
        self._ahead.announce(rows, self._places)

    def _places(self, rows: Sequence[int]) -> list[Wanted]:
        """Where the images of these rows lie. Rows that need more than one read of their bytes are left out."""
        wanted = []
        for row in rows:
            batch, at = self._index.place(row)
            file, size = batch.file[at], batch.size[at]
            if size >= 0 and not self._odd[file]:
                wanted.append((file, batch.offset[at], size, row))
        return wanted

    def _fetch(self, rows: Sequence[int]) -> list[Sample]:
        """Samples with their images, read together.

        Each image is a separate bytes object, and its sample keeps it. So it is not copied again, and one sample does
        not keep the memory of a whole batch alive.
        """
        keep_freed_memory()
        self._index.file.check()
        place, odd = self._index.place, self._odd if self._any_odd else None
        samples: list[Sample] = []
        wanted: list[Wanted] = []
        apart: list[tuple[int, int, int]] = []
        for number, row in enumerate(rows):
            batch, at = place(row)
            sample = Sample(self, row, batch, at)
            samples.append(sample)
            file, size = batch.file[at], batch.size[at]
            if size < 0:
                continue  # no image: reading sample.image raises the error
            if odd is not None and odd[file]:
                apart.append((file, batch.offset[at], number))
            else:
                wanted.append((file, batch.offset[at], size, number))
        images: list[bytes | None] = [None] * len(samples)
        read_together(self._files, wanted, images)
        for _, _, _, number in wanted:
            samples[number]._image = images[number]
        for _, _, number in sorted(apart):  # sorted: each row group is decoded once
            sample = samples[number]
            sample._image = self._read_odd(sample._batch, sample._at)
        return samples


class _Proof:
    """Whether a file that was touched while it was open still holds what the conversion wrote.

    Compares it with the manifest's checksum. The manifest must belong to the index in use: somebody who replaced the
    shards may have replaced the manifest too. Reads whole files. A shard of 500 MB takes 0.2 s.
    """

    def __init__(self, index: LocalHandle) -> None:
        self._index = index

    def __call__(self, name: str, handle: Handle) -> bool:
        return self._checksums.get(name) == _digest(handle)

    @cached_property
    def _checksums(self) -> dict[str, str]:
        try:
            files = read_manifest(os.path.dirname(os.path.dirname(self._index.name))).files
            checksums = {name: str(facts["xxh3_128"]) for name, facts in files.items()}
        except (DamagedFileError, OSError, KeyError, TypeError):
            return {}
        return checksums if checksums.get(schema.INDEX) == _digest(self._index) else {}


def _digest(handle: Handle) -> str:
    digest = xxhash.xxh3_128()
    for offset in range(0, handle.size, _BLOCK):
        digest.update(handle.read_at(offset, min(_BLOCK, handle.size - offset)))
    return digest.hexdigest()
