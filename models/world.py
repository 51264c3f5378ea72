"""A world to imagine in: the dynamics, where episodes end, and how plausible a step is."""

from __future__ import annotations

from typing import NamedTuple

from worldrl.models.dynamics_reward import DynamicsReward
from worldrl.types import DynamicsModel, Parameters


class World(NamedTuple):
    """With a leading population axis; a learned one is a pytree of tensors."""

    ensemble: DynamicsModel
    terminator: Parameters  # of the learned termination head; empty with a formula
    reward: DynamicsReward | None = None  # None where nothing asks how plausible a step is
