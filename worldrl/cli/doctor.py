"""``worldrl doctor``: what this machine offers and whether the installation works on it."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worldrl.cli.output import json_only, print_json, print_table

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "worldrl",
    "torch",
    "lightning",
    "numpy",
    "h5py",
    "gymnasium",
    "mujoco",
    "ale-py",
    "minari",
    "optuna",
)
LOW_DISK_GB = 5.0  # one D4RL file is up to 0.5 GB, a long run with checkpoints about as much


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check versions, devices, speed, disk and simulators, and say what does not work.

    Exits with 1 where something that worldrl needs is broken.
    """
    with json_only(as_json):
        found = examine()
    if as_json:
        print_json(found)
    else:
        print_table(_rows(found))
    if not found["ok"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Everything that the doctor reports, as plain values."""
    from worldrl.data.download import cache_folder

    cache = cache_folder()
    versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    checks = {
        "torch": _works(lambda: importlib.import_module("torch").ones(2).sum()),
        "mujoco": _works(lambda: _step("InvertedPendulum-v5")),
        "ale": _works(lambda: _step("ALE/Pong-v5")),
        "minari": _works(lambda: importlib.import_module("minari")),
    }
    disk = {"run_gb": _free_gb(Path.cwd()), "cache_gb": _free_gb(cache)}
    problems = [f"{name} is not installed" for name, found in versions.items() if found is None]
    problems += [f"{name}: {error}" for name, error in checks.items() if error]
    warnings = [
        f"only {free:.1f} GB are free for {name.removesuffix('_gb')} files"
        for name, free in disk.items()
        if free < LOW_DISK_GB
    ]
    return {
        "ok": not problems,
        "verdict": _verdict(problems, warnings),
        "versions": versions,
        "platform": f"{platform.system()} {platform.machine()}",
        **({} if checks["torch"] else _speed_facts()),
        "disk_free": disk,
        "cache": str(cache),
        "checks": {name: error or "works" for name, error in checks.items()},
        "problems": problems,
        "warnings": warnings,
    }


def _speed_facts() -> dict[str, Any]:
    import torch

    from worldrl.training.environment import cpu_model, usable_cores

    devices = {"cpu": cpu_model()}
    for index in range(torch.cuda.device_count()):
        devices[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    return {
        "devices": devices,
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "matmul_gflops": {name: _matmul_speed(name) for name in devices},
    }


def _verdict(problems: list[str], warnings: list[str]) -> str:
    if problems:
        return f"not ready: {'; '.join(problems)}"
    if warnings:
        return f"ready, but {'; '.join(warnings)}"
    return "ready"


def _rows(found: dict[str, Any]) -> dict[str, object]:
    """The same, as lines to read."""
    rows: dict[str, object] = {
        "versions": ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
        "platform": found["platform"],
    }
    for name, text in found.get("devices", {}).items():
        speeds = found["matmul_gflops"][name].items()
        rows[name] = ", ".join([text, *(f"{kind} {speed:,.0f} GFLOP/s" for kind, speed in speeds)])
    if "threads" in found:
        rows["threads"] = f"{found['threads']} on {found['cores']} cores"
    for name, free in found["disk_free"].items():
        rows[f"free for {name.removesuffix('_gb')} files"] = f"{free:,.0f} GB"
    return {**rows, "cache": found["cache"], **found["checks"], "verdict": found["verdict"]}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _free_gb(folder: Path) -> float:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e9


def _works(check: Callable[[], object]) -> str:
    """Empty where the check passes, else its error in one line."""
    try:
        check()
    except Exception as error:  # whatever a broken native package raises is the finding
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return ""


def _step(env_id: str) -> None:
    from worldrl.envs import make

    env = make(env_id)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()


def _matmul_speed(device: str) -> dict[str, float]:
    """GFLOP/s of square matrix products, float32 and bf16; medians of at least three."""
    import torch

    size = 2048 if device == "cpu" else 8192
    kinds = {"float32": torch.float32, "bf16": torch.bfloat16}
    matrices = {
        name: torch.ones(size, size, dtype=kind, device=device) for name, kind in kinds.items()
    }
    return {name: _speed(matrix) for name, matrix in matrices.items()}


def _speed(matrix: torch.Tensor) -> float:
    import torch

    def once() -> float:
        start = time.perf_counter()
        matrix @ matrix
        if matrix.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    end = time.perf_counter() + 1.0
    once()
    seconds = [once() for _ in range(3)]
    while time.perf_counter() < end:
        seconds.append(once())
    return float(2 * matrix.shape[0] ** 3 / statistics.median(seconds) / 1e9)
