"""Imports point downwards, and every heavy or foreign package comes in through one door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import builder

ROOT = Path(__file__).parents[1]

WINGS = [
    # from the bottom up: a wing imports from itself and from those before it
    "base",
    "source",
    "store",
    "read",
    "mm",
    "engines",
    "plan",
    "curate",
    "conversion",
    "hf",
    "verification",
    "jobs",
    "hub",
    "view",
    "cli",
]

DOORS_IN = {"builder.__main__", "laion6m"}
"""Modules above all wings: ways in."""

APART = {
    ("store", "source"),
    *((wing, other) for wing in ("engines", "plan", "curate", "conversion") for other in ("mm",)),
    *(("view", other) for other in ("conversion", "hf", "verification", "jobs", "hub")),
}
"""Wings that know nothing of each other, though the order would allow it."""

LAZY_UPWARDS = {
    ("builder.read.view", "builder.hf.builder"),
    *(("builder.read.view", f"builder.curate.{name}") for name in ("sql", "split", "selection")),
    ("builder.read.opening", "builder.curate.selection"),
}
"""``Rows.to_datasets``, ``where``, ``split`` … hand the rows to the wing that does it, when they are called."""

PACKAGE = "builder"
"""The package itself: ``__init__`` holds the version and names that are looked up when asked for. Anybody may."""

DOORS: dict[str, list[str]] = {
    # foreign package: files that may import it
    "torch": ["builder/mm/*.py"],
    "mmengine": ["builder/mm/*.py"],
    "transformers": ["builder/mm/*.py"],
    "datasets": ["builder/hf/*.py", "laion6m.py"],
    "fsspec": ["builder/base/storage.py", "builder/hf/rows.py"],
    "huggingface_hub": ["builder/hub/*.py", "builder/hf/*.py", "builder/read/hub.py"],
    "multiprocess": ["builder/engines/*.py"],
    "ray": ["builder/engines/ray.py"],
    "shtab": ["builder/cli/completion.py"],
    "tqdm": ["builder/engines/views.py"],
    "zstandard": ["builder/source/compressed.py"],
    "PIL": [
        "builder/source/images.py",
        "builder/mm/*.py",
        "builder/jobs/demo_images.py",
        "builder/curate/thumbnails.py",
    ],
    "pandas": [],
    "pickle": ["builder/engines/messages.py", "builder/mm/*.py"],  # who may load with it: see below
    "duckdb": ["builder/curate/*.py"],
}

AT_FIRST_USE = {"PIL", "multiprocess", "zstandard", "ray", "datasets", "fsspec", "huggingface_hub", "tqdm"}
"""Not at module level, but for files that are themselves imported late: most runs never need them."""


@dataclass(frozen=True)
class Import:
    """``name`` as written: a module, or a module and what is taken from it. ``lazy``: not at module level."""

    module: str
    path: Path
    name: str
    line: int
    lazy: bool

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.name}"


def sources() -> list[Path]:
    return sorted([*(ROOT / "builder").rglob("*.py"), ROOT / "laion6m.py"])


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[Import]:
    """All imports of a file that happen; those for type checkers alone do not."""
    tree = ast.parse(path.read_text())
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            inside.update(child for statement in node.body for child in ast.walk(statement))
    at_top = {node for statement in tree.body for node in _without_functions(statement)}
    for node in ast.walk(tree):
        if node in inside:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            yield Import(module_name(path), path, name, getattr(node, "lineno", 0), node not in at_top)


def _without_functions(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from _without_functions(child)


@cache
def all_imports() -> list[Import]:
    return [found for path in sources() for found in imports_of(path)]


MODULES = {module_name(path) for path in sources()}


def home(name: str) -> str | None:
    """The module of ours that an imported name lies in."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def floor(module: str) -> int:
    if module in DOORS_IN:
        return len(WINGS)
    wing = module.split(".")[1]
    assert wing in WINGS, f"{module} lies in no wing: say in WINGS where it belongs"
    return WINGS.index(wing)


def test_the_walk_sees_what_it_should() -> None:
    """A table of rules over an empty list would pass too."""
    seen = {(found.module, home(found.name)) for found in all_imports()}
    assert ("builder.source.scan", "builder.source.tars") in seen
    assert ("builder.conversion.finish", "builder.store.card") in seen
    assert any(found.lazy and found.name.startswith("PIL") for found in all_imports())
    assert len(all_imports()) > 200


def test_every_module_lies_in_a_wing() -> None:
    used = {floor(module) for module in MODULES if module != PACKAGE}
    assert used >= {WINGS.index(wing) for wing in ("base", "source", "store", "read", "plan", "conversion", "cli")}


def test_no_file_is_longer_than_400_lines() -> None:
    assert [str(path) for path in sources() if len(path.read_text().splitlines()) > 400] == []


def test_no_wing_is_called_as_a_public_function_is() -> None:
    """``builder.convert`` must stay the function, whatever was imported before."""
    assert set(WINGS) & set(builder.__all__) == set()


def test_imports_point_downwards() -> None:
    wrong = []
    for found in all_imports():
        target = home(found.name)
        if PACKAGE in (target, found.module) or target in (None, found.module):
            continue
        own, other = floor(found.module), floor(target)
        upwards = other > own
        if upwards and found.lazy and (found.module, target) in LAZY_UPWARDS:
            continue
        if upwards or (own < len(WINGS) and (WINGS[own], WINGS[other]) in APART):
            wrong.append(f"{found} ({WINGS[min(own, len(WINGS) - 1)]} → {WINGS[other]})")
    assert wrong == []


def test_modules_of_one_floor_do_not_import_each_other_in_circles() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in all_imports():
        target = home(found.name)
        if target and target not in (PACKAGE, found.module) and not found.lazy:
            graph[found.module].add(target)
    done: set[str] = set()
    while ready := {module for module, needs in graph.items() if module not in done and needs <= done}:
        done |= ready
    assert MODULES - done == set()


@pytest.mark.parametrize("package", DOORS)
def test_a_foreign_package_comes_in_through_its_door_only(package: str) -> None:
    wrong = [
        str(found)
        for found in all_imports()
        if found.name.split(".")[0] == package
        and not any(found.path.relative_to(ROOT).match(door) for door in DOORS[package])
    ]
    assert wrong == []


def test_what_most_runs_never_need_is_imported_when_it_is_needed() -> None:
    allowed = {"laion6m.py", "builder/read/hub.py"}  # hub.py itself is imported at its first use
    wrong = [
        str(found)
        for found in all_imports()
        if found.name.split(".")[0] in AT_FIRST_USE
        and not found.lazy
        and str(found.path.relative_to(ROOT)) not in allowed
        and found.path.parent.name not in ("hf", "mm")
    ]
    assert wrong == []


def calls() -> Iterator[tuple[str, int, str, str]]:
    """(file, line, the function's name as written, the whole call) for each call."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield str(path.relative_to(ROOT)), node.lineno, ast.unparse(node.func), ast.unparse(node)


def test_nothing_prints_but_what_says_so() -> None:
    """Standard output belongs to ``--json``: the command line writes to it by name."""
    assert [f"{path}:{line}" for path, line, name, _ in calls() if name in ("print", "builtins.print", "pprint")] == []


def test_parquet_files_are_opened_in_one_place() -> None:
    """pyarrow's defaults changed: see ``open_parquet``."""
    opened = {path for path, _, name, _ in calls() if name.endswith(("ParquetFile", "pq.read_table"))}
    assert opened == {"builder/store/parquet_file.py"}


def test_nothing_that_was_read_is_unpickled() -> None:
    """Unpickling runs code. Between a run's own processes it is what pipes are made of; ``.pt`` files go through
    ``torch.load`` with ``weights_only``."""
    loads = [(path, call) for path, _, name, call in calls() if name.endswith((".load", ".loads", ".Unpickler"))]
    assert {path for path, call in loads if "pickle." in call} <= {"builder/engines/messages.py"}
    assert [call for _, call in loads if call.startswith("torch.load") and "weights_only=True" not in call] == []
    assert [call for _, call in loads if "allow_pickle=True" in call] == []
