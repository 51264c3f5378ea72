"""Critics: M action values a member, learned by regression or by classification.

With ``critic_loss.kind: huber`` large errors of a regression count in proportion (Yang et al. 2023,
arXiv 2310.12955).

With ``critic_loss.kind: hl_gauss`` a critic tells a distribution over bins of the value, learns by
cross-entropy with the target's Gaussian, and its value is the expectation (Farebrother et al. 2024,
arXiv 2403.03950). Everything else about a learner stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.nn import functional as F

from worldrl.config.learners import CriticSettings, HLGaussLoss, HuberLoss
from worldrl.config.members import per_member
from worldrl.learners.networks import CRITIC_HEAD, init_networks, output, scalar_output
from worldrl.models.mlp import at_least_float32
from worldrl.types import Log, Metrics, Parameters


class Critics:
    """The shape of the critics and how they learn; their tensors are the learner's state."""

    def __init__(self, settings: CriticSettings, observation_size: int, action_size: int) -> None:
        self.settings = settings
        loss = settings.critic_loss
        self.bins = loss.num_bins if isinstance(loss, HLGaussLoss) else 1
        self.sizes = [observation_size + action_size, *settings.hidden, self.bins]

    def initialise(self, seeds: Sequence[int], device: torch.device, name: str) -> Parameters:
        """``(P, M, ...)``, a generator for each member.

        Args:
            name: of the streams, e.g. ``sac.critic``.
        """
        settings = self.settings
        lead = (settings.num_critics,)
        shape = (lead, settings.norm, settings.encoder)
        return init_networks(seeds, name, self.sizes, device, settings.init, CRITIC_HEAD, *shape)

    def support(self, log: Log, first: int, members: int) -> Parameters:
        """The ends ``(P,)`` of the range of values that bins divide; nothing in a regression."""
        loss = self.settings.critic_loss
        if not isinstance(loss, HLGaussLoss):
            return {}
        ends: dict[str, list[float]] = {"low": [], "high": []}
        discounts = per_member(self.settings.discount, first + members)[first:]
        known = {
            discount: returns_range(log, discount)
            for discount in set(discounts)
            if loss.low is None or loss.high is None
        }
        for member, discount in enumerate(discounts, first):
            low, high = known.get(discount, (0.0, 0.0))
            for name, given, found in ("low", loss.low, low), ("high", loss.high, high):
                own = found if given is None else per_member(given, first + members)[member]
                ends[name].append(own)
        device = log.transitions.reward.device
        return {name: torch.tensor(values, device=device) for name, values in ends.items()}

    def values(
        self, critic: Parameters, support: Parameters, observation: Tensor, action: Tensor
    ) -> Tensor:
        """``(P, B, S), (P, B, A) -> (P, M, B)``."""
        return self.values_at(critic, support, torch.cat([observation, action], -1)[:, None])

    def values_at(self, critic: Parameters, support: Parameters, inputs: Tensor) -> Tensor:
        """``(P, M or 1, B, S + A) -> (P, M, B)``: a critic may have inputs of its own."""
        if self.bins == 1:
            return at_least_float32(scalar_output(critic, inputs))
        return self._expectation(at_least_float32(output(critic, inputs)), support)

    def values_of_several(
        self, critic: Parameters, support: Parameters, observation: Tensor, actions: Tensor
    ) -> Tensor:
        """Of several actions a row: ``(P, B, S), (P, B, n, A) -> (P, M, B, n)``."""
        rows, each = actions.shape[1:3]
        repeated = observation[:, :, None].expand(-1, -1, each, -1)
        values = self.values(critic, support, repeated.flatten(1, 2), actions.flatten(1, 2))
        return values.reshape(*values.shape[:2], rows, each)

    def loss(
        self,
        critic: Parameters,
        support: Parameters,
        observation: Tensor,
        action: Tensor,
        target: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Losses and values of every critic and row, both ``(P, M, B)``.

        Args:
            target: ``(P, M, B)`` or ``(P, 1, B)``, without gradient.
        """
        if self.bins == 1:
            values = self.values(critic, support, observation, action)
            return self._regression_loss(values - target), values
        inputs = torch.cat([observation, action], -1)[:, None]
        logits = at_least_float32(output(critic, inputs))  # (P, M, B, bins)
        wanted = self._target_probabilities(target, support)
        losses = -(wanted * F.log_softmax(logits, -1)).sum(-1)
        return losses, self._expectation(logits, support)

    def gradients(
        self,
        critic: Parameters,
        support: Parameters,
        observation: Tensor,
        action: Tensor,
        target: Tensor,
    ) -> tuple[Parameters, Tensor, Tensor]:
        """Of the losses' means over rows, summed over critics and members; and what :meth:`loss`
        says."""

        def total(critic: Parameters) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            losses, values = self.loss(critic, support, observation, action, target)
            return losses.mean(-1).sum(), (losses, values)

        gradients, (_, (losses, values)) = grad_and_value(total, has_aux=True)(critic)
        return gradients, losses, values

    def _regression_loss(self, error: Tensor) -> Tensor:
        loss = self.settings.critic_loss
        if not isinstance(loss, HuberLoss):
            return error.square()
        size = error.abs()
        inside, beyond = error.square() / (2 * loss.threshold), size - loss.threshold / 2
        return torch.where(size <= loss.threshold, inside, beyond)

    def _edges(self, support: Parameters, dtype: torch.dtype) -> Tensor:
        """``(P, 1, 1, bins + 1)``."""
        low, high = (support[name].to(dtype)[:, None] for name in ("low", "high"))
        share = torch.linspace(0, 1, self.bins + 1, device=low.device, dtype=dtype)
        return (low + (high - low) * share)[:, None, None]

    def _expectation(self, logits: Tensor, support: Parameters) -> Tensor:
        edges = self._edges(support, logits.dtype)
        centres = (edges[..., 1:] + edges[..., :-1]) / 2
        return (logits.softmax(-1) * centres).sum(-1)

    def _target_probabilities(self, target: Tensor, support: Parameters) -> Tensor:
        """``(P, m, B) -> (P, m, B, bins)``: a Gaussian's share of every bin."""
        loss = self.settings.critic_loss
        assert isinstance(loss, HLGaussLoss)
        edges = self._edges(support, target.dtype)
        width = edges[..., 1:2] - edges[..., :1]
        # Beyond the support no bin would have any mass: what is clipped here is pinned at an end.
        inside = target[..., None].clamp(edges[..., :1], edges[..., -1:])
        scaled = (edges - inside) / (math.sqrt(2) * loss.smoothing * width)
        cumulative = torch.erf(scaled)
        mass = cumulative[..., 1:] - cumulative[..., :-1]
        return mass / (cumulative[..., -1:] - cumulative[..., :1])

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Keys of :meth:`metrics`."""
        return () if self.bins == 1 else ("target_clipped",)

    def metrics(self, target: Tensor, support: Parameters) -> Metrics:
        """What a support hides: the share ``(P,)`` of targets ``(P, B)`` beyond its range."""
        if self.bins == 1:
            return {}
        low, high = support["low"][:, None], support["high"][:, None]
        return {"target_clipped": ((target < low) | (target > high)).to(target.dtype).mean(-1)}


def returns_range(log: Log, discount: float) -> tuple[float, float]:
    """Least and largest discounted reward-to-go in the data, each a tenth of the range further."""
    reward = log.transitions.reward.double().tolist()
    goes_on = log.next_action_known.tolist()
    ahead, low, high = 0.0, math.inf, -math.inf
    for value, more in zip(reversed(reward), reversed(goes_on), strict=True):
        ahead = value + discount * more * ahead
        low, high = min(low, ahead), max(high, ahead)
    margin = 0.1 * (high - low) or 1.0
    return low - margin, high + margin


def move_target(target: Parameters, critic: Parameters, rate: Tensor) -> None:
    """The target network takes over a share ``(P,)`` of the critic, in place."""
    for name, value in target.items():
        value.lerp_(critic[name], rate.view(-1, *[1] * (value.dim() - 1)))
