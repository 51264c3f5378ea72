"""When and how update functions are compiled."""

from __future__ import annotations

import shutil
import types
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch

from worldrl.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])


def should_compile(
    setting: bool | Literal["auto"], calls: int, worth_it_from: int, device: torch.device
) -> bool:
    """Decide once, when a run starts; the decision is part of its checkpoints.

    Args:
        setting: the ``compile`` setting.
        calls: how often the function will be called in this run.
        worth_it_from: calls from which compiling, tens of seconds cold, is repaid.
    """
    if setting == "auto":
        return calls >= worth_it_from and compiler_available(device)
    return setting


def compiler_available(device: torch.device) -> bool:
    """Is there what torch.compile needs: a C++ compiler, and Triton for CUDA?"""
    if device.type == "cuda":
        import importlib.util

        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def compiled(function: F, enabled: bool, device: torch.device) -> F:
    """``function`` as one graph, for a caller that always passes the same shapes.

    Guards are evaluated at no call after the first: a caller with fixed shapes cannot fail them.

    Raises:
        ConfigError: compiling is asked for and there is no compiler.
    """
    if not enabled:
        return function
    if not compiler_available(device):
        needed = "Triton" if device.type == "cuda" else "a C++ compiler (g++ or clang++)"
        raise ConfigError(
            f"compile=true needs {needed}, which is not installed. Install it, or set "
            "compile=false: the run is slower and otherwise the same."
        )
    return torch.compile(  # type: ignore[return-value]
        _private_copy(function),
        fullgraph=True,
        dynamic=False,
        options={
            "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
            # A small update calls some fifty kernels: from Python that takes a tenth of its time.
            "cpp_wrapper": device.type == "cpu",
        },
    )


def in_bf16(function: F, device: torch.device) -> F:
    """``function`` under autocast, whole, so that it compiles."""

    def cast(*arguments: object) -> object:
        with torch.autocast(device.type, torch.bfloat16):
            return function(*arguments)

    return cast  # type: ignore[return-value]


def _private_copy(function: F) -> F:
    """The same function with a code object of its own.

    torch.compile caches graphs by code object; without guards, two closures of one definition
    (another penalty, another learner) would otherwise share a graph.
    """
    assert isinstance(function, types.FunctionType)
    copy = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy  # type: ignore[return-value]
