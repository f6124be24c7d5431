"""Checks that a shard still holds what the conversion wrote, if it was touched while it was open."""

from __future__ import annotations

import os
from functools import cached_property

import xxhash

from builder.base import schema
from builder.base.errors import DamagedFileError
from builder.read.handles import Handle, LocalHandle
from builder.store.manifest import read_manifest

_BLOCK = 1 << 20


class Proof:
    """Compares files with the manifest's checksums. The manifest must belong to the index in use: somebody who replaced
    the shards may have replaced the manifest too. Reads whole files. A shard of 500 MB takes 0.2 s."""

    def __init__(self, index: LocalHandle) -> None:
        self._index = index

    def __call__(self, name: str, handle: Handle) -> bool:
        return self._checksums.get(name) == _digest(handle)

    @cached_property
    def _checksums(self) -> dict[str, str]:
        try:
            files = read_manifest(os.path.dirname(os.path.dirname(self._index.name))).files
            checksums = {name: str(facts["xxh3_128"]) for name, facts in files.items()}
        except (DamagedFileError, OSError, KeyError, TypeError):
            return {}
        return checksums if checksums.get(schema.INDEX) == _digest(self._index) else {}


def _digest(handle: Handle) -> str:
    digest = xxhash.xxh3_128()
    for offset in range(0, handle.size, _BLOCK):
        digest.update(handle.read_at(offset, min(_BLOCK, handle.size - offset)))
    return digest.hexdigest()
