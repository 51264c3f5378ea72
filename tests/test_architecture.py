"""Imports run one way: cli, then study, sweep and report, training, the three that meet in types,
models and planners, data, config, and the plain modules at the bottom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

#: Top to bottom. A package imports from lower rows alone: neither upwards nor from its own row.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("api",),
    ("policy", "systems"),
    ("study",),
    ("sweep", "report"),
    ("training",),
    ("imagination", "learners", "evaluation"),
    ("models", "planners"),
    ("data",),
    ("config",),
    ("configs",),
)
#: Plain modules: they import each other and nothing above.
BASE = {"types", "errors", "registry", "random", "rows", "nearest", "optim", "strict_json", "tasks"}
#: Who may build simulators: commands, the Python functions that do the same as commands, and what
#: these give to runs.
SIMULATOR_USERS = {"cli", "api", "systems"}

DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}


class Import(NamedTuple):
    """One import statement, at any depth of a module, also for type checking alone."""

    file: Path
    line: int
    importer: str
    """The package of worldrl that imports; empty for worldrl/__init__.py."""
    imported: str
    """The package of worldrl that is imported; empty for worldrl itself."""
    module: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(REPOSITORY)}:{self.line} imports {self.module}"


def source_files() -> list[Path]:
    """Every module of the package; the folders at the top level are parts of it."""
    folders = ("worldrl", "models", "planners", "configs")
    return sorted(path for name in folders for path in (REPOSITORY / name).rglob("*.py"))


def module_of(file: Path) -> tuple[str, ...]:
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return parts[1:] if parts[0] == "worldrl" else parts


def imported_modules(file: Path, source: str) -> Iterator[tuple[int, str]]:
    """Absolute names, one a name imported from a package, so that ``from worldrl import data``
    counts as ``worldrl.data``."""
    package = ("worldrl", *module_of(file)[:-1])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                outer = package[: len(package) - node.level + 1]
                base = ".".join((*outer, *([base] if base else [])))
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def imports_of(file: Path, source: str) -> Iterator[Import]:
    importer = next((part for part in module_of(file)[:1] if part != "__init__"), "")
    for line, module in imported_modules(file, source):
        if module == "worldrl" or module.startswith("worldrl."):
            target = module.partition(".")[2].partition(".")[0]
            known = target in DEPTH or target in BASE or target == "envs"
            yield Import(file, line, importer, target if known else "", module)


def broken_rule(found: Import) -> str | None:
    """Why an import is not allowed, or None."""
    importer, imported = found.importer, found.imported
    if importer in ("", imported) or imported == "":
        return None  # worldrl itself holds the version and lazy names; inside a package all is free
    if imported == "envs":
        return None if importer in SIMULATOR_USERS else "only commands build simulators"
    if imported in BASE:
        return None
    if importer in BASE or importer == "envs":
        return "plain modules and environments rest on plain modules alone"
    if importer in ("models", "planners"):
        return "models and planners import nothing of worldrl but its plain modules"
    if DEPTH[imported] <= DEPTH[importer]:
        return "imports run downwards"
    return None


ALL_IMPORTS = [
    found for file in source_files() for found in imports_of(file, file.read_text("utf-8"))
]


def test_every_package_has_its_place() -> None:
    packages = {module_of(file)[0] for file in source_files()} - {"__init__"}
    assert packages - {"envs"} <= set(DEPTH) | BASE
    assert len(ALL_IMPORTS) > 100


def test_imports_run_one_way() -> None:
    broken = [f"{found} ({rule})" for found in ALL_IMPORTS if (rule := broken_rule(found))]
    assert not broken, "\n".join(broken)


def test_nothing_imports_a_top_level_folder_without_its_prefix() -> None:
    """``import models`` would make a second copy of every class of ``worldrl.models``."""
    files = [*source_files(), *REPOSITORY.glob("tests/**/*.py"), *REPOSITORY.glob("tools/**/*.py")]
    for file in files:
        for line, module in imported_modules(file, file.read_text("utf-8")):
            assert module.split(".")[0] not in ("models", "planners", "configs"), f"{file}:{line}"


def test_nothing_imports_the_tools() -> None:
    for file in [*source_files(), *REPOSITORY.glob("tests/**/*.py")]:
        for line, module in imported_modules(file, file.read_text("utf-8")):
            assert module.split(".")[0] != "tools", f"{file}:{line}"


def test_nothing_unpickles() -> None:
    """Loading data or a checkpoint never executes code from it."""
    for file in source_files():
        tree = ast.parse(file.read_text("utf-8"))
        for _, module in imported_modules(file, file.read_text("utf-8")):
            assert module.split(".")[0] not in ("pickle", "cloudpickle", "dill", "joblib"), file
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert name != "torch.load", file
            if name in ("np.load", "numpy.load"):
                assert given.get("allow_pickle") == "False", f"{file}:{node.lineno}"


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("worldrl/data/x.py", "import worldrl.training"),
        ("worldrl/data/x.py", "from worldrl import training"),
        ("worldrl/data/readers/x.py", "from ...training import run"),
        ("worldrl/learners/x.py", "def f():\n    from worldrl.imagination import rollout"),
        ("worldrl/imagination/x.py", "from worldrl.evaluation import statistics"),
        ("worldrl/evaluation/x.py", "from worldrl.envs import make"),
        ("worldrl/training/x.py", "import worldrl.envs.build"),
        ("worldrl/config/x.py", "from worldrl.data.dataset import Dataset"),
        ("worldrl/types.py", "from worldrl.config.schema import Config"),
        ("worldrl/envs/x.py", "from worldrl.data.dataset import Dataset"),
        ("models/x.py", "from worldrl.data.dataset import Dataset"),
        ("planners/x.py", "from worldrl.models import ensemble"),
        ("worldrl/report/x.py", "from worldrl.sweep import study"),
        ("worldrl/training/x.py", "from worldrl.cli import output"),
    ],
)
def test_the_test_sees_what_it_forbids(file: str, source: str) -> None:
    (found,) = imports_of(REPOSITORY / file, source)
    assert broken_rule(found)
