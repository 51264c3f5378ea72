"""TD3 held close to the data: what TD3+BC, PRDC and ReBRAC have in common.

Twin critics learn from a smoothed deterministic target policy (Fujimoto et al. 2018,
arXiv 1802.09477); the actor and all target networks learn at every second update. What an algorithm
adds to that is an :class:`Algorithm`: the loss of its actor, and what it takes off the next value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from worldrl.config.learners import TD3Settings
from worldrl.learners.critics import Critics, move_target
from worldrl.learners.inputs import moments, seen
from worldrl.learners.networks import ACTOR_HEAD, init_networks, output
from worldrl.learners.schedules import decay
from worldrl.learners.settings import settings_tensors
from worldrl.models.mlp import at_least_float32
from worldrl.optim import adam_init, adam_step
from worldrl.types import Batch, Context, LearnerState, Log, Metrics, Noise, Parameters


class View(NamedTuple):
    """What an algorithm's own terms may look at."""

    own: Mapping[str, Tensor]  # settings, each (P,)
    inputs: Parameters  # of worldrl.learners.inputs
    batch: Batch
    noise: Noise
    context: Context


def no_cost(view: View, next_action: Tensor) -> Tensor:
    """Targets are the plain ones."""
    return torch.zeros_like(next_action[..., 0])


class Algorithm(NamedTuple):
    """What an algorithm adds to TD3."""

    numbers: dict[str, float | tuple[float, ...]]
    """Settings of its own that may differ between members."""
    actor_loss: Callable[[View, Tensor, Tensor], Tensor]
    """``(view, policy's actions (P, B, A), their values (P, B)) -> (P,)``."""
    actor_critics: int | None = None
    """The actor's values are the least of this many critics; None: of all."""
    next_cost: Callable[[View, Tensor], Tensor] = no_cost
    """``(view, target policy's next actions (P, B, A)) -> (P, B)``, taken off the next value."""
    uniforms: int = 0
    """Uniform draws ``noise["uniform"]`` that an update of one member needs."""


class TD3:
    """The learner of an :class:`Algorithm`, for a population of P members."""

    phases = 2
    target_every = 2

    def __init__(
        self,
        settings: TD3Settings,
        observation_size: int,
        action_size: int,
        num_updates: int,
        algorithm: Algorithm,
    ) -> None:
        self.settings = settings
        self.num_updates = num_updates
        self.sizes = [observation_size, *settings.hidden, action_size]
        self.algorithm = algorithm
        self.critics = Critics(settings, observation_size, action_size)
        self.metric_names = (
            *("critic_loss", "value_mean", "backup_mean", "actor_loss", "action_error"),
            *self.critics.metric_names,
        )

    def initialise(self, seeds: Sequence[int], log: Log, first: int = 0) -> LearnerState:
        """Fresh networks, one generator per member and network; targets equal what they follow."""
        device, settings = log.transitions.reward.device, self.settings
        actor = init_networks(
            *(seeds, "td3.actor", self.sizes, device, settings.init, ACTOR_HEAD),
            encoder=settings.encoder,
        )
        critic = self.critics.initialise(seeds, device, "td3.critic")
        numbers = {
            "discount": settings.discount,
            "actor_learning_rate": settings.actor_learning_rate,
            "critic_learning_rate": settings.critic_learning_rate,
            "target_rate": settings.target_rate,
            "target_noise": settings.target_noise,
            "target_noise_clip": settings.target_noise_clip,
            **self.algorithm.numbers,
        }
        return {
            "settings": settings_tensors(numbers, first, len(seeds), device),
            "inputs": moments(log, len(seeds), settings.standardize),
            "support": self.critics.support(log, first, len(seeds)),
            "actor": actor,
            "critic": critic,
            "actor_target": {name: value.clone() for name, value in actor.items()},
            "target": {name: value.clone() for name, value in critic.items()},
            "actor_adam": adam_init(actor),
            "critic_adam": adam_init(critic),
        }

    def noise(self, generator: torch.Generator, count: int, batch_size: int) -> Noise:
        """Standard normals for the target's actions, and what the algorithm asks for."""
        device, uniforms = generator.device, self.algorithm.uniforms
        shape = (count, batch_size, self.sizes[-1])
        drawn = {"target": torch.randn(shape, generator=generator, device=device)}
        if uniforms:
            drawn["uniform"] = torch.rand((count, uniforms), generator=generator, device=device)
        return drawn

    def update(
        self, state: LearnerState, batch: Batch, noise: Noise, context: Context, phase: int = 0
    ) -> Metrics:
        """A critic step and, in phase 1, an actor and a target step, in place."""
        critic, support, algorithm = state["critic"], state["support"], self.algorithm
        own = {name: value.to(batch.reward.dtype) for name, value in state["settings"].items()}
        observation = seen(self.settings, state["inputs"], batch.observation)
        following = seen(self.settings, state["inputs"], batch.next_observation)
        view = View(own, state["inputs"], batch, noise, context)

        limit = own["target_noise_clip"][:, None, None]
        smoothing = own["target_noise"][:, None, None] * noise["target"]
        next_action = tanh_action(state["actor_target"], following)
        next_action = (next_action + smoothing.clamp(-limit, limit)).clamp(-1, 1)
        next_value = self.critics.values(state["target"], support, following, next_action).amin(1)
        next_value = next_value - algorithm.next_cost(view, next_action)
        discount = own["discount"][:, None] * (1 - batch.terminated)
        backup = batch.reward + discount * next_value

        gradients, losses, values = self.critics.gradients(
            critic, support, observation, batch.action, backup[:, None]
        )
        adam_step(critic, gradients, state["critic_adam"], own["critic_learning_rate"])
        metrics = {
            "critic_loss": losses.mean(-1).sum(1),
            "value_mean": values.mean((1, 2)),
            "backup_mean": backup.mean(-1),
            **self.critics.metrics(backup, support),
        }
        if phase == 0:
            return metrics

        # Critics that the actor does not listen to would cost it a pass each.
        heard = {name: value[:, : algorithm.actor_critics] for name, value in critic.items()}

        def actor_loss(actor: Parameters) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            action = tanh_action(actor, observation)
            values = self.critics.values(heard, support, observation, action).amin(1)
            per_member = algorithm.actor_loss(view, action, values)
            return per_member.sum(), (per_member, squared_error(action, batch.action))

        gradients, (_, (actor_losses, errors)) = grad_and_value(actor_loss, has_aux=True)(
            state["actor"]
        )
        updates = state["actor_adam"].steps * self.phases
        share = decay(self.settings.actor_schedule, updates, self.num_updates)
        rate = own["actor_learning_rate"] * share.to(actor_losses.dtype)
        adam_step(state["actor"], gradients, state["actor_adam"], rate)
        move_target(state["target"], critic, own["target_rate"])
        move_target(state["actor_target"], state["actor"], own["target_rate"])
        return metrics | {"actor_loss": actor_losses, "action_error": errors}

    def values(self, state: LearnerState, observation: Tensor, action: Tensor) -> Tensor:
        """``(P, B, S), (P, B, A) -> (P, B)``: the least of the critics, see
        :class:`worldrl.types.ValueLearner`."""
        inputs = seen(self.settings, state["inputs"], observation)
        return self.critics.values(state["critic"], state["support"], inputs, action).amin(1)

    def policy_parameters(self, state: LearnerState) -> Parameters:
        """The actor network, and how it sees observations."""
        policy: Parameters = state["actor"] | state["inputs"]
        return policy

    def act(self, policy: Parameters, observation: Tensor, noise: Tensor | None) -> Tensor:
        """The policy's action; with ``noise``, standard normals, explored around it."""
        action = tanh_action(policy, seen(self.settings, policy, observation))
        if noise is None:
            return action
        return (action + self.settings.exploration * noise).clamp(-1, 1)


def tanh_action(actor: Parameters, observation: Tensor) -> Tensor:
    """``(P, B, S) -> (P, B, A)``, the deterministic policy."""
    return torch.tanh(at_least_float32(output(actor, observation)))


def squared_error(action: Tensor, wanted: Tensor) -> Tensor:
    """Mean over rows and dimensions: ``(P, B, A), (P, B, A) -> (P,)``."""
    return (action - wanted).square().mean((1, 2))


def in_own_size(values: Tensor) -> Tensor:
    """Mean of ``values`` ``(P, B)`` over their mean size, which has no gradient: ``(P,)``."""
    size = values.detach().abs().mean(-1).clamp(min=torch.finfo(values.dtype).tiny)
    return values.mean(-1) / size
