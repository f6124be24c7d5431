"""Xet uploads without a Xet server: hf_xet writes its store into a local folder, from which files are taken again.

`casUrl = "local://FOLDER"` is not documented; hf_xet 1.x accepts it. Only what a commit names is read, over a copy,
since the process that opened the folder keeps it locked.
"""

from __future__ import annotations

import secrets
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.hub.storage import CHUNK, Store

_ROW = 48  # bytes of every header, row and bookend of a shard file
_WITH_VERIFICATION, _WITH_METADATA = 1 << 31, 1 << 30


def new_folder(root: Path) -> str:
    folder = root / "xet" / secrets.token_hex(8)
    folder.mkdir(parents=True)
    return f"local://{folder}"


def recover(store: Store, sha256: str) -> None:
    """Bring a file that came by Xet into the large-file storage, if any of the folders has it."""
    for folder in sorted((store.root / "xet").glob("*")):
        for shard in folder.rglob("*.mdb"):
            for file_hash, content_hash, size in _files_of(shard.read_bytes()):
                if content_hash == sha256:
                    _take(store, folder, file_hash, sha256, size)
                    return


def _files_of(shard: bytes) -> Iterator[tuple[str, str, int]]:
    """(Xet hash, sha256, size) of the files that a shard describes (Xet specification, "Shard Format", file info)."""
    at = _ROW
    while shard[at : at + 32] != b"\xff" * 32:
        flags, count = struct.unpack_from("<II", shard, at + 32)
        rows = [shard[at + _ROW * n : at + _ROW * (n + 1)] for n in range(1, count + 1)]
        size = sum(struct.unpack_from("<I", row, 36)[0] for row in rows)
        end = at + _ROW * (1 + count * (2 if flags & _WITH_VERIFICATION else 1))
        if flags & _WITH_METADATA:
            yield _hex(shard[at : at + 32]), _hex(shard[end : end + 32]), size
            end += _ROW
        at = end


def _hex(digest: bytes) -> str:
    """A hash as Xet prints it: four little-endian 64-bit words."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", digest))


def _take(store: Store, folder: Path, file_hash: str, sha256: str, size: int) -> None:
    import hf_xet

    with tempfile.TemporaryDirectory(dir=store.root / "incoming") as work:
        copy, out = Path(work, "store"), Path(work, "out")
        shutil.copytree(folder, copy)
        with hf_xet.XetSession().new_file_download_group(endpoint=f"local://{copy}") as group:
            group.start_download_file(hf_xet.XetFileInfo(file_hash, size), str(out))
        with out.open("rb") as file:
            store.put_large(sha256, iter(lambda: file.read(CHUNK), b""))
