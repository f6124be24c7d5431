"""Coverage-guided fuzzing of the thrift and page-header readers (needs atheris, no dependency of this project).

    python stress/atheris_pages.py CORPUS_FOLDER -max_total_time=1200 -max_len=4096 -timeout=10 -rss_limit_mb=1024

The first byte chooses what the rest is: a struct, the pages of a column chunk whose footer is made here, definition
levels, or a whole file with its footer. pyarrow has no part in it. What has to hold: a struct that is read is written
back to one that is read the same; every range of a value lies inside the file; all else is a project error.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
with atheris.instrument_imports(include=["builder"]):
    from builder.base.errors import DamagedFileError
    from builder.store.footers import footer_digest
    from builder.store.pages import decode_levels, value_ranges
    from builder.store.thrift import (
        BINARY,
        STRUCT,
        ThriftError,
        binary,
        get,
        i32,
        i64,
        list_of,
        read_struct,
        struct,
        write_struct,
    )

from stress.common import MemoryFile

MAGIC = b"PAR1"


@dataclass
class Metadata:
    """As much of pyarrow's FileMetaData as is asked for: one leaf, called image."""

    num_rows: int
    level: int
    num_columns: int = 1

    @property
    def schema(self) -> Any:
        leaf = SimpleNamespace(
            path="image", physical_type="BYTE_ARRAY", max_repetition_level=0, max_definition_level=self.level
        )
        return SimpleNamespace(column=lambda number: leaf)


def one_input(data: bytes) -> None:
    if len(data) < 4:
        return
    choice, rows, level, body = data[0] % 4, data[1], data[2] % 4, data[3:]
    if choice == 0:
        round_trip(body)
    elif choice == 1:
        walk(chunk_file(body, rows, compressed=bool(data[0] & 64)), rows, level)
    elif choice == 2:
        try:
            levels = decode_levels(body, 1 + data[2], rows)
        except ValueError:
            return
        assert levels.shape == (rows,)
    else:
        file = MAGIC + body + len(body).to_bytes(4, "little") + MAGIC
        try:
            footer, _ = read_struct(body)
            claimed = get(footer, 3)
        except (ThriftError, IndexError, TypeError, KeyError):
            claimed = rows
        walk(file, claimed if type(claimed) is int else rows, level)


def round_trip(body: bytes) -> None:
    try:
        fields, end = read_struct(body, max_values=10_000)
    except ThriftError:
        return
    assert 0 < end <= len(body)
    again = write_struct(fields)
    assert write_struct(read_struct(again)[0]) == again


def chunk_file(body: bytes, rows: int, compressed: bool) -> bytes:
    """A file whose only column chunk is ``body``."""
    column = {1: i32(6), 3: list_of(BINARY, [b"image"]), 4: i32(int(compressed)), 5: i64(rows), 7: i64(len(body))}
    column[9] = i64(len(MAGIC))
    group = {1: list_of(STRUCT, [{2: i64(0), 3: struct(column)}]), 3: i64(rows)}
    footer = write_struct({1: i32(1), 3: i64(rows), 4: list_of(STRUCT, [group]), 6: binary(b"x")})
    return MAGIC + body + footer + len(footer).to_bytes(4, "little") + MAGIC


def walk(content: bytes, rows: int, level: int) -> None:
    file = MemoryFile(content)
    try:
        footer_digest(file)
        found = value_ranges(file, Metadata(rows, level), "image")
    except DamagedFileError:
        return
    if file.taken > 4000 * len(content) + (64 << 20):
        raise AssertionError(f"{file.taken} bytes read of {len(content)}")
    if found is None:
        return
    assert found.offsets.shape == found.lengths.shape == (rows,)
    there = found.lengths >= 0
    assert (found.lengths >= -1).all()
    assert (found.offsets[there] >= len(MAGIC)).all()
    assert (found.offsets[there] + found.lengths[there] <= len(content) - 8).all()


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
