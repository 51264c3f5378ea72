"""Small stages that train policies, for the tests of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from worldrl.config.schema import TrainConfig
from worldrl.imagination import IMAGINATIONS
from worldrl.imagination.branched import BranchedRollouts
from worldrl.imagination.experience import (
    ImaginedExperience,
    imagined_experience,
)
from worldrl.imagination.rollout import Rollouts
from worldrl.imagination.setup import Setup
from worldrl.learners import LEARNERS
from worldrl.models.ensemble import Ensemble, Standardizer, init_ensemble
from worldrl.models.world import World
from worldrl.random import generator
from worldrl.rows import pack
from worldrl.training.logged import Logged
from worldrl.training.policy import PolicyStage
from worldrl.training.policy_group import members_of
from worldrl.training.stages import Snapshot
from worldrl.types import (
    Batch,
    Context,
    Imagination,
    LearnerState,
    Log,
    Metrics,
    Noise,
    Parameters,
    Transitions,
)

S, A, ROWS = 3, 2, 50
SEEDS = (4, 5, 6)
LONE, TOGETHER = [[4], [5], [6]], [[4, 5, 6]]
both = pytest.mark.parametrize("groups", [LONE, TOGETHER], ids=["groups of one", "one group"])


def config(imagination: dict[str, Any] | None = None, **changes: Any) -> TrainConfig:
    """60 updates, a refresh every 7."""
    branched = {
        "kind": "branched", "horizon": 2, "batch_size": 9, "every": 7, "retain": 3,
        "real_ratio": 0.35, "penalty": {"kind": "ensemble_std", "weight": 1.0},
    }  # fmt: skip
    base = {
        "dataset": {"source": "none"},
        "learner": {"kind": "sac", "hidden": (8, 8), "batch_size": 10},
        "num_updates": 60,
        "population": 3,
        "imagination": branched | (imagination or {}),
    }
    return TrainConfig.model_validate(base | changes)


def config_without_imagination(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        config(**changes).model_dump() | {"imagination": {"kind": "none"}}
    )


def logged_rows() -> Logged:
    """Rewards 1 ... 50: a row is known by its reward."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    observation = normal(ROWS, S)
    batch = Transitions(
        observation, normal(ROWS, A).tanh(), torch.arange(1.0, ROWS + 1),
        observation + 0.1 * normal(ROWS, S), torch.zeros(ROWS),
    )  # fmt: skip
    return Logged(
        pack(batch), torch.ones(ROWS, dtype=torch.bool), torch.zeros(ROWS, dtype=torch.int64), S, A,
        -np.ones(A, np.float32), np.ones(A, np.float32),
    )  # fmt: skip


def world_of(seeds: Sequence[int]) -> World:
    """An untrained ensemble that pays about -20, so that its rows are known by their reward."""
    parameters = init_ensemble([generator(seed, "init") for seed in seeds], S, A, (8,), 4)
    parameters["bias.1"][..., S] = -20.0
    count = len(seeds)
    return World(
        Ensemble(
            parameters,
            Standardizer(torch.zeros(count, S + A), torch.ones(count, S + A)),
            Standardizer(torch.zeros(count, S + 1), torch.ones(count, S + 1)),
            torch.stack([torch.randperm(4, generator=generator(seed, "e"))[:2] for seed in seeds]),
        ),
        {"limit": torch.full((count, 1), 1.5)},
    )


def ends(terminator: Parameters, observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
    return following[..., 0] > terminator["limit"]


def go_on() -> bool:
    return False


class Scribe:
    """A learner that writes down its batches and counts; a seed may be ruined from an update on."""

    phases = 1
    metric_names = ("critic_loss", "value_mean")

    def __init__(
        self,
        ruin: Callable[[int, int], float] = lambda seed, update: 0.0,
        loss: Callable[[int, int], float] = lambda seed, update: 1.0,
        value: Callable[[int, int], float] = lambda seed, update: 0.0,
    ) -> None:
        self.ruin, self.loss, self.value = ruin, loss, value
        self.batches: dict[int, list[Batch]] = {}

    def initialise(self, seeds: Sequence[int], log: Log, first: int = 0) -> LearnerState:
        numbers = {"discount": 0.9, "target_rate": 0.005}
        return {
            "settings": {k: torch.full((len(seeds),), v).double() for k, v in numbers.items()},
            "actor": {"weight": torch.zeros(len(seeds), 1)},
            "seeds": torch.tensor(list(seeds)).double(),
            "updates": torch.zeros(len(seeds)),  # never rolled back by a ruined value
        }

    def noise(self, generator: torch.Generator, count: int, batch_size: int) -> Noise:
        return {"actions": torch.randn(count, 1, batch_size, A, generator=generator)}

    def update(
        self, state: LearnerState, batch: Batch, noise: Noise, context: Context, phase: int = 0
    ) -> Metrics:
        seeds = [int(seed) for seed in state["seeds"]]
        for member, seed in enumerate(seeds):
            own = Batch(*(value[member].clone() for value in batch))
            self.batches.setdefault(seed, []).append(own)
        numbers = [len(self.batches[seed]) for seed in seeds]  # 1 for the first update
        state["updates"] += 1
        add = [1 + self.ruin(*pair) for pair in zip(seeds, numbers, strict=True)]
        state["actor"]["weight"] += torch.tensor(add)[:, None]
        return {
            name: torch.tensor([rule(*pair) for pair in zip(seeds, numbers, strict=True)])
            for name, rule in (("critic_loss", self.loss), ("value_mean", self.value))
        }

    def policy_parameters(self, state: LearnerState) -> Parameters:
        actor: Parameters = state["actor"]
        return actor

    def act(self, policy: Parameters, observation: Tensor, noise: Tensor | None) -> Tensor:
        assert noise is not None
        return (0.0 * policy["weight"][..., None] + noise).tanh()


def stage_of(
    groups: Sequence[Sequence[int]], settings: TrainConfig | None = None, learner: Any = None
) -> PolicyStage:
    settings = settings or config()
    if learner is None:
        learner = LEARNERS[settings.learner.kind](settings.learner, S, A, settings.num_updates)  # type: ignore[call-arg]
    return imagining(settings, learner, groups, imaginations(settings, learner, groups))


def imagining(
    settings: TrainConfig,
    learner: Any,
    groups: Sequence[Sequence[int]],
    found: Sequence[Imagination] | None,
    rows: Logged | None = None,
    fast: bool = False,
) -> PolicyStage:
    rows = rows or logged_rows()
    experiences = found and imagined_experience(settings.imagination, found, groups, rows.rows)
    models = [world_of(seeds).ensemble for seeds in groups]
    members = members_of(groups, rows.log, experiences, models)
    return PolicyStage(settings, learner, members, rows, fast)


def imaginations(
    settings: TrainConfig, learner: Any, groups: Sequence[Sequence[int]]
) -> list[Imagination] | None:
    if settings.imagination.kind == "none":
        return None
    worlds = [world_of(seeds) for seeds in groups]
    setup = Setup(
        groups, learner, worlds, ends, logged_rows().log, settings.num_updates,
        lambda step, calls: step,
    )  # fmt: skip
    return IMAGINATIONS[settings.imagination.kind](settings.imagination, setup)


def rollouts_of(settings: TrainConfig) -> Rollouts:
    """Of all members as one group."""
    learner = LEARNERS[settings.learner.kind](settings.learner, S, A, settings.num_updates)  # type: ignore[call-arg]
    found = imaginations(settings, learner, TOGETHER)
    assert found is not None
    assert isinstance(found[0], BranchedRollouts)
    return found[0].rollouts


def run(stage: PolicyStage, until: int = 60, log_every: int = 10) -> list[dict[str, list[float]]]:
    """As the loop does it: a report at every multiple of ``log_every``."""
    reports = []
    while stage.step < until and not stage.finished:
        stage.advance(min((stage.step // log_every + 1) * log_every, until), go_on)
        if stage.step % log_every == 0:
            reports.append(stage.report())
    return reports


def copied(snapshot: Snapshot) -> Snapshot:
    """As a checkpoint gives it back."""
    return Snapshot(
        {name: value.clone() for name, value in snapshot.model.items()},
        {name: value.clone() for name, value in snapshot.state.items()},
        json.loads(json.dumps(snapshot.plain)),
    )


def assert_same(found: PolicyStage, wanted: PolicyStage) -> None:
    one, other = found.snapshot(), wanted.snapshot()
    assert one.plain == other.plain
    for mine, theirs in (one.model, other.model), (one.state, other.state):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name], value, rtol=0, atol=0, equal_nan=True, msg=name)
    for group, same in zip(found.groups, wanted.groups, strict=True):
        if group.experience is None:
            assert same.experience is None
            continue
        assert isinstance(group.experience, ImaginedExperience)
        assert isinstance(same.experience, ImaginedExperience)
        mine, theirs = group.experience.buffer, same.experience.buffer
        assert mine.counts.equal(theirs.counts)
        for slot in range(mine.retain):
            for member, count in enumerate(mine.counts[:, slot].tolist()):
                assert mine.slot(slot)[member, :count].equal(theirs.slot(slot)[member, :count])


@cache
def uninterrupted(together: bool) -> tuple[PolicyStage, list[dict[str, list[float]]]]:
    """The whole run and its reports."""
    stage = stage_of(TOGETHER if together else LONE)
    return stage, run(stage)


def explode(seed: int, update: int) -> float:
    return math.nan if seed == 5 and update > 23 else 0.0
