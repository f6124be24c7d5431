"""meta/manifest.json: totals, options, versions, and a checksum for each file."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import asdict, dataclass, fields
from typing import Any

from builder.base import schema
from builder.base.errors import DamagedFileError, SourceError, refuse_denied
from builder.base.urls import join
from builder.base.words import problem_of
from builder.store.seals import checksum, unseal

MANIFEST_VERSION = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """``files``: path relative to OUT → {"size": bytes, "xxh3_128": hex}. ``totals``: as ``--json`` prints them.
    ``source``: layout, numbers of archives, damage. It has no time, path, host or number of processes. So the same
    source and options give the same bytes."""

    kind: str  # "parquet", "arrow" or "index"
    versions: dict[str, str]
    options: dict[str, Any]
    source: dict[str, Any]
    totals: dict[str, Any]
    files: dict[str, dict[str, Any]]

    def to_json(self) -> bytes:
        """The manifest as JSON. Its last field is a checksum of all the others."""
        document = {"manifest_version": MANIFEST_VERSION, **asdict(self)}
        document["checksum"] = checksum(document)
        return json.dumps(document, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def read_manifest(out: str, copy: str | None = None) -> Manifest:
    """The manifest of OUT. ``copy``: a file of this machine with its bytes, if OUT is behind a URL. Raises
    DamagedFileError if the manifest is missing or was changed since it was written, AccessError."""
    path = join(out, schema.MANIFEST)
    try:
        with open(copy or path, "rb") as handle:
            document = unseal(handle.read())
        return Manifest(**{each.name: document[each.name] for each in fields(Manifest)})
    except FileNotFoundError:
        problem = "it is missing, so the conversion is not finished. Run it again"
        raise DamagedFileError(path, "manifest", problem) from None
    except (OSError, ValueError, KeyError) as error:
        refuse_denied(path, error)
        raise DamagedFileError(path, "manifest", f"cannot be read: {problem_of(error)}") from None


def require_made(out: str) -> None:
    """Raises SourceError if no conversion was begun in a folder. The message says what the folder may be instead."""
    if any(os.path.exists(os.path.join(out, name)) for name in (schema.MANIFEST, schema.WORK)):
        return
    place = shlex.quote(out)
    hint = "Give the folder that laion6m convert or index made."
    if os.path.isdir(os.path.join(out, "raw")):
        hint = f"It looks like a source: laion6m convert {place} OUT"
    raise SourceError(f"{place} is not a converted folder: it has no {schema.MANIFEST}. {hint}")
