"""Ensemble of inverse dynamics models: which action led from here to there.

Each member maps a few observations in a row, ``s[t - k], ..., s[t + 1]``, to a diagonal Gaussian
over the action ``a[t]`` in [-1, 1] (Zheng et al. 2023, arXiv 2210.06518, section 3). Members are
independent networks in one batched product; N takes the place of the population axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from worldrl.models.ensemble import INPUT_CLIP, Standardizer
from worldrl.models.mlp import init_uniform, mlp, num_layers, stack
from worldrl.types import Parameters

#: Of the predicted variance, which stays smoothly between them: actions lie in [-1, 1], so a larger
#: deviation than 1.6 says nothing, and a smaller one than 0.007 is finer than labels need be.
LOG_VARIANCE_BOUNDS = (-10.0, 1.0)


class Gaussians(NamedTuple):
    """Every member's belief about each action dimension."""

    mean: Tensor  # (N, R, A)
    variance: Tensor  # (N, R, A)


class Inverse(NamedTuple):
    """A trained ensemble."""

    parameters: Parameters  # weight.i (N, in, out), bias.i (N, 1, out)
    observations: Standardizer  # (1, S)

    def predict(self, windows: Tensor) -> Gaussians:
        """``(R, k + 2, S)`` observations to the Gaussians of all members; no dropout."""
        inputs = standardized(self.observations, windows)
        return forward(self.parameters, inputs[None])


def initialise(
    generators: Sequence[torch.Generator],
    observation_size: int,
    action_size: int,
    history: int,
    hidden: Sequence[int],
) -> Parameters:
    """Fresh parameters, one generator a member."""
    sizes = [(history + 2) * observation_size, *hidden, 2 * action_size]
    return stack([init_uniform(sizes, (), generator) for generator in generators])


def standardized(observations: Standardizer, windows: Tensor) -> Tensor:
    """``(..., k + 2, S) -> (..., (k + 2) S)``, clipped; one scale for all times of a window, so
    that equal observations stay equal and the difference of two keeps its meaning."""
    return observations.standardized(windows).clamp(-INPUT_CLIP, INPUT_CLIP).flatten(-2)


def forward(
    parameters: Parameters, inputs: Tensor, keep: Sequence[Tensor] | None = None
) -> Gaussians:
    """The Gaussians for standardised ``inputs`` ``(N, B, D)`` or ``(1, B, D)``.

    Args:
        keep: for each hidden layer ``(N, B, H)``: 0 where a unit is dropped, 1 / (1 - share)
            elsewhere; None keeps all.
    """
    if keep is None:
        output = mlp(parameters, inputs, F.relu)
    else:
        hidden = inputs
        for layer, mask in enumerate(keep):
            hidden = hidden @ parameters[f"weight.{layer}"] + parameters[f"bias.{layer}"]
            hidden = F.relu(hidden) * mask
        last = num_layers(parameters) - 1
        output = hidden @ parameters[f"weight.{last}"] + parameters[f"bias.{last}"]
    mean, log_variance = output.chunk(2, -1)
    lower, upper = LOG_VARIANCE_BOUNDS
    variance = math.exp(lower) + math.exp(upper) * torch.sigmoid(log_variance - upper)
    return Gaussians(mean, variance)


def nll(mean: Tensor, variance: Tensor, action: Tensor) -> Tensor:
    """Negative log-likelihood of each dimension, elementwise."""
    squared = (action - mean).square()
    return 0.5 * (squared / variance + variance.log() + math.log(2 * math.pi))


def loss(
    parameters: Parameters, inputs: Tensor, action: Tensor, keep: Sequence[Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Mean over rows of the negative log-likelihood of an action.

    Args:
        inputs: ``(N, B, D)`` standardised.
        action: ``(N, B, A)`` in [-1, 1].

    Returns:
        The scalar summed over members, and each member's own mean ``(N,)``.
    """
    per_member = nll(*forward(parameters, inputs, keep), action).sum(-1).mean(-1)
    return per_member.sum(), per_member


def mixture(members: Gaussians) -> tuple[Tensor, Tensor]:
    """Mean and variance ``(R, A)`` of the equal mixture of all members."""
    mean = members.mean.mean(0)
    spread = (members.mean - mean).square()  # not E[m^2] - E[m]^2, which cancels
    return mean, (members.variance + spread).mean(0)


def mixture_nll(members: Gaussians, action: Tensor) -> Tensor:
    """Negative log-likelihood of ``action`` ``(R, A)``, each dimension by itself: ``(R, A)``."""
    each = nll(members.mean, members.variance, action)
    return math.log(len(each)) - torch.logsumexp(-each, 0)
