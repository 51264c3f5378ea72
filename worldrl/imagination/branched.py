"""Imagination of kind ``branched``: short rollouts of the policy in a learned world."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worldrl.config.imagination import BranchedSettings
from worldrl.config.members import per_member
from worldrl.imagination.filtering import most_plausible, networks_asked, world_to_filter
from worldrl.imagination.penalties import PENALTIES
from worldrl.imagination.rollout import (
    Rollouts,
    chunk_rows,
    imagine,
    logged_range,
    measured,
    observation_bounds,
    upper_quantile,
)
from worldrl.imagination.setup import Setup
from worldrl.imagination.step import (
    Pessimism,
    Propose,
    Step,
    Stop,
    from_drawn_elite,
    from_own_elite,
    imagined_step,
)
from worldrl.models.world import World
from worldrl.types import (
    Imagination,
    Learner,
    LearnerState,
    Log,
    Metrics,
    Parameters,
    Transitions,
)


class BranchedRollouts(NamedTuple):
    """Rollouts for one group of learners; an :class:`worldrl.types.Imagination`."""

    rollouts: Rollouts
    capacity: int
    learner: Learner

    @property
    def state(self) -> dict[str, Tensor]:
        """None of its own."""
        return {}

    def prepare(self, number: int, learner: LearnerState) -> None:
        """Nothing: the model stays as it is."""

    def sources(self, learner: LearnerState) -> Parameters:
        """The policy."""
        return self.learner.policy_parameters(learner)

    def fill(self, rows: Tensor, number: int, sources: Parameters) -> tuple[Tensor, Metrics]:
        """See :class:`worldrl.types.Imagination`."""
        counts, health = imagine(self.rollouts, rows, number, sources)
        cost = self.rollouts.pessimism.weight * health.penalty_mean
        known = {name: value for name, value in health._asdict().items() if value is not None}
        return counts, known | {"penalty_cost": cost}


def branched_rollouts(settings: BranchedSettings, setup: Setup) -> list[Imagination]:
    """The rollouts of every group of a run.

    Raises:
        ConfigError: a filter asks more snapshots than a dynamics reward holds.
    """
    stop, logged, population = settings.stop, setup.log.transitions, setup.population
    filtered = settings.filter if settings.filter.kind == "dynamics_reward" else None
    step = rollout_step(settings, setup)
    step = setup.prepare(step, model_calls(settings, setup.num_updates, logged.reward.device))
    horizons = per_member(settings.horizon, population)
    states = torch.cat([logged.observation, logged.next_observation])
    bounds = observation_bounds(states, settings.clip_range)
    known = logged_range(states, logged.reward)
    steps_left = None
    if settings.episode_limit is not None:
        steps_left = (settings.episode_limit - steps_before(setup.log)).clamp(min=1)
    found: list[Imagination] = []
    first = 0
    for seeds, world in zip(setup.groups, setup.worlds, strict=True):
        own = slice(first, first + len(seeds))
        first = own.stop
        if settings.judges == "elites":
            world = world._replace(ensemble=world.ensemble.of_elites())
        candidates, networks = 0, world.ensemble.num_members if settings.judged else 1
        if filtered is not None:
            world = world_to_filter(filtered, world, settings.judged)
            candidates = filtered.samples_per_elite * world.ensemble.elites.shape[1]
            networks = networks_asked(world, candidates)
        rollouts = Rollouts(
            step=step,
            world=world,
            starts=logged.observation,
            seeds=list(seeds),
            batch_size=settings.batch_size,
            horizons=horizons[own],
            pessimism=pessimism(settings, world, logged, known.spread, seeds, population, own),
            bounds=bounds,
            logged=known,
            keep_stopped=stop.kind != "drop" and (not filtered or filtered.on_filter != "drop"),
            steps_left=steps_left,
            elite=settings.elite,
            grouped=not settings.judged and filtered is None,
            candidates=candidates,
            networks=networks,
        )
        found.append(BranchedRollouts(rollouts, settings.most_rows(population), setup.learner))
    return found


def rollout_step(settings: BranchedSettings, setup: Setup) -> Step:
    """One step of the rollouts that the settings ask for."""
    stop, filtered = settings.stop, settings.filter
    uncertain = None if stop.kind == "none" else Stop(stop.kind, PENALTIES[stop.measure])
    propose: Propose = from_drawn_elite
    implausible_ends = False
    if filtered.kind == "dynamics_reward":
        propose, implausible_ends = most_plausible(filtered), filtered.on_filter == "terminal"
    elif not settings.judged:
        propose = from_own_elite
    penalty = PENALTIES[settings.penalty.kind]
    return imagined_step(
        setup.learner.act, penalty, setup.ends, uncertain, propose, implausible_ends
    )


def model_calls(settings: BranchedSettings, num_updates: int, device: torch.device) -> int:
    """Calls of the model step for so many updates of one member."""
    refreshes = math.ceil(num_updates / settings.every)
    chunk = chunk_rows(settings.batch_size, 1, device)
    chunks = math.ceil(settings.batch_size / chunk)
    horizons = settings.horizon if isinstance(settings.horizon, tuple) else (settings.horizon,)
    return refreshes * chunks * max(horizons)


def steps_before(log: Log) -> Tensor:
    """Steps of its episode that the log holds before each row, ``(n,)`` int64."""
    position = torch.arange(len(log.next_action_known), device=log.next_action_known.device)
    begins = (log.next_action_known == 0).roll(1)  # the row after an episode's last
    return position - position.where(begins, 0).cummax(0).values


def pessimism(
    settings: BranchedSettings,
    world: World,
    logged: Transitions,
    spread: Tensor,
    seeds: Sequence[int],
    population: int,
    own: slice,
) -> Pessimism:
    """Penalties and limits of the members ``own`` of a run's population."""

    def numbers(value: float | tuple[float, ...]) -> Tensor:
        return torch.tensor(per_member(value, population)[own], device=logged.reward.device)

    def on_data(kind: str) -> Tensor:
        pairs = logged.observation, logged.action
        return measured(world.ensemble, PENALTIES[kind], *pairs, spread, seeds)

    weight = numbers(settings.penalty.weight)
    scale, limit = torch.ones_like(weight), torch.full_like(weight, math.inf)
    if settings.penalty.scale == "dataset_quantile":
        scale = upper_quantile(on_data(settings.penalty.kind), 0.95)
    stop = settings.stop
    if stop.kind != "none":
        values = on_data(stop.measure)
        if stop.deviations is None:
            limit = upper_quantile(values, stop.quantile)
        else:
            mean, deviation = values.mean(1), values.std(1, correction=0)
            limit = mean + numbers(stop.deviations) * deviation
        limit = limit * numbers(stop.factor)
    floor = (logged.reward.min() - stop.cost).expand_as(weight)
    return Pessimism(weight, scale, limit, floor)
