"""A world to imagine in: the dynamics and where episodes end."""

from __future__ import annotations

from typing import NamedTuple

from worldrl.types import DynamicsModel, Parameters


class World(NamedTuple):
    """With a leading population axis; a learned one is a pytree of tensors."""

    ensemble: DynamicsModel
    terminator: Parameters  # of the learned termination head; empty with a formula
