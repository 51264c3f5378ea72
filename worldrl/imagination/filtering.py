"""Steps chosen among candidates by a dynamics reward (MOREC: Luo et al. 2023, arXiv 2310.05422).

Every elite makes a few samples for each row. One of them is taken, the more likely the more
plausible it is, and where even that one is implausible the rollout stops.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from worldrl.config.filters import DynamicsRewardFilter
from worldrl.errors import ConfigError
from worldrl.imagination.step import Bounds, Draws, Proposal, Propose
from worldrl.models.dynamics_reward import dynamics_reward
from worldrl.models.world import World


def most_plausible(settings: DynamicsRewardFilter) -> Propose:
    """The proposal of a filter; :class:`Draws` has ``M = samples_per_elite * E`` model noises."""

    def propose(
        world: World, observation: Tensor, action: Tensor, draws: Draws, bounds: Bounds
    ) -> Proposal:
        assert world.reward is not None
        assert draws.choice is not None
        prediction = world.ensemble.predict(observation, action)
        makers = world.ensemble.elites.repeat_interleave(settings.samples_per_elite, 1)  # (P, M)
        index = makers[:, :, None, None].expand(-1, -1, *prediction.mean.shape[2:])
        mean, std = (value.gather(1, index).transpose(1, 2) for value in prediction)
        candidates = mean + std * draws.model  # (P, C, M, S + 1)
        following = bounds.clip(candidates[..., :-1])
        reward = dynamics_reward(world.reward, observation, action, following)
        reward = reward.where(candidates.isfinite().all(-1), -math.inf)
        number = chosen(reward, draws.choice, settings.selector, settings.temperature)[..., None]
        taken = reward.gather(-1, number).squeeze(-1)
        of_row = number[..., None].expand(-1, -1, 1, candidates.shape[-1])
        return Proposal(
            candidates.gather(2, of_row).squeeze(2),
            makers.gather(1, number.squeeze(-1)),
            prediction,
            taken,
            taken < settings.limit,
        )

    return propose


def chosen(
    reward: Tensor, uniform: Tensor, selector: Literal["softmax", "argmax"], temperature: float
) -> Tensor:
    """Numbers of candidates ``(...)`` by their rewards ``(..., M)``; -inf is never taken, where
    there is another.

    Args:
        uniform: ``(...)`` in [0, 1), what softmax draws by.
    """
    if selector == "argmax":
        return reward.argmax(-1)
    reached = torch.softmax(reward / temperature, -1).cumsum(-1)
    passed = reached <= uniform[..., None] * reached[..., -1:]
    return passed.sum(-1).clamp(max=reward.shape[-1] - 1)


def world_to_filter(settings: DynamicsRewardFilter, world: World, judged: bool) -> World:
    """A world with the snapshots that the filter asks, and with the elites alone where nobody else
    is asked what the members predict.

    Raises:
        ConfigError: its dynamics reward holds fewer snapshots.
    """
    reward = world.reward
    assert reward is not None
    if settings.networks is not None:
        if settings.networks > reward.num_snapshots:
            raise ConfigError(
                f"imagination.filter.networks is {settings.networks}, and the dynamics reward of "
                f"the given model holds {reward.num_snapshots} snapshots. Lower it, or leave "
                "model= out to learn another"
            )
        reward = reward.thinned(settings.networks)
    ensemble = world.ensemble if judged else world.ensemble.of_elites()
    return world._replace(ensemble=ensemble, reward=reward)


def networks_asked(world: World, candidates: int) -> int:
    """Networks that each row runs through, one candidate after another."""
    assert world.reward is not None
    return world.ensemble.num_members + candidates * world.reward.num_snapshots
