"""Critics that learn to disagree about actions: the diversity term of EDAC.

An et al. 2021, arXiv 2110.01548, equation 4 adds to the critics' loss

    weight * mean_b 1 / (M - 1) * sum over i != j of cos(dQ_i/da, dQ_j/da)

at the batch's actions: critics whose slopes differ cannot all be wrong in the same direction.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, grad_and_value
from torch.nn import functional as F

from worldrl.config.learners import NoEncoder, SquaredLoss
from worldrl.learners.critics import Critics
from worldrl.models.mlp import at_least_float32, num_layers
from worldrl.types import Parameters


class DiverseStep(NamedTuple):
    """What a critic step of EDAC needs and says."""

    gradients: Parameters
    """Of the mean losses, summed over critics and members, and of the weighted diversity term."""
    losses: Tensor  # (P, M, B), without the diversity term
    values: Tensor  # (P, M, B)
    diversity: Tensor  # (P,), the term before its weight; the lower, the more diverse


def diverse_step(
    critics: Critics,
    critic: Parameters,
    support: Parameters,
    observation: Tensor,
    action: Tensor,
    target: Tensor,
    weight: Tensor,
) -> DiverseStep:
    """The exact gradient of the critics' loss with the diversity term.

    Args:
        observation: ``(P, B, S)``.
        action: ``(P, B, A)``.
        target: ``(P, 1, B)``, without gradient.
        weight: eta, ``(P,)``.
    """
    settings = critics.settings
    squared = isinstance(settings.critic_loss, SquaredLoss)
    if squared and settings.norm is None and isinstance(settings.encoder, NoEncoder):
        return _of_relu_networks(critic, observation, action, target, weight)
    return _of_any_networks(critics, critic, support, observation, action, target, weight)


def diversity(slopes: Tensor) -> Tensor:
    """``(P, M, B, A) -> (P,)``: the sum of the pairs' cosines over M - 1, mean over rows."""
    norm = torch.linalg.vector_norm(slopes, dim=-1, keepdim=True)
    unit = slopes / (norm + 1e-10)
    # |sum of the units|^2 holds every pair, and each unit with itself.
    pairs: Tensor = unit.sum(1).square().sum(-1) - unit.square().sum((1, 3))
    return pairs.mean(-1) / (slopes.shape[1] - 1)


def _of_any_networks(
    critics: Critics,
    critic: Parameters,
    support: Parameters,
    observation: Tensor,
    action: Tensor,
    target: Tensor,
    weight: Tensor,
) -> DiverseStep:
    """By differentiating twice."""
    size = observation.shape[-1]
    # An action for every critic, so that each has a slope of its own.
    inputs = torch.cat([observation, action], -1)[:, None]
    inputs = inputs.expand(-1, critics.settings.num_critics, -1, -1)

    def loss(critic: Parameters) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        def total(inputs: Tensor) -> Tensor:
            return critics.values_at(critic, support, inputs).sum()

        term = diversity(grad(total)(inputs)[..., size:])
        losses, values = critics.loss(critic, support, observation, action, target)
        both = losses.mean(-1).sum(1) + weight * term
        return both.sum(), (losses, values, term)

    gradients, (_, (losses, values, term)) = grad_and_value(loss, has_aux=True)(critic)
    return DiverseStep(gradients, losses, values, term)


def _of_relu_networks(
    critic: Parameters, observation: Tensor, action: Tensor, target: Tensor, weight: Tensor
) -> DiverseStep:
    """With half the products of differentiating twice, for regression without normalisation.

    Two facts about a ReLU network Q. What goes backward through its layers is the same for the
    value and for the action gradient: ``back_l``, the slope of Q in what enters the ReLU of layer
    l. And given its masks a network is linear, so that with e = dL/dQ and G = dL/d(dQ/da)

        dL/dtheta = d/dtheta of (e Q(s, a) + G . dQ/da)

    is the gradient of one linear network, whose inputs are e (s, a) + (0, G) and whose biases are
    multiplied by e. So each layer takes four products: forward, backward, forward again with e and
    G, and one for the weights.
    """
    last, size, rows = num_layers(critic) - 1, observation.shape[-1], observation.shape[-2]
    inputs = torch.cat([observation, action], -1)[:, None]
    head = critic[f"weight.{last}"].mT  # (P, M, 1, H)
    hidden, masks = inputs, []
    for layer in range(last):
        hidden = F.relu(hidden @ critic[f"weight.{layer}"] + critic[f"bias.{layer}"])
        masks.append(hidden > 0)
    values = at_least_float32((hidden * head).sum(-1) + critic[f"bias.{last}"].squeeze(-1))

    backs = [head * masks[-1]]  # (P, M, B, H), the first layer's in front
    for layer in range(last - 1, 0, -1):
        backs.insert(0, (backs[0] @ critic[f"weight.{layer}"].mT) * masks[layer - 1])
    slopes = at_least_float32(backs[0] @ critic["weight.0"][..., size:, :].mT)  # (P, M, B, A)

    def weighted(slopes: Tensor) -> tuple[Tensor, Tensor]:
        term = diversity(slopes)
        return (weight * term).sum(), term

    pull, (_, term) = grad_and_value(weighted, has_aux=True)(slopes)
    error = values - target
    push = (2 / rows) * error[..., None]  # (P, M, B, 1)

    gradients = {}
    carried = push * inputs + F.pad(pull, (size, 0))
    for layer, (mask, back) in enumerate(zip(masks, backs, strict=True)):
        weights, bias = critic[f"weight.{layer}"], critic[f"bias.{layer}"]
        gradients[f"weight.{layer}"] = (carried.mT @ back).to(weights.dtype)
        gradients[f"bias.{layer}"] = (push * back).sum(-2, keepdim=True).to(bias.dtype)
        carried = (carried @ weights + push * bias) * mask
    gradients[f"weight.{last}"] = carried.sum(-2)[..., None].to(head.dtype)
    gradients[f"bias.{last}"] = push.sum(-2, keepdim=True)
    return DiverseStep(gradients, error.square(), values, term)
