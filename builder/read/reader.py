"""open_dataset(PATH) → Reader: any row of a converted folder or of an index over tars, by one read of its bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from builder.base import schema
from builder.base.errors import DamagedFileError, OptionError, SourceError
from builder.read.annotations import Annotations
from builder.read.batches import Wanted, read_together
from builder.read.groups import GroupColumns
from builder.read.handles import Handles, Storage
from builder.read.index import Index, IndexBatch
from builder.read.memory import keep_freed_memory
from builder.read.rows import RowNumber, RowNumbers, chosen_rows, row_number

COLUMNS = ("key", "path", "caption", "width", "height", "size", "position", "annotation_path")
"""What :meth:`Reader.columns` gives, none of which needs an image."""

_AHEAD = 64  # rows fetched together when iterating


class Sample:
    """One row, read as it is asked for.

    ``key``: "00000/000000012" · ``path``: with its extension, as listed · ``image``: the file's bytes · ``caption`` ·
    ``width``, ``height``: pixels as stored · ``annotation``: the JSON text · ``annotation_path`` · ``row``: its
    number ·
    ``position``: its place in the listing.
    """

    __slots__ = ("_at", "_batch", "_image", "_reader", "row")

    def __init__(self, reader: Reader, row: int, batch: IndexBatch, at: int, image: bytes | None = None) -> None:
        self._reader, self.row, self._batch, self._at, self._image = reader, row, batch, at, image

    @property
    def image(self) -> bytes:
        if self._image is not None:
            return self._image
        return self._reader._read(self._batch, self._at)

    @property
    def caption(self) -> str:
        return self._batch.text("caption", self._at)

    @property
    def key(self) -> str:
        return self._batch.text("key", self._at)

    @property
    def path(self) -> str:
        return self._batch.text("path", self._at)

    @property
    def annotation_path(self) -> str:
        return self._batch.text("annotation_path", self._at)

    @property
    def width(self) -> int:
        return int(self._batch.width[self._at])

    @property
    def height(self) -> int:
        return int(self._batch.height[self._at])

    @property
    def size(self) -> int:
        """Of the image, in bytes."""
        return int(self._batch.size[self._at])

    @property
    def position(self) -> int:
        return int(self._batch.position[self._at])

    @property
    def digest(self) -> bytes | None:
        """xxh3-128 of the image's bytes, 16 bytes; None where the index was made without reading them."""
        value: bytes | None = self._batch.digest[self._at].as_py()
        return value

    @property
    def annotation(self) -> str:
        return self._reader._annotations.read(self.row, self._batch, self._at).decode()

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels as its reader's paths, its number and, if it has been read, its image."""
        return _sample, (self._reader.__getstate__(), self.row, self._image)

    def __repr__(self) -> str:
        image = f"{self.width}x{self.height}, {self.size:,} bytes"
        return f"Sample({self.row}, key={self.key!r}, {image}, caption={self.caption[:40]!r})"


_State = tuple[str, str, str | None, Storage | None]


def _sample(state: _State, row: int, image: bytes | None) -> Sample:
    reader = _at_hand(state)
    batch, at = reader._index.place(row)
    return Sample(reader, row, batch, at, image)


_READERS: WeakValueDictionary[tuple[object, ...], Reader] = WeakValueDictionary()


def _at_hand(state: _State) -> Reader:
    """A reader for samples that came from another process: one for all of them, as each has files open."""
    index_path, root, source, storage = state
    try:
        status = os.stat(index_path)
    except OSError:
        return Reader(*state)  # which says what is wrong
    options = sorted(getattr(storage, "options", {}).items())
    key = (index_path, root, source, repr(options), status.st_ino, status.st_size, status.st_mtime_ns)
    reader = _READERS.get(key)
    if reader is None:
        reader = _READERS[key] = Reader(*state)
    return reader


class Reader(Sequence[Sample]):
    """A sequence of samples. Deterministic, thread-safe, safe after fork, picklable (as paths)."""

    def __init__(self, index_path: str, root: str, source: str | None = None, storage: Storage | None = None) -> None:
        """``index_path``: of the index, on this machine. ``root``: the dataset's folder. ``source``: where the indexed
        files are, if not where the index says. ``storage``: what to read them through, if not this machine's disks."""
        self._state = (index_path, root, source, storage)
        self._index = Index(index_path, root, source)
        self._files = Handles(self._index.root, self._index.header.files, storage)
        self._groups = GroupColumns(self._files)
        self._annotations = Annotations(self._index, self._files, self._groups)
        # Files in which (offset, size) is not simply where the bytes are: folders of files, compressed columns.
        self._odd = [file.kind in ("folder", "rowgroups") for file in self._index.header.files]
        self._any_odd = any(self._odd)

    def __getstate__(self) -> _State:
        return self._state

    def __setstate__(self, state: _State) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __len__(self) -> int:
        return self._index.header.rows

    @overload
    def __getitem__(self, row: RowNumber) -> Sample: ...
    @overload
    def __getitem__(self, row: slice) -> View: ...
    @overload
    def __getitem__(self, row: RowNumbers) -> list[Sample]: ...
    def __getitem__(self, row: RowNumber | slice | RowNumbers) -> Any:
        """A row by number, negative ones from the end; a slice, as a view; rows by a list or an array of numbers, as a
        list of samples whose images have been read already, in file order. Raises IndexError, TypeError (a mask is no
        row numbers: ``np.flatnonzero(mask)``), DamagedFileError."""
        if type(row) is int:  # first: what most rows are asked for with
            number = row if 0 <= row < self._index.header.rows else row_number(row, len(self))
            batch, at = self._index.place(number)
            return Sample(self, number, batch, at)
        if isinstance(row, slice):
            return View(self, range(*row.indices(len(self))))
        chosen = chosen_rows(row, len(self))
        return self[chosen] if isinstance(chosen, int) else self._fetch(chosen)

    def __getitems__(self, rows: Sequence[int]) -> list[Sample]:
        """What torch's DataLoader asks for a batch by: its images are read together."""
        return self[rows]

    def __iter__(self) -> Iterator[Sample]:
        return iter(View(self, range(len(self))))

    def find(self, key: str) -> Sample:
        """The row with that key: the last, where files that others wrote have it in several. Raises KeyError."""
        row = self._index.find(key)
        if row is None:
            raise KeyError(key)
        return self[row]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._index.find(key) is not None

    def columns(self, *names: str) -> pa.Table:
        """Columns of :data:`COLUMNS` (all unless named) as an Arrow table over the mapped index: no image is touched,
        nothing copied."""
        for name in names:
            if name not in COLUMNS:
                raise KeyError(f"{name!r} is no column; there are {', '.join(COLUMNS)}")
        return self._index.table(names or COLUMNS)

    def widths(self) -> npt.NDArray[np.int32]:
        """Pixels, of every row."""
        return self._index.column("width")

    def heights(self) -> npt.NDArray[np.int32]:
        """Pixels, of every row."""
        return self._index.column("height")

    def to_datasets(self) -> Any:
        """A map-style ``datasets.Dataset`` of these rows. Its table is the mapped index; a transform reads the images
        when rows are asked for. No cache is written; ``map``, ``filter``, ``shuffle`` and ``select`` work."""
        from builder.hf.builder import reader_dataset

        return reader_dataset(self)

    @property
    def identity(self) -> str:
        """16 hex digits, others where the rows are of other files."""
        return self._index.identity

    @property
    def shards(self) -> tuple[schema.IndexedFile, ...]:
        """The files that hold the images."""
        return self._index.header.files

    def __repr__(self) -> str:
        return f"Reader({self._state[1]!r}, {len(self):,} rows in {len(self.shards):,} files)"

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
            # As datasets caches an imagefolder.
            named = f", only the name of a file, {path}" if path.startswith("/") or "://" in path else ""
            raise DamagedFileError(file.path, f"row {batch.position[at]}", f"has no image in it{named}")
        return image

    def _fetch(self, rows: Sequence[int]) -> list[Sample]:
        """Samples with their images, read together.

        Each image is an object of its own, which a sample keeps and gives out: no second copy, and no batch that lives
        for as long as one sample of it does.
        """
        keep_freed_memory()
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
                continue  # without an image, which is an error for whoever asks for it
            if odd is not None and odd[file]:
                apart.append((file, batch.offset[at], number))
            else:
                wanted.append((file, batch.offset[at], size, number))
        images: list[bytes | None] = [None] * len(samples)
        read_together(self._files, wanted, images)
        for _, _, _, number in wanted:
            samples[number]._image = images[number]
        for _, _, number in sorted(apart):  # a row group that several are in is decoded once
            sample = samples[number]
            sample._image = self._read_odd(sample._batch, sample._at)
        return samples


class View(Sequence[Sample]):
    """Some rows of a Reader, in an order of their own: what a slice gives. Holds numbers, no bytes."""

    def __init__(self, reader: Reader, rows: Sequence[int]) -> None:
        self._reader, self._rows = reader, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, row: RowNumber) -> Sample: ...
    @overload
    def __getitem__(self, row: slice) -> View: ...
    @overload
    def __getitem__(self, row: RowNumbers) -> list[Sample]: ...
    def __getitem__(self, row: RowNumber | slice | RowNumbers) -> Any:
        """As of a Reader, of these rows."""
        if isinstance(row, slice):
            return View(self._reader, self._rows[row])
        chosen = chosen_rows(row, len(self))
        if isinstance(chosen, int):
            return self._reader[self._rows[chosen]]
        return self._reader._fetch([self._rows[each] for each in chosen])

    def __getitems__(self, rows: Sequence[int]) -> list[Sample]:
        return self[rows]

    def __contains__(self, key: object) -> bool:
        row = self._reader._index.find(key) if isinstance(key, str) else None
        return row is not None and row in self._rows

    def __iter__(self) -> Iterator[Sample]:
        """Reads ahead, several rows at a time."""
        for first in range(0, len(self._rows), _AHEAD):
            yield from self._reader._fetch(list(self._rows[first : first + _AHEAD]))

    def __repr__(self) -> str:
        return f"View({len(self):,} rows of {self._reader!r})"


def open_dataset(
    path: str | os.PathLike[str],
    source: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> Reader:
    """Open a converted folder, a folder that ``laion6m index`` made, a source that has an index in its meta/, or any
    folder of Parquet or Arrow files with a column of images.

    ``path`` may be a URL that fsspec knows (``hf://datasets/user/repo``, ``s3://…``, ``https://…``) of a folder with an
    index: the index is fetched once, then each sample is one range request. ``storage_options`` go to fsspec.
    ``source``: where the indexed files are now, for an index over a source that was moved. ``image_column``,
    ``caption_column``: of files without an index, which columns are meant (captions may be ``column.field``, a field of
    a struct); a UserWarning says where that is needed. Raises SourceError, DamagedFileError, IndexMismatchError,
    OptionError.
    """
    folder = os.fspath(path)
    if "://" in folder:
        from builder.read.remote import RemoteStorage, fetch_index  # with fsspec, which local reading does not need

        _refuse_columns(folder, image_column=image_column, caption_column=caption_column)
        storage = RemoteStorage(storage_options)
        return Reader(fetch_index(folder, storage), folder, source, storage)
    folder = os.path.abspath(os.path.expanduser(folder))  # a reader outlives a change of the working directory
    source = None if source is None else os.path.abspath(os.path.expanduser(source))
    index = os.path.join(folder, *schema.INDEX.split("/"))
    if os.path.exists(index):
        _refuse_columns(folder, image_column=image_column, caption_column=caption_column)
        return Reader(index, folder, source)
    if not os.path.isdir(folder):
        raise SourceError(f"{folder} is {'not a folder' if os.path.exists(folder) else 'not there'}")
    from builder.read.data_files import data_files

    folder = os.path.realpath(folder)
    files = data_files(folder)
    if files is None:
        raise SourceError(f"{folder} has no {schema.INDEX}: convert it, or make one with: laion6m index {folder}")
    from builder.read.foreign import index_files  # with pyarrow.parquet: 10 MB that a reader has no use for
    from builder.read.image_columns import warn_of_guesses

    if files:
        warn_of_guesses(files[0], image_column, caption_column)  # before all are indexed, which may take its time
    return Reader(index_files(folder, files, image_column, caption_column), folder)


def _refuse_columns(folder: str, **named: str | None) -> None:
    """What an index says of its files stands: another column would be passed over. Raises OptionError."""
    for option, column in named.items():
        if column is not None:
            raise OptionError(option, column, f"the rows of {folder} are those of its {schema.INDEX}")
