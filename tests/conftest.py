"""Fixtures that more than one folder of tests uses, and what all tests run under."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

pytest_plugins = ["tests.hub.fixtures"]

os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"  # datasets would look up the Hub's address, 5 seconds without a network

# The same examples each time: what fails, fails for everybody. `HYPOTHESIS_PROFILE=random pytest` looks for more.
settings.register_profile("fixed", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk() -> Iterator[None]:
    """``os.fsync`` does nothing: what tests write need not survive a power cut, and waiting for the disk was a quarter
    of their time. Tests of when it is called, and of what happens if it fails, replace it themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """All tests, which is what is asked for if nothing is named, go to three processes, file by file: tests on two
    cores wait a fifth of their time. `-n 0` or a path: to this one. So they do without pytest-xdist."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if not whole or "PYTEST_XDIST_WORKER" in os.environ or not config.pluginmanager.hasplugin("xdist"):
        return
    option = config.option
    alone = option.tx or option.usepdb or option.collectonly or option.capture == "no"
    if option.numprocesses is None and not alone:
        option.numprocesses, option.dist = 3, "loadfile"
        option.loadscopereorder = False  # in their order the long files come first
