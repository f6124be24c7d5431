"""laion6m.py itself: as a script of datasets 3, as a module that newer ones find, and what stands in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.sources import Source, make_source

ROOT = Path(__file__).parents[1]
SCRIPTS = int(version("datasets").split(".")[0]) < 4


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_source(tmp_path_factory.mktemp("card") / "source", faults=("too_wide",))


def run(code: str, home: Path, *arguments: str, at: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Python code in a process with nothing cached and no network, started in the checkout."""
    env = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(at)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=env, cwd=at, capture_output=True, text=True, timeout=120, check=False)


def keys(code: str, home: Path, *arguments: str) -> list[list[str]]:
    done = run(f"import json, sys\n{code}\nprint(json.dumps(out))", home, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


PLAIN = """
import datasets
given = dict(data_dir=sys.argv[1], split="train", **EXTRA)
mapped = datasets.load_dataset("laion6m.py", num_proc=2, **given)
again = datasets.load_dataset("laion6m.py", **given)
assert again.cache_files == mapped.cache_files
stream = datasets.load_dataset("laion6m.py", streaming=True, **given)
out = [mapped["key"][:], [row["key"] for row in stream]]
prepared = datasets.load_dataset_builder("laion6m.py", **{k: v for k, v in given.items() if k != "split"})
prepared.download_and_prepare(sys.argv[2], file_format="parquet")
"""


@pytest.mark.skipif(not SCRIPTS, reason="this version of datasets runs no scripts")
def test_datasets_3_runs_the_script(source: Source, tmp_path: Path) -> None:
    code = PLAIN.replace("EXTRA", "dict(trust_remote_code=True)")
    assert keys(code, tmp_path / "hf", str(source.path), str(tmp_path / "out")) == [list(source.rows)] * 2
    assert [path.name for path in (tmp_path / "out").glob("*.parquet")] == ["laion6m-train.parquet"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["card", "extracted"])
def test_any_version_finds_it_once_it_is_imported(layout: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", layout)
    code = "import laion6m\n" + PLAIN.replace("EXTRA", "{}")
    assert keys(code, tmp_path / "hf", str(source.path), str(tmp_path / "out")) == [list(source.rows)] * 2


@pytest.mark.slow
def test_a_converted_folder_loads_by_the_plain_call_too(source: Source, tmp_path: Path) -> None:
    code = """
import laion6m, datasets
from builder.conversion.convert import convert
convert(sys.argv[1], sys.argv[2], num_proc=1, quiet=True)
out = [datasets.load_dataset("laion6m", data_dir=sys.argv[2], split="train")["key"][:]]
out += [datasets.load_dataset(sys.argv[2], split="train")["key"][:]]
"""
    assert keys(code, tmp_path / "hf", str(source.path), str(tmp_path / "out")) == [list(source.rows)] * 2


def test_a_script_away_from_its_package_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "laion6m.py").write_text((ROOT / "laion6m.py").read_text())
    code = "import sys; sys.modules['builder'] = None; import laion6m"
    if not list(tmp_path.glob("builder")):
        done = run("import laion6m", tmp_path / "hf", at=tmp_path)
        if done.returncode == 0:  # the package is installed in this environment
            done = run(code, tmp_path / "hf", at=tmp_path)
    assert done.returncode != 0
    assert "laion6m.py needs the package that it belongs to" in done.stderr


@pytest.mark.parametrize("make", ["builder.py", "builder/__init__.py"])
def test_a_stranger_s_builder_is_named(make: str, tmp_path: Path) -> None:
    stranger = tmp_path / make
    stranger.parent.mkdir(exist_ok=True)
    stranger.touch()
    for code in ("import laion6m", "import runpy; runpy.run_module('laion6m', run_name='__main__')"):
        done = run(f"import sys; sys.path.insert(1, {str(ROOT)!r}); {code}", tmp_path / "hf", at=tmp_path)
        assert f"Python found another one: {stranger}" in done.stderr
        assert done.returncode == 1


@pytest.mark.slow
def test_the_module_hands_on_all_that_is_public(tmp_path: Path) -> None:
    code = """
import builder, laion6m
from laion6m import open_dataset, ConvertOptions
assert all(getattr(laion6m, name) is getattr(builder, name) for name in builder.__all__)
out = [sorted(set(builder.__all__) - set(dir(laion6m))), sorted(set(builder.__all__) - set(dir(builder)))]
assert laion6m.__version__ == builder.__version__
"""
    assert keys(code, tmp_path / "hf") == [[], []]


@pytest.mark.parametrize("module", ["laion6m", "builder"])
def test_the_module_is_the_command(module: str, tmp_path: Path) -> None:
    code = f"import runpy, sys; sys.argv = ['-m', '--version']; runpy.run_module({module!r}, run_name='__main__')"
    done = run(code, tmp_path / "hf")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("laion6m 0.")


@pytest.mark.skipif(not SCRIPTS, reason="newer versions do not look at a script's imports")
def test_datasets_asks_nobody_to_install_a_stranger() -> None:
    """``pip install builder`` would be the advice of datasets 3, and that is another project."""
    from datasets.utils.py_utils import get_imports  # type: ignore[attr-defined]

    assert {name for _, name, *_ in get_imports(str(ROOT / "laion6m.py"))} == {"__future__", "typing"}


def test_importing_the_module_alone_registers_it_and_a_copy_does_not(tmp_path: Path) -> None:
    """The copy in the module cache of datasets 3 must leave the script's own name to the script."""
    code = """
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as table
import importlib.util
spec = importlib.util.spec_from_file_location("datasets_modules.laion6m", "laion6m.py")
copy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(copy)
before = sorted(name for name in table if "laion" in name)
import laion6m
out = [before, sorted(name for name in table if "laion" in name)]
"""
    assert keys(code, tmp_path / "hf") == [[], ["laion6m", "laion6m.py"]]
