"""What tests of pushing share: a converted folder, a copy of it to push, and the Hub for the client in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub.server import HubServer
from tests.pushes import converted, copy_of, push_here


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(tmp_path_factory.mktemp("made"))


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return copy_of(made, tmp_path / "out")


@pytest.fixture
def inside(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The Hub, for the client in this process."""
    push_here(hub, monkeypatch)
    return hub
