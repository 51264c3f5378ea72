"""A world to imagine in: the dynamics ensemble and where episodes end."""

from __future__ import annotations

from typing import NamedTuple

from worldrl.models.ensemble import Ensemble
from worldrl.types import Parameters


class World(NamedTuple):
    """A pytree of tensors with the leading population axis."""

    ensemble: Ensemble
    terminator: Parameters  # of the learned termination head; empty with a formula
