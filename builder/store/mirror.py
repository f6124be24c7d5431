"""A converted folder behind a URL, mirrored on this machine: small files as copies, shards as empty sparse files."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass

from builder.base import schema
from builder.base.errors import DamagedFileError, SourceError
from builder.base.storage import Storage
from builder.base.urls import StorageOptions, join
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
            words = f"{url} is not a converted folder: it has no {schema.MANIFEST}"
            raise SourceError(f"{words}. Give the folder that laion6m convert made.") from None
        sizes = {
            f"{side}/{entry.name}": entry.size
            for side in (schema.DATA, schema.META)
            for entry in storage.entries(join(mirror.url, side))
            if not entry.is_folder
        }
        for name in {*sizes, *mirror._named()} - {schema.MANIFEST}:
            if not name.startswith(f"{schema.DATA}/"):
                with suppress(FileNotFoundError):
                    mirror.fetch(name)
                continue
            size = sizes.get(name)
            with suppress(FileNotFoundError):
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

    def _named(self) -> set[str]:
        """Files that the manifest names, without those that would lie outside the folder. Raises DamagedFileError."""
        path = self._place(schema.MANIFEST)
        try:
            with open(path, "rb") as file:
                names = set(json.load(file)["files"])
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedFileError(join(self.url, schema.MANIFEST), "manifest", str(error)) from None
        return {name for name in names if not (os.path.isabs(name) or ".." in name.split("/"))}

    def _place(self, name: str) -> str:
        return os.path.join(self.folder, *name.split("/"))
