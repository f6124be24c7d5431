"""Reads objects as a petrel or aoss client file describes: with that client if it is installed, else with plain S3.

The file is INI. Each section is a cluster. A path may name its cluster (``cluster:s3://bucket/path``). Otherwise it
belongs to the ``default_cluster`` of [DEFAULT], or to the only cluster:

    [DEFAULT]
    default_cluster = ours
    [ours]
    endpoint = http://10.0.0.1:80          (also endpoint_url, or host_base, which may lack the scheme)
    access_key = …
    secret_key = …
"""

from __future__ import annotations

import configparser
import importlib
import os
import shlex
from typing import Protocol

from builder.base.errors import SourceError
from builder.base.storage import Storage, persist
from builder.base.urls import StorageOptions

_ENDPOINT_KEYS = ("endpoint", "endpoint_url", "host_base")


class ObjectClient(Protocol):
    """The interface that upstream uses of its client. Picklable."""

    def get(self, url: str, /) -> bytes | None:
        """The object's bytes. For a missing object upstream's client gives None. Ours raises FileNotFoundError."""


def read_client_config(path: str | os.PathLike[str]) -> dict[str, StorageOptions]:
    """Clusters by name: the options of s3fs that reach them. The default one is also under "". Raises SourceError."""
    place = f"client configuration {shlex.quote(os.fspath(path))}"
    parser = configparser.ConfigParser(interpolation=None)  # a secret may hold a %
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except OSError as error:
        raise SourceError(f"{place} cannot be read: {error.strerror}") from error
    except (configparser.Error, UnicodeDecodeError) as error:
        raise SourceError(f"{place} is not an INI file: {error}") from error
    sections = {name: dict(parser[name]) for name in parser.sections() or [parser.default_section]}
    clusters = {name: _cluster(section) for name, section in sections.items() if _endpoint(section)}
    if not clusters:
        raise SourceError(f"{place}: no section has an endpoint. Give it as one of {', '.join(_ENDPOINT_KEYS)}")
    default = parser.defaults().get("default_cluster", next(iter(clusters)) if len(clusters) == 1 else None)
    if default is not None:
        if default not in clusters:
            raise SourceError(f"{place}: default_cluster is {default}, but the clusters are {', '.join(clusters)}")
        clusters[""] = clusters[default]
    return clusters


def _endpoint(section: dict[str, str]) -> str | None:
    found = next((section[key] for key in _ENDPOINT_KEYS if section.get(key)), None)
    if found is None or "://" in found:
        return found
    secure = section.get("use_https", "false").strip().lower() in ("1", "true", "yes", "on")
    return f"{'https' if secure else 'http'}://{found}"


def _cluster(section: dict[str, str]) -> StorageOptions:
    """Without an access key, requests are not signed."""
    key, secret = section.get("access_key") or None, section.get("secret_key") or None
    return StorageOptions.of({"endpoint_url": _endpoint(section), "key": key, "secret": secret, "anon": key is None})


class S3Client:
    """Reads ``[cluster:]s3://bucket/path`` with s3fs. Picklable, and safe after a fork. Needs the extra ``s3``."""

    def __init__(self, config: str | os.PathLike[str]) -> None:
        """Raises SourceError for the file, MissingExtraError without s3fs."""
        self._config = shlex.quote(os.fspath(config))
        self._clusters = {name: Storage(options) for name, options in read_client_config(config).items()}
        next(iter(self._clusters.values())).system("s3://")

    def get(self, url: str) -> bytes:
        """The object's bytes. If the network fails, it tries again. Raises FileNotFoundError for a missing object.
        Raises SourceError for a path without a known cluster or a bucket, and for any other answer of S3."""
        name, scheme, path = url.partition("s3://")
        if not scheme or (name and not name.endswith(":")):
            raise SourceError(f"{shlex.quote(url)} is not of the form s3://bucket/path or cluster:s3://bucket/path")
        storage = self._clusters.get(name.removesuffix(":"))
        if storage is None:
            known = ", ".join(filter(None, self._clusters))
            wanted = f"cluster {name.removesuffix(':')}" if name else "default_cluster"
            raise SourceError(f"{shlex.quote(url)}: {self._config} has no {wanted}. Its clusters are {known}")
        # Not ``storage.read(url)``: an object's name may hold "::" or "?", which have a meaning in URLs.
        data: bytes = persist(f"{self._config}: {shlex.quote(url)}", lambda: storage.system("s3://")[0].cat_file(path))
        return data


def open_client(config: str | os.PathLike[str]) -> ObjectClient:
    """The proprietary client if it is installed (looked up as upstream does), else :class:`S3Client`."""
    for package in ("aoss_client", "petrel_client"):
        try:
            module = importlib.import_module(f"{package}.client")
        except ImportError:
            continue
        client: ObjectClient = module.Client(os.fspath(config))
        return client
    return S3Client(config)
