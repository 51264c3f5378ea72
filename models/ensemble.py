"""Probabilistic ensemble of dynamics models.

Each member maps an observation and an action to a diagonal Gaussian over the change of the
observation and the reward (Chua et al. 2018, arXiv 1805.12114; Janner et al. 2019,
arXiv 1906.08253; Yu et al. 2020, arXiv 2005.13239). All members of all population seeds are one
batched network.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from worldrl.models.mlp import at_least_float32, mlp, stack
from worldrl.types import Parameters, Prediction, Transitions

#: Normalised inputs are clipped here: far outside the data a member should saturate, not explode.
INPUT_CLIP = 10.0
#: Constant input dimensions get scale 1; a smaller floor would amplify float32 rounding.
MIN_SCALE = 1e-6


class Standardizer(NamedTuple):
    """Affine map to zero mean and unit deviation, one per population seed."""

    mean: Tensor  # (P, D)
    scale: Tensor  # (P, D), > 0

    def standardized(self, values: Tensor) -> Tensor:
        """``(P, ..., D)`` in deviations from the mean; ``(..., D)`` by that of a single seed."""
        shape = (len(self.mean), *(1,) * (values.dim() - 2), -1)
        return (values - self.mean.view(shape)) / self.scale.view(shape)


def fit_standardizer(rows: Tensor, indices: Tensor) -> Standardizer:
    """Mean and deviation of each seed's rows, computed in float64.

    Args:
        rows: ``(num_rows, D)``.
        indices: ``(P, num_train)``, the rows that each seed trains on.
    """
    moments = []
    for chosen in indices:
        values = rows[chosen].double()
        deviation = values.std(0, correction=0)
        scale = torch.where(deviation < MIN_SCALE, torch.ones_like(deviation), deviation)
        moments.append((values.mean(0), scale))
    means, scales = zip(*moments, strict=True)
    return Standardizer(torch.stack(means).to(rows.dtype), torch.stack(scales).to(rows.dtype))


class Ensemble(NamedTuple):
    """An ensemble that can predict; a pytree of tensors, so compiled functions take it whole."""

    parameters: Parameters  # weight.i (P, N, in, out), bias.i, max/min_log_variance (P, S + 1)
    inputs: Standardizer  # of observation and action, D = S + A
    targets: Standardizer  # of (delta observation, reward), D = S + 1; identity for raw targets
    elites: Tensor  # (P, E) int64

    @property
    def num_members(self) -> int:
        """N."""
        return self.parameters["weight.0"].shape[1]

    def predict(self, observation: Tensor, action: Tensor) -> Prediction:
        """``(P, R, S), (P, R, A) -> Prediction`` of every member; deterministic."""
        return self.predict_each(observation[:, None], action[:, None])

    def predict_each(self, observation: Tensor, action: Tensor) -> Prediction:
        """Every member on rows of its own: ``(P, N, R, S), (P, N, R, A) -> Prediction``."""
        mean, variance = forward(self.parameters, standardize(self.inputs, observation, action))
        scale = self.targets.scale[:, None, None]  # (P, 1, 1, S + 1)
        mean = mean * scale + self.targets.mean[:, None, None]
        # The reward is predicted directly, where there is one.
        mean = mean + F.pad(observation, (0, mean.shape[-1] - observation.shape[-1]))
        return Prediction(mean, variance.sqrt() * scale)

    def of_elites(self) -> Ensemble:
        """The elites alone, copied, in their order."""
        seeds = torch.arange(len(self.elites), device=self.elites.device)[:, None]
        parameters = {
            name: value[seeds, self.elites] if value.dim() > 2 else value  # bounds are a seed's
            for name, value in self.parameters.items()
        }
        numbers = torch.arange(self.elites.shape[1], device=self.elites.device)
        return self._replace(parameters=parameters, elites=numbers.expand_as(self.elites))

    def of_members(self, chosen: Sequence[int]) -> Ensemble:
        """Those of the population members of these numbers, copied."""
        own = list(chosen)
        return Ensemble(
            {name: value[own] for name, value in self.parameters.items()},
            Standardizer(*(value[own] for value in self.inputs)),
            Standardizer(*(value[own] for value in self.targets)),
            self.elites[own],
        )


def init_ensemble(
    seeds_generators: Sequence[torch.Generator],
    observation_size: int,
    action_size: int,
    hidden: Sequence[int],
    num_members: int,
    layer_norm: bool = False,
    reward: bool = True,
) -> Parameters:
    """Fresh parameters, one generator per population seed; of a model without rewards, if asked.

    Weights are truncated normal with deviation 1/(2 sqrt(in)), cut at two deviations; biases are
    zero; the log-variance bounds start at 0.5 and -10.
    """
    targets = observation_size + reward
    sizes = [observation_size + action_size, *hidden, 2 * targets]
    members: list[Parameters] = []
    for generator in seeds_generators:
        device = generator.device
        one: Parameters = {}
        for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            weight = torch.empty(num_members, fan_in, fan_out, device=device)
            std = 0.5 * fan_in**-0.5
            # The cut is in absolute units: without explicit bounds it would never happen.
            torch.nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std, generator=generator)
            one[f"weight.{layer}"] = weight
            one[f"bias.{layer}"] = torch.zeros(num_members, 1, fan_out, device=device)
            if layer_norm and layer < len(hidden):
                one[f"scale.{layer}"] = torch.ones(num_members, 1, fan_out, device=device)
                one[f"shift.{layer}"] = torch.zeros(num_members, 1, fan_out, device=device)
        one["max_log_variance"] = torch.full((targets,), 0.5, device=device)
        one["min_log_variance"] = torch.full((targets,), -10.0, device=device)
        members.append(one)
    return stack(members)


def changes(batch: Transitions) -> Tensor:
    """What a model predicts, ``(..., S + 1)``: the change of the observation, and the reward."""
    delta = batch.next_observation - batch.observation
    return torch.cat([delta, batch.reward[..., None]], -1)


def standardize(inputs: Standardizer, observation: Tensor, action: Tensor) -> Tensor:
    """``(P, ..., S), (P, ..., A) -> (P, ..., S + A)``, clipped to ±INPUT_CLIP."""
    joined = torch.cat([observation, action], -1)
    return inputs.standardized(joined).clamp(-INPUT_CLIP, INPUT_CLIP)


def forward(parameters: Parameters, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the standardised targets, its logarithm softly clamped.

    Args:
        inputs: ``(P, N, R, S + A)`` standardised, or ``(P, 1, R, S + A)`` for the same rows to
            all members.

    Returns:
        Two ``(P, N, R, S + 1)``.
    """
    output = mlp(parameters, inputs, F.silu)
    mean, log_variance = at_least_float32(output).chunk(2, -1)
    upper = parameters["max_log_variance"][:, None, None]
    lower = parameters["min_log_variance"][:, None, None]
    # The exponential of lower + softplus(upper - softplus(upper - log_variance) - lower), without
    # its four exponentials and logarithms.
    variance = lower.exp() + upper.exp() * torch.sigmoid(log_variance - upper)
    return mean, variance


def gaussian_loss(
    parameters: Parameters, inputs: Tensor, targets: Tensor, bound_weight: float
) -> tuple[Tensor, Tensor]:
    """Training loss without the weight decay, which the optimiser adds (coupled L2).

    Sum over members of the mean over rows and dimensions of
    ``(mean - y)^2 / v + log v``, plus ``bound_weight`` times the spread of the log-variance
    bounds.

    Args:
        inputs: ``(P, N, B, S + A)`` standardised.
        targets: ``(P, N, B, S + 1)`` standardised.

    Returns:
        The scalar summed over P, and each seed's own mean squared error ``(P,)``.
    """
    mean, variance = forward(parameters, inputs)
    squared = (mean - targets).square()
    likelihood = (squared / variance + variance.log()).mean((-1, -2)).sum()
    bounds = (parameters["max_log_variance"] - parameters["min_log_variance"]).sum()
    return likelihood + bound_weight * bounds, squared.detach().mean((1, 2, 3))


def layer_weight_decay(weight_decay: Sequence[float], layers: int) -> dict[str, float]:
    """Coupled L2 of each weight matrix, biases excluded.

    A sequence of another length than the network's depth is stretched linearly, so that
    published five-layer values serve other depths.
    """
    span = max(layers - 1, 1)
    values = []
    for layer in range(layers):
        position = layer / span * (len(weight_decay) - 1)
        low = min(int(position), len(weight_decay) - 1)
        high = min(low + 1, len(weight_decay) - 1)
        share = position - low
        values.append(weight_decay[low] * (1 - share) + weight_decay[high] * share)
    return {f"weight.{layer}": value for layer, value in enumerate(values)}
