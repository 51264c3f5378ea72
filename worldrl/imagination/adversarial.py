"""Imagination of kind ``adversarial``: rollouts of a model that turns against the policy.

RAMBO (Rigter et al. 2022, arXiv 2204.12581): before every refresh the ensemble learns to make what
the policy gains by its actions less likely, while the likelihood of the data holds it where there
are data. Policies that do well in what comes out of that are robust to what the data leave open.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from worldrl.config.imagination import AdversarialSettings, without_pessimism
from worldrl.config.members import per_member
from worldrl.errors import ConfigError
from worldrl.imagination.branched import BranchedRollouts, branched_rollouts
from worldrl.imagination.setup import Ends, Setup
from worldrl.imagination.step import Bounds
from worldrl.models.ensemble import (
    Ensemble,
    changes,
    forward,
    gaussian_loss,
    layer_weight_decay,
    standardize,
)
from worldrl.models.mlp import num_layers
from worldrl.models.world import World
from worldrl.optim import AdamState, adam_init, adam_step
from worldrl.random import draw
from worldrl.types import (
    Imagination,
    Learner,
    LearnerState,
    Log,
    Metrics,
    Parameters,
    Prediction,
    Transitions,
    ValueLearner,
)

#: Updates of the model whose draws are made at once.
BLOCK = 100
#: Logged rows that a refresh tells the changed model's error on.
CHECKED_ROWS = 1024

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class Draws(NamedTuple):
    """What one update of the model draws."""

    logged: Tensor  # (P, B) int64, rows to be likely
    start: Tensor  # (P, B) int64, rows that rollouts start from
    elite: Tensor  # (P, B) int64, below E
    model: Tensor  # (P, B, S + 1), normals
    action: Tensor  # (P, B, A)
    next_action: Tensor  # (P, B, A)


class Adversarial(NamedTuple):
    """Where the adversarial rollouts stand."""

    observation: Tensor  # (P, B, S)
    ended: Tensor  # (P, B) bool: starts again


Step = Callable[
    [World, AdamState, LearnerState, Transitions, Adversarial, Draws, Tensor, Tensor, Bounds],
    Adversarial,
]


class AdversarialRollouts:
    """Rollouts of one group, of a model of its own; an :class:`worldrl.types.Imagination`.

    Args:
        branched: the rollouts, in the world as it was learned.
        known: ``(n,)`` int64, the logged rows that a model may learn from.
        weight: ``(P,)``, of the expected advantage.
    """

    def __init__(
        self,
        settings: AdversarialSettings,
        branched: BranchedRollouts,
        log: Log,
        known: Tensor,
        weight: Tensor,
        step: Step,
    ) -> None:
        self.capacity = branched.capacity
        self._settings, self._branched, self._step = settings, branched, step
        self._log, self._known, self._weight = log, known, weight
        world = branched.rollouts.world
        own = {name: value.clone() for name, value in ensemble_of(world).parameters.items()}
        self._world = with_parameters(world, own)
        self._adam = adam_init(own)
        picked = draw(
            branched.rollouts.seeds,
            "adversarial.check",
            0,
            lambda g: torch.randint(len(known), (CHECKED_ROWS,), generator=g, device=g.device),
            known.device,
        )
        self._checked = rows_of(log.transitions, known[picked])

    @property
    def state(self) -> dict[str, Tensor]:
        """The model and the moments of its optimiser."""
        adam = self._adam
        parts = {
            "model": ensemble_of(self._world).parameters,
            "adam.first": adam.first,
            "adam.second": adam.second,
            "adam": {"steps": adam.steps},
        }
        return {
            f"{part}/{name}": value
            for part, values in parts.items()
            for name, value in values.items()
        }

    def prepare(self, number: int, learner: LearnerState) -> None:
        """Turn the model against the learner; not at first, while its values say nothing."""
        if number == 0:
            return
        settings, rollouts = self._settings, self._branched.rollouts
        count = settings.model_updates
        block = min(BLOCK, count)
        rows, horizons = settings.model_batch_size, torch.tensor(list(rollouts.horizons))
        shape = (len(rollouts.seeds), rows)
        start = self._log.transitions.observation
        live = Adversarial(
            start.new_zeros(*shape, start.shape[1]),
            torch.zeros(shape, dtype=torch.bool, device=start.device),
        )
        fresh = (torch.arange(count) % horizons[:, None] == 0).to(start.device)  # (P, count)
        for first in range(0, count, block):
            blocks = math.ceil(count / block)
            draws = self._draws(number * blocks + first // block, block)
            for index in range(min(block, count - first)):
                live = self._step(
                    self._world,
                    self._adam,
                    learner,
                    self._log.transitions,
                    live,
                    Draws(*(value[:, index] for value in draws)),
                    fresh[:, first + index],
                    self._weight,
                    rollouts.bounds,
                )

    def _draws(self, number: int, count: int) -> Draws:
        """``(P, count, ...)`` of what :class:`Draws` says."""
        rollouts, rows = self._branched.rollouts, self._settings.model_batch_size
        observation, action = self._log.transitions[:2]
        device = observation.device

        def some(name: str, sample: Callable[[torch.Generator], Tensor]) -> Tensor:
            return draw(rollouts.seeds, f"adversarial.{name}", number, sample, device)

        def integers(name: str, high: int) -> Tensor:
            return some(
                name, lambda g: torch.randint(high, (count, rows), generator=g, device=g.device)
            )

        def normals(name: str, size: int) -> Tensor:
            return some(
                name, lambda g: torch.randn(count, rows, size, generator=g, device=g.device)
            )

        return Draws(
            self._known[integers("logged", len(self._known))],
            integers("start", len(observation)),
            integers("elite", self._world.ensemble.elites.shape[1]),
            normals("model", observation.shape[1] + 1),
            normals("action", action.shape[1]),
            normals("next_action", action.shape[1]),
        )

    def sources(self, learner: LearnerState) -> Parameters:
        """The policy and the model."""
        policy = self._branched.sources(learner)
        model = ensemble_of(self._world).parameters
        return {f"policy/{name}": value for name, value in policy.items()} | {
            f"model/{name}": value for name, value in model.items()
        }

    def fill(self, rows: Tensor, number: int, sources: Parameters) -> tuple[Tensor, Metrics]:
        """See :class:`worldrl.types.Imagination`."""
        policy, model = (
            {n.removeprefix(part): value for n, value in sources.items() if n.startswith(part)}
            for part in ("policy/", "model/")
        )
        world = with_parameters(self._world, model)
        rollouts = self._branched.rollouts._replace(world=world)
        counts, health = self._branched._replace(rollouts=rollouts).fill(rows, number, policy)
        return counts, health | {"model_mse": logged_error(world, self._checked)}


def adversarial_rollouts(settings: AdversarialSettings, setup: Setup) -> list[Imagination]:
    """The rollouts of every group of a run.

    Raises:
        ConfigError: the learner cannot tell what an action is worth.
    """
    learner = setup.learner
    if not isinstance(learner, ValueLearner):
        raise ConfigError(
            "imagination is adversarial: the model learns from the values of actions, and this "
            "learner has none. Set imagination=none, or learner.kind=sac"
        )
    log, device = setup.log, setup.log.transitions.reward.device
    known = torch.arange(len(log.transitions.reward), device=device)
    if setup.next_known is not None:
        known = known[setup.next_known]
    weights = torch.tensor(per_member(settings.adversarial_weight, setup.population), device=device)
    refreshes = math.ceil(setup.num_updates / settings.every)
    step = adversarial_step(settings, learner, learner, setup.ends)
    step = setup.prepare(step, refreshes * settings.model_updates)
    found: list[Imagination] = []
    first = 0
    for branched in branched_rollouts(without_pessimism(settings), setup):
        assert isinstance(branched, BranchedRollouts)
        weight = weights[first : first + len(branched.rollouts.seeds)]
        first += len(weight)
        found.append(AdversarialRollouts(settings, branched, log, known, weight, step))
    return found


def adversarial_step(
    settings: AdversarialSettings, learner: Learner, values: ValueLearner, ends: Ends
) -> Step:
    """One update of the model, in place, as one function of tensors; and one step of the
    adversarial rollouts, which go on from what the model said."""

    def step(
        world: World,
        adam: AdamState,
        state: LearnerState,
        log: Transitions,  # (n, ...)
        live: Adversarial,
        draws: Draws,
        fresh: Tensor,  # (P,) bool: all rollouts start again
        weight: Tensor,  # (P,)
        bounds: Bounds,
    ) -> Adversarial:
        ensemble = ensemble_of(world)
        parameters, policy = ensemble.parameters, learner.policy_parameters(state)
        again = (fresh[:, None] | live.ended)[..., None]
        observation = torch.where(again, log.observation[draws.start], live.observation)
        action = learner.act(policy, observation, draws.action)
        discount = state["settings"]["discount"].to(observation.dtype)[:, None]
        now = values.values(state, observation, action)
        inputs, targets = model_batch(world, rows_of(log, draws.logged))

        def loss(parameters: Parameters) -> tuple[Tensor, Adversarial]:
            likelihood, _ = gaussian_loss(
                parameters, inputs, targets, settings.log_variance_bound_weight
            )
            changed = ensemble._replace(parameters=parameters)
            prediction = changed.of_elites().predict(observation, action)
            said = sampled(prediction, draws.elite, draws.model).detach()
            following, reward = said[..., :-1].clamp(bounds.low, bounds.high), said[..., -1]
            ended = ends(world.terminator, observation, action, following)
            ahead = values.values(
                state, following, learner.act(policy, following, draws.next_action)
            )
            advantage = reward + discount * ahead.masked_fill(ended, 0.0) - now
            deviation = advantage.std(-1, keepdim=True) + 1e-6
            advantage = (advantage - advantage.mean(-1, keepdim=True)) / deviation
            expected = (mixture_log_density(prediction, said) * advantage).mean(-1)
            return likelihood + (weight * expected).sum(), Adversarial(following, ended)

        gradients, (_, reached) = grad_and_value(loss, has_aux=True)(parameters)
        rate = torch.full_like(weight, settings.model_learning_rate)
        decay = layer_weight_decay(settings.model_weight_decay, num_layers(parameters))
        adam_step(parameters, gradients, adam, rate, decay)
        following, ended = reached
        return Adversarial(following, ended | ~following.isfinite().all(-1))

    return step


def sampled(prediction: Prediction, member: Tensor, noise: Tensor) -> Tensor:
    """What one member ``(P, R)`` of each row says, with ``noise (P, R, S + 1)``; of that shape."""
    chosen = member[:, None, :, None].expand(-1, 1, -1, noise.shape[-1])
    mean, std = (part.gather(1, chosen).squeeze(1) for part in prediction)
    return mean + std * noise


def mixture_log_density(prediction: Prediction, value: Tensor) -> Tensor:
    """Of ``value (P, R, S + 1)`` under the uniform mixture of the members; ``(P, R)``."""
    mean, std = prediction
    scaled = (value[:, None] - mean) / std
    density = (-0.5 * scaled.square() - std.log() - HALF_LOG_TWO_PI).sum(-1)
    return density.logsumexp(1) - math.log(mean.shape[1])


@torch.no_grad()
def logged_error(world: World, batch: Transitions) -> Tensor:
    """Mean squared error ``(P,)`` of the elites' mean predictions on logged rows ``(P, n, ...)``,
    in the model's units."""
    inputs, targets = model_batch(world, batch)
    mean, _ = forward(ensemble_of(world).of_elites().parameters, inputs)
    return (mean - targets).square().mean((1, 2, 3))


def model_batch(world: World, batch: Transitions) -> tuple[Tensor, Tensor]:
    """Standardised inputs and targets of ``(P, R)`` transitions for all members, ``(P, 1, R, ...)``
    each."""
    ensemble = ensemble_of(world)
    inputs, targets = ensemble.inputs, ensemble.targets
    wanted = targets.standardized(changes(batch))
    return standardize(inputs, batch.observation, batch.action)[:, None], wanted[:, None]


def rows_of(log: Transitions, rows: Tensor) -> Transitions:
    """Logged rows ``(P, R)`` as ``(P, R, ...)``."""
    return Transitions(*(value[rows] for value in log))


def with_parameters(world: World, parameters: Parameters) -> World:
    """The same world with other weights in its ensemble."""
    return world._replace(ensemble=ensemble_of(world)._replace(parameters=parameters))


def ensemble_of(world: World) -> Ensemble:
    """The ensemble of a learned world: no other can be turned against a policy."""
    assert isinstance(world.ensemble, Ensemble)
    return world.ensemble
