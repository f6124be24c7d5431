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
from dataclasses import dataclass
from typing import Any, Protocol

from builder.base.errors import MissingExtraError, SourceError

_ENDPOINT_KEYS = ("endpoint", "endpoint_url", "host_base")


class ObjectClient(Protocol):
    """The interface that upstream uses of its client. Picklable."""

    def get(self, url: str, /) -> bytes | None:
        """The object's bytes. For a missing object upstream's client gives None. Ours raises FileNotFoundError."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """One S3 endpoint and its keys. ``access_key`` None: requests are not signed."""

    endpoint: str
    access_key: str | None
    secret_key: str | None


def read_client_config(path: str | os.PathLike[str]) -> dict[str, Cluster]:
    """Clusters by name. The default one is also under "". Raises SourceError."""
    parser = configparser.ConfigParser(interpolation=None)  # a secret may hold a %
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except OSError as error:
        raise SourceError(f"{path}: the client configuration cannot be read: {error.strerror}") from error
    except (configparser.Error, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: not an INI file: {error}") from error
    sections = {name: dict(parser[name]) for name in parser.sections()}
    if _endpoint(dict(parser.defaults())) and not sections:
        sections = {"DEFAULT": dict(parser.defaults())}
    clusters = {name: _cluster(section) for name, section in sections.items() if _endpoint(section)}
    if not clusters:
        raise SourceError(f"{path}: no section names an endpoint ({', '.join(_ENDPOINT_KEYS)})")
    default = parser.defaults().get("default_cluster", next(iter(clusters)) if len(clusters) == 1 else None)
    if default is not None:
        if default not in clusters:
            raise SourceError(f"{path}: default_cluster is {default}, but there are only {', '.join(clusters)}")
        clusters[""] = clusters[default]
    return clusters


def _endpoint(section: dict[str, str]) -> str | None:
    found = next((section[key] for key in _ENDPOINT_KEYS if section.get(key)), None)
    if found is None or "://" in found:
        return found
    secure = section.get("use_https", "false").strip().lower() in ("1", "true", "yes", "on")
    return f"{'https' if secure else 'http'}://{found}"


def _cluster(section: dict[str, str]) -> Cluster:
    return Cluster(_endpoint(section) or "", section.get("access_key") or None, section.get("secret_key") or None)


class S3Client:
    """Reads ``[cluster:]s3://bucket/path`` with s3fs. Picklable. Needs the extra ``s3``.

    Each process has its own connection to each cluster: s3fs runs a thread, and a fork does not copy threads.
    """

    def __init__(self, config: str | os.PathLike[str]) -> None:
        self._config = os.fspath(config)
        self._clusters = read_client_config(config)
        self._systems: dict[tuple[int, str], Any] = {}
        _s3fs()

    def __getstate__(self) -> dict[str, Any]:
        return {"_config": self._config, "_clusters": self._clusters, "_systems": {}}

    def get(self, url: str) -> bytes:
        """The object's bytes. Raises FileNotFoundError, PermissionError or another OSError, as S3 answers. Raises
        SourceError for a path without a known cluster or a bucket."""
        name, colon, rest = url.partition(":s3://")
        if not colon:
            name, rest = "", url.removeprefix("s3://")
        if not colon and not url.startswith("s3://"):
            raise SourceError(f"{url} is not of the form s3://bucket/path")
        try:
            data: bytes = self._system(name).cat_file(rest)
        except _client_errors() as error:
            raise OSError(f"{url}: {error}") from error
        return data

    def _system(self, name: str) -> Any:
        if name not in self._clusters:
            known = ", ".join(cluster for cluster in self._clusters if cluster)
            wanted = f"cluster {name}" if name else "a default cluster"
            raise SourceError(f"{self._config} does not name {wanted}; it has {known}")
        slot = (os.getpid(), name)
        if slot not in self._systems:
            cluster = self._clusters[name]
            self._systems[slot] = _s3fs().S3FileSystem(
                anon=cluster.access_key is None,
                key=cluster.access_key,
                secret=cluster.secret_key,
                endpoint_url=cluster.endpoint,
                skip_instance_cache=True,
            )
        return self._systems[slot]


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


def _client_errors() -> tuple[type[Exception], ...]:
    """botocore's errors for requests without an answer (no connection, no credentials). They are not OSErrors, and s3fs
    does not translate them."""
    try:
        return (importlib.import_module("botocore.exceptions").BotoCoreError,)
    except ImportError:
        return ()


def _s3fs() -> Any:
    try:
        return importlib.import_module("s3fs")
    except ImportError as error:
        raise MissingExtraError("reading s3:// paths", "s3fs", "s3") from error
