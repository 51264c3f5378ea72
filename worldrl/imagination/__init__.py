"""Synthetic experience: each kind makes transitions from a model, a policy and the logged data."""

from collections.abc import Callable
from typing import TypeAlias

from worldrl.registry import Registry
from worldrl.types import Imagination

#: See :func:`worldrl.imagination.branched.branched_rollouts` for the arguments.
ImaginationFactory: TypeAlias = Callable[..., list[Imagination]]

IMAGINATIONS: Registry[ImaginationFactory] = Registry(
    "imagination", {"branched": "worldrl.imagination.branched:branched_rollouts"}
)
