"""The Hub's rules: which file is large, which path is allowed, which card passes."""

from __future__ import annotations

import codecs
import posixpath
from fnmatch import fnmatchcase
from typing import Any

import yaml  # huggingface_hub requires it, so it is there wherever the client is

REGULAR_LIMIT = 10 * 1024 * 1024  # bytes; above it a file is never kept in git itself

_LARGE = (
    "7z arrow avro bin bz2 ckpt ftz gz h5 joblib lz4 mds mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl "
    "pt pth rar safetensors tar tgz wasm xz zip zst pcm sam raw aac flac mp3 ogg wav bmp gif png tiff jpg jpeg webp "
    "mp4 webm"
)
INITIAL_GITATTRIBUTES = "".join(f"*.{name} filter=lfs diff=lfs merge=lfs -text\n" for name in _LARGE.split())

_LICENSES = (
    "apache-2.0 mit openrail bsd bsd-2-clause bsd-3-clause cc cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 "
    "cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-4.0 cc-by-nc-sa-4.0 gpl-2.0 gpl-3.0 lgpl-3.0 "
    "agpl-3.0 mpl-2.0 odc-by odbl pddl unlicense unknown other"
)


def matches(pattern: str, path: str) -> bool:
    """A .gitattributes or .gitignore pattern: without a slash it is about the name, with one about the whole path."""
    pattern = pattern.rstrip("/")
    if "/" in pattern:
        pattern = pattern.lstrip("/")
        return fnmatchcase(path, pattern) or path.startswith(pattern + "/")
    return any(fnmatchcase(part, pattern) for part in path.split("/"))


def is_binary(sample: bytes) -> bool:
    """Not UTF-8 or with a NUL byte. The sample may end inside a character."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return True
    return b"\0" in sample


def upload_mode(path: str, size: int, sample: bytes, gitattributes: str) -> str:
    for line in gitattributes.splitlines():
        pattern, *attributes = line.split() or [""]
        if "filter=lfs" in attributes and fnmatchcase(posixpath.basename(path), pattern):
            return "lfs"
    return "lfs" if size > REGULAR_LIMIT or is_binary(sample) else "regular"


def should_ignore(path: str, gitignore: str) -> bool:
    patterns = [line.strip() for line in gitignore.splitlines()]
    return any(matches(pattern, path) for pattern in patterns if pattern and not pattern.startswith(("#", "!")))


def path_is_allowed(path: str) -> bool:
    return all(part not in ("", ".", "..", ".git") for part in path.split("/"))


def front_matter(card: str) -> dict[str, Any] | None:
    """The YAML block at the top of a card, None if there is none; yaml.YAMLError or TypeError if not a mapping."""
    lines = card.lstrip("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return None
    ends = [number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---"]
    if not ends:
        return None
    values = yaml.safe_load("\n".join(lines[1 : ends[0]]))
    if values is not None and not isinstance(values, dict):
        raise TypeError("metadata must be a mapping")
    return values or {}


def card_problems(card: str) -> tuple[list[str], list[str]]:
    """Errors and warnings, as POST /api/validate-yaml states them."""
    try:
        values = front_matter(card)
    except (yaml.YAMLError, TypeError) as error:
        return [f"Invalid YAML metadata: {error}"], []
    if not values:
        return [], ["empty or missing yaml metadata in repo card"]
    errors = []
    known = _LICENSES.split()
    if not set(_listed(values.get("license", []))) <= set(known):
        errors.append(f'"license" must be one of {known}')
    texts = ("language", "tags", "task_categories", "size_categories")
    wrong = [key for key in texts if not all(isinstance(item, str) for item in _listed(values.get(key, [])))]
    errors += [f'"{key}" must be a string or a list of strings' for key in wrong]
    configs = values.get("configs", [])
    if not isinstance(configs, list) or not all(isinstance(c, dict) and "config_name" in c for c in configs):
        errors.append('"configs" must be a list of objects with a "config_name"')
    if not all(isinstance(info, dict) for info in _listed(values.get("dataset_info", []))):
        errors.append('"dataset_info" must be an object or a list of objects')
    return errors, []


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
