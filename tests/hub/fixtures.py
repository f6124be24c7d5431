"""Fixtures over the test Hub; tests/conftest.py loads them with `pytest_plugins = ["tests.hub.fixtures"]`.

The name needs the root of the project on the path: `pythonpath = ["."]` in the pytest section of pyproject.toml.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from tests.hub.server import HubServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """huggingface_hub leaves sockets of broken requests to the garbage collector. It comes in any later test."""
    for item in items:
        if "hub" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Collect them before a test that such a warning would fail."""
    if "hub" in getattr(item, "fixturenames", ()) and "hub" not in getattr(nextitem, "fixturenames", ()):
        gc.collect()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A running Hub with nothing in it. The test fails if a client broke a rule or the server had a defect."""
    with HubServer(tmp_path / "hub-storage") as server:
        yield server
        getattr(huggingface_hub, "close_session", lambda: None)()  # versions 0.x have none
    assert server.violations == []
    assert server.crashes == []
