"""What a run ran on, and the numerical settings that its results depend on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = ("worldrl", "torch", "lightning", "numpy", "gymnasium", "mujoco", "safetensors")
SOURCES = ("worldrl", "models", "planners", "configs")


class Determinism(NamedTuple):
    """What :func:`set_determinism` set; a checkpoint holds it, and resuming asks for the same."""

    threads: int
    deterministic_algorithms: bool
    matmul_precision: str
    flush_denormal: bool


def set_determinism(
    threads: int | None, device_type: str = "cpu", flush_denormal: bool = True
) -> Determinism:
    """Fix what the bits of a result depend on. Call it before any other work in torch.

    The number of threads decides how sums are split, so it is part of a run. Denormal numbers are
    flushed to zero: they cost many times a normal one, and dying units make plenty. Deterministic
    kernels are asked for on the CPU only, where they cost next to nothing; on CUDA they would sort
    every scattered write.

    Args:
        threads: of one operation; None keeps torch's choice.
        device_type: ``cpu`` or ``cuda``.
        flush_denormal: to resume, what the run began with. Worker threads that torch has started
            already keep what they were started with: where they do not flush, nothing does.

    Returns:
        What holds now, which may be less than what was asked for.
    """
    import torch

    # First: worker threads inherit the flag from the thread that starts them.
    torch.set_flush_denormal(flush_denormal)
    if threads is not None:
        torch.set_num_threads(threads)
    flushes = _flushes_denormals()
    if not flushes:
        torch.set_flush_denormal(False)
    deterministic = device_type == "cpu"
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # Would fill every torch.empty with NaN; no result here reads memory that was not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest")
    return Determinism(
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        flushes,
    )


@contextmanager
def settings_restored() -> Iterator[None]:
    """Leave torch as it was found: a run inside somebody's program changes nothing outside it."""
    import torch

    # Of this thread alone: asking the workers would start them, and they would never flush.
    flushes, threads = _flushes_denormals(elements=1), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    precision = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_flush_denormal(flushes)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.set_float32_matmul_precision(precision)


def _flushes_denormals(elements: int | None = None) -> bool:
    """Do all worker threads flush? Each multiplies a part of one long tensor of denormals."""
    import torch

    elements = elements or 65_536 * torch.get_num_threads()
    denormal = torch.full((elements,), 1, dtype=torch.int32)
    product = denormal.view(torch.float32) * 1.0
    return not bool(product.view(torch.int32).any())


def environment_record(device: str) -> dict[str, Any]:
    """Versions and hardware, for ``environment.json``.

    Holds no host or user name and no path, so that a run can be shared.

    Args:
        device: of the run, as torch names it: ``cpu``, ``cuda``, ``cuda:1``.
    """
    import torch

    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "git": git_revision(Path(__file__).resolve().parents[2]),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": {
            "model": cpu_model(),
            "cores": usable_cores(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        },
        "device": {"type": torch.device(device).type, "name": device_name(device)},
        "cuda": torch.version.cuda,
    }


def device_name(device: str) -> str:
    """The model of the GPU, or of the CPU."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_model()


def usable_cores() -> int:
    """Cores that this process may use, which containers and schedulers limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name, as its maker writes it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def git_revision(root: Path) -> dict[str, Any] | None:
    """``{"revision", "modified"}`` of a checkout of worldrl; None for an installed package.

    Modified are its sources: records and notes beside them change nothing that a run does.
    """
    if not (root / ".git").exists():
        return None
    revision = _git(root, "rev-parse", "HEAD")
    if not revision:
        return None
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *SOURCES)
    return {"revision": revision, "modified": changes != ""}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
