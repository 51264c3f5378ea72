"""The edge-of-reach study (Sims et al. 2024, arXiv 2402.12527) in a world without model error.

Rollouts of k steps from the data visit states at step k that no earlier step can reach. They occur
in targets as next states and never as states, so their values are never corrected, and what is
wrong there flows back. Four arms learn in the true dynamics of :mod:`worldrl.study.point`, where a
penalty for model error has nothing to penalise:

* ``base``: SAC with 2 critics;
* ``patch``: the same, with the returns that are truly earned as the values of those states;
* ``critics``: the least of 10 critics instead of the patch;
* ``ravl``: these critics with their slopes turned apart, as RAVL has them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldrl.config.imagination import BranchedSettings, PenaltySettings
from worldrl.config.learners import SACSettings
from worldrl.config.schema import DatasetSettings, GuardSettings, TrainConfig
from worldrl.imagination import IMAGINATIONS
from worldrl.imagination.setup import Setup
from worldrl.learners.inputs import seen
from worldrl.learners.sac import SAC
from worldrl.models.world import World
from worldrl.random import draw
from worldrl.study import point
from worldrl.study.arms import health, train_arm
from worldrl.study.directory import Result, new_directory, write_study
from worldrl.study.edge_report import Finished, criteria, draw_figures, write_up
from worldrl.study.oracle import PatchedRollouts
from worldrl.training.environment import set_determinism, settings_restored
from worldrl.training.logged import Logged, logged
from worldrl.training.policy import PolicyStage
from worldrl.training.world.world_model import ends_function
from worldrl.types import Imagination

HORIZON = 10  # steps of a rollout
POINTS = 20  # measurements of an arm
HALF_WIDTH = 1.6  # of the maps: the rollouts' farthest corner is at 1.5
CELLS = 41
ENDPOINTS = 200  # rollouts whose ends are drawn

#: What all arms have. Values are plain discounted returns, without the entropy, so that they can be
#: held against the truth. These numbers, the goal and the width of its bump were found by trying:
#: with slower targets (0.05) the base arm ran away in one member of three, with faster ones (0.2)
#: RAVL did too.
LEARNER: dict[str, Any] = {
    "kind": "sac",
    "hidden": (64, 64),
    "standardize": True,
    "discount": 0.99,
    "critic_learning_rate": 1e-3,
    "actor_learning_rate": 1e-3,
    "temperature_learning_rate": 1e-3,
    "initial_temperature": 0.1,
    "target_rate": 0.1,
    "entropy_in_target": False,
    "actor_schedule": "constant",
}
#: Ten critics, and the same with EDAC's term, which makes them RAVL's. Its weight was found by
#: trying: with the published 1 values ran away in six members of six, with 0.1 in three of three.
CRITICS: dict[str, Any] = {"num_critics": 10, "init": "edac"}
RAVL: dict[str, Any] = {**CRITICS, "diversity": 0.003}


class Arm(NamedTuple):
    """One way to learn."""

    title: str
    learner: dict[str, Any]  # settings beside LEARNER
    patched: bool = False


ARMS: dict[str, Arm] = {
    "base": Arm("base: 2 critics", {}),
    "patch": Arm("true values beyond reach", {}, patched=True),
    "critics": Arm("least of 10 critics", CRITICS),
    "ravl": Arm("RAVL: these, kept diverse", RAVL),
}


def edge_of_reach(
    seeds: int = 3,
    updates: int = 20_000,
    seed: int = 0,
    out: Path | None = None,
    quiet: bool = False,
) -> Result:
    """Train all arms, hold them against the truth, and write numbers, figures and a page.

    Args:
        seeds: members of each arm.
        updates: of every member.
        seed: of the first member; the others follow.

    Raises:
        RunError: ``out`` holds something already.
    """
    path = new_directory("edge-of-reach", out)
    config = train_config(ARMS["base"], seeds, updates, seed)
    with settings_restored():
        set_determinism(config.threads)
        data = logged(point.logged_dataset(seed), torch.device("cpu"))
        finished = {name: run_arm(name, seeds, updates, seed, data, quiet) for name in ARMS}
    true, best = point.best_value(config_discount()), best_return(seed)
    curves = {name: arm.curve for name, arm in finished.items()}
    record = {
        "study": "edge-of-reach",
        "seeds": [seed + member for member in range(seeds)],
        "updates": updates,
        "settings": {
            name: train_config(arm, seeds, updates, seed).model_dump(mode="json")
            for name, arm in ARMS.items()
        },
        "true_value": true,
        "best_return": best,
        "seconds": {name: curve.seconds for name, curve in curves.items()},
        "curves": {
            name: {"updates": curve.updates, **curve.values} for name, curve in curves.items()
        },
        "criteria": criteria(curves, true, best),
    }
    figures = draw_figures(finished, record, HORIZON, HALF_WIDTH)
    sections = write_up(finished, record, figures, HORIZON)
    write_study(path, record, "The edge-of-reach study", sections, figures)
    if not quiet:
        print(f"study: written to {path}", file=sys.stderr)
    return Result(path, record)


def config_discount() -> float:
    """The discount of all arms."""
    return float(LEARNER["discount"])


def train_config(arm: Arm, seeds: int, updates: int, seed: int) -> TrainConfig:
    """The settings of an arm. The guards would stop what the study is to show."""
    every = min(250, updates)
    return TrainConfig(
        dataset=DatasetSettings(source="point"),
        imagination=BranchedSettings(
            horizon=HORIZON,
            penalty=PenaltySettings(kind="none"),
            batch_size=1_000,
            every=every,
            retain=1,
            clip_range=None,
        ),
        learner=learner_settings(arm),
        num_updates=updates,
        seed=seed,
        population=seeds,
        device="cpu",
        threads=1,
        guard=GuardSettings(enabled=False),
    )


def learner_settings(arm: Arm) -> SACSettings:
    """The settings of an arm's learner."""
    return SACSettings.model_validate({**LEARNER, **arm.learner})


def run_arm(name: str, seeds: int, updates: int, seed: int, data: Logged, quiet: bool) -> Finished:
    """Train one arm's population."""
    arm = ARMS[name]
    config = train_config(arm, seeds, updates, seed)
    learner = SAC(learner_settings(arm), data.observation_size, data.action_size, updates)
    groups = [[seed + member] for member in range(seeds)]
    imaginations = rollouts(config, learner, groups, data)
    if arm.patched:
        imaginations = [
            PatchedRollouts(
                own,
                point.point_world(len(group)),
                learner,
                beyond_reach,
                config_discount(),
                tuple(group),
                data.observation_size,
                data.action_size,
            )
            for own, group in zip(imaginations, groups, strict=True)
        ]
    starts = evaluation_starts(seed)

    def measure(stage: PolicyStage) -> dict[str, list[float]]:
        parts = [
            measured(learner, group.state, group.seeds, starts, group.step)
            for group in stage.groups
        ]
        found = {key: [v for part in parts for v in part[key].tolist()] for key in parts[0]}
        if arm.patched:
            found["patched_share"] = health(stage, "patched_share")
        return found

    stage, curve = train_arm(
        name, config, learner, groups, data, imaginations, measure, min(POINTS, updates), quiet
    )
    first = stage.groups[0]
    return Finished(
        arm.title,
        curve,
        value(learner, first.state, plane()[None])[0].amin(0).reshape(CELLS, CELLS),
        rollout_ends(learner, first.state, first.seeds, starts, updates)[0, :ENDPOINTS],
    )


def rollouts(
    config: TrainConfig, learner: SAC, groups: Sequence[Sequence[int]], data: Logged
) -> list[Imagination]:
    """Branched rollouts in the true world."""
    worlds = [World(point.point_world(len(group)), {}) for group in groups]
    setup = Setup(
        groups,
        learner,
        worlds,
        ends_function({"kind": "never"}, data.observation_size),
        data.log,
        config.num_updates,
        lambda step, calls: step,  # a few calls a second: compiling would not repay
    )
    return IMAGINATIONS["branched"](config.imagination, setup)


def beyond_reach(state: Tensor) -> Tensor:
    """``(..., 2) -> (...)`` bool: only the last step of a rollout can arrive here."""
    return ~point.reachable(state, HORIZON - 1)


def plane() -> Tensor:
    """``(CELLS * CELLS, 2)``, rows from below."""
    axis = torch.linspace(-HALF_WIDTH, HALF_WIDTH, CELLS)
    up, across = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([across, up], -1).reshape(-1, 2)


def evaluation_starts(seed: int) -> Tensor:
    """``(256, 2)`` states of the disc that episodes start from."""
    return point.disc(256, seed, "study.starts")


def best_return(seed: int) -> float:
    """Mean return of the best policy from :func:`evaluation_starts`."""
    return float(point.best_return(evaluation_starts(seed), point.EPISODE).mean())


@torch.no_grad()
def value(learner: SAC, state: Any, observation: Tensor) -> Tensor:
    """``(P, B, S) -> (P, M, B)``: what every critic makes of the policy's own action."""
    action = learner.act(learner.policy_parameters(state), observation, None)
    inputs = seen(learner.settings, state["inputs"], observation)
    return learner.critics.values(state["critic"], state["support"], inputs, action)


@torch.no_grad()
def measured(
    learner: SAC, state: Any, seeds: Sequence[int], starts: Tensor, update: int
) -> dict[str, Tensor]:
    """Everything that is recorded of a group, each ``(P,)``."""
    grid = plane()
    inside = grid[point.reachable(grid, HORIZON - 1)]
    edge = grid[point.reachable(grid, HORIZON) & beyond_reach(grid)]
    policy = learner.policy_parameters(state)
    members = len(seeds)
    at, total = starts.expand(members, -1, -1), torch.zeros(members, len(starts))
    for _ in range(point.EPISODE):
        at = point.step(at, learner.act(policy, at, None))
        total = total + point.reward(at)
    found = {"return": total.mean(1)}
    for name, states in ("inside", inside), ("edge", edge):
        values = value(learner, state, states.expand(members, -1, -1))
        least = values.amin(1)
        found[f"max_abs_q_{name}"] = least.abs().amax(1)
        found[f"critic_spread_{name}"] = values.std(1).mean(1)
        found[f"critic_penalty_{name}"] = (values.mean(1) - least).mean(1)
    ends = rollout_ends(learner, state, seeds, starts, update)
    found["ends_beyond_reach"] = beyond_reach(ends).float().mean(1)
    return found


@torch.no_grad()
def rollout_ends(
    learner: SAC, state: Any, seeds: Sequence[int], starts: Tensor, update: int
) -> Tensor:
    """Where rollouts of the sampling policy end, ``(P, B, 2)``."""
    policy, at = learner.policy_parameters(state), starts.expand(len(seeds), -1, -1)

    def normals(generator: torch.Generator) -> Tensor:
        return torch.randn(starts.shape, generator=generator)

    for ahead in range(HORIZON):
        noise = draw(seeds, f"study.end.{ahead}", update, normals)
        at = point.step(at, learner.act(policy, at, noise))
    return at
