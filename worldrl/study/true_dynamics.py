"""The true-dynamics ablation (Sims et al. 2024, arXiv 2402.12527): a simulator as the model.

With the model's error gone, so is any penalty for it. What is left of offline model-based learning
is ``base``, SAC on short rollouts, whose targets ask for values that are never learned where the
rollouts end; ``ravl`` takes the least of 10 critics there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from worldrl.config.learners import SACSettings
from worldrl.config.schema import TrainConfig
from worldrl.data.dataset import load
from worldrl.data.simulator import check_agreement
from worldrl.errors import DataError
from worldrl.imagination import IMAGINATIONS
from worldrl.imagination.setup import Setup
from worldrl.imagination.simulator import Stepper, simulator_stepper
from worldrl.learners.inputs import standardized
from worldrl.learners.sac import SAC
from worldrl.random import generator
from worldrl.report.page import Section
from worldrl.report.svg import Line, line_chart
from worldrl.study.arms import Curve, health, train_arm
from worldrl.study.directory import Result, new_directory, write_study
from worldrl.training.environment import set_determinism, settings_restored
from worldrl.training.execution import device_of
from worldrl.training.logged import Logged, logged
from worldrl.training.policy import PolicyStage
from worldrl.training.rewards import reward_transform
from worldrl.training.train import ScorerFactory
from worldrl.training.world.simulated import world_of_simulator
from worldrl.training.world.world_model import ends_function, members

if TYPE_CHECKING:
    import gymnasium

POINTS = 10  # measurements of an arm
STATES = 1_000  # logged states whose values are measured
TITLES = {"base": "base: 2 critics", "ravl": "RAVL: 10 critics"}


def true_dynamics(
    env_id: str,
    configs: Mapping[str, TrainConfig],
    make_environment: Callable[[], gymnasium.Env[Any, Any]],
    scorers: ScorerFactory,
    out: Path | None = None,
    quiet: bool = False,
) -> Result:
    """Train every arm with the simulator as its model; write numbers, figures and a page.

    Args:
        configs: by arm, alike in data, seeds and updates.

    Raises:
        DataError: the simulator does not do what the data says.
        EnvironmentSetupError: its state cannot be set from observations.
        RunError: ``out`` holds something already.
    """
    config = next(iter(configs.values()))
    source = config.dataset
    dataset = load(source.source, env_id=source.env_id, max_episode_steps=source.max_episode_steps)
    agreement = check_agreement(dataset, make_environment, rows=200)
    if not agreement.agrees:
        raise DataError(
            f"{env_id} is not the world of {source.source}: {agreement.reason}. Name the "
            "environment, with its version, that recorded the data"
        )
    arrays = dataset.transitions()
    stepper = simulator_stepper(make_environment, arrays.observation, arrays.action)
    path = new_directory(f"true-dynamics-{env_id}", out)
    with settings_restored():
        set_determinism(config.threads)
        rewards = reward_transform(source, dataset)
        data = logged(dataset, device_of(config.device), rewards)
        curves = {
            name: run_arm(name, own, data, stepper, scorers, dataset.metadata.env_id, quiet)
            for name, own in configs.items()
        }
    limit = value_limit(config, data)
    record = {
        "study": "true-dynamics",
        "env_id": env_id,
        "data": {"source": source.source, "sha256": dataset.metadata.sha256},
        "data_return_mean": float(dataset.returns().mean()),
        "agreement": agreement.share,
        "settings": {name: own.model_dump(mode="json") for name, own in configs.items()},
        "value_limit": limit,
        "seconds": {name: curve.seconds for name, curve in curves.items()},
        "curves": {
            name: {"updates": curve.updates, **curve.values} for name, curve in curves.items()
        },
        "criteria": criteria(curves, limit),
    }
    figures = draw_figures(curves, record)
    write_study(
        path, record, f"True dynamics: {env_id}", write_up(record, config, figures), figures
    )
    if not quiet:
        print(f"study: written to {path}", file=sys.stderr)
    return Result(path, record)


def value_limit(config: TrainConfig, data: Logged) -> float:
    """What a value can be at most in size: the largest logged reward for ever."""
    assert isinstance(config.learner, SACSettings)
    discount = config.learner.discount
    most = max(discount) if isinstance(discount, tuple) else discount
    return float(data.transitions.reward.abs().max()) / (1 - most)


def run_arm(
    name: str,
    config: TrainConfig,
    data: Logged,
    stepper: Stepper,
    scorers: ScorerFactory,
    recorded: str | None,
    quiet: bool,
) -> Curve:
    """Train one arm's population in the simulator."""
    assert isinstance(config.learner, SACSettings)
    assert config.imagination.kind == "branched"
    score = scorers(config, recorded)
    learner = SAC(config.learner, data.observation_size, data.action_size, config.num_updates)
    groups = [[config.seed + member] for member in range(config.population)]
    device = data.rows.device
    model = world_of_simulator(
        stepper, config.evaluation.env_id, config.termination, data, config.population
    )
    setup = Setup(
        groups,
        learner,
        [members(model.world, [number]) for number in range(config.population)],
        ends_function(model.facts["termination"], data.observation_size),
        data.log,
        config.num_updates,
        lambda step, calls: step,  # no compiler sees through a simulator
    )
    imaginations = IMAGINATIONS["branched"](config.imagination, setup)
    rows = torch.randint(
        len(data.rows), (STATES,), generator=generator(config.seed, "study.states")
    )
    states = data.at(rows.to(device)).observation

    def measure(stage: PolicyStage) -> dict[str, list[float]]:
        policy = stage.policy_parameters()

        def act(observation: Tensor, noise: Tensor | None) -> Tensor:
            return learner.act(policy, observation, noise)

        scored = score(act, config.population, data.action_low, data.action_high, device)
        found = {"return": [float(np.mean(own)) for own in scored["returns"]]}
        parts = [values_of(learner, group.state, states) for group in stage.groups]
        for key in parts[0]:
            found[key] = [v for part in parts for v in part[key].tolist()]
        found["rows_dropped"] = health(stage, "nonfinite")
        return found

    points = min(POINTS, config.num_updates)
    return train_arm(name, config, learner, groups, data, imaginations, measure, points, quiet)[1]


@torch.no_grad()
def values_of(learner: SAC, state: Any, observation: Tensor) -> dict[str, Tensor]:
    """Of logged states ``(B, S)`` at the policy's own action, each ``(P,)``."""
    policy = learner.policy_parameters(state)
    members = len(next(iter(policy.values())))
    given = observation.expand(members, -1, -1)
    action = learner.act(policy, given, None)
    seen = standardized(state["inputs"], given)
    values = learner.critics.values(state["critic"], state["support"], seen, action)
    least = values.amin(1)
    return {
        "max_abs_q": least.abs().amax(1),
        "mean_q": least.mean(1),
        "critic_spread": values.std(1).mean(1),
    }


def criteria(curves: Mapping[str, Curve], limit: float) -> dict[str, dict[str, Any]]:
    """What was expected, what was found in every member, and whether all did as expected."""
    base = [value / limit for value in curves["base"].last("max_abs_q")]
    ravl = [value / limit for value in curves["ravl"].last("max_abs_q")]
    returns = zip(curves["base"].last("return"), curves["ravl"].last("return"), strict=True)
    gains = [ours - theirs for theirs, ours in returns]
    return {
        "base values": {
            "expected": "max |Q| beyond the largest logged reward for ever",
            "found": base,
            # NaN, a run that left all numbers behind, is beyond.
            "met": all(not share <= 1 for share in base),
        },
        "ravl values": {
            "expected": "max |Q| within the largest logged reward for ever",
            "found": ravl,
            "met": all(share <= 1 for share in ravl),
        },
        "ravl return": {
            "expected": "more than base, by seed",
            "found": gains,
            "met": all(gain > 0 for gain in gains),
        },
    }


def draw_figures(curves: Mapping[str, Curve], record: Mapping[str, Any]) -> dict[str, str]:
    """SVG text by file name."""

    def lines(quantity: str) -> list[Line]:
        return [
            Line(TITLES[name], curve.updates, curve.values[quantity])
            for name, curve in curves.items()
        ]

    data, limit = record["data_return_mean"], record["value_limit"]
    return {
        "return": line_chart(
            "Return", "updates", "return", lines("return"), reference=("mean of the data", data)
        ),
        "values": line_chart(
            "Largest |Q| of logged states", "updates", "max |Q|", lines("max_abs_q"),
            log=True, reference=("largest reward for ever", limit),
        ),
        "spread": line_chart(
            "Deviation of the critics", "updates", "deviation", lines("critic_spread"), log=True
        ),
    }  # fmt: skip


def write_up(
    record: Mapping[str, Any], config: TrainConfig, figures: Mapping[str, str]
) -> list[Section]:
    """The page's sections."""
    assert config.imagination.kind == "branched"
    rows = [
        {
            "": name,
            "expected": row["expected"],
            "found, by member": ", ".join(f"{value:.4g}" for value in row["found"]),
            "met": row["met"],
        }
        for name, row in record["criteria"].items()
    ]
    about = (
        f"Rollouts of at most {config.imagination.horizon} steps from {record['data']['source']} "
        f"are stepped by {record['env_id']} itself, set to each observation, with its rewards: the "
        "model is never wrong and never unsure. The root's x position is not observed, changes "
        "nothing and is 0. States that an observation does not tell are dropped: "
        "rows_dropped in study.json. Values are those of logged states, at the policy's action."
    )
    return [
        Section("What it is", about),
        Section("What was expected, and found", rows=rows),
        Section("On the way", "Bands reach from the least to the largest member.",
                list(figures.values())),
    ]  # fmt: skip
