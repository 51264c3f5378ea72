"""The world of a run that imagines in a given simulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from worldrl.config.schema import TrainConfig
from worldrl.config.termination import TerminationSettings
from worldrl.data.dataset import Dataset
from worldrl.errors import ConfigError
from worldrl.imagination.simulator import Array, SimulatorModel, Stepper
from worldrl.models.world import World
from worldrl.training.execution import Execution
from worldrl.training.logged import Logged
from worldrl.training.world.world_model import WorldModel, where_episodes_end

#: Builds what steps the simulator that a configuration names, for a dataset; given by whoever may
#: import environments.
SimulatorFactory: TypeAlias = Callable[[TrainConfig, Dataset], Stepper]


def simulated_world(execution: Execution, simulators: SimulatorFactory) -> WorldModel:
    """The simulator of a run's imagination as the world of every member.

    Raises:
        WorldRLError: it cannot be built or does not fit, or where its episodes end is not known.
    """
    config = execution.config
    assert isinstance(config, TrainConfig)
    assert config.imagination.kind == "simulator"
    env_id = config.imagination.env_id or execution.dataset.metadata.env_id
    stepper = simulators(config, execution.dataset)
    return world_of_simulator(
        stepper, env_id, config.termination, execution.logged, len(execution.seeds)
    )


def world_of_simulator(
    stepper: Stepper,
    env_id: str | None,
    termination: TerminationSettings,
    logged: Logged,
    population: int,
) -> WorldModel:
    """A simulator as the world of P members, in the units of the rewards that they learn from.

    Raises:
        ConfigError: where its episodes end is not known.
    """
    rewards = logged.rewards
    known = logged.next_known.nonzero().squeeze(1)
    decision = where_episodes_end(termination, env_id, logged, known)
    if decision["kind"] == "learned":
        raise ConfigError(
            f"logged episodes end, and no formula says where those of the simulator {env_id} do. "
            "Name one with termination.task=..., or use termination.kind=never: simulated episodes "
            "then only end at their horizon"
        )

    def steps(observation: Array, action: Array) -> tuple[Array, Array]:
        following, reward = stepper(observation, action)
        return following, reward * rewards.scale + rewards.shift

    first = torch.zeros(population, 1, dtype=torch.int64, device=logged.rows.device)
    model = SimulatorModel(first, steps, logged.action_low, logged.action_high)
    return WorldModel(World(model, {}), {"termination": decision, "shared_model": False})
