"""Compare the members of a tar for webdataset with the index."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from builder.source.files import LocalFile
from builder.store.webdataset import image_ending, member_header, member_name


def misplaced_members(file: LocalFile, rows: pa.RecordBatch) -> list[int]:
    """Rows whose image or annotation is not where the index says, behind the header that the tar's writer makes."""
    columns = [rows.column(name).to_pylist() for name in ("key", "path", "offset", "size")]
    documents = [rows.column(name).to_pylist() for name in ("annotation_offset", "annotation_size")]
    wrong = []
    for row, (key, path, offset, size, at, length) in enumerate(zip(*columns, *documents, strict=True)):
        name = member_name(key)
        image = name + image_ending(path, file.read_at(offset, 4) if offset >= 0 else b"")
        if not (_lies_at(file, offset, image, size) and _lies_at(file, at, f"{name}.json", length)):
            wrong.append(row)
    return wrong


def documents_of(file: LocalFile, rows: pa.RecordBatch) -> Iterator[bytes]:
    """The annotation of each row."""
    places = (rows.column(name).to_pylist() for name in ("annotation_offset", "annotation_size"))
    for offset, size in zip(*places, strict=True):
        yield file.read_at(offset, size)


def _lies_at(file: LocalFile, offset: int, name: str, size: int) -> bool:
    header = member_header(name, max(0, size))
    start = offset - len(header)
    return size >= 0 <= start and file.read_at(start, len(header)) == header
