"""Imports point downwards, and every heavy or foreign package comes in through one door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS: list[tuple[str, list[str]]] = [
    # from the bottom up; a module stands on the floor of the longest prefix that fits it, and may import from its own
    # floor and from those below
    (
        "bottom",
        [
            "builder.errors",
            "builder.records",
            "builder.names",
            "builder.schema",
            "builder.options",
            "builder.arrays",
            "builder.urls",
        ],
    ),
    ("source", ["builder.source"]),
    ("store", ["builder.store"]),
    ("read", ["builder.read"]),
    ("publish", ["builder.publish"]),  # the card's text and the Hub's client: both know counts and files, but no run
    ("run", ["builder.run"]),
    ("doors", ["builder.api", "builder.arguments", "builder.cli", "builder.hf", "builder.mm", "builder", "laion6m"]),
]

APART = {("source", "store"), ("store", "source")}
"""Floors that meet in run and in read only."""

LAZY_UPWARDS = {("builder.read.reader", "builder.hf_rows"), ("builder.read.reader", "builder.hf")}
"""``Reader.to_datasets`` hands itself to the floor that knows ``datasets``, when it is called."""

PACKAGE = "builder"
"""The package itself: ``__init__`` holds the version and names that are looked up when asked for. Anybody may."""

DOORS: dict[str, list[str]] = {
    # foreign package: files that may import it
    "torch": ["builder/mm*.py"],
    "mmengine": ["builder/mm*.py"],
    "transformers": ["builder/mm*.py"],
    "datasets": ["builder/hf*.py", "laion6m.py"],
    "fsspec": ["builder/urls.py"],
    "huggingface_hub": ["builder/publish/*.py", "builder/hf*.py"],
    "multiprocess": ["builder/run/engines.py"],
    "ray": ["builder/run/ray_engine.py"],
    "zstandard": ["builder/source/compressed.py"],
    "PIL": ["builder/source/images.py", "builder/read/transforms.py", "builder/run/demo_images.py", "builder/mm*.py"],
    "pandas": [],
    "pickle": ["builder/run/engines.py", "builder/mm*.py"],  # who may load with it: see below
    "duckdb": [],
    "polars": [],
}

AT_FIRST_USE = {"PIL", "multiprocess", "zstandard", "ray", "datasets", "fsspec", "huggingface_hub"}
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


ALL = [found for path in sources() for found in imports_of(path)]
MODULES = {module_name(path) for path in sources()}


def home(name: str) -> str | None:
    """The module of ours that an imported name lies in."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def floor(module: str) -> int:
    fits = [
        (len(prefix), number)
        for number, (_, prefixes) in enumerate(FLOORS)
        for prefix in prefixes
        # "builder.hf" is also the floor of builder.hf_rows; the bare "builder" and "laion6m" are only themselves
        if module == prefix or (prefix.count(".") and module.startswith((f"{prefix}.", f"{prefix}_")))
    ]
    assert fits, f"{module} stands on no floor: say in FLOORS where it belongs"
    return max(fits)[1]


def test_the_walk_sees_what_it_should() -> None:
    """A table of rules over an empty list would pass too."""
    seen = {(found.module, home(found.name)) for found in ALL}
    assert ("builder.source.scan", "builder.source.tars") in seen
    assert ("builder.run.finish", "builder.publish.card") in seen
    assert any(found.lazy and found.name.startswith("PIL") for found in ALL)
    assert len(ALL) > 200


def test_every_module_stands_on_a_floor() -> None:
    assert {FLOORS[floor(module)][0] for module in MODULES} >= {"bottom", "source", "store", "read", "run", "doors"}


def test_imports_point_downwards() -> None:
    wrong = []
    for found in ALL:
        target = home(found.name)
        if target is None or target in (PACKAGE, found.module):
            continue
        names = FLOORS[floor(found.module)][0], FLOORS[floor(target)][0]
        upwards = floor(target) > floor(found.module)
        if upwards and found.lazy and (found.module, target) in LAZY_UPWARDS:
            continue
        if upwards or names in APART:
            wrong.append(f"{found} ({names[0]} → {names[1]})")
    assert wrong == []


def test_modules_of_one_floor_do_not_import_each_other_in_circles() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in ALL:
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
        for found in ALL
        if found.name.split(".")[0] == package
        and not any(found.path.relative_to(ROOT).match(door) for door in DOORS[package])
    ]
    assert wrong == []


def test_what_most_runs_never_need_is_imported_when_it_is_needed() -> None:
    allowed = {"builder/read/transforms.py", "laion6m.py"}
    wrong = [
        str(found)
        for found in ALL
        if found.name.split(".")[0] in AT_FIRST_USE
        and not found.lazy
        and str(found.path.relative_to(ROOT)) not in allowed
        and not found.path.name.startswith(("hf", "mm"))
    ]
    assert wrong == []


def test_nothing_prints_but_what_says_so() -> None:
    """Standard output belongs to ``--json``: the command line writes to it by name."""
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "builtins.print", "pprint")
    ]
    assert calls == []


def test_nothing_that_was_read_is_unpickled() -> None:
    """Unpickling runs code. Between a run's own processes it is what pipes are made of; ``.pt`` files go through
    ``torch.load`` with ``weights_only``."""
    loads = [
        (str(path.relative_to(ROOT)), ast.unparse(node))
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".load", ".loads", ".Unpickler"))
    ]
    assert {path for path, call in loads if "pickle." in call} <= {"builder/run/engines.py"}
    assert [call for _, call in loads if call.startswith("torch.load") and "weights_only=True" not in call] == []
    assert [call for _, call in loads if "allow_pickle=True" in call] == []
