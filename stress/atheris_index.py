"""Coverage-guided fuzzing of the index reader (needs atheris, no dependency of this project).

    python stress/atheris_index.py CORPUS_FOLDER -max_total_time=1200 -max_len=16384 -timeout=20 -rss_limit_mb=1024

The folder holds one file of 4 KiB and meta/index.arrow. The first byte chooses what the rest is: the whole index; its
JSON header, before sound rows; or changes to the buffers of its columns (numbers, text offsets, null bitmaps), behind
a sound header. What has to hold: rows whose bytes lie inside that file, or a project error; never another exception.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
with atheris.instrument_imports(include=["builder"]):
    import builder.read.groups
    import builder.read.reader  # noqa: F401 - to be instrumented
    from builder.base import schema

from stress.common import look_at, seed_index

FOLDER = tempfile.mkdtemp(prefix="atheris-index-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)


def one_input(data: bytes) -> None:
    if not data:
        return
    content = (data[1:], with_header(data[1:]), with_columns(data[1:]))[data[0] % 3]
    path = os.path.join(FOLDER, "meta", "index.arrow")
    os.unlink(path)  # never written over: an earlier one may be mapped still
    with open(path, "wb") as handle:
        handle.write(content)
    look_at(FOLDER)


def with_header(header: bytes) -> bytes:
    return ipc(SOUND.replace_schema_metadata({schema.INDEX_METADATA_KEY: header}))


def with_columns(data: bytes) -> bytes:
    """A sound index with bytes of its columns' buffers changed: (buffer, two bytes for the place, value) by fours."""
    content = bytearray(WHOLE)
    for at in range(0, len(data) - 3, 4):
        start, size = BUFFERS[data[at] % len(BUFFERS)]
        content[start + int.from_bytes(data[at + 1 : at + 3], "little") % size] = data[at + 3]
    return bytes(content)


def ipc(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


if __name__ == "__main__":
    WHOLE = seed_index(Path(FOLDER)).read_bytes()
    whole = pa.py_buffer(WHOLE)
    SOUND = pa.ipc.open_file(whole).get_batch(0)
    BUFFERS = [
        (buffer.address - whole.address, buffer.size)
        for column in SOUND.columns
        for buffer in column.buffers()
        if buffer is not None and buffer.size
    ]
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
