"""A Reader, or a view of one, as a map-style ``datasets.Dataset``.

Its columns are those of the memory-mapped index. An image is read when it is accessed.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shlex
from typing import Any
from urllib.parse import quote, unquote

import datasets
import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from builder.base import schema
from builder.base.arrays import bool_array, number_array, numbers_of
from builder.base.errors import SourceError
from builder.base.urls import NO_OPTIONS, is_url
from builder.base.words import counted
from builder.read.opening import open_dataset
from builder.read.reader import Reader
from builder.read.sample import Sample
from builder.read.view import Rows

PROTOCOL = "laion6m"
_COLUMNS = ("key", "caption", "width", "height", "path", "annotation_path", "size", "position")
_AT_ONCE = 1 << 20
"""Rows of one chunk of addresses. They stay far below 2 GiB, the most that its 32-bit offsets can address."""

_READERS: dict[str, Reader] = {}


def reader_dataset(rows: Rows) -> datasets.Dataset:
    """The rows as a ``datasets.Dataset``: the columns of the index, and ``image``, a ``datasets.Image``.

    An image holds no bytes, only a path: the address ``laion6m://PLACE#ROW/NAME``. The bytes are read when the image is
    accessed. A ``map`` that reads no image caches only addresses; ``save_to_disk`` and ``to_parquet`` also write only
    addresses. ``push_to_hub`` embeds the bytes.

    Two habits of ``datasets`` cost more here than elsewhere. ``filter`` decodes every column of a row. ``map`` encodes
    again each image that its function has read. ``input_columns`` avoids both.

    Only the addresses are made anew (about 90 bytes a row); all else is shared, and no cache is written. ``annotation``
    is not a column: use ``reader.find(key).annotation``.
    """
    reader = rows.reader
    place = _place_of(reader)
    _READERS[place] = reader
    columns = rows.columns(*_COLUMNS)
    numbers = np.asarray(rows.rows, dtype=np.int64)
    prefix = f"{PROTOCOL}://{quote(place, safe='')}#"  # datasets would merge slashes
    stretches = (slice(first, first + _AT_ONCE) for first in range(0, len(rows), _AT_ONCE))
    addresses = [_addresses(prefix, numbers[each], columns.slice(each.start, _AT_ONCE)) for each in stretches]
    images = pa.chunked_array(addresses, _IMAGE)
    table = columns.add_column(0, pa.field("image", _IMAGE), images)
    features = {name: datasets.Value(str(columns.field(name).type)) for name in _COLUMNS}
    features["image"] = datasets.Image()
    state = os.stat(reader.__getstate__()[0])
    facts = f"{place}\n{rows.identity}\n{len(rows)}\n{state.st_size}\n{state.st_mtime_ns}"
    return datasets.Dataset(
        table,
        info=datasets.DatasetInfo(features=datasets.Features({name: features[name] for name in table.column_names})),
        split=datasets.Split.TRAIN,
        fingerprint=hashlib.sha256(facts.encode("utf-8", "surrogateescape")).hexdigest()[:16],
    )


_IMAGE = schema.ROW.field("image").type


def _addresses(prefix: str, numbers: npt.NDArray[np.int64], some: pa.Table) -> pa.StructArray:
    """Addresses of the rows ``numbers``, whose columns are ``some``; null for a row without an image. An address ends
    in the image's own name: only the name is kept when the bytes are embedded."""
    rows = number_array(numbers).cast(pa.string())
    names = pc.replace_substring_regex(some.column("path").combine_chunks(), "^.*/", "")
    names = pc.replace_substring(names, "::", "__")  # datasets splits addresses at "::"
    addresses = pc.binary_join_element_wise(pc.binary_join_element_wise(pa.scalar(prefix), rows, ""), names, "/")
    missing = bool_array(numbers_of(some.column("size")) < 0)
    return pa.StructArray.from_arrays([pa.nulls(len(some), pa.binary()), addresses], fields=list(_IMAGE), mask=missing)


def _place_of(reader: Reader) -> str:
    """A reader's place: its folder, and the identity of its files, since row 5 of other files is another image.

    A second mark is added if the reader was opened with its own source or options. Only the process that opened it can
    open such a place.
    """
    index, root, source, storage = reader.__getstate__()
    options = getattr(storage, "options", NO_OPTIONS)
    place = f"{root if is_url(root) else os.path.abspath(root)}@{reader.identity}"
    if source is None and options == NO_OPTIONS:
        return place  # open_dataset(root) opens the same again
    opened = repr((index, source, options.text))
    return f"{place}-{hashlib.sha256(opened.encode()).hexdigest()[:8]}"


class AddressError(SourceError, FileNotFoundError):
    """An address has no file. fsspec expects a FileNotFoundError here. Args as in OSError: ENOENT, why, address."""

    @staticmethod
    def of(address: str, why: str) -> AddressError:
        return AddressError(errno.ENOENT, why, address)

    def _words(self) -> str:
        return f"{self.filename}: {self.strerror}"


class _ImageFile(io.BytesIO):
    """An image in memory. ``size``: bytes. fsspec needs it to read blocks and the end of a file."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.size, self.name = len(data), name


class FileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """``laion6m://PLACE#ROW/NAME``: the images of open datasets, and of datasets that can be opened again. Read-only.

    Spawned workers import nothing of this package. There, fsspec loads this class by its entry point. Keeps fsspec's
    contract: picklable, ``info``, ``ls``, ``find``, ``size``, ``cat_file`` with negative bounds, ``read_block``, and
    FileNotFoundError (:class:`AddressError`) for a missing file.
    """

    protocol = PROTOCOL
    root_marker = ""

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        row, name = _parts(path)[1:]
        if path and row is None:
            _reader(path)  # raises AddressError if no dataset can be opened there
        sample = None if row is None else _sample(path)
        if sample is None or not name:
            return _folder(path)
        if name != _name_of(sample) or sample.size < 0:
            raise AddressError.of(_address(path), f"there is no such file. The image of this row is {sample.path}")
        return {"name": path, "size": sample.size, "type": "file"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        found = self.info(path)
        path = found["name"]
        if found["type"] == "file":
            entries = [found]
        elif not path:
            entries = [_folder(quote(place, safe="")) for place in _READERS]
        elif _parts(path)[1] is None:
            entries = [_folder(f"{path}#{row}") for row in range(len(_reader(path)))]
        else:
            sample = _sample(path)
            entries = [] if sample.size < 0 else [self.info(f"{path}/{_name_of(sample)}")]
        return entries if detail else [entry["name"] for entry in entries]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return self._bytes(path)[start:end]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> _ImageFile:
        if mode != "rb":
            raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), self.unstrip_protocol(path))
        return _ImageFile(self._bytes(path), path)

    def _bytes(self, path: str) -> bytes:
        found = self.info(path)
        if found["type"] != "file":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.unstrip_protocol(path))
        return _sample(found["name"]).image


fsspec.register_implementation(PROTOCOL, FileSystem, clobber=True)


def _folder(path: str) -> dict[str, Any]:
    return {"name": path, "size": 0, "type": "directory"}


def _name_of(sample: Sample) -> str:
    """The image's own name, as in its address. It has no ``::``: datasets splits addresses there."""
    return sample.path.rpartition("/")[2].replace("::", "__")


def _address(path: str) -> str:
    return f"{PROTOCOL}://{path}"


def _parts(path: str) -> tuple[str, str | None, str]:
    """(place, row, name) of an address. The row is None if the address names none."""
    quoted, mark, rest = path.partition("#")
    row, _, name = rest.partition("/")
    return unquote(quoted), row if mark else None, name


def _sample(path: str) -> Sample:
    reader, row = _reader(path), _parts(path)[1] or ""
    if not (row.isascii() and row.isdecimal() and int(row) < len(reader)):
        raise AddressError.of(_address(path), f"there is no row {row}. The dataset has {counted(len(reader), 'row')}")
    return reader[int(row)]


def _reader(path: str) -> Reader:
    """The dataset of an address. Opens it if neither this process nor one it was forked from has."""
    place = _parts(path)[0]
    reader = _READERS.get(place)
    if reader is None:
        reader = _READERS[place] = _open(place)
    return reader


def _open(place: str) -> Reader:
    match = re.fullmatch(r"(.*)@[0-9a-f]{16}", place, re.DOTALL)
    if match is None or not (is_url(match[1]) or os.path.isdir(match[1])):
        raise AddressError.of(f"{PROTOCOL}://", f"no dataset is open at {place}. Call to_datasets() again")
    reader = open_dataset(match[1]).reader
    if _place_of(reader) != place:
        raise AddressError.of(
            f"{PROTOCOL}://",
            f"{shlex.quote(match[1])} holds other files now, or was opened with image_column. Call to_datasets() again",
        )
    return reader
