"""H2O (Niu et al. 2022, arXiv 2206.13464): logged rows, and those of a simulator that is not exact.

Two discriminators tell logged rows from simulated ones, one by (s, a) and one by (s, a, s'); what
the second knows beyond the first is how much likelier s' is in truth than in the simulator
(Eysenbach et al. 2021, arXiv 2006.13916). Errors of simulated rows count by that ratio, and their
values are lowered where the simulator is off, against those of logged rows. Logged rows are used
as they are. Everything else is soft actor-critic.

Unlike in the authors' code, the ratios of a batch are divided by their mean. Where a simulator is
off everywhere all are small (0.13 on average with twice the gravity), and values under the policy's
own actions, which only simulated rows hold, would hardly be learned: they run ahead of the truth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.nn import functional as F

from worldrl.config.learners import H2OSettings
from worldrl.learners.critics import move_target
from worldrl.learners.inputs import moments, seen, standardized
from worldrl.learners.networks import init_networks
from worldrl.learners.sac import SAC
from worldrl.learners.settings import settings_tensors
from worldrl.models.mlp import at_least_float32, scalar_mlp
from worldrl.optim import adam_init, adam_step
from worldrl.types import Batch, Context, LearnerState, Log, Metrics, Noise, Parameters

#: Of a discriminator's logit in size. The public code bounds each of two logits by 2; its bounds on
#: ratio (from 1e-5) and gap (to 10) lie beyond what that leaves possible.
LARGEST_LOGIT = 4.0
#: Of a row's dynamics gap, so that it has a logarithm: a row without a gap has no share.
LEAST_GAP = 1e-37


class H2O:
    """Dynamics-aware hybrid learning for a population of P members."""

    phases = 1

    def __init__(
        self, settings: H2OSettings, observation_size: int, action_size: int, num_updates: int
    ) -> None:
        self.settings = settings
        self.observation_size = observation_size
        self.pair_size = observation_size + action_size
        self.sac = SAC(settings, observation_size, action_size, num_updates)
        self.critics = self.sac.critics
        self.metric_names = (
            *self.sac.metric_names,
            *("conservative_gap", "dynamics_gap", "dynamics_ratio", "discriminator_loss"),
        )

    def initialise(self, seeds: Sequence[int], log: Log, first: int = 0) -> LearnerState:
        """SAC's state, and the discriminators: of pairs (s, a), and of triples (s, a, s')."""
        given, device = self.settings, log.transitions.reward.device
        state = self.sac.initialise(seeds, log, first)
        numbers = {
            "conservative_weight": given.conservative_weight,
            "discriminator_learning_rate": given.discriminator_learning_rate,
            "discriminator_noise": given.discriminator_noise,
            "gap_noise": given.gap_noise,
        }
        state["settings"] |= settings_tensors(numbers, first, len(seeds), device)
        state["discriminator_inputs"] = moments(log, len(seeds), standardize=True)
        sizes = {"pair": self.pair_size, "triple": self.pair_size + self.observation_size}
        for name, size in sizes.items():
            layers = [size, *given.discriminator_hidden, 1]
            network = init_networks(seeds, f"h2o.{name}", layers, device, "default", head=0.0)
            state[name], state[f"{name}_adam"] = network, adam_init(network)
        return state

    def noise(self, generator: torch.Generator, count: int, batch_size: int) -> Noise:
        """SAC's, and standard normals for the discriminators' inputs and around s'."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(count, *shape, generator=generator, device=generator.device)

        return {
            **self.sac.noise(generator, count, batch_size),
            "inputs": normal(batch_size, self.pair_size + self.observation_size),
            "around": normal(batch_size, self.settings.gap_samples, self.observation_size),
        }

    def update(
        self, state: LearnerState, batch: Batch, noise: Noise, context: Context, phase: int = 0
    ) -> Metrics:
        """One discriminator, critic, actor, temperature and target step, in place."""
        critic, support, logged = state["critic"], state["support"], batch.logged.shape[1]
        own = {name: value.to(batch.reward.dtype) for name, value in state["settings"].items()}
        triples = self._triples(state, batch)
        told_apart = self._discriminate(state, batch, triples, noise["inputs"])
        simulated = triples[:, logged:]
        ratio = log_ratio(state["triple"], simulated).exp().clamp(max=1.0)
        weight = ratio / ratio.mean(-1, keepdim=True)
        gap = self._gap(state, simulated, noise["around"][:, logged:])
        log_share = gap.log() - gap.sum(-1, keepdim=True).log()

        backup, metrics = self.sac.backup(state, batch, noise)
        observation = seen(self.settings, state["inputs"], batch.observation)

        def critic_loss(critic: Parameters) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
            losses, values = self.critics.loss(
                critic, support, observation, batch.action, backup[:, None]
            )
            weighted = weight[:, None] * losses[..., logged:]
            per_member = (losses[..., :logged].mean(-1) + weighted.mean(-1)).sum(1)
            soft_maximum = (values[..., logged:] + log_share[:, None]).logsumexp(-1)  # (P, M)
            gaps = soft_maximum - values[..., :logged].mean(-1)
            total = (per_member + own["conservative_weight"] * gaps.sum(1)).sum()
            return total, (per_member, values.mean((1, 2)), gaps.mean(1))

        gradients, (_, (critic_losses, value_means, gaps)) = grad_and_value(
            critic_loss, has_aux=True
        )(critic)
        adam_step(critic, gradients, state["critic_adam"], own["critic_learning_rate"])
        improved = self.sac.improve_policy(
            state, observation, noise["actions"][:, 1], batch.action[:, : batch.logged.shape[1]]
        )
        move_target(state["target"], critic, own["target_rate"])
        return {
            "critic_loss": critic_losses,
            "value_mean": value_means,
            "backup_mean": backup.mean(-1),
            "conservative_gap": gaps,
            "dynamics_gap": gap.mean(-1),
            "dynamics_ratio": ratio.mean(-1),
            **told_apart,
            **metrics,
            **improved,
            **self.critics.metrics(backup, support),
        }

    def _triples(self, state: LearnerState, batch: Batch) -> Tensor:
        """``(P, B, S + A + S)``, observations in deviations of the data."""
        inputs = state["discriminator_inputs"]
        before = standardized(inputs, batch.observation)
        after = standardized(inputs, batch.next_observation)
        return torch.cat([before, batch.action, after], -1)

    def _discriminate(
        self, state: LearnerState, batch: Batch, triples: Tensor, noise: Tensor
    ) -> Metrics:
        """One step of both discriminators, in place, on blurred inputs.

        Terminal rows teach them nothing: their next observations may not be in the data.
        """
        own = {name: value.to(triples.dtype) for name, value in state["settings"].items()}
        blurred = triples + own["discriminator_noise"][:, None, None] * noise
        networks = {name: state[name] for name in ("pair", "triple")}
        goes_on, logged = 1 - batch.terminated, batch.logged.shape[1]
        sides = [goes_on[:, :logged], goes_on[:, logged:]]
        share = torch.cat([side / side.sum(-1, keepdim=True).clamp(min=1) for side in sides], -1)
        simulated = torch.arange(triples.shape[1], device=triples.device) >= logged
        wrong = 2.0 * simulated - 1  # what a row's logit must be small in

        def loss(networks: dict[str, Parameters]) -> tuple[Tensor, Tensor]:
            by_pair = log_ratio(networks["pair"], blurred[..., : self.pair_size])
            by_triple = by_pair + log_ratio(networks["triple"], blurred)
            logits = torch.stack([by_pair, by_triple], 1)  # (P, 2, B)
            per_member = (F.softplus(wrong * logits) * share[:, None]).sum((1, 2))
            return per_member.sum(), per_member

        gradients, (_, losses) = grad_and_value(loss, has_aux=True)(networks)
        for name, network in networks.items():
            rate = own["discriminator_learning_rate"]
            adam_step(network, gradients[name], state[f"{name}_adam"], rate)
        return {"discriminator_loss": losses}

    def _gap(self, state: LearnerState, triples: Tensor, noise: Tensor) -> Tensor:
        """How much likelier the simulator finds what is around its next observations than the world
        does, in the logarithm: ``(P, R, S + A + S), (P, R, n, S) -> (P, R)``, positive."""
        size: Tensor = state["settings"]["gap_noise"].to(triples.dtype)
        moved = F.pad(size[:, None, None, None] * noise, (self.pair_size, 0))  # s' alone
        around = triples[:, :, None] + moved
        found = -log_ratio(state["triple"], around.flatten(1, 2))
        return found.view(noise.shape[:3]).mean(-1).clamp(min=LEAST_GAP)

    def values(self, state: LearnerState, observation: Tensor, action: Tensor) -> Tensor:
        """Those of SAC."""
        return self.sac.values(state, observation, action)

    def policy_parameters(self, state: LearnerState) -> Parameters:
        """The actor network, and how it sees observations."""
        return self.sac.policy_parameters(state)

    def act(self, policy: Parameters, observation: Tensor, noise: Tensor | None) -> Tensor:
        """Sample with ``noise``, or the squashed mean without."""
        return self.sac.act(policy, observation, noise)


def log_ratio(network: Parameters, inputs: Tensor) -> Tensor:
    """A discriminator's bounded logit: ``(P, B, in) -> (P, B)``. Of triples beside pairs it is
    the logarithm of p_real(s'|s, a) / p_simulated(s'|s, a)."""
    return LARGEST_LOGIT * torch.tanh(at_least_float32(scalar_mlp(network, inputs)))
