"""Rollouts whose edge is known: the control arm of the edge-of-reach study.

Where a rollout of k steps ends beyond what k - 1 steps reach, the last next state's value is never
learned. Here the target of such a transition is not bootstrapped: it is the reward plus the
discounted return that the policy of the refresh earns from there in the true world, which is what a
terminal transition with that sum as its reward makes of it. Learners know nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from worldrl.random import draw
from worldrl.rows import pack, unpack
from worldrl.types import (
    DynamicsModel,
    Imagination,
    Learner,
    LearnerState,
    Metrics,
    Parameters,
)


class PatchedRollouts(NamedTuple):
    """Another imagination's rows with the unlearnable targets replaced."""

    rollouts: Imagination
    model: DynamicsModel  # the true world; its first elite predicts
    learner: Learner
    edge: Callable[[Tensor], Tensor]  # (..., S) -> (...) bool: no value is ever learned of it
    discount: float
    seeds: tuple[int, ...]
    observation_size: int
    action_size: int

    @property
    def capacity(self) -> int:
        """See :class:`worldrl.types.Imagination`."""
        return self.rollouts.capacity

    @property
    def state(self) -> dict[str, Tensor]:
        """See :class:`worldrl.types.Imagination`."""
        return self.rollouts.state

    def prepare(self, number: int, learner: LearnerState) -> None:
        """See :class:`worldrl.types.Imagination`."""
        self.rollouts.prepare(number, learner)

    def sources(self, learner: LearnerState) -> Parameters:
        """See :class:`worldrl.types.Imagination`."""
        return self.rollouts.sources(learner)

    @torch.no_grad()
    def fill(self, rows: Tensor, number: int, sources: Parameters) -> tuple[Tensor, Metrics]:
        """The rows of the rollouts; those that end on the edge carry the true return."""
        counts, health = self.rollouts.fill(rows, number, sources)
        held = unpack(rows, self.observation_size, self.action_size)
        written = torch.arange(rows.shape[1], device=rows.device) < counts[:, None]
        beyond = written & self.edge(held.next_observation) & (held.terminated == 0)
        most = int(beyond.sum(1).max())
        share = beyond.sum(1) / counts.clamp(min=1)
        if most > 0:
            # Edge rows first, as many of every member as the one with the most has.
            order = beyond.int().argsort(dim=1, descending=True, stable=True)[:, :most]
            chosen = rows.gather(1, order[..., None].expand(-1, -1, rows.shape[2]))
            own = unpack(chosen, self.observation_size, self.action_size)
            value = self._earned(own.next_observation, number, sources)
            patched = own._replace(
                reward=own.reward + self.discount * value,
                terminated=torch.ones_like(own.terminated),
            )
            affected = beyond.gather(1, order)[..., None]
            chosen = torch.where(affected, pack(patched), chosen)
            rows.scatter_(1, order[..., None].expand_as(chosen), chosen)
        return counts, health | {"patched_share": share}

    def _earned(self, observation: Tensor, number: int, policy: Parameters) -> Tensor:
        """Discounted return ``(P, R)`` of one rollout from each state ``(P, R, S)``.

        It is played until the discount is below 1 %; the last reward then stands for all to come.
        """
        steps = math.ceil(math.log(0.01) / math.log(self.discount))
        member = self.model.elites[:, 0]
        each = torch.arange(len(member))
        total = torch.zeros_like(observation[..., 0])
        shape = (observation.shape[1], self.action_size)

        def normals(generator: torch.Generator) -> Tensor:
            return torch.randn(shape, generator=generator)

        for ahead in range(steps):
            noise = draw(self.seeds, f"study.oracle.{ahead}", number, normals)
            action = self.learner.act(policy, observation, noise)
            mean = self.model.predict(observation, action).mean[each, member]
            observation, reward = mean[..., :-1], mean[..., -1]
            total = total + self.discount**ahead * reward
        return total + self.discount**steps / (1 - self.discount) * reward
