"""PRDC (Ran et al. 2023, arXiv 2306.06569): TD3+BC that stays near any logged action of a like
state, not near the one that was logged here.

The nearest of all pairs (weight * observation, action) is searched by brute force.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from worldrl.config.learners import PRDCSettings
from worldrl.learners.inputs import standardized
from worldrl.learners.td3 import TD3, Algorithm, View, in_own_size, squared_error
from worldrl.nearest import nearest


def prdc(settings: PRDCSettings, observation_size: int, action_size: int, num_updates: int) -> TD3:
    """The learner; its actor listens to the first critic alone."""
    numbers = {"alpha": settings.alpha, "observation_weight": settings.observation_weight}

    def actor_loss(view: View, action: Tensor, values: Tensor) -> Tensor:
        """``-alpha Q / mean|Q| + (pi - nearest)^2``, means over rows and dimensions."""
        wanted = nearest_action(view, action.detach(), settings.candidates)
        return squared_error(action, wanted) - view.own["alpha"] * in_own_size(values)

    algorithm = Algorithm(numbers, actor_loss, actor_critics=1, uniforms=1)
    return TD3(settings, observation_size, action_size, num_updates, algorithm)


def nearest_action(view: View, action: Tensor, candidates: int | None) -> Tensor:
    """``(P, B, A) -> (P, B, A)``: of the logged pair nearest to each row's observation and action.

    Every ``n / candidates``-th row of the log is searched, from a random first one, and each row's
    own logged pair beside them: its observation is the row's, and so it is the nearest most often.
    """
    logged = view.context.log.transitions
    members, rows = len(action), len(logged.reward)
    step = math.ceil(rows / (candidates or rows))
    observations, actions = logged.observation, logged.action
    if step == 1:
        observations, actions = (each.expand(members, -1, -1) for each in (observations, actions))
    else:
        first = (view.noise["uniform"] * step).long()  # (P, 1)
        chosen = (first + torch.arange(0, rows, step, device=action.device)) % rows
        observations, actions = observations[chosen], actions[chosen]
    weight = view.own["observation_weight"][:, None, None]

    def point(observation: Tensor, action: Tensor) -> Tensor:
        return torch.cat([weight * observation, action], -1)

    points = point(standardized(view.inputs, observations), actions)
    here = point(standardized(view.inputs, view.batch.observation), action)
    found = nearest(here, points)[..., None]
    distance = (here - points.gather(1, found.expand_as(here))).square().sum(-1)
    nearby = actions.gather(1, found.expand_as(action))

    own = view.batch.logged.shape[1]
    own_distance = (action - view.batch.action)[:, :own].square().sum(-1)
    own_distance = F.pad(own_distance, (0, action.shape[1] - own), value=math.inf)
    return torch.where((own_distance <= distance)[..., None], view.batch.action, nearby)
