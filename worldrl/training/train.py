"""Train a run's policies, score them on the way, and say what the guards did."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from torch import Tensor

from worldrl.config.schema import FinetuneConfig, TrainConfig
from worldrl.errors import ConfigError
from worldrl.imagination import IMAGINATIONS
from worldrl.imagination.experience import ImaginedExperience, imagined_experience
from worldrl.imagination.setup import Setup
from worldrl.learners import LEARNERS
from worldrl.models.world import World
from worldrl.strict_json import finite
from worldrl.training.compilation import compiled, in_bf16
from worldrl.training.execution import Execution
from worldrl.training.files import writing
from worldrl.training.guards import Trip
from worldrl.training.judging.acceptance import Gate
from worldrl.training.loop import run_stage
from worldrl.training.policy import PolicyStage
from worldrl.training.policy_group import members_of
from worldrl.training.stages import Stage
from worldrl.training.world.world_model import WorldModel, ends_function, members
from worldrl.types import Learner, Parameters, Policy

F = TypeVar("F", bound=Callable[..., Any])

#: Calls from which compiling, tens of seconds with a cold cache, is repaid on a CPU.
UPDATES_WORTH_COMPILING = 20_000
CALLS_WORTH_COMPILING = 1_500


class Scorer(Protocol):
    """Scores policies in an environment; built by whoever may import environments."""

    def __call__(
        self, policy: Policy, population: int, action_low: Any, action_high: Any, device: Any
    ) -> Mapping[str, Any]:
        """A JSON-able record with at least ``return_mean``."""
        ...


#: ``(config, the dataset's environment id) -> Scorer``
ScorerFactory = Callable[[TrainConfig | FinetuneConfig, str | None], Scorer]

#: Scores the policies at a step; numbers for the progress line.
Evaluate = Callable[[int], Mapping[str, float]]


class LearningStage(Stage, Protocol):
    """A stage that trains policies under guards."""

    @property
    def trips(self) -> list[Trip | None]:
        """Why each member was stopped early, if it was."""
        ...

    @property
    def good_steps(self) -> list[int]:
        """The update whose policy each member goes back to, or went back to."""
        ...

    def policy_parameters(self) -> Parameters:
        """The policies of all members, ``(P, ...)``."""
        ...


def train_policy(
    execution: Execution,
    model: WorldModel | None,
    scorer: Scorer | None,
    anchors: Parameters | None = None,
    gate: Gate | None = None,
) -> tuple[PolicyStage, dict[str, Any]]:
    """Train to the end, in the world where there is one; the stage and its last metrics.

    Args:
        anchors: of :func:`worldrl.training.anchors.anchors_of`, for a learner with an encoder.
    """
    config, logged = execution.config, execution.logged
    assert isinstance(config, TrainConfig)
    learner = LEARNERS[config.learner.kind](
        config.learner, logged.observation_size, logged.action_size, config.num_updates
    )
    facts = policy_facts(execution, model is not None and model.facts["shared_model"])
    execution.session.plain = {**execution.session.plain, "policy": facts}
    worlds = [] if model is None else _worlds(execution, model)
    if config.learner.kind == "mobile" and worlds[0].ensemble.elites.shape[1] == 1:
        raise ConfigError(
            f"the world model {config.model.source} has one elite, and learner.kind is mobile, "
            "which needs elites that can disagree. Use a model with more, or learner.kind=sac"
        )
    experiences = _experiences(execution, learner, model, worlds)
    # A simulator is for imagination alone: no learner looks into it.
    models = [] if config.imagination.kind == "simulator" else [w.ensemble for w in worlds]
    stage = PolicyStage(
        config,
        learner,
        members_of(execution.groups, logged.log, experiences, models, anchors),
        logged,
        # Of one member: it is compiled where its lone run is.
        execution.compiles("train", config.num_updates, UPDATES_WORTH_COMPILING),
        gate,
    )
    metrics = trained(execution, stage, evaluation(execution, stage, learner, scorer))
    if gate is not None:
        _say_what_was_accepted(execution, stage)
    return stage, metrics


def policy_facts(execution: Execution, shared_model: bool = False) -> dict[str, Any]:
    """What a checkpoint says of its policies beside their weights."""
    logged = execution.logged
    return {
        "observation_size": logged.observation_size,
        "action_size": logged.action_size,
        "action_low": logged.action_low.tolist(),
        "action_high": logged.action_high.tolist(),
        "env_id": execution.dataset.metadata.env_id,
        "shared_model": shared_model,
    }


def trained(
    execution: Execution, stage: LearningStage, evaluate: Evaluate | None, first: bool = False
) -> dict[str, Any]:
    """Train from where the run is to its end, and say what the guards did; the last metrics.

    Args:
        first: evaluate before the first step too.
    """
    execution.restore(stage)
    if first and evaluate is not None and stage.step == 0:
        evaluate(0)
    metrics = run_stage(stage, execution.session, evaluate)
    trips = stage.trips
    for seed, trip, good in zip(execution.seeds, trips, stage.good_steps, strict=True):
        if trip is not None:
            print(
                f"worldrl: seed {seed} was stopped at update {trip.step:,} and keeps its policy of "
                f"update {good:,}: {trip.reason}",
                file=sys.stderr,
            )
    if any(trips):
        metrics["guard"] = [trip and trip.reason for trip in trips]
    return metrics


def _say_what_was_accepted(execution: Execution, stage: PolicyStage) -> None:
    standings = [standing for group in stage.groups for standing in group.standings]
    for seed, standing in zip(execution.seeds, standings, strict=True):
        if standing.times == 0 and standing.last is not None:
            print(
                f"worldrl: warning: no policy of seed {seed} was accepted, and its result is the "
                "untrained one: all went where the world model is unsure, or where it is not "
                "finite. Lower acceptance.horizon, or set acceptance=none",
                file=sys.stderr,
            )


def _worlds(execution: Execution, model: WorldModel) -> list[World]:
    """Each group's: those of its own members."""
    worlds, first = [], 0
    for seeds in execution.groups:
        worlds.append(members(model.world, range(first, first + len(seeds))))
        first += len(seeds)
    return worlds


def _experiences(
    execution: Execution, learner: Learner, model: WorldModel | None, worlds: list[World]
) -> list[ImaginedExperience] | None:
    config, logged, device = execution.config, execution.logged, execution.device
    assert isinstance(config, TrainConfig)
    if model is None or config.imagination.kind == "none":
        return None

    def prepare(step: F, calls: int) -> F:
        worth_it = execution.compiles("rollout", calls, CALLS_WORTH_COMPILING)
        step = in_bf16(step, device) if config.precision == "bf16" else step
        return compiled(step, worth_it, device)

    ends = ends_function(model.facts["termination"], logged.observation_size)
    setup = Setup(
        *(execution.groups, learner, worlds, ends, logged.log, config.num_updates, prepare),
        next_known=logged.next_known,
    )
    imaginations = IMAGINATIONS[config.imagination.kind](config.imagination, setup)
    return imagined_experience(config.imagination, imaginations, execution.groups, logged.rows)


def evaluation(
    execution: Execution, stage: LearningStage, learner: Learner, scorer: Scorer | None
) -> Evaluate | None:
    """What scores the policies at a step and writes a line of ``eval.jsonl``."""
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
        gated = isinstance(execution.config, TrainConfig) and (
            execution.config.acceptance.kind != "none"
        )
        steps = [
            good if gated or trip is not None else step
            for good, trip in zip(stage.good_steps, stage.trips, strict=True)
        ]
        if stage.name == "finetune":
            record = {**record, "online": True, "environment_steps": step}
        line = finite(
            {
                "stage": stage.name,
                "step": step,
                **record,
                "steps": steps,
                "stopped_by_guard": stopped,
            }
        )
        with writing(execution.run.eval_file), open(execution.run.eval_file, "a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        return {"return": record["return_mean"]}

    return evaluate
