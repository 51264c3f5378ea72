"""Implicit Q-learning (Kostrikov et al. 2021, arXiv 2110.06169): no unseen action is ever valued.

A state's value is an expectile of the critics' values under the logged actions, critics regress on
the next state's value, and the policy clones logged actions, the better ones with more weight.
RIQL (Yang et al. 2023, arXiv 2310.12955), for corrupted data, is settings of it: standardised
observations, more critics and a quantile over them in place of the least, Huber losses, targets
within a range, and a deterministic policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.nn import functional as F

from worldrl.config.learners import IQLSettings
from worldrl.learners.critics import Critics, move_target
from worldrl.learners.inputs import moments, seen
from worldrl.learners.networks import (
    ACTOR_HEAD,
    CRITIC_HEAD,
    encoded,
    init_networks,
    scalar_output,
)
from worldrl.learners.policies import HALF_LOG_TWO_PI
from worldrl.learners.schedules import decay
from worldrl.learners.settings import settings_tensors
from worldrl.models.mlp import at_least_float32, hidden_features, num_layers
from worldrl.optim import adam_init, adam_step
from worldrl.types import Batch, Context, LearnerState, Log, Metrics, Noise, Parameters

LOG_STD_RANGE = (-20.0, 2.0)


class IQL:
    """Implicit Q-learning for a population of P members."""

    phases = 1

    def __init__(
        self, settings: IQLSettings, observation_size: int, action_size: int, num_updates: int
    ) -> None:
        self.settings = settings
        self.observation_size = observation_size
        self.action_size = action_size
        self.num_updates = num_updates
        self.critics = Critics(settings, observation_size, action_size)
        self.metric_names = (
            *("critic_loss", "value_loss", "actor_loss", "value_mean", "backup_mean"),
            *("advantage_mean", "weight_mean", "weight_clipped"),
            *self.critics.metric_names,
        )

    def initialise(self, seeds: Sequence[int], log: Log, first: int = 0) -> LearnerState:
        """Fresh networks, one generator per member and network; the target equals the critic."""
        device = log.transitions.reward.device
        settings = self.settings
        hidden = [self.observation_size, *settings.hidden]
        sizes = [*hidden, self.action_size]
        actor = init_networks(
            *(seeds, "iql.actor", sizes, device, settings.init, ACTOR_HEAD),
            encoder=settings.encoder,
        )
        if settings.policy == "gaussian":
            actor["log_std"] = torch.zeros(len(seeds), 1, self.action_size, device=device)
        critic = self.critics.initialise(seeds, device, "iql.critic")
        value = init_networks(
            *(seeds, "iql.value", [*hidden, 1], device, settings.init, CRITIC_HEAD),
            norm=settings.norm,
            encoder=settings.encoder,
        )
        return {
            "settings": settings_tensors(self._per_member(), first, len(seeds), device),
            "inputs": moments(log, len(seeds), settings.standardize),
            "support": self.critics.support(log, first, len(seeds)),
            "actor": actor,
            "value": value,
            "critic": critic,
            "target": {name: one.clone() for name, one in critic.items()},
            "actor_adam": adam_init(actor),
            "value_adam": adam_init(value),
            "critic_adam": adam_init(critic),
        }

    def _per_member(self) -> dict[str, float | tuple[float, ...]]:
        given = self.settings
        low, high = given.target_low, given.target_high
        return {
            "discount": given.discount,
            "expectile": given.expectile,
            "inverse_temperature": given.inverse_temperature,
            "max_weight": given.max_weight,
            "actor_learning_rate": given.actor_learning_rate,
            "value_learning_rate": given.value_learning_rate,
            "critic_learning_rate": given.critic_learning_rate,
            "target_rate": given.target_rate,
            "target_low": -math.inf if low is None else low,
            "target_high": math.inf if high is None else high,
        }

    def noise(self, generator: torch.Generator, count: int, batch_size: int) -> Noise:
        """Which hidden units of the actor stay, a mask a layer, where some are dropped."""
        if self.settings.dropout == 0:
            return {}
        device = generator.device
        return {
            f"stays.{layer}": torch.rand(
                count, batch_size, width, generator=generator, device=device
            )
            >= self.settings.dropout
            for layer, width in enumerate(self.settings.hidden)
        }

    def update(
        self, state: LearnerState, batch: Batch, noise: Noise, context: Context, phase: int = 0
    ) -> Metrics:
        """One value, critic, target and actor step, in place.

        The next states' values and the advantages are of the value network before its step, as in
        CORL (corl-team/CORL).
        """
        actor, critic, support = state["actor"], state["critic"], state["support"]
        own = {name: value.to(batch.reward.dtype) for name, value in state["settings"].items()}
        observation = seen(self.settings, state["inputs"], batch.observation)
        following = seen(self.settings, state["inputs"], batch.next_observation)

        action_value = self.over_critics(
            self.critics.values(state["target"], support, observation, batch.action)
        )
        next_value = state_value(state["value"], following)

        def value_loss(value: Parameters) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            advantage = action_value - state_value(value, observation)
            side = (own["expectile"][:, None] - (advantage < 0).to(advantage.dtype)).abs()
            per_member = (side * advantage.square()).mean(-1)
            return per_member.sum(), (per_member, advantage)

        gradients, (_, (value_losses, advantage)) = grad_and_value(value_loss, has_aux=True)(
            state["value"]
        )
        adam_step(state["value"], gradients, state["value_adam"], own["value_learning_rate"])

        discount = own["discount"][:, None] * (1 - batch.terminated)
        backup = batch.reward + discount * next_value
        backup = backup.maximum(own["target_low"][:, None]).minimum(own["target_high"][:, None])

        gradients, losses, values = self.critics.gradients(
            critic, support, observation, batch.action, backup[:, None]
        )
        adam_step(critic, gradients, state["critic_adam"], own["critic_learning_rate"])
        move_target(state["target"], critic, own["target_rate"])

        most = own["max_weight"][:, None]
        weight = (own["inverse_temperature"][:, None] * advantage).exp()
        clipped = weight.minimum(most)
        masks = self._masks(noise, clipped.dtype)

        def actor_loss(actor: Parameters) -> tuple[Tensor, Tensor]:
            error = batch.action - policy_mean(actor, observation, masks)
            if self.settings.policy == "deterministic":
                cost = error.square()
            else:
                log_std = actor["log_std"].clamp(*LOG_STD_RANGE)
                scaled = error * (-log_std).exp()
                cost = 0.5 * scaled.square() + log_std + HALF_LOG_TWO_PI
            per_member = (clipped * cost.sum(-1)).mean(-1)
            return per_member.sum(), per_member

        gradients, (_, actor_losses) = grad_and_value(actor_loss, has_aux=True)(actor)
        steps = state["actor_adam"].steps
        share = decay(self.settings.actor_schedule, steps, self.num_updates)
        rate = own["actor_learning_rate"] * share.to(clipped.dtype)
        adam_step(actor, gradients, state["actor_adam"], rate)
        return {
            "critic_loss": losses.mean(-1).sum(1),
            "value_loss": value_losses,
            "actor_loss": actor_losses,
            "value_mean": values.mean((1, 2)),
            "backup_mean": backup.mean(-1),
            "advantage_mean": advantage.mean(-1),
            "weight_mean": clipped.mean(-1),
            "weight_clipped": (weight > most).to(weight.dtype).mean(-1),
            **self.critics.metrics(backup, support),
        }

    def over_critics(self, values: Tensor) -> Tensor:
        """``(P, M, B) -> (P, B)``: the least, or the quantile between the two nearest."""
        quantile = self.settings.quantile
        if quantile is None:
            return values.amin(1)
        place = quantile * (values.shape[1] - 1)
        below = math.floor(place)
        ordered = values.sort(1).values
        if below == place:
            return ordered[:, below]
        return ordered[:, below].lerp(ordered[:, below + 1], place - below)

    def values(self, state: LearnerState, observation: Tensor, action: Tensor) -> Tensor:
        """``(P, B, S), (P, B, A) -> (P, B)``: what :meth:`over_critics` says of the critics, see
        :class:`worldrl.types.ValueLearner`."""
        own = seen(self.settings, state["inputs"], observation)
        values = self.critics.values(state["critic"], state["support"], own, action)
        return self.over_critics(values)

    def state_values(self, state: LearnerState, observation: Tensor) -> Tensor:
        """``(P, B, S) -> (P, B)``."""
        return state_value(state["value"], seen(self.settings, state["inputs"], observation))

    def _masks(self, noise: Noise, dtype: torch.dtype) -> list[Tensor]:
        """Of the actor's hidden layers; what stays is raised, so that sums keep their size."""
        if self.settings.dropout == 0:
            return []
        layers = range(len(self.settings.hidden))
        return [noise[f"stays.{i}"].to(dtype) / (1 - self.settings.dropout) for i in layers]

    def policy_parameters(self, state: LearnerState) -> Parameters:
        """The actor network, and how it sees observations."""
        policy: Parameters = state["actor"] | state["inputs"]
        return policy

    def act(self, policy: Parameters, observation: Tensor, noise: Tensor | None) -> Tensor:
        """The mean; with ``noise`` a Gaussian policy's sample, clipped to [-1, 1]."""
        mean = policy_mean(policy, seen(self.settings, policy, observation))
        if noise is None or self.settings.policy == "deterministic":
            return mean
        std = policy["log_std"].clamp(*LOG_STD_RANGE).exp()
        return (mean + std * noise).clamp(-1, 1)


def policy_mean(policy: Parameters, observation: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
    """``(P, B, S) -> (P, B, A)`` within (-1, 1), with the masks of :func:`hidden_features`."""
    last = num_layers(policy) - 1
    hidden = hidden_features(policy, encoded(policy, observation), F.relu, last, masks)
    output = hidden @ policy[f"weight.{last}"] + policy[f"bias.{last}"]
    return torch.tanh(at_least_float32(output))


def state_value(value: Parameters, observation: Tensor) -> Tensor:
    """``(P, B, S) -> (P, B)``."""
    return at_least_float32(scalar_output(value, observation))
