"""Small JSON documents that hold their own checksum, and checksums of whole files."""

from __future__ import annotations

import json
from typing import Any

import xxhash

from builder.base.words import problem_of

_BLOCK = 1 << 20


def checksum(document: dict[str, Any]) -> str:
    """xxh3-128 (hex) of a document's content. The order of keys and the blanks in its JSON do not matter."""
    return xxhash.xxh3_128_hexdigest(json.dumps(document, sort_keys=True, ensure_ascii=True).encode())


def seal(document: dict[str, Any]) -> bytes:
    """The document as JSON, with its checksum in it."""
    return json.dumps({**document, "checksum": checksum(document)}, sort_keys=True).encode()


def unseal(text: bytes) -> dict[str, Any]:
    """The document that ``seal`` wrote. Raises ValueError for anything else."""
    try:
        document = json.loads(text)
        noted = document.pop("checksum")
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a document of this tool: {problem_of(error)}") from None
    if noted != checksum(document):
        raise ValueError("its checksum does not fit its content")
    return document  # type: ignore[no-any-return]


def file_digest(path: str) -> str:
    """xxh3-128 of a file, hex. Raises OSError."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
