"""Train a run's policies, score them on the way, and say what the guards did."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from worldrl.config.members import per_member
from worldrl.config.schema import BranchedSettings, TrainConfig
from worldrl.imagination.rollout import chunk_rows
from worldrl.learners import LEARNERS
from worldrl.strict_json import finite
from worldrl.training.execution import Execution
from worldrl.training.files import writing
from worldrl.training.loop import run_stage
from worldrl.training.policy import PolicyStage
from worldrl.training.world_model import WorldModel, ends_function, members
from worldrl.types import Learner, Policy

#: Calls from which compiling, tens of seconds with a cold cache, is repaid on a CPU.
UPDATES_WORTH_COMPILING = 15_000
CHUNKS_WORTH_COMPILING = 1_500


class Scorer(Protocol):
    """Scores policies in an environment; built by whoever may import environments."""

    def __call__(
        self, policy: Policy, population: int, action_low: Any, action_high: Any, device: Any
    ) -> Mapping[str, Any]:
        """A JSON-able record with at least ``return_mean``."""
        ...


#: ``(config, the dataset's environment id) -> Scorer``
ScorerFactory = Callable[[TrainConfig, str | None], Scorer]


def train_policy(
    execution: Execution, model: WorldModel | None, scorer: Scorer | None
) -> tuple[PolicyStage, dict[str, Any]]:
    """Train to the end, in the world where there is one; the stage and its last metrics."""
    config, logged = execution.config, execution.logged
    assert isinstance(config, TrainConfig)
    learner = LEARNERS[config.learner.kind](
        config.learner, logged.observation_size, logged.action_size, config.num_updates
    )
    worlds, ends = None, None
    if model is not None:
        sizes = [len(group) for group in execution.groups]
        firsts = [sum(sizes[:index]) for index in range(len(sizes))]
        worlds = [
            members(model.world, range(first, first + size))
            for first, size in zip(firsts, sizes, strict=True)
        ]
        ends = ends_function(model.facts["termination"], logged.observation_size)
    updates = config.num_updates  # of one member: it is compiled where its lone run is
    chunks = _rollout_calls(config, execution.device)
    facts = {
        "observation_size": logged.observation_size,
        "action_size": logged.action_size,
        "action_low": logged.action_low.tolist(),
        "action_high": logged.action_high.tolist(),
        "env_id": execution.dataset.metadata.env_id,
        "shared_model": model is not None and model.facts["shared_model"],
    }
    execution.session.plain = {**execution.session.plain, "policy": facts}
    stage = PolicyStage(
        config,
        learner,
        execution.groups,
        logged,
        worlds,
        ends,
        execution.compiles("train", updates, UPDATES_WORTH_COMPILING),
        execution.compiles("rollout", chunks, CHUNKS_WORTH_COMPILING),
    )
    execution.restore(stage)
    metrics = run_stage(stage, execution.session, _evaluation(execution, stage, learner, scorer))
    trips = stage.trips
    for seed, trip, good in zip(execution.seeds, trips, stage.good_steps, strict=True):
        if trip is not None:
            print(
                f"worldrl: the guard stopped seed {seed} at update {trip.step:,} and kept its "
                f"policy of update {good:,}: {trip.reason}",
                file=sys.stderr,
            )
    if any(trips):
        metrics["guard"] = [trip and trip.reason for trip in trips]
    return stage, metrics


def _evaluation(
    execution: Execution, stage: PolicyStage, learner: Learner, scorer: Scorer | None
) -> Callable[[int], Mapping[str, float]] | None:
    if scorer is None:
        return None

    def evaluate(step: int) -> dict[str, float]:
        parameters = stage.policy_parameters()

        def policy(observation: Tensor, noise: Tensor | None) -> Tensor:
            return learner.act(parameters, observation, noise)

        record = scorer(
            policy,
            execution.config.population,
            execution.logged.action_low,
            execution.logged.action_high,
            execution.device,
        )
        stopped = [trip is not None for trip in stage.trips]
        line = finite({"stage": "train", "step": step, **record, "stopped_by_guard": stopped})
        with writing(execution.run.eval_file), open(execution.run.eval_file, "a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        return {"return": record["return_mean"]}

    return evaluate


def _rollout_calls(config: TrainConfig, device: torch.device) -> int:
    """Model calls of all rollouts of a run."""
    imagination = config.imagination
    if not isinstance(imagination, BranchedSettings):
        return 0
    refreshes = math.ceil(config.num_updates / imagination.every)
    chunk = chunk_rows(imagination.batch_size, 1, device)
    depths = sum(per_member(imagination.horizon, config.population))
    return refreshes * math.ceil(imagination.batch_size / chunk) * depths
