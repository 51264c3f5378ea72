"""A point in the plane whose every value is known, to study what rollouts leave out.

``s' = s + 0.1 a`` with ``a`` in [-1, 1]^2 and, at distance d of s' from a goal, the reward
``exp(-d^2 / 2 w^2) - 0.1 d``. It falls with either coordinate's distance, so the best action moves
both to the goal's as fast as they go, and the best value of every state is a sum in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worldrl.data.dataset import Dataset
from worldrl.random import generator
from worldrl.types import Prediction

STEP = 0.1  # the most that a coordinate moves in a step
RADIUS = 0.5  # of the disc that logged states lie in
EPISODE = 30
ROWS = 2_000
GOAL = (1.0, 0.0)  # off the data, inside of what 9 steps reach
BUMP_WIDTH = 0.4


class PointWorld(NamedTuple):
    """The true dynamics as an ensemble of one member that is always sure."""

    elites: Tensor  # (P, 1) int64, zeros

    def predict(self, observation: Tensor, action: Tensor) -> Prediction:
        """``(P, R, 2), (P, R, 2) -> Prediction`` without spread."""
        following = step(observation, action)
        mean = torch.cat([following, reward(following)[..., None]], -1)[:, None]
        return Prediction(mean, torch.zeros_like(mean))

    @property
    def num_members(self) -> int:
        """One."""
        return 1

    def predict_each(self, observation: Tensor, action: Tensor) -> Prediction:
        """``(P, 1, R, S), (P, 1, R, A) -> Prediction``: the one member's rows are all rows."""
        return self.predict(observation[:, 0], action[:, 0])

    def of_elites(self) -> PointWorld:
        """The one member."""
        return self

    def of_members(self, chosen: Sequence[int]) -> PointWorld:
        """All alike."""
        return self._replace(elites=self.elites[list(chosen)])


def point_world(members: int) -> PointWorld:
    """The world of P members."""
    return PointWorld(torch.zeros(members, 1, dtype=torch.int64))


def step(state: Tensor, action: Tensor) -> Tensor:
    """``(..., 2), (..., 2) -> (..., 2)``."""
    return state + STEP * action


def reward(state: Tensor) -> Tensor:
    """``(..., 2) -> (...)``, of the step that arrives at ``state``."""
    squared = (state - state.new_tensor(GOAL)).square().sum(-1)
    return torch.exp(-squared / (2 * BUMP_WIDTH**2)) - 0.1 * squared.sqrt()


def best_action(state: Tensor) -> Tensor:
    """``(..., 2) -> (..., 2)``: both coordinates towards the goal's, as fast as they go."""
    return ((state.new_tensor(GOAL) - state) / STEP).clamp(-1, 1)


def best_return(state: Tensor, steps: int, discount: float = 1.0) -> Tensor:
    """The most that ``steps`` steps from ``state`` ``(..., 2)`` can earn, ``(...)``."""
    total = torch.zeros_like(state[..., 0])
    for ahead in range(steps):
        state = step(state, best_action(state))
        total = total + discount**ahead * reward(state)
    return total


def best_value(discount: float) -> float:
    """The largest value of any state: resting at the goal, with reward 1 a step."""
    return 1 / (1 - discount)


def reachable(state: Tensor, steps: int) -> Tensor:
    """``(..., 2) -> (...)`` bool: some policy gets from the disc to ``state`` in ``steps`` steps.

    Steps reach the disc widened by a square of half-width ``0.1 steps``. Resting is a step, too,
    so what is reached in ``steps`` is reached in more.
    """
    # The margin is for float32: a corner that is reached exactly must not count as beyond.
    beyond = (state.abs() - STEP * steps).clamp(min=0)
    return beyond.square().sum(-1) <= RADIUS**2 + 1e-5


def disc(count: int, seed: int, stream: str) -> Tensor:
    """``(count, 2)``: states uniform in the disc."""
    angle, share = torch.rand(2, count, generator=generator(seed, stream)).unbind()
    distance = RADIUS * share.sqrt()
    angle = 2 * math.pi * angle
    return torch.stack([distance * angle.cos(), distance * angle.sin()], -1)


def logged_dataset(seed: int) -> Dataset:
    """Single steps with random actions from states in the disc."""
    state = disc(ROWS, seed, "study.logged")
    action = 2 * torch.rand(ROWS, 2, generator=generator(seed, "study.logged_action")) - 1
    following = step(state, action)
    return Dataset.from_arrays(
        state.numpy(),
        action.numpy(),
        reward(following).numpy(),
        torch.zeros(ROWS).numpy(),
        truncated=torch.ones(ROWS).numpy(),
        next_observations=following.numpy(),
        action_low=-1,
        action_high=1,
        source="the edge-of-reach study's point world",
    )


def outline(steps: int, corners: int = 96) -> list[tuple[float, float]]:
    """The border of what ``steps`` steps reach, as a polygon."""
    found = []
    for number in range(corners):
        angle = 2 * math.pi * (number + 0.5) / corners
        x, y = math.cos(angle), math.sin(angle)
        reach = STEP * steps
        found.append((math.copysign(reach, x) + RADIUS * x, math.copysign(reach, y) + RADIUS * y))
    return found
