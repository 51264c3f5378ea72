"""Conservative Q-learning (Kumar et al. 2020, arXiv 2006.04779): values that are low off the data.

To the critics' loss comes the gap between a soft maximum of the values over all actions and the
values of logged actions. In imagination that is COMBO (Yu et al. 2021, arXiv 2102.08363): values
are lowered at the observations of all rows, or of the imagined ones, and raised at logged rows.
Everything else is soft actor-critic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import grad_and_value

from worldrl.config.learners import CQLSettings
from worldrl.learners.critics import move_target
from worldrl.learners.inputs import seen
from worldrl.learners.policies import TanhGaussian, tanh_gaussian
from worldrl.learners.sac import SAC
from worldrl.learners.settings import settings_tensors
from worldrl.optim import adam_init, adam_step
from worldrl.types import Batch, Context, LearnerState, Log, Metrics, Noise, Parameters

FIRST_LOG_MULTIPLIER = 1.0
LARGEST_MULTIPLIER = 1e6


class CQL:
    """Conservative Q-learning for a population of P members, with or without imagination."""

    phases = 1

    def __init__(
        self, settings: CQLSettings, observation_size: int, action_size: int, num_updates: int
    ) -> None:
        self.settings = settings
        self.action_size = action_size
        self.sac = SAC(settings, observation_size, action_size, num_updates)
        self.critics = self.sac.critics
        self.lagrange = settings.gap_target is not None
        self.metric_names = (
            *("critic_loss", "actor_loss", "value_mean", "backup_mean", "temperature", "entropy"),
            *("conservative_gap", "conservative_weight"),
            *self.critics.metric_names,
        )

    def initialise(self, seeds: Sequence[int], log: Log, first: int = 0) -> LearnerState:
        """SAC's state, the conservative term's numbers, and the multiplier where it is learned."""
        given = self.settings
        state = self.sac.initialise(seeds, log, first)
        numbers: dict[str, float | tuple[float, ...]] = {
            "conservative_weight": given.conservative_weight
        }
        if given.min_gap is not None:
            numbers["min_gap"] = given.min_gap
        if given.gap_target is not None:
            numbers["gap_target"] = given.gap_target
        device = log.transitions.reward.device
        state["settings"] |= settings_tensors(numbers, first, len(seeds), device)
        if self.lagrange:
            multiplier = torch.full((len(seeds),), FIRST_LOG_MULTIPLIER, device=device)
            state["multiplier"] = {"log_value": multiplier}
            state["multiplier_adam"] = adam_init(state["multiplier"])
        return state

    def noise(self, generator: torch.Generator, count: int, batch_size: int) -> Noise:
        """Standard normals for the target's, the actor's and the conservative term's actions of
        the policy, and actions uniform in [-1, 1] for the rest of that term."""
        device, n, size = generator.device, self.settings.num_sampled_actions, self.action_size
        targets = n if self.settings.max_target_backup else 1

        def normal(*shape: int) -> Tensor:
            return torch.randn(count, *shape, size, generator=generator, device=device)

        uniform = torch.rand(count, batch_size, n, size, generator=generator, device=device)
        return {
            "targets": normal(batch_size, targets),
            "actor": normal(batch_size),
            "policy": normal(2, batch_size, n),
            "uniform": 2 * uniform - 1,
        }

    def update(
        self, state: LearnerState, batch: Batch, noise: Noise, context: Context, phase: int = 0
    ) -> Metrics:
        """One critic, multiplier, actor, temperature and target step, in place."""
        critic, support = state["critic"], state["support"]
        own = {name: value.to(batch.reward.dtype) for name, value in state["settings"].items()}
        temperature = self.sac.temperature(state)
        observation = seen(self.settings, state["inputs"], batch.observation)
        following = seen(self.settings, state["inputs"], batch.next_observation)
        policy = tanh_gaussian(state["actor"], observation)
        next_policy = tanh_gaussian(state["actor"], following)

        actions, densities = next_policy.several().sample(noise["targets"])
        values = self.critics.values_of_several(state["target"], support, following, actions)
        next_value, best = values.amin(1).max(-1)
        if self.settings.entropy_in_target:
            density = densities.gather(-1, best[..., None])[..., 0]
            next_value = next_value - temperature[:, None] * density
        backup = batch.reward + own["discount"][:, None] * (1 - batch.terminated) * next_value

        logged = batch.logged.shape[1]
        lowered = slice(logged if self.settings.conservative_rows == "imagined" else 0, None)
        candidates, densities = self._candidates(policy, next_policy, noise)
        candidates, densities = candidates[:, lowered], densities[:, lowered]
        weight = own["conservative_weight"]
        if self.lagrange:
            multiplier = state["multiplier"]["log_value"].exp().clamp(max=LARGEST_MULTIPLIER)
            weight = weight * multiplier

        def critic_loss(critic: Parameters) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
            losses, values = self.critics.loss(
                critic, support, observation, batch.action, backup[:, None]
            )
            elsewhere = self.critics.values_of_several(
                critic, support, observation[:, lowered], candidates
            )
            # The densities make the sum over samples an integral over actions.
            soft_maximum = (elsewhere - densities[:, None]).logsumexp(-1)  # (P, M, R)
            gaps = self._gaps(soft_maximum, values[..., :logged], own)  # (P, M)
            per_member = losses.mean(-1).sum(1)
            total = (per_member + weight * gaps.sum(1)).sum()
            return total, (per_member, values.mean((1, 2)), gaps.mean(1))

        gradients, (_, (critic_losses, value_means, gaps)) = grad_and_value(
            critic_loss, has_aux=True
        )(critic)
        adam_step(critic, gradients, state["critic_adam"], own["critic_learning_rate"])
        if self.lagrange:
            # Upwards where the gap is above its target.
            gradients = {"log_value": -weight * (gaps - own["gap_target"])}
            rate = own["critic_learning_rate"]
            adam_step(state["multiplier"], gradients, state["multiplier_adam"], rate)

        metrics = self.sac.improve_policy(
            state, observation, noise["actor"], batch.action[:, : batch.logged.shape[1]]
        )
        move_target(state["target"], critic, own["target_rate"])
        return {
            "critic_loss": critic_losses,
            "value_mean": value_means,
            "backup_mean": backup.mean(-1),
            "conservative_gap": gaps,
            "conservative_weight": weight,
            **metrics,
            **self.critics.metrics(backup, support),
        }

    def _candidates(
        self, policy: TanhGaussian, next_policy: TanhGaussian, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Actions ``(P, B, 3n, A)`` and the log-densities ``(P, B, 3n)`` they were drawn with."""
        uniform = noise["uniform"]
        here, here_density = policy.several().sample(noise["policy"][:, 0])
        there, there_density = next_policy.several().sample(noise["policy"][:, 1])
        flat = torch.full_like(here_density, -self.action_size * math.log(2))
        return (
            torch.cat([uniform, there, here], 2),
            torch.cat([flat, there_density, here_density], 2),
        )

    def _gaps(self, lowered: Tensor, raised: Tensor, own: dict[str, Tensor]) -> Tensor:
        """``(P, M, R), (P, M, L) -> (P, M)``: what the conservative term closes."""
        if self.settings.min_gap is None:
            return lowered.mean(-1) - raised.mean(-1)
        assert lowered.shape == raised.shape  # the configuration refuses min_gap in imagination
        return (lowered - raised).maximum(own["min_gap"][:, None, None]).mean(-1)

    def values(self, state: LearnerState, observation: Tensor, action: Tensor) -> Tensor:
        """Those of SAC."""
        return self.sac.values(state, observation, action)

    def policy_parameters(self, state: LearnerState) -> Parameters:
        """The actor network, and how it sees observations."""
        return self.sac.policy_parameters(state)

    def act(self, policy: Parameters, observation: Tensor, noise: Tensor | None) -> Tensor:
        """Sample with ``noise``, or the squashed mean without."""
        return self.sac.act(policy, observation, noise)
