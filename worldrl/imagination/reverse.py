"""Rollouts backward in time that leave the data, each in a direction that it keeps.

What they pass through are observations off the data with an action that leads back towards it
(COCOA: Song et al. 2024, arXiv 2404.04682).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worldrl.config.learners import SeekerSettings
from worldrl.imagination.rollout import grouped_rows
from worldrl.imagination.step import own_predictions
from worldrl.random import draw
from worldrl.rows import taken
from worldrl.types import DynamicsModel


class WaysBack(NamedTuple):
    """Pairs of H steps backward from n ends; step h of end i came before step h - 1."""

    observation: Tensor  # (P, H, n, S)
    action: Tensor  # (P, H, n, A), leads forward to the observation of the step before


@torch.no_grad()
def divergent_rollouts(
    settings: SeekerSettings,
    reverse: DynamicsModel,
    ends: Tensor,
    actions: Tensor,
    seeds: Sequence[int],
) -> WaysBack:
    """One rollout of every member from each of the ends.

    A row of a rollout is a sample of one elite, dealt out anew at every step, an equal share of the
    rows to each. A rollout with a number that is not finite is left out, see :func:`whole_ways`.

    Args:
        reverse: tells observations from next observations and actions; no rewards.
        ends: ``(n, S)``, logged next observations.
        actions: ``(m, A)``, logged; a rollout's direction is one of them.
        seeds: P.
    """
    elites = reverse.of_elites()
    members, rows, device = len(seeds), len(ends), ends.device
    deal = elites.elites.shape[1]
    chunk = deal * grouped_rows(rows, members, deal, device)
    picked = draw(
        seeds,
        "reverse.direction",
        0,
        lambda g: torch.randint(len(actions), (rows,), generator=g, device=device),
        device,
    )
    direction = settings.direction_share * actions[picked]  # (P, n, A)
    observation = ends.expand(members, -1, -1)
    found: list[WaysBack] = []
    for step in range(settings.horizon):

        def normals(name: str, width: int, step: int = step) -> Tensor:
            return draw(
                seeds,
                f"reverse.{name}",
                step,
                lambda g: torch.randn(rows, width, generator=g, device=device),
                device,
            )

        noise = settings.action_noise * normals("action", actions.shape[1])
        action = (direction + noise).clamp(-1, 1)
        order = draw(
            seeds,
            "reverse.deal",
            step,
            lambda g: torch.randperm(rows, generator=g, device=device),
            device,
        )
        predicted = [
            own_predictions(elites, taken(observation, part), taken(action, part))
            for part in torch.split(filled_up(order, deal), chunk, 1)
        ]
        mean, std = (torch.cat(parts, 1)[:, :rows] for parts in zip(*predicted, strict=True))
        back = order.argsort(1)
        observation = taken(mean, back) + taken(std, back) * normals("model", ends.shape[1])
        found.append(WaysBack(observation, action))
    return whole_ways(WaysBack(*(torch.stack(parts, 1) for parts in zip(*found, strict=True))))


def whole_ways(ways: WaysBack) -> WaysBack:
    """The same shape, where another rollout of the same member, finite throughout, stands in place
    of each that is not; as they are where a member has none."""
    finite = ways.observation.isfinite().all(-1).all(1)  # (P, n)
    if bool(finite.all()):
        return ways
    counts = finite.sum(1, keepdim=True)
    finite_first = torch.argsort(~finite, dim=1, stable=True)
    place = ((~finite).cumsum(1) - 1) % counts.clamp(min=1)
    numbers = torch.arange(finite.shape[1], device=finite.device).expand_as(finite)
    numbers = torch.where(finite | (counts == 0), numbers, finite_first.gather(1, place.clamp(0)))
    return WaysBack(*(taken(value.transpose(1, 2), numbers).transpose(1, 2) for value in ways))


def filled_up(order: Tensor, multiple: int) -> Tensor:
    """``(P, n)`` to the next multiple, with its last number again."""
    missing = -order.shape[1] % multiple
    return torch.cat([order, order[:, -1:].expand(-1, missing)], 1)
