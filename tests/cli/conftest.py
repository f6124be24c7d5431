from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from builder.cli.commands import main
from builder.engines.progress import show_progress
from tests.outputs import Ran
from tests.sources import Source, make_source


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return make_source(tmp_path / "src")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """The command line, in this process."""

    def command(*arguments: object) -> Ran:
        capsys.readouterr()
        try:
            code = main(list(map(str, arguments)))
        except SystemExit as error:  # argparse's
            code = int(str(error.code))
        finally:
            show_progress("auto")
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return command
