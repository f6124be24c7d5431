"""A converted folder behind a URL, mirrored on this machine: small files as copies, shards as empty sparse files."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from dataclasses import dataclass

from builder.base import schema
from builder.base.errors import DamagedFileError, SourceError
from builder.base.storage import Storage
from builder.base.urls import StorageOptions, join
from builder.store.manifest import Manifest, read_manifest
from builder.store.output import make_folder


@dataclass(frozen=True, slots=True)
class Mirror:
    """The mirror of the folder at ``url``. ``folder``: where the copy lies. Picklable."""

    url: str
    folder: str
    options: StorageOptions

    @classmethod
    def of(cls, url: str, folder: str, options: StorageOptions) -> Mirror:
        """Copy meta/ and README.md, and only the names and sizes of data/. Added columns are left out. Raises
        SourceError if there is no converted folder."""
        mirror = cls(url.rstrip("/"), folder, options)
        storage = Storage(options)
        try:
            mirror.fetch(schema.MANIFEST)
        except FileNotFoundError:
            words = f"{shlex.quote(url)} is not a converted folder: it has no {schema.MANIFEST}"
            raise SourceError(f"{words}. Give the folder that laion6m convert made.") from None
        sizes = {
            f"{side}/{entry.name}": entry.size
            for side in (schema.DATA, schema.META)
            for entry in storage.entries(join(mirror.url, side))
            if not entry.is_folder
        }
        for name in {*sizes, *mirror._named()} - {schema.MANIFEST}:
            with suppress(FileNotFoundError):
                if not name.startswith(f"{schema.DATA}/"):
                    mirror.fetch(name)
                    continue
                size = sizes.get(name)
                if size is None:  # a web server may list nothing, or no sizes
                    size = storage.look(join(mirror.url, name)).size
                mirror.release(name, size or 0)
        return mirror

    def fetch(self, name: str) -> None:
        """Download one file. Raises FileNotFoundError, SourceError."""
        path = self._place(name)
        make_folder(os.path.dirname(path))
        Storage(self.options).ask(join(self.url, name), lambda system, place: system.get_file(place, path))

    def release(self, name: str, size: int) -> None:
        """Replace a file with a sparse file of ``size`` bytes, which takes no disk space."""
        path = self._place(name)
        make_folder(os.path.dirname(path))
        with open(path, "wb") as file:
            file.truncate(size)

    def manifest(self) -> Manifest:
        """The folder's manifest. Raises DamagedFileError."""
        return read_manifest(self.url, self._place(schema.MANIFEST))

    def _named(self) -> set[str]:
        """Files that the manifest names, without those that would lie outside the folder. None if it is damaged."""
        with suppress(DamagedFileError):
            return {name for name in self.manifest().files if not (os.path.isabs(name) or ".." in name.split("/"))}
        return set()

    def _place(self, name: str) -> str:
        return os.path.join(self.folder, *name.split("/"))
