"""ReBRAC (Tarasov et al. 2023, arXiv 2305.09836): TD3 whose actor and critics each have a penalty
on leaving the data's actions, squared and summed over dimensions.

On imagined experience (MoBRAC; Jackson et al. 2025, arXiv 2504.11453) the actor's penalty is on all
rows. The critic's is on logged rows alone: what followed an imagined step was not logged.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from worldrl.config.learners import ReBRACSettings
from worldrl.learners.td3 import TD3, Algorithm, View, in_own_size


def rebrac(
    settings: ReBRACSettings, observation_size: int, action_size: int, num_updates: int
) -> TD3:
    """The learner; its actor raises the least value of all critics."""
    numbers = {
        "actor_bc_weight": settings.actor_bc_weight,
        "critic_bc_weight": settings.critic_bc_weight,
    }
    algorithm = Algorithm(numbers, actor_loss, next_cost=next_cost)
    return TD3(settings, observation_size, action_size, num_updates, algorithm)


def next_cost(view: View, next_action: Tensor) -> Tensor:
    """``beta_2 |a' - next logged a|^2``; 0 where none was logged: at an episode's end, and in
    imagination."""
    log, rows = view.context.log, view.batch.logged
    logged, rest = rows.shape[1], next_action.shape[1] - rows.shape[1]
    distance = (next_action[:, :logged] - log.next_action[rows]).square().sum(-1)
    distance = F.pad(distance * log.next_action_known[rows], (0, rest))
    return view.own["critic_bc_weight"][:, None] * distance


def actor_loss(view: View, action: Tensor, values: Tensor) -> Tensor:
    """``beta_1 |pi - a|^2 - Q / mean|Q|``, means over rows."""
    distance = (action - view.batch.action).square().sum(-1).mean(-1)
    return view.own["actor_bc_weight"] * distance - in_own_size(values)
