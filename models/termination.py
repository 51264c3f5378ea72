"""A learned rule for where episodes end, for tasks without a formula.

A small classifier of ``(observation, action, next_observation)`` per population seed, trained with
a weighted cross entropy because terminal rows are rare, and cut at the probability that gives the
best F1 on held-out rows. Everything it needs to decide stands in one dictionary of tensors:
``weight.i, bias.i``, ``input_mean``, ``input_scale`` and ``threshold``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from worldrl.models.ensemble import INPUT_CLIP
from worldrl.models.mlp import init_uniform, scalar_mlp, stack
from worldrl.types import Parameters, Transitions

MAX_END_WEIGHT = 20.0


class Agreement(NamedTuple):
    """How well predicted ends match the logged ones; NaN where a denominator is zero."""

    precision: Tensor  # (P,) share of predicted ends that are ends
    recall: Tensor  # (P,) share of ends that are predicted


def initialise(
    generators: Sequence[torch.Generator],
    observation_size: int,
    action_size: int,
    hidden: Sequence[int] = (128, 128),
) -> Parameters:
    """Fresh parameters, one generator per population seed; inputs unscaled, threshold 0.5."""
    width = 2 * observation_size + action_size
    members = []
    for generator in generators:
        one = init_uniform([width, *hidden, 1], (), generator)
        device = generator.device
        one["input_mean"] = torch.zeros(width, device=device)
        one["input_scale"] = torch.ones(width, device=device)
        one["threshold"] = torch.full((), 0.5, device=device)
        members.append(one)
    return stack(members)


def logits(
    parameters: Parameters, observation: Tensor, action: Tensor, next_observation: Tensor
) -> Tensor:
    """``(P, B, S), (P, B, A), (P, B, S) -> (P, B)``, log-odds that the episode ends here."""
    inputs = joined(observation, action, next_observation)
    scaled = (inputs - parameters["input_mean"][:, None]) / parameters["input_scale"][:, None]
    log_odds: Tensor = scalar_mlp(parameters, scaled.clamp(-INPUT_CLIP, INPUT_CLIP))
    return log_odds


def ends(
    parameters: Parameters, observation: Tensor, action: Tensor, next_observation: Tensor
) -> Tensor:
    """``(P, B, S), (P, B, A), (P, B, S) -> (P, B)`` bool; what is not finite ends, too."""
    probability = logits(parameters, observation, action, next_observation).sigmoid()
    likely = probability >= parameters["threshold"][:, None]
    return likely | ~next_observation.isfinite().all(-1)


def loss(parameters: Parameters, batch: Transitions, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted cross entropy.

    Args:
        batch: ``(P, B)``.
        weight: ``(P, B)`` of each row.

    Returns:
        The scalar summed over P, and each seed's own mean ``(P,)``.
    """
    predicted = logits(parameters, batch.observation, batch.action, batch.next_observation)
    entropy = F.binary_cross_entropy_with_logits(
        predicted, batch.terminated, weight=weight, reduction="none"
    )
    per_seed = entropy.mean(1)
    return per_seed.sum(), per_seed


def end_weight(num_ends: Tensor, num_others: Tensor) -> Tensor:
    """Loss weight of a terminal row: rows that go on per row that ends, at most 20."""
    return (num_others / num_ends).clamp(max=MAX_END_WEIGHT)


def choose_threshold(probability: Tensor, terminated: Tensor) -> Tensor:
    """The cut with the best F1 on held-out rows, one per seed.

    Of equally good cuts the middle of the gap between scores is taken, so that rows which fall
    between seen ends and seen continuations go to the nearer side.

    Args:
        probability: ``(P, R)``.
        terminated: ``(P, R)``, 1 where the episode ended.

    Returns:
        ``(P,)`` in (0, 1]; 0.5 for a seed without held-out ends.
    """
    return torch.stack(
        [_best_cut(p, t) for p, t in zip(probability, terminated > 0.5, strict=True)]
    )


def agreement(predicted: Tensor, terminated: Tensor) -> Agreement:
    """Precision and recall of ``predicted`` ``(P, R)`` bool against ``terminated`` ``(P, R)``."""
    truth = terminated > 0.5
    hits = (predicted & truth).sum(-1).double()
    return Agreement(hits / predicted.sum(-1), hits / truth.sum(-1))


def joined(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """The classifier's input, ``(..., 2 S + A)``."""
    return torch.cat([observation, action, next_observation], -1)


def _best_cut(probability: Tensor, terminated: Tensor) -> Tensor:
    """Of one seed: ``(R,), (R,) bool -> ()``."""
    if not terminated.any():
        return probability.new_tensor(0.5)
    score, order = probability.sort(descending=True)
    hits = terminated[order].cumsum(0)
    predicted = torch.arange(1, len(score) + 1, device=score.device)
    f1 = 2 * hits / (predicted + terminated.sum())
    last_of_ties = torch.cat([score[1:] < score[:-1], score.new_ones(1, dtype=torch.bool)])
    best = f1.where(last_of_ties, -1.0).argmax()
    following = score[best + 1] if best + 1 < len(score) else score.new_tensor(0.0)
    return (score[best] + following) / 2
