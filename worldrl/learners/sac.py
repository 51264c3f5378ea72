"""Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905), the learner of MOPO and its kin.

The published variants differ in settings only: number of critics, entropy in the target, fixed or
tuned temperature with or without a cap, target entropy, actor schedule, normalisation and
initialisation (see :class:`worldrl.config.learners.SoftSettings`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import grad_and_value

from worldrl.config.learners import SACSettings, SoftSettings
from worldrl.learners.critics import Critics, move_target
from worldrl.learners.diversity import diverse_step
from worldrl.learners.inputs import moments, seen
from worldrl.learners.networks import ACTOR_HEAD, init_networks
from worldrl.learners.policies import tanh_gaussian
from worldrl.learners.schedules import decay
from worldrl.learners.settings import settings_tensors
from worldrl.optim import adam_init, adam_step
from worldrl.types import Batch, Context, LearnerState, Log, Metrics, Noise, Parameters


class SAC:
    """Soft actor-critic for a population of P members."""

    def __init__(
        self, settings: SoftSettings, observation_size: int, action_size: int, num_updates: int
    ) -> None:
        self.settings = settings
        self.observation_size = observation_size
        self.action_size = action_size
        self.num_updates = num_updates
        self.critics = Critics(settings, observation_size, action_size)
        # CQL, MOBILE and H2O have targets or turns of their own: to them these are the plain ones.
        own = settings if isinstance(settings, SACSettings) else SACSettings()
        self.diverse = own.diversity != 0.0
        self.target_critics, self.backup_actions = own.target_critics, own.backup_actions
        self.actor_values = own.actor_values
        self.phases = own.actor_every
        self.metric_names = (
            *("critic_loss", "value_mean", "backup_mean", "actor_loss", "temperature", "entropy"),
            *(("value_spread",) if settings.num_critics > 2 else ()),
            *(("critic_diversity",) if self.diverse else ()),
            *self.critics.metric_names,
        )

    def initialise(self, seeds: Sequence[int], log: Log, first: int = 0) -> LearnerState:
        """Fresh networks, one generator per member and network; the target equals the critic."""
        device = log.transitions.reward.device
        settings = self.settings
        sizes = [self.observation_size, *settings.hidden, 2 * self.action_size]
        actor = init_networks(
            *(seeds, "sac.actor", sizes, device, settings.init, ACTOR_HEAD),
            norm=settings.norm,
            encoder=settings.encoder,
        )
        critic = self.critics.initialise(seeds, device, "sac.critic")
        own = settings_tensors(self._per_member(), first, len(seeds), device)
        temperature = {"log_value": own["initial_temperature"].log().float()}
        return {
            "settings": own,
            "inputs": moments(log, len(seeds), self.settings.standardize),
            "support": self.critics.support(log, first, len(seeds)),
            "actor": actor,
            "critic": critic,
            "target": {name: value.clone() for name, value in critic.items()},
            "temperature": temperature,
            "actor_adam": adam_init(actor),
            "critic_adam": adam_init(critic),
            "temperature_adam": adam_init(temperature),
        }

    def _per_member(self) -> dict[str, float | tuple[float, ...]]:
        given = self.settings
        cap, entropy = given.max_temperature, given.target_entropy
        if given.temperature == "fixed":
            cap = None  # it is as stated
        if entropy is None:
            entropy = _times(given.entropy_per_action, self.action_size)
        extra = {"diversity": given.diversity} if isinstance(given, SACSettings) else {}
        return {
            **extra,
            "discount": given.discount,
            "actor_learning_rate": given.actor_learning_rate,
            "critic_learning_rate": given.critic_learning_rate,
            "temperature_learning_rate": given.temperature_learning_rate,
            "target_rate": given.target_rate,
            "initial_temperature": given.initial_temperature,
            "max_temperature": math.inf if cap is None else cap,
            "target_entropy": entropy,
        }

    def noise(self, generator: torch.Generator, count: int, batch_size: int) -> Noise:
        """Standard normals for the target's and the actor's actions and, where asked for, for the
        target's further actions; and ranks of which the highest choose the targets' critics."""
        device, size, further = generator.device, self.action_size, self.backup_actions - 1
        shape = (count, 2, batch_size, size)
        drawn = {"actions": torch.randn(shape, generator=generator, device=device)}
        if further:
            shape = (count, batch_size, further, size)
            drawn["further_actions"] = torch.randn(shape, generator=generator, device=device)
        if self.target_critics is not None:
            ranks = (count, self.settings.num_critics)
            drawn["target_critics"] = torch.rand(ranks, generator=generator, device=device)
        return drawn

    def update(
        self, state: LearnerState, batch: Batch, noise: Noise, context: Context, phase: int = 0
    ) -> Metrics:
        """One critic and target step and, in the last phase, an actor and temperature step, in
        place."""
        backup, metrics = self.backup(state, batch, noise)
        improve = phase == self.phases - 1
        return metrics | self.learn(state, batch, noise, backup, improve)

    def backup(self, state: LearnerState, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """The critics' targets ``(P, B)``, and what they say."""
        own = {name: value.to(batch.reward.dtype) for name, value in state["settings"].items()}
        following = seen(self.settings, state["inputs"], batch.next_observation)
        actions = noise["actions"][:, 0, :, None]
        if self.backup_actions > 1:
            actions = torch.cat([actions, noise["further_actions"]], 2)
        next_actions, next_log_densities = (
            tanh_gaussian(state["actor"], following).several().sample(actions)
        )
        next_values = self.critics.values_of_several(
            self._heard(state["target"], noise), state["support"], following, next_actions
        )  # (P, M, B, n)
        next_value = next_values.amin(1)
        metrics = {}
        if "value_spread" in self.metric_names:
            # What the least of many takes off: large where imagined rollouts end, say (RAVL).
            metrics["value_spread"] = (next_values.mean(1) - next_value).mean((1, 2))
        if self.settings.entropy_in_target:
            next_value = next_value - self.temperature(state)[:, None, None] * next_log_densities
        next_value = next_value.amax(-1)
        discount = own["discount"][:, None] * (1 - batch.terminated)
        return batch.reward + discount * next_value, metrics

    def _heard(self, target: Parameters, noise: Noise) -> Parameters:
        """The target critics of an update: all, or a random few of each member (REDQ: Chen et al.
        2021, arXiv 2101.05982)."""
        if self.target_critics is None:
            return target
        ranks = noise["target_critics"]
        chosen = ranks.topk(self.target_critics, 1).indices  # (P, target_critics)
        member = torch.arange(len(ranks), device=ranks.device)[:, None]
        return {name: value[member, chosen] for name, value in target.items()}

    def learn(
        self,
        state: LearnerState,
        batch: Batch,
        noise: Noise,
        backup: Tensor,
        improve: bool = True,
    ) -> Metrics:
        """One update in place of critics whose targets ``(P, B)`` are given, and of the rest.

        Args:
            improve: the actor and the temperature learn too.
        """
        critic, support = state["critic"], state["support"]
        own = {name: value.to(batch.reward.dtype) for name, value in state["settings"].items()}
        observation = seen(self.settings, state["inputs"], batch.observation)
        logged = batch.action[:, : batch.logged.shape[1]]
        metrics = {}
        if self.diverse:
            step = diverse_step(
                self.critics,
                critic,
                support,
                observation,
                batch.action,
                backup[:, None],
                own["diversity"],
            )
            gradients, losses, values = step.gradients, step.losses, step.values
            metrics["critic_diversity"] = step.diversity
        else:
            gradients, losses, values = self.critics.gradients(
                critic, support, observation, batch.action, backup[:, None]
            )
        adam_step(critic, gradients, state["critic_adam"], own["critic_learning_rate"])
        improved = {}
        if improve:
            improved = self.improve_policy(state, observation, noise["actions"][:, 1], logged)
        move_target(state["target"], critic, own["target_rate"])
        return {
            "critic_loss": losses.mean(-1).sum(1),
            "value_mean": values.mean((1, 2)),
            "backup_mean": backup.mean(-1),
            **metrics,
            **improved,
            **self.critics.metrics(backup, support),
        }

    def temperature(self, state: LearnerState) -> Tensor:
        """What a unit of entropy is worth, ``(P,)``, no more than its cap."""
        value: Tensor = state["temperature"]["log_value"].exp()
        return value.minimum(state["settings"]["max_temperature"].to(value.dtype))

    def improve_policy(
        self, state: LearnerState, observation: Tensor, noise: Tensor, logged: Tensor
    ) -> Metrics:
        """The actor's step towards the critics' least or mean value, and the temperature's.

        Args:
            observation: ``(P, B, S)``, as the networks see it.
            noise: ``(P, B, A)``.
            logged: ``(P, L, A)``, the actions of the first rows, to clone at first.
        """
        actor, critic, support = state["actor"], state["critic"], state["support"]
        own = {name: value.to(observation.dtype) for name, value in state["settings"].items()}
        temperature = self.temperature(state)
        clones = state["actor_adam"].steps * self.phases < self.settings.cloning_updates

        def actor_loss(actor: Parameters) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            distribution = tanh_gaussian(actor, observation)
            action, log_density = distribution.sample(noise)
            values = self.critics.values(critic, support, observation, action)
            values = values.mean(1) if self.actor_values == "mean" else values.amin(1)
            per_member = (temperature[:, None] * log_density - values).mean(-1)
            if self.settings.cloning_updates > 0:
                likelihood = distribution.of_first(logged.shape[1]).log_density(logged)
                cloning = temperature * log_density.mean(-1) - likelihood.mean(-1)
                per_member = torch.where(clones, cloning, per_member)
            return per_member.sum(), (per_member, log_density.mean(-1))

        gradients, (_, (actor_losses, log_densities)) = grad_and_value(actor_loss, has_aux=True)(
            actor
        )
        rate = own["actor_learning_rate"] * self.actor_decay(state).to(temperature.dtype)
        adam_step(actor, gradients, state["actor_adam"], rate)

        if self.settings.temperature == "auto":
            # d/dlog_alpha of -log_alpha * (log_density + target_entropy), its usual surrogate.
            gradients = {"log_value": -(log_densities + own["target_entropy"])}
            rate = own["temperature_learning_rate"]
            adam_step(state["temperature"], gradients, state["temperature_adam"], rate)
        return {
            "actor_loss": actor_losses,
            "temperature": temperature,
            "entropy": -log_densities,
        }

    def values(self, state: LearnerState, observation: Tensor, action: Tensor) -> Tensor:
        """``(P, B, S), (P, B, A) -> (P, B)``: the least of the critics, see
        :class:`worldrl.types.ValueLearner`."""
        inputs = seen(self.settings, state["inputs"], observation)
        return self.critics.values(state["critic"], state["support"], inputs, action).amin(1)

    def actor_decay(self, state: LearnerState) -> Tensor:
        """The schedule's factor ``(P,)`` on the actor's learning rate."""
        updates: Tensor = state["actor_adam"].steps * self.phases
        return decay(self.settings.actor_schedule, updates, self.num_updates)

    def policy_parameters(self, state: LearnerState) -> Parameters:
        """The actor network, and how it sees observations."""
        policy: Parameters = state["actor"] | state["inputs"]
        return policy

    def act(self, policy: Parameters, observation: Tensor, noise: Tensor | None) -> Tensor:
        """Sample with ``noise``, or the squashed mean without."""
        distribution = tanh_gaussian(policy, seen(self.settings, policy, observation))
        if noise is None:
            return torch.tanh(distribution.mean)
        return torch.tanh(distribution.mean + distribution.log_std.exp() * noise)


def _times(value: float | tuple[float, ...], factor: int) -> float | tuple[float, ...]:
    return tuple(factor * one for one in value) if isinstance(value, tuple) else factor * value
