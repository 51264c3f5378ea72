"""Synthetic experience: each kind makes transitions from a model, a policy and the logged data."""

from collections.abc import Callable
from typing import Any, TypeAlias

from worldrl.imagination.setup import Setup
from worldrl.registry import Registry
from worldrl.types import Imagination

#: ``(settings of its kind, setup) -> one imagination a group``
ImaginationFactory: TypeAlias = Callable[[Any, Setup], list[Imagination]]

IMAGINATIONS: Registry[ImaginationFactory] = Registry(
    "imagination",
    {
        "branched": "worldrl.imagination.branched:branched_rollouts",
        "adversarial": "worldrl.imagination.adversarial:adversarial_rollouts",
        "simulator": "worldrl.imagination.simulator:simulator_rollouts",
    },
)
