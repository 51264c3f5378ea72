"""Uncertainty of an imagined step, ``Sampled -> (P, R)`` (reward minus weight times this).

Unless stated, all members take part and the reward dimension is included. Values are in
observation units, so a weight does not carry over between tasks unless the penalty is scaled by
its quantile on the data.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from worldrl.config.imagination import PenaltyKind
from worldrl.registry import Registry
from worldrl.types import Penalty, Sampled

PENALTIES: Registry[Penalty] = Registry(
    "penalty",
    {name: f"worldrl.imagination.penalties:{name}" for name in get_args(PenaltyKind)},
)


def none(sampled: Sampled) -> Tensor:
    """Zero."""
    return torch.zeros_like(sampled.prediction.mean[:, 0, :, 0])


def max_aleatoric(sampled: Sampled) -> Tensor:
    """Largest member norm of the standard-deviation vector (MOPO, arXiv 2005.13239, code)."""
    largest: Tensor = sampled.prediction.std.norm(dim=-1).amax(1)
    return largest


def max_dev_from_mean(sampled: Sampled) -> Tensor:
    """Largest distance of a member's mean next observation from the ensemble's mean.

    MOPO's ensemble-penalty ablation; called "pairwise-diff" in OfflineRL-Kit.
    """
    mean = sampled.prediction.mean[..., :-1]
    largest: Tensor = (mean - mean.mean(1, keepdim=True)).norm(dim=-1).amax(1)
    return largest


def max_pairwise_diff(sampled: Sampled) -> Tensor:
    """Largest distance between two members' mean next observations (MOReL, arXiv 2005.05951)."""
    mean = sampled.prediction.mean[..., :-1]
    members = mean.shape[1]
    largest = torch.zeros_like(mean[:, 0, :, 0])
    for first in range(members - 1):  # pair by pair: an (N, N, R, S) tensor would not fit
        distance = (mean[:, first + 1 :] - mean[:, first : first + 1]).norm(dim=-1)
        largest = torch.maximum(largest, distance.amax(1))
    return largest


def ensemble_std(sampled: Sampled) -> Tensor:
    """Norm of the mixture's standard deviation (Lu et al. 2021, arXiv 2110.04135)."""
    return _mixture_variance(sampled).sum(-1).sqrt()


def ensemble_var(sampled: Sampled) -> Tensor:
    """Norm of the mixture's variance, dimension by dimension (Lu et al. 2021)."""
    norm: Tensor = _mixture_variance(sampled).norm(dim=-1)
    return norm


def mean_std(sampled: Sampled) -> Tensor:
    """Root of the mean over observation dimensions of the variance of the members' means.

    OfflineRL-Kit's "ensemble_std", which is not Lu et al.'s.
    """
    return sampled.prediction.mean[..., :-1].var(1, correction=0).mean(-1).sqrt()


def normalized_std(sampled: Sampled) -> Tensor:
    """:func:`mean_std` in deviations of the data, the reward included (NEUBAY, arXiv 2512.04341).

    The reference normalises with the moments of the observations, not of their changes.
    """
    variance = sampled.prediction.mean.var(1, correction=0) / sampled.spread.square()
    return variance.mean(-1).sqrt()


def ll_var(sampled: Sampled) -> Tensor:
    """Variance over members of the log-density of the sample (Lu et al. 2021), ddof 0."""
    mean, std = sampled.prediction
    scaled = (sampled.value[:, None] - mean) / std
    # The constant of a Gaussian's density is the same for all, and has no variance.
    return (-0.5 * scaled.square() - std.log()).sum(-1).var(1, correction=0)


def loo_kl(sampled: Sampled) -> Tensor:
    """KL divergence of the sample's Gaussian from the other members' mixture (Lu et al. 2021).

    The mixture counts as the Gaussian of its mean and variance, so the divergence is
    ``sum_d [log(v2 / v1) + (v1 + (m1 - m2)^2) / v2 - 1] / 2``. 0 where there are no others.
    """
    mean, std = sampled.prediction
    members, dimensions = mean.shape[1], mean.shape[-1]
    if members == 1:
        return none(sampled)
    own = sampled.member[:, None, :, None]
    chosen = own.expand(-1, 1, -1, dimensions)
    numbers = torch.arange(members, device=mean.device).view(1, -1, 1, 1)
    share = (numbers != own).to(mean.dtype) / (members - 1)  # (P, N, R, 1)
    variance = std.square()
    own_mean, own_variance = mean.gather(1, chosen), variance.gather(1, chosen)
    others = (share * mean).sum(1, keepdim=True)
    spread = (share * (variance + (mean - others).square())).sum(1, keepdim=True)
    distance = (own_variance + (own_mean - others).square()) / spread
    divergence = 0.5 * ((spread / own_variance).log() + distance - 1).sum(-1).squeeze(1)
    return divergence.clamp(min=0)  # rounding


def _mixture_variance(sampled: Sampled) -> Tensor:
    """``(P, R, S + 1)``: mean of the members' variances plus variance of their means.

    That is ``mean(std^2 + mean^2) - mean(mean)^2`` without its cancellation.
    """
    aleatoric = sampled.prediction.std.square().mean(1)
    return aleatoric + sampled.prediction.mean.var(1, correction=0)
