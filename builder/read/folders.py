"""Files by path below a folder. They may be plain files, or members of the folder's tars."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.base.errors import DamagedFileError
from builder.base.records import WHOLE
from builder.read.threads import ForkLock
from builder.source.files import LocalFile
from builder.source.tar_headers import normal_name
from builder.source.tars import scan_tar

_OPEN_TARS = 64
"""The most tars kept open. A process often may open only 1,024 files, and the loader's workers and sockets need
some."""


@dataclass(frozen=True, slots=True)
class _TarTable:
    """The place of each member of a tar, sorted by name. ``places``: shape (n, 3), the member's offset, its size, and
    whether the tar has all of it. About 40 bytes a member."""

    names: NDArray[np.bytes_]
    places: NDArray[np.int64]

    def find(self, name: bytes) -> tuple[int, int, int] | None:
        """The place of this name. On duplicate names the last in the tar wins, as when extracting."""
        row = int(np.searchsorted(self.names, name, side="right")) - 1
        if row < 0 or self.names[row] != name:
            return None
        offset, size, whole = self.places[row].tolist()
        return offset, size, whole


class Folder:
    """Reads paths such as ``00000/000000012.jpg`` below ``root``, from a plain file if there is one, else from the tars
    in ``root``.

    Each process scans a tar once, when it first needs it. The tar named like the path's first part (``00000.tar``) is
    searched first, the others only if it has no such member. Two threads may both scan a tar when it is first needed.

    Picklable, safe after fork, thread-safe. Deterministic as long as the files do not change.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._start()

    def _start(self) -> None:
        self._tables: dict[Path, _TarTable] = {}
        self._files: OrderedDict[str, LocalFile] = OrderedDict()
        self._tars: list[Path] | None = None
        self._lock = ForkLock()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.root = state["root"]
        self._start()

    def read(self, path: str) -> bytes:
        """The file's bytes. Raises FileNotFoundError. Raises DamagedFileError if the member is cut short or sparse."""
        try:
            return (self.root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            pass
        name = normal_name(path)
        for tar in self._candidates(name):
            place = self._table(tar).find(name.encode())
            if place is None:
                continue
            offset, size, whole = place
            if not whole:
                raise DamagedFileError(str(tar), name, "the member is sparse, or the tar ends within it")
            data = self._file(tar).read_at(offset, size)
            if len(data) < size:
                raise DamagedFileError(str(tar), name, f"{len(data)} of {size} bytes are there")
            return data
        raise FileNotFoundError(f"{path} is neither a file below {self.root} nor a member of a tar there")

    def _candidates(self, name: str) -> list[Path]:
        if self._tars is None:
            self._tars = sorted(self.root.glob("*.tar"))
        first = self.root / f"{name.partition('/')[0]}.tar"
        return sorted(self._tars, key=lambda tar: tar != first)

    def _table(self, tar: Path) -> _TarTable:
        table = self._tables.get(tar)
        if table is None:
            table = self._tables[tar] = _scan(self._file(tar))
        return table

    def _file(self, tar: Path) -> LocalFile:
        path = str(tar)
        # Dropping a file runs Python code, and other threads can run then. If one of them changes the OrderedDict
        # meanwhile, the interpreter can crash (seen with 3.13.0).
        with self._lock:
            file = self._files.pop(path, None) or LocalFile(path)
            self._files[path] = file
            if len(self._files) > _OPEN_TARS:
                self._files.popitem(last=False)  # closes when the last thread that reads it lets go
        return file


def _scan(file: LocalFile) -> _TarTable:
    members = scan_tar(file).members
    names = np.array([member.name.encode("utf-8", "surrogateescape") for member in members], dtype=np.bytes_)
    places = [(member.offset, member.size, member.state == WHOLE) for member in members]
    ascending = np.argsort(names, kind="stable")
    return _TarTable(names[ascending], np.array(places, dtype=np.int64).reshape(-1, 3)[ascending])
