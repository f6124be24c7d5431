"""wusize/laion6m, the repository of tars, on the Hub of these tests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.hub.server import HubServer
from tests.hub.storage import File
from tests.sources import Source


@contextmanager
def hub_of_tars(source: Source, storage: Path) -> Iterator[HubServer]:
    """A server whose wusize/laion6m holds the tars and the listing of ``source``."""
    with HubServer(storage) as server:
        store = server.store
        repo = store.create("wusize/laion6m")
        table = {"README.md": store.put_blob(b"# laion6m\n")}
        for path in [*source.path.glob("*/*.tar"), source.path / "data.json"]:
            data = path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            store.put_large(digest, [data])
            table[path.relative_to(source.path).as_posix()] = File.large(digest, len(data))
        store.add_commit(repo, "refs/heads/main", repo.refs["refs/heads/main"], table, "tars")
        yield server
        assert server.crashes == []
