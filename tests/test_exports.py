"""``builder`` gives every name that it promises, and pays for none of them before it is asked for."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
from importlib.util import find_spec

import pytest

import builder

PRESENT = {name: home for name, home in builder._HOMES.items() if find_spec(home)}


@pytest.mark.parametrize("name", sorted(PRESENT))
def test_a_promised_name_is_what_its_home_calls_so(name: str) -> None:
    assert getattr(builder, name) is getattr(importlib.import_module(PRESENT[name]), name)


def test_what_a_star_import_gives_is_promised() -> None:
    assert set(builder.__all__) <= {*builder._HOMES, "__version__"}
    assert {"ConvertOptions", "SamplePolicy", "Slice", "open_dataset"} <= set(PRESENT)


def test_a_name_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(AttributeError, match=r"'builder' has no attribute 'convret'; it has .*convert"):
        builder.convret  # noqa: B018
    assert not hasattr(builder, "__wrapped__")  # what inspect asks of every module


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "kept_out"),
    [
        ("import builder", ["datasets", "pandas", "pyarrow", "numpy", "torch"]),
        ("from builder import ConvertOptions, Slice", ["datasets", "pandas", "pyarrow", "torch"]),
        ("import builder.cli.commands", ["datasets", "pandas", "torch", "huggingface_hub"]),
        ("import builder.conversion.convert", ["datasets", "pandas", "torch", "huggingface_hub", "PIL"]),
        ("from builder import open_dataset", ["datasets", "pandas", "torch", "huggingface_hub"]),
    ],
)
def test_what_is_not_needed_is_not_imported(code: str, kept_out: list[str]) -> None:
    check = f"import sys; {code}; print(*sorted(set({kept_out!r}) & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_the_version_is_that_of_the_project() -> None:
    assert builder.__version__ == importlib.metadata.version("laion6m")
