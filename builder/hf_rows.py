"""A Reader as a map-style ``datasets.Dataset``: columns of the mapped index, images read when they are looked at."""

from __future__ import annotations

import hashlib
import os
import re
from urllib.parse import quote, unquote

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from builder import schema
from builder.arrays import number_array
from builder.errors import SourceError
from builder.read.reader import Reader, open_dataset
from builder.urls import is_url, serve

PROTOCOL = "laion6m"
_COLUMNS = ("key", "caption", "width", "height", "path", "annotation_path", "size", "position")
_AT_ONCE = 1 << 20
"""Rows of a chunk of addresses: far from the 2 GiB that its offsets hold."""

_DIGITS = 8
_READERS: dict[str, Reader] = {}


def reader_dataset(reader: Reader) -> datasets.Dataset:
    """Columns of a Reader, and ``image``, a ``datasets.Image`` whose bytes are elsewhere: its path is an address,
    ``laion6m://FOLDER#ROW``, read when the image is looked at. A ``map`` that touches no image caches addresses;
    ``push_to_hub`` embeds the bytes. Two habits of ``datasets`` cost more here than elsewhere, and ``input_columns``
    avoids both: ``filter`` decodes every column of a row, and ``map`` encodes each image its function looked at anew.

    Nothing is copied but the addresses (some 60 bytes a row), and no cache is written. ``annotation`` is not a column:
    see ``reader.find(key).annotation``.
    """
    index, root, source, storage = reader.__getstate__()
    folder = root if is_url(root) else os.path.abspath(root)
    options = getattr(storage, "options", {})
    plain = source is None and not options  # open_dataset(folder) is the same once more
    opened = repr((index, source, sorted(options.items())))
    place = folder if plain else f"{folder}@{hashlib.sha256(opened.encode()).hexdigest()[:_DIGITS]}"
    _READERS[place] = reader
    columns = reader.columns(*_COLUMNS)
    prefix = f"{PROTOCOL}://{quote(place, safe='')}#"  # datasets would fold slashes
    starts = range(0, len(reader), _AT_ONCE)
    images = pa.chunked_array(
        [_addresses(prefix, start, min(start + _AT_ONCE, len(reader))) for start in starts], _IMAGE
    )
    table = columns.add_column(1, pa.field("image", _IMAGE), images)
    features = {name: datasets.Value(str(columns.field(name).type)) for name in _COLUMNS}
    features["image"] = datasets.Image()
    state = os.stat(index)
    facts = f"{place}\n{len(reader)}\n{state.st_size}\n{state.st_mtime_ns}"
    return datasets.Dataset(
        table,
        info=datasets.DatasetInfo(features=datasets.Features({name: features[name] for name in table.column_names})),
        split=datasets.Split.TRAIN,
        fingerprint=hashlib.sha256(facts.encode("utf-8", "surrogateescape")).hexdigest()[:16],
    )


_IMAGE = schema.ROW.field("image").type


def _addresses(prefix: str, start: int, end: int) -> pa.StructArray:
    rows = number_array(np.arange(start, end, dtype=np.int64)).cast(pa.string())
    paths = pc.binary_join_element_wise(pa.scalar(prefix), rows, "")
    return pa.StructArray.from_arrays([pa.nulls(end - start, pa.binary()), paths], fields=list(_IMAGE))


def _read(address: str) -> bytes:
    """The image at ``FOLDER#ROW``. A process that has not opened the folder yet (not forked from one that has) does."""
    quoted, _, row = address.rpartition("#")
    place = unquote(quoted)
    reader = _READERS.get(place)
    if reader is None:
        opened_so = re.fullmatch(rf".*@[0-9a-f]{{{_DIGITS}}}", place, re.DOTALL)  # with what only its opener knows
        if opened_so or not (is_url(place) or os.path.isdir(place)):
            raise SourceError(f"{PROTOCOL}://{address}: no dataset is open at {place}; use to_datasets() again")
        reader = _READERS[place] = open_dataset(place)
    return reader[int(row)].image


serve(PROTOCOL, _read)
