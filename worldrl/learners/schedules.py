"""Schedules of learning rates over a run."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor


def decay(schedule: Literal["constant", "cosine"], steps: Tensor, num_updates: int) -> Tensor:
    """The factor ``(P,)`` on a learning rate after so many updates ``(P,)``; cosine ends at 0."""
    if schedule == "constant":
        return torch.ones_like(steps)
    return 0.5 * (1 + torch.cos(math.pi * (steps / num_updates).clamp(max=1.0)))
