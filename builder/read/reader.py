"""open_dataset(PATH) → Reader: any row of a converted folder or of an index over tars, by one read of its bytes."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, overload
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from builder import schema
from builder.errors import DamagedFileError, SourceError
from builder.read.annotations import Annotations
from builder.read.groups import GroupColumns
from builder.read.handles import Handles, Storage
from builder.read.index import Index, IndexBatch
from builder.read.memory import keep_freed_memory
from builder.read.threads import in_threads
from builder.source.ranges import Read, merge_ranges

COLUMNS = ("key", "path", "caption", "width", "height", "size", "position", "annotation_path")
"""What :meth:`Reader.columns` gives, none of which needs an image."""

_AHEAD = 64  # rows fetched together when iterating
_MOST = 16 << 20  # bytes of one read that serves several rows


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
    def __getitem__(self, row: int) -> Sample: ...
    @overload
    def __getitem__(self, row: slice) -> View: ...
    @overload
    def __getitem__(self, row: Sequence[int]) -> list[Sample]: ...
    def __getitem__(self, row: int | slice | Sequence[int]) -> Any:
        """A row by number, negative ones from the end; a slice, as a view; rows by a list of numbers, as a list of
        samples whose images have been read already, in file order. Raises IndexError, DamagedFileError."""
        if isinstance(row, int):  # first: what most rows are asked for with
            number = row if 0 <= row < self._index.header.rows else self._number(row)
            batch, at = self._index.place(number)
            return Sample(self, number, batch, at)
        if isinstance(row, slice):
            return View(self, range(*row.indices(len(self))))
        if hasattr(row, "tolist"):  # a number or an array of numpy's or torch's
            row = row.tolist()
        if isinstance(row, list | tuple | range):
            return self._fetch([self._number(each) for each in row])
        return self[operator.index(row)]  # type: ignore[arg-type] # a TypeError for what is no number

    def __iter__(self) -> Iterator[Sample]:
        return iter(View(self, range(len(self))))

    def find(self, key: str) -> Sample:
        """The row with that key. Raises KeyError."""
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
        from builder.hf import reader_dataset

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

    def _number(self, row: int) -> int:
        """A row number, negative ones counted from the end."""
        number = operator.index(row)
        if number < 0:
            number += len(self)
        if not 0 <= number < len(self):
            raise IndexError(f"row {row} of {len(self):,}")
        return number

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
            raise DamagedFileError(file.path, f"row {batch.position[at]}", "has no image in it")
        return image

    def _fetch(self, rows: Sequence[int]) -> list[Sample]:
        """Samples with their images, read in the order they lie in the files, several threads at a time.

        Each image is read into an object of its own, which a sample keeps and gives out: no second copy, and no batch
        that lives for as long as one sample of it does.
        """
        keep_freed_memory()
        place, odd = self._index.place, self._odd if self._any_odd else None
        samples: list[Sample] = []
        wanted: list[tuple[int, int, int, int]] = []
        for number, row in enumerate(rows):
            batch, at = place(row)
            sample = Sample(self, row, batch, at)
            samples.append(sample)
            file, size = batch.file[at], batch.size[at]
            if size < 0:
                continue  # without an image, which is an error for whoever asks for it
            if odd is not None and odd[file]:
                sample._image = self._read_odd(batch, at)
            else:
                wanted.append((file, batch.offset[at], size, number))
        wanted.sort()
        if self._files.storage.gap < 0:
            in_threads(partial(self._fill, samples), wanted, self._files.storage.threads)
        else:
            in_threads(partial(self._fill_merged, samples), self._merged(wanted), self._files.storage.threads)
        return samples

    def _fill(self, samples: list[Sample], wanted: list[tuple[int, int, int, int]]) -> None:
        """Read images (file, offset, size, number of the sample), in file order; one wanted twice is read once."""
        read, last, image = self._files.read, (-1, 0, 0), b""
        for file, offset, size, number in wanted:
            if last != (file, offset, size):
                image, last = read(file, offset, size), (file, offset, size)
            samples[number]._image = image

    def _merged(self, wanted: list[tuple[int, int, int, int]]) -> list[tuple[Read, list[tuple[int, int, int, int]]]]:
        """The same in as few reads as storage likes them."""
        work: list[tuple[Read, list[tuple[int, int, int, int]]]] = []
        gap = self._files.storage.gap
        for _, same in groupby(wanted, key=itemgetter(0)):
            some = list(same)
            offsets, sizes = [each[1] for each in some], [each[2] for each in some]
            reads = merge_ranges(offsets, sizes, max_gap=gap, max_size=_MOST)
            work += [(read, [some[item] for item in read.items]) for read in reads]
        return work

    def _fill_merged(self, samples: list[Sample], work: list[tuple[Read, list[tuple[int, int, int, int]]]]) -> None:
        for (start, end, _), wanted in work:
            data = self._files.read(wanted[0][0], start, end - start)
            for _, offset, size, number in wanted:
                samples[number]._image = data[offset - start : offset - start + size]  # bytes: all of it is data itself


class View(Sequence[Sample]):
    """Some rows of a Reader, in an order of their own: what a slice gives. Holds numbers, no bytes."""

    def __init__(self, reader: Reader, rows: Sequence[int]) -> None:
        self._reader, self._rows = reader, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, row: int) -> Sample: ...
    @overload
    def __getitem__(self, row: slice) -> View: ...
    def __getitem__(self, row: int | slice) -> Sample | View:
        if isinstance(row, slice):
            return View(self._reader, self._rows[row])
        return self._reader[self._rows[row]]

    def __iter__(self) -> Iterator[Sample]:
        """Reads ahead, several rows at a time."""
        for first in range(0, len(self._rows), _AHEAD):
            yield from self._reader._fetch(list(self._rows[first : first + _AHEAD]))

    def __repr__(self) -> str:
        return f"View({len(self):,} rows of {self._reader!r})"


def open_dataset(
    path: str | os.PathLike[str], source: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> Reader:
    """Open a converted folder, a folder that ``laion6m index`` made, a source that has an index in its meta/, or any
    folder of Parquet or Arrow files with a column of images.

    ``path`` may be a URL that fsspec knows (``hf://datasets/user/repo``, ``s3://…``, ``https://…``) of a folder with an
    index: the index is fetched once, then each sample is one range request. ``storage_options`` go to fsspec.
    ``source``: where the indexed files are now, for an index over a source that was moved. Raises SourceError,
    DamagedFileError, IndexMismatchError.
    """
    folder = os.fspath(path)
    if "://" in folder:
        from builder.read.remote import RemoteStorage, fetch_index  # with fsspec, which local reading does not need

        storage = RemoteStorage(storage_options)
        return Reader(fetch_index(folder, storage), folder, source, storage)
    folder = os.path.abspath(folder)  # a reader outlives a change of the working directory
    source = None if source is None else os.path.abspath(source)
    index = os.path.join(folder, *schema.INDEX.split("/"))
    if os.path.exists(index):
        return Reader(index, folder, source)
    if not os.path.isdir(folder):
        raise SourceError(f"{folder} is {'not a folder' if os.path.exists(folder) else 'not there'}")
    from builder.read.foreign import data_files, index_files  # with pyarrow.parquet: 10 MB that a reader has no use for

    folder = os.path.realpath(folder)
    if files := data_files(folder):
        return Reader(index_files(folder, files), folder)
    raise SourceError(f"{folder} has no {schema.INDEX}: convert it, or make one with: laion6m index {folder}")
