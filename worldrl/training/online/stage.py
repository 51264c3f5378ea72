"""The stage that fine-tunes policies in the environment, counted in steps of every member."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from worldrl.config.schema import FinetuneConfig
from worldrl.rows import unpack
from worldrl.training.guards import Scale, Trip
from worldrl.training.online.experience import RECENT, Life, OnlineExperience
from worldrl.training.online.footing import advice, change, mean_return
from worldrl.training.policy import PolicyStage
from worldrl.training.policy_group import PolicyGroup
from worldrl.training.stages import Snapshot, common_step
from worldrl.types import Parameters, ValueLearner

#: Steps of the warm-up between looks at whether to stop.
PIECE = 100

#: Transitions of the warm-up on which values are followed.
FOLLOWED = 1_024


@dataclass
class Footing:
    """What is known of one member's start."""

    value: float | None = None
    """Mean Q on its first transitions before the first update."""
    advised: bool = False


class OnlineGroup(NamedTuple):
    """The learners of a few seeds, and where they play."""

    learners: PolicyGroup
    online: OnlineExperience
    config: FinetuneConfig
    footings: list[Footing]
    offline_scales: list[Scale]

    @property
    def step(self) -> int:
        """Steps after which all updates are done that follow them."""
        warm = min(self.online.steps, self.config.warmup_steps)
        return warm + self.learners.step // self.config.updates_per_step

    @property
    def finished(self) -> bool:
        return self.learners.finished

    @property
    def lives(self) -> list[Life]:
        return self.online.lives

    def advance(self, until: int, stop: Callable[[], bool]) -> None:
        """Up to step ``until`` of every environment, and the updates that follow its steps."""
        warmup, learners = self.config.warmup_steps, self.learners
        warm = min(until, warmup)
        while self.online.steps < warm and not stop():
            policy = learners.learner.policy_parameters(learners.state)
            self.online.play(min(self.online.steps + PIECE, warm), policy)
        if self.online.steps < warmup:
            return
        if learners.step == 0:
            for footing, value in zip(self.footings, self.values(), strict=True):
                footing.value = value
        learners.advance((until - warmup) * self.config.updates_per_step, stop)

    @torch.no_grad()
    def values(self) -> list[float] | list[None]:
        """Mean Q of every member on its first transitions; None where it cannot be told."""
        group, online = self.learners, self.online
        learner, logged = group.learner, group.logged
        rows = min(FOLLOWED, self.config.warmup_steps)
        if not isinstance(learner, ValueLearner) or rows == 0 or online.steps > online.capacity:
            return [None] * len(group.seeds)
        seen = online.earliest(rows)
        batch = unpack(seen, logged.observation_size, logged.action_size)
        found = learner.values(group.state, batch.observation, batch.action).mean(1)
        return [float(value) for value in found]

    def report(self) -> dict[str, list[float]]:
        """What the members met, what it did to them and, after the warm-up, what they learned."""
        found = {
            "updates": [float(self.learners.step)] * len(self.lives),
            "episodes": [float(life.episodes) for life in self.lives],
            "episode_return": [
                _or_nan(mean_return([*life.warmup_returns, *life.returns][-RECENT:], 1))
                for life in self.lives
            ],
        }
        if self.learners.step == 0:
            return found
        self._widen_scales()
        return found | self.learners.report(self.config.guard) | self._changes()

    def _widen_scales(self) -> None:
        """Guards judge values by the rewards that were met, too."""
        self.learners.scales = [
            scale._replace(
                reward_max=max(scale.reward_max, life.reward_max),
                reward_rms=max(
                    scale.reward_rms, math.sqrt(life.reward_squares / self.online.steps)
                ),
            )
            for scale, life in zip(self.offline_scales, self.lives, strict=True)
        ]

    def _changes(self) -> dict[str, list[float]]:
        config = self.config
        late = self.step > config.warmup_steps + config.footing.steps
        if late or config.weights == "fresh":
            return {}
        found: dict[str, list[float]] = {"value_change": [], "return_change": []}
        for member, value in enumerate(self.values()):
            life, footing = self.lives[member], self.footings[member]
            values = change(value, footing.value)
            returns = change(mean_return(life.returns), mean_return(life.warmup_returns, 1))
            found["value_change"].append(values)
            found["return_change"].append(returns)
            said = advice(config, values, returns)
            if said and not footing.advised and self.learners.trips[member] is None:
                footing.advised = True
                seed = self.learners.seeds[member]
                print(f"worldrl: warning: seed {seed}, step {self.step:,}: {said}", file=sys.stderr)
        return {name: each for name, each in found.items() if not all(map(math.isnan, each))}


class FinetuneStage:
    """A :class:`PolicyStage` whose updates follow the steps of its members' environments."""

    name = "finetune"

    def __init__(
        self, config: FinetuneConfig, policies: PolicyStage, online: Sequence[OnlineExperience]
    ) -> None:
        self.total = config.num_steps
        self._policies = policies
        self.groups = [
            OnlineGroup(learners, own, config, [Footing() for _ in learners.seeds], learners.scales)
            for learners, own in zip(policies.groups, online, strict=True)
        ]

    @property
    def step(self) -> int:
        return common_step(self.groups)

    @property
    def finished(self) -> bool:
        return self._policies.finished

    @property
    def trips(self) -> list[Trip | None]:
        """Why each member was stopped early, if it was."""
        return self._policies.trips

    @property
    def good_steps(self) -> list[int]:
        """The update whose policy each member goes back to, or went back to."""
        return self._policies.good_steps

    def policy_parameters(self) -> Parameters:
        """The policies of all members, ``(P, ...)``."""
        return self._policies.policy_parameters()

    def advance(self, until: int, stop: Callable[[], bool]) -> None:
        """Every group up to step ``until``, and the updates that follow its steps."""
        for group in self.groups:
            group.advance(until, stop)

    def report(self) -> dict[str, list[float]]:
        """Metrics of every member since the last report; guards act here."""
        parts = [group.report() for group in self.groups]
        names = dict.fromkeys(name for part in parts for name in part)
        return {
            name: [
                value
                for part, group in zip(parts, self.groups, strict=True)
                for value in part.get(name, [math.nan] * len(group.lives))
            ]
            for name in names
        }

    def snapshot(self) -> Snapshot:
        """Of the policies, and the transitions of every member, as many as the most have."""
        self._save_rows(max(group.online.held for group in self.groups))
        found = self._policies.snapshot()
        footings = [vars(footing) for group in self.groups for footing in group.footings]
        return found._replace(plain=found.plain | {"footings": footings})

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot; environments play their last episode again."""
        self._save_rows(snapshot.state["refreshes/rows"].shape[1])
        self._policies.restore(snapshot)
        footings = iter(snapshot.plain["footings"])
        for group in self.groups:
            group.footings[:] = [Footing(**next(footings)) for _ in group.footings]

    def _save_rows(self, count: int) -> None:
        for group in self.groups:
            group.online.saved = count


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
