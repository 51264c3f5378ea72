"""Behaviour cloning: a deterministic tanh policy regressed on the logged actions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import grad_and_value

from worldrl.config.learners import BCSettings
from worldrl.learners.inputs import moments, seen
from worldrl.learners.networks import ACTOR_HEAD, init_networks, output
from worldrl.learners.schedules import decay
from worldrl.learners.settings import settings_tensors
from worldrl.models.mlp import at_least_float32
from worldrl.optim import adam_init, adam_step
from worldrl.types import Batch, Context, LearnerState, Log, Metrics, Noise, Parameters


class BehaviourCloning:
    """Mean squared error between the policy's and the logged action."""

    phases = 1
    metric_names = ("actor_loss",)

    def __init__(
        self, settings: BCSettings, observation_size: int, action_size: int, num_updates: int
    ) -> None:
        self.settings = settings
        self.num_updates = num_updates
        self.sizes = [observation_size, *settings.hidden, action_size]

    def initialise(self, seeds: Sequence[int], log: Log, first: int = 0) -> LearnerState:
        """Fresh networks, one generator per member."""
        device = log.transitions.reward.device
        actor = init_networks(
            *(seeds, "bc.actor", self.sizes, device, "default", ACTOR_HEAD),
            encoder=self.settings.encoder,
        )
        numbers = {"learning_rate": self.settings.learning_rate}
        return {
            "settings": settings_tensors(numbers, first, len(seeds), device),
            "inputs": moments(log, len(seeds), self.settings.standardize),
            "actor": actor,
            "actor_adam": adam_init(actor),
        }

    def noise(self, generator: torch.Generator, count: int, batch_size: int) -> Noise:
        """None is needed."""
        return {}

    def update(
        self, state: LearnerState, batch: Batch, noise: Noise, context: Context, phase: int = 0
    ) -> Metrics:
        """One regression step, in place."""

        def loss(actor: Parameters) -> tuple[Tensor, Tensor]:
            error = self.act(actor | state["inputs"], batch.observation, None) - batch.action
            per_member = error.square().mean((1, 2))
            return per_member.sum(), per_member

        gradients, (_, losses) = grad_and_value(loss, has_aux=True)(state["actor"])
        share = decay(self.settings.actor_schedule, state["actor_adam"].steps, self.num_updates)
        rate = (state["settings"]["learning_rate"] * share).to(losses.dtype)
        adam_step(state["actor"], gradients, state["actor_adam"], rate)
        return {"actor_loss": losses}

    def policy_parameters(self, state: LearnerState) -> Parameters:
        """The policy network, and how it sees observations."""
        policy: Parameters = state["actor"] | state["inputs"]
        return policy

    def act(self, policy: Parameters, observation: Tensor, noise: Tensor | None) -> Tensor:
        """Deterministic; ``noise`` is ignored."""
        inputs = seen(self.settings, policy, observation)
        return torch.tanh(at_least_float32(output(policy, inputs)))
