"""Uncertainty of a prediction, ``Prediction -> (P, R)`` (imagined reward minus weight times this).

Unless stated, all members take part and the reward dimension is included. Values are in
observation units, so a weight does not carry over between tasks unless the penalty is scaled by
its quantile on the data.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from worldrl.config.schema import PenaltyKind
from worldrl.registry import Registry
from worldrl.types import Penalty, Prediction

PENALTIES: Registry[Penalty] = Registry(
    "penalty",
    {name: f"worldrl.imagination.penalties:{name}" for name in get_args(PenaltyKind)},
)


def none(prediction: Prediction) -> Tensor:
    """Zero."""
    return torch.zeros_like(prediction.mean[:, 0, :, 0])


def max_aleatoric(prediction: Prediction) -> Tensor:
    """Largest member norm of the standard-deviation vector (MOPO, arXiv 2005.13239, code)."""
    largest: Tensor = prediction.std.norm(dim=-1).amax(1)
    return largest


def max_dev_from_mean(prediction: Prediction) -> Tensor:
    """Largest distance of a member's mean next observation from the ensemble's mean.

    MOPO's ensemble-penalty ablation; called "pairwise-diff" in OfflineRL-Kit.
    """
    mean = prediction.mean[..., :-1]
    largest: Tensor = (mean - mean.mean(1, keepdim=True)).norm(dim=-1).amax(1)
    return largest


def max_pairwise_diff(prediction: Prediction) -> Tensor:
    """Largest distance between two members' mean next observations (MOReL, arXiv 2005.05951)."""
    mean = prediction.mean[..., :-1]
    members = mean.shape[1]
    largest = torch.zeros_like(mean[:, 0, :, 0])
    for first in range(members - 1):  # pair by pair: an (N, N, R, S) tensor would not fit
        distance = (mean[:, first + 1 :] - mean[:, first : first + 1]).norm(dim=-1)
        largest = torch.maximum(largest, distance.amax(1))
    return largest


def ensemble_std(prediction: Prediction) -> Tensor:
    """Norm of the mixture's standard deviation (Lu et al. 2021, arXiv 2110.04135).

    Total variance by dimension: mean of the members' variances plus variance of their means,
    which is ``mean(std^2 + mean^2) - mean(mean)^2`` without its cancellation.
    """
    aleatoric = prediction.std.square().mean(1)
    epistemic = prediction.mean.var(1, correction=0)
    return (aleatoric + epistemic).sum(-1).sqrt()


def mean_std(prediction: Prediction) -> Tensor:
    """Root of the mean over observation dimensions of the variance of the members' means.

    OfflineRL-Kit's "ensemble_std", which is not Lu et al.'s.
    """
    return prediction.mean[..., :-1].var(1, correction=0).mean(-1).sqrt()
