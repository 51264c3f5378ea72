"""The wheel holds what the checkout holds, and works from anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGED = ("worldrl", "models", "planners", "configs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, so that no build folder is left behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in PACKAGED:
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check",
         "--no-build-isolation", "--no-deps", "--wheel-dir", folder, source],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("worldrl-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files in a folder of their own, as an installation lays them out."""
    target = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(target)
    return target


def run(code: str, installed: Path, folder: Path) -> str:
    """Run Python in ``folder`` with the installed wheel before everything else."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_module_and_data_file_of_the_tree(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = set()
    for name in PACKAGED:
        inside = "" if name == "worldrl" else "worldrl/"
        for path in (REPOSITORY / name).rglob("*"):
            if path.suffix in (".py", ".yaml", ".csv") or path.name == "py.typed":
                wanted.add(f"{inside}{path.relative_to(REPOSITORY).as_posix()}")
    assert len(wanted) > 50
    assert held == wanted


def test_the_wheel_carries_the_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_an_installed_wheel_imports_from_elsewhere(installed: Path, tmp_path: Path) -> None:
    code = """
import importlib, pkgutil, sys
import worldrl
names = [item.name for item in pkgutil.walk_packages(worldrl.__path__, "worldrl.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
files = {module.__file__ for name, module in sys.modules.items()
         if name.startswith("worldrl") and module.__file__}
print(len(names), *sorted(files))
"""
    count, *files = run(code, installed, tmp_path).split()
    assert int(count) > 50
    assert any(file.endswith("worldrl/models/ensemble.py") for file in files)
    assert all(Path(file).is_relative_to(installed) for file in files)


def test_installed_data_files_are_found(installed: Path, tmp_path: Path) -> None:
    code = """
from worldrl.cli.main import main
from worldrl.envs import reference_scores
from worldrl.data.readers.d4rl import addresses
print(reference_scores("hopper-medium-v2")[1], len(addresses()))
main(["config", "show", "mopo", "dataset=d4rl:hopper-medium-v2", "--json"])
"""
    scores, shown = run(code, installed, tmp_path).splitlines()
    assert float(scores.split()[0]) == 3234.3
    assert int(scores.split()[1]) > 100
    assert '"weight": 5.0' in shown


def test_a_checkout_imports_from_its_root_and_from_elsewhere(tmp_path: Path) -> None:
    """Without installation: the three folders at the top level are parts of the package."""
    code = (
        "import worldrl.models.ensemble as m, worldrl.configs as c; print(m.__file__, c.__file__)"
    )
    for folder in (REPOSITORY, tmp_path):
        files = run(code, REPOSITORY, folder).split()
        assert files == [
            str(REPOSITORY / "models" / "ensemble.py"),
            str(REPOSITORY / "configs" / "__init__.py"),
        ]
