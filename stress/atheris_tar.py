"""Coverage-guided fuzzing of the tar walk (needs atheris, no dependency of this project).

    python stress/atheris_tar.py CORPUS_FOLDER -max_total_time=1200 -max_len=8192 -timeout=10 -rss_limit_mb=1024

What has to hold for any bytes: the walk ends, members lie inside the archive, names can be encoded, a stream of unknown
length and a file give the same members, and no more is read than a bound that grows with the file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
with atheris.instrument_imports(include=["builder"]):
    from builder.source.tar_headers import parse_header, parse_pax
    from builder.source.tars import scan_tar

from stress.common import MemoryFile, check_scan


def one_input(data: bytes) -> None:
    if data[:1] == b"\xff":  # the two parsers by themselves, with whatever bytes
        parse_header(data[1:513])
        parse_pax(data[1:])
        return
    file = MemoryFile(data)
    scan = scan_tar(file)
    check_scan(scan, data)
    if file.taken > 40 * len(data) + (8 << 20):
        raise AssertionError(f"{file.taken} bytes read of {len(data)}")
    streamed = scan_tar(MemoryFile(data, known=False))
    check_scan(streamed, data)
    if not scan.damage and not streamed.damage and scan.members != streamed.members:
        raise AssertionError("a stream gives other members than a file")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
