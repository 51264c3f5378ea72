"""Walks: long rollouts of a policy's own action, without noise of its own, step by step.

A refresh of :mod:`worldrl.imagination.rollout` keeps transitions to learn from; a walk shows where
a policy goes, to judge it or to find what is like it in the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worldrl.config.imagination import PenaltyKind
from worldrl.imagination.penalties import PENALTIES
from worldrl.imagination.rollout import (
    logged_range,
    measured,
    observation_bounds,
    upper_quantile,
)
from worldrl.imagination.setup import Ends
from worldrl.imagination.step import Act, Bounds, Draws, LoggedRange, Pessimism, imagined_step
from worldrl.models.world import World
from worldrl.random import draw
from worldrl.rows import unpack
from worldrl.types import Log, Parameters, Transitions

#: Of a penalty on the data: its unit in a walk.
QUANTILE = 0.95
#: The box of a walk is the data's, each side widened by this fraction.
WIDEN = 0.5


class Ground(NamedTuple):
    """What walks of any policy in P worlds have in common."""

    world: World
    ends: Ends
    seeds: Sequence[int]  # of the P worlds
    penalty: PenaltyKind
    unit: Tensor  # (P,), the penalty's 0.95 quantile on the data
    bounds: Bounds
    logged: LoggedRange


class Visited(NamedTuple):
    """One step of every walk."""

    transitions: Transitions  # (P, R, ...), the reward as the world said it
    alive: Tensor  # (P, R) bool: the walk had not ended before this step, and the step is finite
    goes_on: Tensor  # (P, R) bool: nor does it end with it
    penalty: Tensor  # (P, R), in units of its 0.95 quantile on the data
    clipped: Tensor  # (P, R) bool: some dimension left the box
    outside: Tensor  # (P, R) bool: some dimension, or the reward, left what the data holds
    broken: Tensor  # (P, R) bool: the walk ends here because a prediction is not finite


def ground_of(
    world: World, ends: Ends, seeds: Sequence[int], penalty: PenaltyKind, log: Log
) -> Ground:
    """Worlds with the log that they learned from, to walk in."""
    logged = log.transitions
    states = torch.cat([logged.observation, logged.next_observation])
    known = logged_range(states, logged.reward)
    unit = torch.ones(len(seeds), device=states.device)
    if penalty != "none":
        pairs = logged.observation, logged.action
        values = measured(world.ensemble, PENALTIES[penalty], *pairs, known.spread, seeds)
        unit = upper_quantile(values, QUANTILE)
    return Ground(world, ends, seeds, penalty, unit, observation_bounds(states, WIDEN), known)


@torch.no_grad()
def walk(
    ground: Ground, act: Act, policy: Parameters, starts: Tensor, horizon: int, number: int = 0
) -> Iterator[Visited]:
    """Steps of the policy's deterministic action from ``starts``, until all walks have ended.

    A row draws its elite anew at every step and takes that member's sample, from noise that is a
    function of the worlds' seeds and ``number``: two policies meet the same draws.

    Args:
        policy: ``(P, ...)``.
        starts: ``(P, R, S)``.
        number: another one draws other noise.
    """
    world, device, seeds = ground.world, starts.device, ground.seeds
    rows, size = starts.shape[1:]

    def own(policy: Parameters, observation: Tensor, noise: Tensor | None) -> Tensor:
        return act(policy, observation, None)

    step = imagined_step(own, PENALTIES[ground.penalty], ground.ends)
    free = torch.zeros_like(ground.unit)
    pessimism = Pessimism(free, ground.unit, free + math.inf, free)
    elites = world.ensemble.elites
    observation, going = starts, torch.ones_like(starts[..., 0], dtype=torch.bool)
    for depth in range(horizon):

        def chosen(g: torch.Generator) -> Tensor:
            return torch.randint(elites.shape[1], (rows,), generator=g, device=g.device)

        def normal(g: torch.Generator) -> Tensor:
            return torch.randn(rows, size + 1, generator=g, device=g.device)

        elite = elites.gather(1, draw(seeds, f"walk.elite.{depth}", number, chosen, device))
        noise = draw(seeds, f"walk.model.{depth}", number, normal, device)
        imagined = step(
            world,
            policy,
            observation,
            Draws(observation[..., :0], elite, noise),  # nothing is drawn for the action
            pessimism,
            ground.bounds,
            ground.logged,
        )
        action_size = imagined.rows.shape[-1] - 2 * size - 2
        transitions = unpack(imagined.rows, size, action_size)
        finite = imagined.rows.isfinite().all(-1)
        alive = going & finite
        goes_on = alive & (transitions.terminated == 0)
        yield Visited(
            transitions._replace(reward=imagined.reward),
            alive,
            goes_on,
            imagined.penalty,
            imagined.clipped,
            imagined.outside,
            going & ~finite,
        )
        going = goes_on
        if not bool(going.any()):
            return
        observation = transitions.next_observation.where(going[..., None], observation)
