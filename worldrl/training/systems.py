"""What a run builds that is not learned: environments to score and to learn in, and simulators."""

from __future__ import annotations

from typing import NamedTuple

from worldrl.training.online.finetune import EnvironmentFactory
from worldrl.training.train import ScorerFactory
from worldrl.training.world.simulated import SimulatorFactory


class Systems(NamedTuple):
    """How each is built; given by whoever may import environments."""

    scorer: ScorerFactory
    environments: EnvironmentFactory
    simulator: SimulatorFactory
