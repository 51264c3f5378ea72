"""TD3+BC (Fujimoto & Gu 2021, arXiv 2106.06860): TD3 whose actor also clones the data's actions."""

from __future__ import annotations

from torch import Tensor

from worldrl.config.learners import TD3BCSettings
from worldrl.learners.td3 import TD3, Algorithm, View, in_own_size, squared_error


def td3bc(
    settings: TD3BCSettings, observation_size: int, action_size: int, num_updates: int
) -> TD3:
    """The learner; its actor listens to the first critic alone."""
    algorithm = Algorithm({"alpha": settings.alpha}, actor_loss, actor_critics=1)
    return TD3(settings, observation_size, action_size, num_updates, algorithm)


def actor_loss(view: View, action: Tensor, values: Tensor) -> Tensor:
    """``-alpha Q / mean|Q| + (pi - a)^2``, means over rows and, of the square, dimensions."""
    return squared_error(action, view.batch.action) - view.own["alpha"] * in_own_size(values)
