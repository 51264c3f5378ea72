"""A transition as one row of floats, so that a batch is a single gather.

Columns: observation (S), action (A), reward, next observation (S), terminated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldrl.types import Transitions


def row_width(observation_size: int, action_size: int) -> int:
    """Columns of a packed transition."""
    return 2 * observation_size + action_size + 2


def pack(transitions: Transitions) -> Tensor:
    """``Transitions (..., B) -> (..., B, W)``."""
    return torch.cat(
        [
            transitions.observation,
            transitions.action,
            transitions.reward[..., None],
            transitions.next_observation,
            transitions.terminated[..., None],
        ],
        -1,
    )


def taken(values: Tensor, numbers: Tensor) -> Tensor:
    """Each member's own rows of ``(P, R, ...)``, by numbers ``(P, k)``: ``(P, k, ...)``."""
    member = torch.arange(len(numbers), device=numbers.device)[:, None]
    return values[member, numbers]


def unpack(rows: Tensor, observation_size: int, action_size: int) -> Transitions:
    """``(..., B, W) -> Transitions`` of views."""
    observation, action, reward, next_observation, terminated = torch.split(
        rows, [observation_size, action_size, 1, observation_size, 1], -1
    )
    return Transitions(
        observation, action, reward.squeeze(-1), next_observation, terminated.squeeze(-1)
    )
